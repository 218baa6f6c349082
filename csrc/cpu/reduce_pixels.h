// Reductions over windows in channels_last, vectorised over channels (see reduce_windows.h).
#pragma once

#include <type_traits>

#include "window_taps.h"

namespace fastops {
namespace cpu {
namespace {

// `vectors` vectors of channels of one window. In the last, guarded one, channels past the last are the
// next pixel's, or 0 where x ends.
template <typename Op, int vectors, bool guarded, typename T>
inline void reduce_pixel(const Taps<T>& taps, int64_t c, const T* x_end, Vec<Acc<T>> (&value)[vectors]) {
  constexpr int64_t lanes = kLanes<Acc<T>>;
  const auto start = [&] {
    for (Vec<Acc<T>>& v : value) v = broadcast(Op::template identity<Acc<T>>());
  };
  const auto pixels = [&](const T* p, int64_t count) {
    for (int64_t w = 0; w < count; ++w, p += taps.width_step)
      for (int u = 0; u < vectors; ++u) value[u] = Op::combine(value[u], load_before(p + u * lanes, x_end));
  };
  const auto row = [&](int64_t d, int64_t h) {
    return taps.first + d * taps.depth_step + h * taps.height_step + c;
  };
  start();
  if (taps.depth * taps.height * taps.width <= kPlainTaps) {
    for (int64_t d = 0; d < taps.depth; ++d)
      for (int64_t h = 0; h < taps.height; ++h) pixels(row(d, h), taps.width);
    return;
  }
  Pairs<Op, Vec<Acc<T>>, vectors> pairs;
  for (int64_t d = 0; d < taps.depth; ++d)
    for (int64_t h = 0; h < taps.height; ++h)
      for (int64_t w = 0; w < taps.width; w += kRun) {
        start();
        pixels(row(d, h) + w * taps.width_step, imin(kRun, taps.width - w));
        pairs.add(value);
      }
  pairs.result(value);
}

constexpr int64_t kLargeWindow = 16;    // taps
constexpr int64_t kRowSums = 16384;     // 64 KiB in fp32: half of a second-level cache at the least
constexpr int64_t kRunChannels = 2048;  // at a time: 8 KiB

// Channels [0, channels) of a row of large windows into `sums`, `channels` of each. Every row of the input is
// read from one end to the other, once, which is what memory is fastest at. What a window has of a row is a
// sum of its own.
template <typename Op, typename T>
inline void reduce_large_windows(const Taps<T>& rows, const ColumnTable<AxisTaps>& columns, int64_t windows,
                                 int64_t pixel, int64_t channels, Acc<T>* sums) {
  constexpr int64_t lanes = kLanes<Acc<T>>;
  alignas(64) Acc<T> run[kRunChannels];
  for (int64_t i = 0; i < windows * channels; ++i) sums[i] = Op::template identity<Acc<T>>();
  for (int64_t d = 0; d < rows.depth; ++d)
    for (int64_t h = 0; h < rows.height; ++h) {
      const T* row = rows.first + d * rows.depth_step + h * rows.height_step;
      for (int64_t ow = 0; ow < windows; ++ow) {
        const T* p = row + columns[ow].first * pixel;
        Acc<T>* sum = sums + ow * channels;
        for (int64_t c = 0; c < channels; ++c) run[c] = Op::template identity<Acc<T>>();
        for (int64_t w = 0; w < columns[ow].count; ++w, p += rows.width_step)
          for (int64_t c = 0; c < channels; c += lanes)
            store(run + c, Op::combine(load(run + c), load(p + c)));
        for (int64_t c = 0; c < channels; c += lanes)
          store(sum + c, Op::combine(load(sum + c), load(run + c)));
      }
    }
}

// Vectors of channels that are read from one pixel before going on to the next, as many as fit into
// registers: long runs are what hardware prefetches.
constexpr int kLongRun = kVectorBytes == 64 ? 16 : 8;

// Output rows [begin, end) of a channels_last image.
template <typename Op, typename T, typename Finish>
void reduce_pixels(const PoolParams& p, const T* x, T* y, int64_t begin, int64_t end, const T* x_end,
                   Finish finish) {
  using A = Acc<T>;
  constexpr int64_t lanes = kLanes<A>;
  const T* y_end = y + end * p.out.w * p.c;
  ColumnTable<AxisTaps> columns;
  const auto prepare = [&](int64_t column) {
    if (columns.prepare(column, p.out.w, [&](int64_t o) { return axis_taps(axis_w(p), o); }))
      finish.start_columns(columns.begin(), columns.end());
  };
  // Channels at a time of rows of large windows, of whole vectors.
  const int64_t run = imin(imin(p.c, kRunChannels), kRowSums / p.out.w) / lanes * lanes *
                      (p.c % lanes == 0 && p.out.w <= kTableColumns);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t od = r / p.out.h, oh = r % p.out.h;
    const Taps<T> rows = rows_of(p, x, p.c, od, oh);
    finish.start_row(od, oh);
    prepare(0);
    const int64_t lines = rows.depth * rows.height, width = columns[0].count;
    if (run >= 16 * lanes && lines * width >= kLargeWindow && lines <= kPlainTaps && width <= kPlainTaps) {
      alignas(64) A sums[kRowSums];
      for (int64_t c = 0; c < p.c; c += run) {
        const int64_t channels = imin(run, p.c - c);
        Taps<T> some = rows;
        some.first += c;
        reduce_large_windows<Op>(some, columns, p.out.w, p.c, channels, sums);
        for (int64_t ow = 0; ow < p.out.w; ++ow) {
          const auto finish_pixel = finish.pixel(ow);
          for (int64_t i = 0; i < channels; i += lanes)
            store(y + (r * p.out.w + ow) * p.c + c + i, finish_pixel(load(sums + ow * channels + i)));
        }
      }
      continue;
    }
    for (int64_t ow = 0; ow < p.out.w; ++ow) {
      prepare(ow);
      const Taps<T> taps = window_of(rows, columns[ow], p.c);
      const auto finish_pixel = finish.pixel(ow - columns.begin());
      T* out = y + (r * p.out.w + ow) * p.c;
      int64_t c = 0;
      const auto blocks_of = [&](auto size) {
        constexpr int vectors = decltype(size)::value;
        for (; c + vectors * lanes <= p.c; c += vectors * lanes) {
          Vec<A> value[vectors];
          reduce_pixel<Op, vectors, false>(taps, c, x_end, value);
          for (int u = 0; u < vectors; ++u) store(out + c + u * lanes, finish_pixel(value[u]));
        }
      };
      blocks_of(std::integral_constant<int, kLongRun>{});
      blocks_of(std::integral_constant<int, 4>{});
      for (; c + lanes <= p.c; c += lanes) {
        Vec<A> value[1];
        reduce_pixel<Op, 1, false>(taps, c, x_end, value);
        store(out + c, finish_pixel(value[0]));
      }
      if (c < p.c) {
        Vec<A> value[1];
        reduce_pixel<Op, 1, true>(taps, c, x_end, value);
        store_before(out + c, finish_pixel(value[0]), y_end);
      }
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
