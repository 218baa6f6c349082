// The derivative of max pooling at fixed positions, and its transpose.
//
// The transpose has two ways. Where few windows cover an input, each input looks at their positions and sums
// those that name it: vectorised over channels, or over columns where these follow the windows by 1 or 2;
// nothing is written twice. Otherwise outputs are added into a band of accumulators that fits into the
// cache; each band scans the outputs that may reach it. Either way an input sums its outputs in a fixed
// order, in Acc<T>.
#include "../indexed.h"
#include "dispatch.h"
#include "positions.h"
#include "reduce_windows.h"

namespace fastops {
namespace cpu {
namespace {

template <typename T, typename P>
void gather_rows(const T* x, const P* positions, T* y, int64_t channels, int64_t plane, int64_t begin,
                 int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t from = positions[i * channels + c];
      const bool inside = static_cast<uint64_t>(from) < static_cast<uint64_t>(plane);
      y[i * channels + c] = inside ? x[from * channels + c] : T{};
    }
}

// ---- scatter_add by looking ------------------------------------------------------------------------

constexpr int64_t kMaxLooks = 9;  // windows per input up to which looking is the faster way

// At most how many windows cover one position of an axis.
int64_t most_windows(const PoolAxis& a) {
  return a.adaptive ? ceil_div(a.out, imax(a.in, 1)) + 1 : ceil_div(a.kernel, a.stride);
}

// The windows that have position i of an axis among their taps, at most kMaxLooks.
struct Covering {
  int64_t count = 0;
  int64_t window[kMaxLooks];
};
inline Covering covering(const PoolAxis& a, int64_t i) {
  Covering found;
  if (a.in == 1 && a.out == 1) {  // the depth of an image: its only window has its only position
    found.window[found.count++] = 0;
    return found;
  }
  if (a.adaptive || a.dilation == 1) {
    const Range r = windows_covering(a, i);
    for (int64_t o = r.begin; o < r.end && found.count < kMaxLooks; ++o) found.window[found.count++] = o;
    return found;
  }
  // Latest tap first: windows in ascending order.
  for (int64_t k = a.kernel - 1; k >= 0; --k) {
    const int64_t start = i + a.pad - k * a.dilation;
    if (start >= 0 && start % a.stride == 0 && start / a.stride < a.out && found.count < kMaxLooks)
      found.window[found.count++] = start / a.stride;
  }
  return found;
}

// covering() of every position of an axis, looked up where the axis is short. For all tasks of a call.
class CoveringTable {
 public:
  explicit CoveringTable(const PoolAxis& a) : axis_(a), known_(a.in <= kTableColumns) {
    if (known_) table_.prepare(0, a.in, [&](int64_t i) { return covering(a, i); });
  }
  Covering operator[](int64_t i) const { return known_ ? table_[i] : covering(axis_, i); }

