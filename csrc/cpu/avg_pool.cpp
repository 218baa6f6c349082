// Average pooling and its adjoint on the CPU.
//
// Both are gathers: the forward sums each output's window, the adjoint sums, for each input, the
// outputs whose windows cover it.
#include "../pool.h"
#include "dispatch.h"
#include "reduce_windows.h"

namespace fastops {
namespace cpu {
namespace {

struct Sum {
  template <typename A>
  static constexpr A identity() {
    return A(0);
  }
  template <typename V>
  static inline V combine(V a, V b) {
    return a + b;
  }
};

// The divisor of output (d, h, w) is a factor of its row times a factor of its column.
struct Divisors {
  const PoolParams& p;
  bool uniform;  // every window has the same divisor

  explicit Divisors(const PoolParams& params) : p(params) {
    uniform =
        p.divisor_override != 0 || (!p.adaptive && whole(axis_d(p)) && whole(axis_h(p)) && whole(axis_w(p)));
  }
  int64_t row(int64_t od, int64_t oh) const {
    if (p.divisor_override != 0) return p.divisor_override;
    return window_count(axis_d(p), od, p.count_include_pad) *
           window_count(axis_h(p), oh, p.count_include_pad);
  }
  int64_t column(int64_t ow) const {
    return p.divisor_override != 0 ? 1 : window_count(axis_w(p), ow, p.count_include_pad);
  }

 private:
  // The first and the last window count all of their kernel, so those between them do.
  bool whole(const PoolAxis& a) const {
    return a.out == 0 || (window_count(a, 0, p.count_include_pad) == a.kernel &&
                          window_count(a, a.out - 1, p.count_include_pad) == a.kernel);
  }
};

// Sum → average (a Finish of reduce_windows.h).
template <typename A>
struct Divide {
  Divisors divisors;
  A inverse = 0;  // of every divisor, if they are uniform
  A row = 0;
  RowBuffer<A> columns;

  explicit Divide(const PoolParams& p) : divisors(p) {
    if (divisors.uniform && volume(p.out) > 0) inverse = A(1) / A(divisors.row(0, 0) * divisors.column(0));
  }
  // The buffer's contents belong to a task.
  Divide(const Divide& other) : divisors(other.divisors), inverse(other.inverse) {}

