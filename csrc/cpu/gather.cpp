// The derivative of max pooling at fixed positions, and its transpose.
//
// The transpose has two ways. Where few windows cover an input, each input looks at their positions and
// sums those that name it: vectorised, nothing is written twice. Where many do, and where windows follow
// no fixed step, outputs are added into a band of accumulators that fits into the cache; each band scans
// the outputs that may reach it. Either way an input sums its outputs in a fixed order, in Acc<T>.
#include "../indexed.h"
#include "dispatch.h"
#include "positions.h"
#include "reduce_windows.h"

namespace fastops {
namespace cpu {
namespace {

template <typename T, typename P>
void gather_rows(const T* x, const P* positions, T* y, int64_t channels, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      const P from = positions[i * channels + c];
      y[i * channels + c] = from < 0 ? T{} : x[from * channels + c];
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
  if (a.adaptive) {
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

// Input rows [begin, end) of a contiguous plane.
template <typename T, typename P>
void look_rows(const PoolParams& p, const Columns& columns, const T* dy, const P* positions, T* dx,
               int64_t begin, int64_t end) {
  using A = Acc<T>;
  using I = Index<A>;
  constexpr int64_t lanes = kLanes<A>;
  RowBuffer<A> values, phase_buffer, row_buffer;
  RowBuffer<I> wheres;
  const int64_t stride = columns.stride, reach = columns.reach, dilation = p.dilation.w;
  // Column i is slot q of phase r: i + pad = q · stride + r.
  const int64_t slots_end = (p.in.w - 1 + p.pad.w) / stride + 1;
  for (int64_t q0 = p.pad.w / stride; q0 < slots_end; q0 += columns.tile) {
    const int64_t slots = imin(columns.tile, slots_end - q0), windows = slots + reach;
    const int64_t first = q0 * stride - p.pad.w;  // the column of slot q0 of phase 0
    const Range inside = {imax(first, 0), imin(first + slots * stride, p.in.w)};
    // Windows [exist.begin, exist.end) of the tile's q0 − reach, q0 − reach + 1, …
    const int64_t ow0 = q0 - reach;
    const Range exist = {imin(imax(ow0, 0), p.out.w), imin(ow0 + windows, p.out.w)};
    const auto nothing = [&](int64_t j) {
      values.data[j] = 0;
      wheres.data[j] = -1;
    };
    for (int64_t j = 0; j < exist.begin - ow0; ++j) nothing(j);
    for (int64_t j = imax(exist.end - ow0, 0); j < windows + lanes; ++j) nothing(j);
    A* phases = stride == 1 ? row_buffer.data : phase_buffer.data;
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t phase = 0; phase < stride; ++phase)
        std::memset(phases + phase * columns.length, 0, sizeof(A) * static_cast<size_t>(slots));
      const Covering cd = covering(axis_d(p), r / p.in.h), ch = covering(axis_h(p), r % p.in.h);
      for (int64_t look = 0; look < cd.count * ch.count; ++look) {
        const int64_t row = cd.window[look / ch.count] * p.out.h + ch.window[look % ch.count];
        for_vectors<T>(exist.begin, exist.end, [&](int64_t ow, int64_t count) {
          store_lanes(values.data + ow - ow0, load_some(dy + row * p.out.w + ow, count), count);
          // Counted from this row of the input: other rows' are out of [0, W).
          store_lanes(wheres.data + ow - ow0,
                      load_positions<Mask<A>>(positions + row * p.out.w + ow, r * p.in.w, count), count);
        });
        for (int64_t k = 0; k < columns.taps; ++k) {
          const int64_t phase = k * dilation % stride, shift = k * dilation / stride;
          A* sums = phases + phase * columns.length;
          Mask<A> column = lane_numbers<A>() * static_cast<I>(stride) + static_cast<I>(first + phase);
          const int64_t from = reach - shift;
          for (int64_t q = 0; q < slots; q += lanes, column += static_cast<I>(lanes * stride)) {
            const Mask<A> named = load_bits<Mask<A>>(wheres.data + from + q) == column;
            store(sums + q, load(sums + q) + (named ? load(values.data + from + q) : Vec<A>{}));
          }
        }
      }
      if (stride > 1) join_phases<A, Vec<A>>(columns, phases, slots, row_buffer.data);
      T* out = dx + r * p.in.w;
      for_vectors<T>(inside.begin, inside.end, [&](int64_t i, int64_t count) {
        store_some(out + i, load(row_buffer.data + i - first), count);
      });
    }
  }
}

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
  for (int64_t od = rd.begin; od < rd.end; ++od)
    for (int64_t oh = rh.begin; oh < rh.end; ++oh)
      for (int64_t ow = rw.begin; ow < rw.end; ++ow) {
        const int64_t o = ((od * p.out.h + oh) * p.out.w + ow) * stride;
        for (int64_t c = 0; c < channels; ++c) {
          const uint64_t i = static_cast<uint64_t>(positions[o + c] - begin);
          if (i < static_cast<uint64_t>(end - begin)) band[i * channels + c] += to_acc(dy[o + c]);
        }
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
    scatter_band(p, stride, imin(channel_block, stride - c), dy + plane * out_plane * stride + c,
                 positions + plane * out_plane * stride + c, dx + plane * in_plane * stride + c,
                 band * length, imin((band + 1) * length, in_plane));
  });
}

template <typename T, typename P>
void scatter_add_typed(const PoolParams& p, const T* dy, const P* positions, T* dx, int threads) {
  const Columns columns(axis_w(p));
  const int64_t most_h = most_windows(axis_h(p)), most_w = most_windows(axis_w(p));
  const bool looks = most_windows(axis_d(p)) * most_h * most_w <= kMaxLooks &&
                     (p.channels_last || columns.tile >= 1) && volume(p.out) > 0;
  if (!looks) return scatter_add_bands(p, dy, positions, dx, threads);
  const int64_t planes = p.channels_last ? p.n : p.n * p.c, channels = p.channels_last ? p.c : 1;
  const int64_t rows = p.in.d * p.in.h, width = p.in.w * channels, out_plane = volume(p.out) * channels;
  const int64_t block = rows_per_task(rows, width), blocks = ceil_div(rows, block);
  parallel_for(threads, planes * blocks, block * width * 4, [&](int64_t task, int) {
    const int64_t plane = task / blocks, begin = task % blocks * block, end = imin(begin + block, rows);
    const T* from = dy + plane * out_plane;
    const P* where = positions + plane * out_plane;
    T* to = dx + plane * rows * width;
    if (p.channels_last)
      look_pixels(p, from, where, to, begin, end, dy + planes * out_plane, positions + planes * out_plane);
    else
      look_rows(p, columns, from, where, to, begin, end);
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
                    static_cast<T*>(y) + plane * out_plane, channels, begin, imin(begin + block, outputs));
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