 private:
  PoolAxis axis_;
  bool known_;
  ColumnTable<Covering> table_;
};

// Input rows [begin, end) of a channels_last image.
template <typename T, typename P>
void look_pixels(const PoolParams& p, const T* dy, const P* positions, T* dx, int64_t begin, int64_t end,
                 const T* dy_end, const P* positions_end) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  const T* dx_end = dx + end * p.in.w * p.c;
  ColumnTable<Covering> columns;
  for (int64_t r = begin; r < end; ++r) {
    const Covering cd = covering(axis_d(p), r / p.in.h), ch = covering(axis_h(p), r % p.in.h);
    for (int64_t iw = 0; iw < p.in.w; ++iw) {
      columns.prepare(iw, p.in.w, [&](int64_t i) { return covering(axis_w(p), i); });
      const Covering& cw = columns[iw];
      int64_t outputs[kMaxLooks * 3];
      int64_t count = 0;
      for (int64_t d = 0; d < cd.count; ++d)
        for (int64_t h = 0; h < ch.count; ++h)
          for (int64_t w = 0; w < cw.count && count < kMaxLooks * 3; ++w)
            outputs[count++] = ((cd.window[d] * p.out.h + ch.window[h]) * p.out.w + cw.window[w]) * p.c;
      const int64_t here = r * p.in.w + iw;
      int64_t c = 0;
      for (; c + lanes <= p.c; c += lanes) {
        Vec<A> sum{};
        for (int64_t i = 0; i < count; ++i) {
          const Mask<A> named = load_positions<Mask<A>>(positions + outputs[i] + c, here, lanes) == Mask<A>{};
          sum += named ? load(dy + outputs[i] + c) : Vec<A>{};
        }
        store(dx + here * p.c + c, sum);
      }
      if (c < p.c) {
        Vec<A> sum{};
        for (int64_t i = 0; i < count; ++i) {
          const P* where = positions + outputs[i] + c;
          const Mask<A> named =
              load_positions<Mask<A>>(where, here, imin(lanes, positions_end - where)) == Mask<A>{};
          sum += named ? load_before(dy + outputs[i] + c, dy_end) : Vec<A>{};
        }
        store_before(dx + here * p.c + c, sum, dx_end);
      }
    }
  }
}

// All windows of a tensor: vectors may read past the ends of rows, but nothing beyond `total` elements.
template <typename T, typename P>
struct Windows {
  const T* dy;
  const P* positions;
  int64_t total;
};

// In contiguous rows, slot j is columns j · stride to (j + 1) · stride − 1: the windows whose taps are among
// them are j + last, …, j + last − (steps − 1).
struct Slots {
  int64_t last, steps;
  explicit Slots(const PoolAxis& a)
      : last((a.stride - 1 + a.pad) / a.stride), steps(last + 1 - ceil_div(a.pad - a.kernel + 1, a.stride)) {}
};

// Whether contiguous rows can look. Vectors read past the ends of a row of windows: window o < 0 is then the
// row before's o + out, and o ≥ out the next one's o − out; these must not reach the slots that look at o. In
// the first case they begin at stride · (o + out) − pad, and the slots end before stride · (o − last +
// steps); in the second they end before stride · (o − out) − pad + kernel, and the slots begin at stride · (o
// − last).
constexpr int64_t kMaxSteps = 4;
inline bool rows_can_look(const PoolParams& p) {
  if (p.adaptive || p.dilation.w != 1 || p.stride.w > 2 || volume(p.in) >= INT32_MAX) return false;
  const Slots slots(axis_w(p));
  return slots.steps <= kMaxSteps &&
         p.stride.w * p.out.w - p.pad.w >= p.stride.w * (slots.steps - slots.last) &&
         p.stride.w * (p.out.w - slots.last) + p.pad.w >= p.kernel.w;
}

// The sums of what windows of some rows name: lane l of phase f is column base + stride · l + f, whose taps
// are those of windows first[i] + l, …, first[i] + l − (steps − 1). Only `whole` ones are all inside the
// tensor.
template <int stride, int steps, bool whole, typename T, typename P>
inline void look_columns(const Windows<T, P>& windows, const int64_t* first, int64_t rows, int64_t shift,
                         int64_t base, Vec<Acc<T>> (&result)[stride]) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  const Mask<A> here = lane_numbers<A>() * stride + static_cast<LaneNumber<A>>(base);
  Vec<A> sum[stride] = {};
  for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int step = 0; step < steps; ++step) {
      const int64_t o = first[i] + shift - step;
      Mask<A> named = Mask<A>{} - 1;
      Vec<A> dy{};
      if (whole) {
        named = load_positions<Mask<A>>(windows.positions + o, 0, lanes);
        dy = load(windows.dy + o);
      } else {
        for (int64_t l = imax(0, -o); l < imin(lanes, windows.total - o); ++l) {
          named[l] = static_cast<LaneNumber<A>>(windows.positions[o + l]);
          dy[l] = to_acc(windows.dy[o + l]);
        }
      }
#pragma GCC unroll 2
      for (int f = 0; f < stride; ++f) sum[f] += named == here + f ? dy : Vec<A>{};
    }
  for (int f = 0; f < stride; ++f) result[f] = sum[f];
}