  void start_columns(int64_t ow0, int64_t ow1) {
    if (divisors.uniform) return;
    for (int64_t ow = ow0; ow < ow1; ++ow) columns.data[ow - ow0] = A(divisors.column(ow));
  }
  void start_row(int64_t od, int64_t oh) {
    if (!divisors.uniform) row = A(divisors.row(od, oh));
  }
  Vec<A> operator()(Vec<A> sum, int64_t o) const {
    return divisors.uniform ? sum * inverse : sum / (row * load(columns.data + o));
  }
  auto pixel(int64_t o) const {
    const A scale = divisors.uniform ? inverse : A(1) / (row * columns.data[o]);
    return [scale](Vec<A> sum) { return sum * scale; };
  }
};

// ---- adjoint -------------------------------------------------------------------------------------

// Σ dy / divisor over the output rows whose windows cover an input row: for windows [begin, begin +
// count) into t; zero for those that do not exist.
template <typename T>
void sum_covering_rows(const PoolParams& p, const Divisors& divisors, const T* dy, int64_t id, int64_t ih,
                       int64_t begin, int64_t count, const Acc<T>* column_divisors, Acc<T>* t) {
  using A = Acc<T>;
  const Range rd = windows_covering(axis_d(p), id), rh = windows_covering(axis_h(p), ih);
  const Range exist = {imin(imax(begin, 0), p.out.w), imin(begin + count, p.out.w)};
  for (int64_t j = 0; j < exist.begin - begin; ++j) t[j] = 0;
  for (int64_t j = imax(exist.end - begin, 0); j < count; ++j) t[j] = 0;
  const A all = divisors.uniform ? A(1) / A(divisors.row(0, 0) * divisors.column(0)) : A(0);
  for_vectors<T>(exist.begin, exist.end, [&](int64_t ow, int64_t some) {
    Vec<A> sum{};
    for (int64_t od = rd.begin; od < rd.end; ++od)
      for (int64_t oh = rh.begin; oh < rh.end; ++oh) {
        const Vec<A> v = load_some(dy + (od * p.out.h + oh) * p.out.w + ow, some);
        sum += divisors.uniform ? v : v / A(divisors.row(od, oh));
      }
    if (divisors.uniform)
      sum *= all;
    else
      sum /= load(column_divisors + ow - begin);
    store_some(t + ow - begin, sum, some);
  });
}

// Whether the same windows cover two input rows, which then have the same gradient.
inline bool same_windows(const PoolParams& p, int64_t r, int64_t s) {
  const Range a = windows_covering(axis_h(p), r % p.in.h), b = windows_covering(axis_h(p), s % p.in.h);
  return r / p.in.h == s / p.in.h && a.begin == b.begin && a.end == b.end;
}

// Input rows [row_begin, row_end) of a contiguous plane.
template <typename T>
void adjoint_rows(const PoolParams& p, const Divisors& divisors, const Columns& columns, const T* dy, T* dx,
                  int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  RowBuffer<A> t, column_divisors, phase_buffer, row_buffer;
  const int64_t stride = columns.stride, reach = columns.reach;
  // Column i is slot q of phase r: i + pad = q · stride + r. Tap k of window o is slot o + k / stride.
  const int64_t slots_end = (p.in.w - 1 + p.pad.w) / stride + 1;
  for (int64_t q0 = p.pad.w / stride; q0 < slots_end; q0 += columns.tile) {
    const int64_t slots = imin(columns.tile, slots_end - q0), windows = slots + reach;
    const int64_t first = q0 * stride - p.pad.w;  // the column of slot q0 of phase 0
    const Range inside = {imax(first, 0), imin(first + slots * stride, p.in.w)};
    if (!divisors.uniform)
      for (int64_t j = 0; j < windows + lanes; ++j) {
        const int64_t ow = q0 - reach + j;
        column_divisors.data[j] = ow >= 0 && ow < p.out.w ? A(divisors.column(ow)) : A(1);
      }
    A* phases = stride == 1 ? row_buffer.data : phase_buffer.data;
    for (int64_t r = row_begin; r < row_end; ++r) {
      T* out = dx + r * p.in.w;
      if (r > row_begin && same_windows(p, r - 1, r)) {
        std::memcpy(out + inside.begin, out + inside.begin - p.in.w, sizeof(T) * (inside.end - inside.begin));
        continue;
      }
      sum_covering_rows(p, divisors, dy, r / p.in.h, r % p.in.h, q0 - reach, windows, column_divisors.data,
                        t.data);
      if (columns.taps < stride) std::memset(phases, 0, sizeof(A) * stride * columns.length);
      for (int64_t k = 0; k < columns.taps; ++k) {
        A* phase = phases + k % stride * columns.length;
        const A* from = t.data + reach - k / stride;
        for (int64_t q = 0; q < slots; q += lanes)
          store(phase + q, k < stride ? load(from + q) : load(phase + q) + load(from + q));
      }
      if (stride > 1) join_phases<A, Vec<A>>(columns, phases, slots, row_buffer.data);
      for_vectors<T>(inside.begin, inside.end, [&](int64_t i, int64_t count) {
        store_some(out + i, load(row_buffer.data + i - first), count);
      });
    }
  }
}

// The same, window by window: adaptive windows, and windows too large for row buffers.
template <typename T>
void adjoint_rows_by_window(const PoolParams& p, const Divisors& divisors, const T* dy, T* dx,
                            int64_t row_begin, int64_t row_end) {
  using A = Acc<T>;
  RowBuffer<A> row;
  for (int64_t r = row_begin; r < row_end; ++r) {
    if (r > row_begin && same_windows(p, r - 1, r)) {
      std::memcpy(dx + r * p.in.w, dx + (r - 1) * p.in.w, sizeof(T) * p.in.w);
      continue;
    }
    const Range rd = windows_covering(axis_d(p), r / p.in.h), rh = windows_covering(axis_h(p), r % p.in.h);
    for (int64_t i0 = 0; i0 < p.in.w; i0 += kRowElements) {
      const int64_t i1 = imin(i0 + kRowElements, p.in.w);
      for (int64_t i = 0; i < i1 - i0; ++i) row.data[i] = 0;
      const Range rw = {windows_covering(axis_w(p), i0).begin, windows_covering(axis_w(p), i1 - 1).end};
      for (int64_t ow = rw.begin; ow < rw.end; ++ow) {
        A sum = 0;
        for (int64_t od = rd.begin; od < rd.end; ++od)
          for (int64_t oh = rh.begin; oh < rh.end; ++oh)
            sum += to_acc(dy[(od * p.out.h + oh) * p.out.w + ow]) / A(divisors.row(od, oh));
        sum /= A(divisors.column(ow));
        const Range covered = window(axis_w(p), ow);
        const int64_t begin = imax(covered.begin, i0) - i0, end = imin(covered.end, i1) - i0;
        for (int64_t i = begin; i < end; ++i) row.data[i] += sum;
      }
      for_vectors<T>(i0, i1, [&](int64_t i, int64_t count) {
        store_some(dx + r * p.in.w + i, load(row.data + i - i0), count);
      });
    }
  }
}

// Input rows [begin, end) of a channels_last image.
template <typename T>
void adjoint_pixels(const PoolParams& p, const Divisors& divisors, const T* dy, T* dx, int64_t begin,
                    int64_t end, const T* dy_end) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  constexpr int64_t kMaxWindows = 64;
  const T* windows[kMaxWindows];  // the windows that cover a pixel, some at a time
  A scale[kMaxWindows];
  const T* dx_end = dx + end * p.in.w * p.c;
  const A uniform = divisors.uniform ? A(1) / A(divisors.row(0, 0) * divisors.column(0)) : A(0);
  ColumnTable<Range> columns;
  for (int64_t r = begin; r < end; ++r) {
    const Range rd = windows_covering(axis_d(p), r / p.in.h), rh = windows_covering(axis_h(p), r % p.in.h);
    for (int64_t iw = 0; iw < p.in.w; ++iw) {
      columns.prepare(iw, p.in.w, [&](int64_t i) { return windows_covering(axis_w(p), i); });
      const Range rw = columns[iw];
      const int64_t high = imax(rh.end - rh.begin, 0), wide = imax(rw.end - rw.begin, 0);
      const int64_t total = imax(rd.end - rd.begin, 0) * high * wide;
      int64_t listed = 0, skipped = 0;
      const auto list = [&](int64_t skip) {
        listed = 0, skipped = skip;
        int64_t od = rd.begin, oh = rh.begin, ow = rw.begin;
        if (skip > 0) od += skip / (high * wide), oh += skip / wide % high, ow += skip % wide;
        for (int64_t i = skip; i < imin(total, skip + kMaxWindows); ++i) {
          windows[listed] = dy + ((od * p.out.h + oh) * p.out.w + ow) * p.c;
          scale[listed++] = divisors.uniform ? uniform : A(1) / A(divisors.row(od, oh) * divisors.column(ow));
          if (++ow < rw.end) continue;
          ow = rw.begin;
          if (++oh < rh.end) continue;
          oh = rh.begin, ++od;
        }
      };
      list(0);
      // Where they do not fit into the list, it is made again for each block of channels.
      const auto for_each_window = [&](auto f) {
        for (int64_t from = 0; from < total; from += kMaxWindows) {
          if (from != skipped) list(from);
          for (int64_t i = 0; i < listed; ++i) f(windows[i], scale[i]);
        }
      };
      T* out = dx + (r * p.in.w + iw) * p.c;
      int64_t c = 0;
      for (; c + 4 * lanes <= p.c; c += 4 * lanes) {
        Vec<A> sum[4] = {};
        for_each_window([&](const T* from, A factor) {
          for (int u = 0; u < 4; ++u) sum[u] += load(from + c + u * lanes) * factor;
        });
        for (int u = 0; u < 4; ++u) store(out + c + u * lanes, sum[u]);
      }
      for (; c < p.c; c += lanes) {
        Vec<A> sum{};
        for_each_window([&](const T* from, A factor) { sum += load_before(from + c, dy_end) * factor; });
        store_before(out + c, sum, dx_end);
      }
    }
  }
}

}  // namespace

template <>
void avg_pool<kIsa>(const PoolParams& params, const void* x, void* y, int threads) {
  const PoolParams p = simplified(params);
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    reduce_windows<Sum>(p, static_cast<const T*>(x), static_cast<T*>(y), threads, Divide<Acc<T>>(p));
  });
}

template <>
void avg_pool_adjoint<kIsa>(const PoolParams& params, const void* dy, void* dx, int threads) {
  const PoolParams p = simplified(params);
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* from = static_cast<const T*>(dy);
    T* to = static_cast<T*>(dx);
    const int64_t planes = p.channels_last ? p.n : p.n * p.c, channels = p.channels_last ? p.c : 1;
    const int64_t rows = p.in.d * p.in.h, out_plane = volume(p.out) * channels, width = p.in.w * channels;
    const int64_t block = p.channels_last ? pixel_rows_per_task(p.n, rows, width, threads)
                                          : rows_per_task(rows, width),
                  blocks = ceil_div(rows, block);
    const Divisors divisors(p);
    if (p.adaptive && !p.channels_last && volume(p.out) == 1) {
      // One value per plane.
      const Acc<T> divisor = Acc<T>(divisors.row(0, 0) * divisors.column(0));
      const int64_t some = rows_per_task(planes, width);
      parallel_for(threads, ceil_div(planes, some), some * width, [&](int64_t task, int) {
        for (int64_t i = task * some; i < imin((task + 1) * some, planes); ++i) {
          const T value = from_acc<T>(to_acc(from[i]) / divisor);
          for (int64_t j = 0; j < width; ++j) to[i * width + j] = value;
        }
      });
      return;
    }
    const Columns columns(axis_w(p));
    parallel_for(threads, planes * blocks, block * width * 4, [&](int64_t task, int) {
      const int64_t plane = task / blocks, begin = task % blocks * block, end = imin(begin + block, rows);
      const T* in = from + plane * out_plane;
      T* out = to + plane * rows * width;
      if (p.channels_last)
        adjoint_pixels(p, divisors, in, out, begin, end, from + planes * out_plane);
      else if (columns.tile >= 1 && volume(p.out) > 0)
        adjoint_rows(p, divisors, columns, in, out, begin, end);
      else
        adjoint_rows_by_window(p, divisors, in, out, begin, end);
    });
  });
}

}  // namespace cpu
}  // namespace fastops