// Input rows [begin, end) of a contiguous plane, whose windows are those from `plane` on.
template <int stride, int steps, typename T, typename P>
void look_rows(const PoolParams& p, const CoveringTable& heights, const Windows<T, P>& windows, int64_t plane,
               T* dx, int64_t begin, int64_t end) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  const int64_t last = Slots(axis_w(p)).last;
  for (int64_t r = begin; r < end; ++r) {
    const Covering cd = covering(axis_d(p), r / p.in.h), ch = heights[r % p.in.h];
    int64_t first[kMaxLooks];
    int64_t rows = 0;
    for (int64_t d = 0; d < cd.count; ++d)
      for (int64_t h = 0; h < ch.count && rows < kMaxLooks; ++h)
        first[rows++] = plane + (cd.window[d] * p.out.h + ch.window[h]) * p.out.w;
    T* out = dx + r * p.in.w;
    for (int64_t column = 0; column < p.in.w; column += lanes * stride) {
      const int64_t shift = column / stride + last, base = r * p.in.w + column, left = p.in.w - column;
      const bool whole = rows == 0 || (first[0] + shift - (steps - 1) >= 0 &&
                                       first[rows - 1] + shift + lanes <= windows.total);
      Vec<A> sum[stride];
      if (__builtin_expect(whole, 1))
        look_columns<stride, steps, true>(windows, first, rows, shift, base, sum);
      else
        look_columns<stride, steps, false>(windows, first, rows, shift, base, sum);
      if constexpr (stride == 2) {
        const Pair<Vec<A>> both = interleave(sum[0], sum[1]);
        store_some(out + column, both.first, imin(left, lanes));
        if (left > lanes) store_some(out + column + lanes, both.second, imin(left - lanes, lanes));
      } else {
        store_some(out + column, sum[0], imin(left, lanes));
      }
    }
  }
}

// The look_rows for a stride and a number of steps.
template <typename T, typename P>
auto choose_look_rows(int64_t stride, int64_t steps) {
  if (stride == 2)
    return steps <= 1   ? look_rows<2, 1, T, P>
           : steps == 2 ? look_rows<2, 2, T, P>
           : steps == 3 ? look_rows<2, 3, T, P>
                        : look_rows<2, 4, T, P>;
  return steps <= 1   ? look_rows<1, 1, T, P>
         : steps == 2 ? look_rows<1, 2, T, P>
         : steps == 3 ? look_rows<1, 3, T, P>
                      : look_rows<1, 4, T, P>;
}

// ---- scatter_add by bands --------------------------------------------------------------------------

constexpr int64_t kBandElements = 8192;

// Outputs along an axis whose windows may touch positions [begin, end).
inline Range windows_touching(const PoolAxis& a, int64_t begin, int64_t end) {
  PoolAxis span = a;
  span.kernel = (a.kernel - 1) * a.dilation + 1;
  return {windows_covering(span, begin).begin, windows_covering(span, end - 1).end};
}

// Positions [begin, end) of a plane of `stride` interleaved channels, of which channels [0, channels).
template <typename T, typename P>
void scatter_band(const PoolParams& p, int64_t stride, int64_t channels, const T* dy, const P* positions,
                  T* dx, int64_t begin, int64_t end) {
  using A = Acc<T>;
  A band[kBandElements + kSlack];
  std::memset(band, 0, sizeof(A) * static_cast<size_t>((end - begin) * channels));
  const int64_t row_begin = begin / p.in.w, row_end = (end - 1) / p.in.w + 1;
  const int64_t d0 = row_begin / p.in.h, d1 = (row_end - 1) / p.in.h + 1;
  const Range rd = windows_touching(axis_d(p), d0, d1);
  const Range rh = d1 - d0 > 1 ? Range{0, p.out.h}
                               : windows_touching(axis_h(p), row_begin % p.in.h, (row_end - 1) % p.in.h + 1);
  const Range rw = row_end - row_begin > 1
                       ? Range{0, p.out.w}
                       : windows_touching(axis_w(p), begin % p.in.w, (end - 1) % p.in.w + 1);
  const auto add = [&](int64_t from, int64_t to) {  // outputs
    const uint64_t size = static_cast<uint64_t>(end - begin);
    for (int64_t o = from; o < to; ++o)
      for (int64_t c = 0; c < channels; ++c) {
        const uint64_t i = static_cast<uint64_t>(positions[o * stride + c] - begin);
        if (i < size) band[i * channels + c] += to_acc(dy[o * stride + c]);
      }
  };
  for (int64_t od = rd.begin; od < rd.end; ++od) {
    const int64_t row = od * p.out.h;
    if (rw.begin == 0 && rw.end == p.out.w)
      add((row + rh.begin) * p.out.w, (row + rh.end) * p.out.w);
    else
      for (int64_t oh = rh.begin; oh < rh.end; ++oh)
        add((row + oh) * p.out.w + rw.begin, (row + oh) * p.out.w + rw.end);
  }
  // Where the channels are all of them, the band is contiguous in dx too.
  const int64_t runs = channels == stride ? 1 : end - begin,
                run = channels == stride ? (end - begin) * stride : channels;
  for (int64_t i = 0; i < runs; ++i)
    for_vectors<T>(0, run, [&](int64_t j, int64_t count) {
      store_some(dx + (begin + i) * stride + j, load_some(band + i * run + j, count), count);
    });
}
template <typename T, typename P>
void scatter_add_bands(const PoolParams& p, const T* dy, const P* positions, T* dx, int threads) {
  const int64_t planes = p.channels_last ? p.n : p.n * p.c, stride = p.channels_last ? p.c : 1;
  const int64_t in_plane = volume(p.in), out_plane = volume(p.out);
  const int64_t channel_block = imin(stride, 16), channel_blocks = ceil_div(stride, channel_block);
  const int64_t length = imin(in_plane, kBandElements / channel_block), bands = ceil_div(in_plane, length);
  parallel_for(threads, planes * channel_blocks * bands, length * channel_block * 4, [&](int64_t task, int) {
    const int64_t band = task % bands, c = task / bands % channel_blocks * channel_block;
    const int64_t plane = task / bands / channel_blocks;
    // Addresses of what is empty may be null, and nothing is added to them.
    const int64_t first = out_plane > 0 ? plane * out_plane * stride + c : 0;
    scatter_band(p, stride, imin(channel_block, stride - c), dy + first, positions + first,
                 dx + plane * in_plane * stride + c, band * length, imin((band + 1) * length, in_plane));
  });
}

template <typename T, typename P>
void scatter_add_typed(const PoolParams& p, const T* dy, const P* positions, T* dx, int threads) {
  const int64_t most = most_windows(axis_d(p)) * most_windows(axis_h(p)) * most_windows(axis_w(p));
  if (most > kMaxLooks || !(p.channels_last || rows_can_look(p)))
    return scatter_add_bands(p, dy, positions, dx, threads);
  const int64_t planes = p.channels_last ? p.n : p.n * p.c, channels = p.channels_last ? p.c : 1;
  const int64_t rows = p.in.d * p.in.h, width = p.in.w * channels, out_plane = volume(p.out) * channels;
  const int64_t block = p.channels_last ? pixel_rows_per_task(p.n, rows, width, threads)
                                        : rows_per_task(rows, width),
                blocks = ceil_div(rows, block), total = planes * out_plane;
  const Windows<T, P> windows{dy, positions, total};
  const CoveringTable heights(axis_h(p));
  const auto look = choose_look_rows<T, P>(p.stride.w, Slots(axis_w(p)).steps);
  parallel_for(threads, planes * blocks, block * width * 4, [&](int64_t task, int) {
    const int64_t n = task / blocks, begin = task % blocks * block, end = imin(begin + block, rows);
    T* to = dx + n * rows * width;
    if (p.channels_last)
      look_pixels(p, dy + n * out_plane, positions + n * out_plane, to, begin, end, dy + total,
                  positions + total);
    else
      look(p, heights, windows, n * out_plane, to, begin, end);
  });
}

}  // namespace

template <>
void gather<kIsa>(const PoolParams& params, const void* x, const void* positions, void* y, int threads) {
  const PoolParams p = simplified(params);
  dispatch_floating(p.dtype, [&](auto type) {
    dispatch_positions(p.positions, [&](auto index) {
      using T = typename decltype(type)::type;
      using P = typename decltype(index)::type;
      const int64_t planes = p.channels_last ? p.n : p.n * p.c, channels = p.channels_last ? p.c : 1;
      const int64_t outputs = volume(p.out), block = rows_per_task(outputs, channels);
      const int64_t blocks = ceil_div(outputs, block), out_plane = outputs * channels;
      parallel_for(threads, planes * blocks, block * channels * 2, [&](int64_t task, int) {
        const int64_t plane = task / blocks, begin = task % blocks * block;
        gather_rows(static_cast<const T*>(x) + plane * volume(p.in) * channels,
                    static_cast<const P*>(positions) + plane * out_plane,
                    static_cast<T*>(y) + plane * out_plane, channels, volume(p.in), begin,
                    imin(begin + block, outputs));
      });
    });
  });
}

template <>
void scatter_add<kIsa>(const PoolParams& params, const void* dy, const void* positions, void* dx,
                       int threads) {
  const PoolParams p = simplified(params);
  dispatch_floating(p.dtype, [&](auto type) {
    dispatch_positions(p.positions, [&](auto index) {
      using T = typename decltype(type)::type;
      using P = typename decltype(index)::type;
      scatter_add_typed(p, static_cast<const T*>(dy), static_cast<const P*>(positions), static_cast<T*>(dx),
                        threads);
    });
  });
}

}  // namespace cpu
}  // namespace fastops
