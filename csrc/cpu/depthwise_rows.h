// Depthwise convolution in channels_last, and of groups of 2, 4 or 8 channels, read where it lies: a register
// tile of P positions × one vector of channels takes its columns straight from the source; those of a tile
// that reaches beyond the source's first or last column are first put into a line of scratch memory, with
// zeros there.
//
// K neighbouring taps at a time: (P − 1) · step + K loads of the source and K of weights serve P · K FMAs;
// with P = 8 and K = 7 that is 21 loads for 56 FMAs. In groups of I channels each lane wants all channels of
// its group: I permutations of each column, I · P · K FMAs.
#pragma once

#include "band.h"
#include "tap_conv.h"

namespace fastops {
namespace cpu {
namespace {

// Longest line of scratch memory, in columns: wider kernels are served by bands.
constexpr int64_t kMaxTileTaps = 8;
constexpr int64_t kTileColumnsAtMost = (kPositionsAtOnce - 1) * 2 + kMaxTileTaps;

// Groups of 2, 4 or 8 channels, source and result: a vector holds whole groups.
inline bool in_even_groups(const TapConv& t) {
  return t.inner == t.outer && (t.inner == 2 || t.inner == 4 || t.inner == 8);
}

inline bool served_by_rows(const TapConv& t, const TapAxes& a) {
  const bool neighbours = a.w.taps <= 1 || a.w.off_step == 1 || a.w.off_step == -1;
  const bool groups = (t.inner == 1 && t.outer == 1) || (kVectorBytes >= 32 && in_even_groups(t));
  return t.p->channels_last && groups && neighbours && a.w.step <= 2 && a.w.taps <= kMaxTileTaps &&
         t.inner <= kLanes<double>;
}

// Adds a line of taps to P sums: column(i) are the elements under tap i of the first, which those `step`
// columns on have under tap i − step. K taps at a time, then the rest one by one. Of groups of I channels,
// 4 of these at a time: weights for the next one are `inner_step` on.
template <int I, int K, int step, typename A, typename Column>
__attribute__((always_inline)) inline void add_line(Vec<A> (&sum)[kPositionsAtOnce], int64_t taps,
                                                    const A* weights, int64_t weight_step, int64_t inner_step,
                                                    Column column) {
  constexpr int P = kPositionsAtOnce, some = I < 4 ? I : 4;
  const auto add = [&](auto taps_at_once, int64_t tap) __attribute__((always_inline)) {
    constexpr int k_end = decltype(taps_at_once)::value;
    for (int i0 = 0; i0 < I; i0 += some) {
      Vec<A> weight[some * k_end];
#pragma GCC unroll 4
      for (int i = 0; i < some; ++i)
#pragma GCC unroll 8
        for (int k = 0; k < k_end; ++k)
          weight[i * k_end + k] = load(weights + (i0 + i) * inner_step + (tap + k) * weight_step);
#pragma GCC unroll 24
      for (int x = 0; x < (P - 1) * step + k_end; ++x) {
        if (x % step >= k_end) continue;  // between two positions: nothing reads it
        const Vec<A> value = column(tap + x);
#pragma GCC unroll 4
        for (int i = 0; i < some; ++i) {
          const Mask<A> of_group = (lane_numbers<A>() & -I) + static_cast<LaneNumber<A>>(i0 + i);
          const Vec<A> mine = I == 1 ? value : permute(value, of_group);
#pragma GCC unroll 8
          for (int k = 0; k < k_end; ++k)
            if (x >= k && (x - k) % step == 0 && (x - k) / step < P)
              sum[(x - k) / step] += weight[i * k_end + k] * mine;
        }
      }
    }
  };
  int64_t tap = 0;
  for (; tap + K <= taps; tap += K) add(std::integral_constant<int, K>{}, tap);
  for (; tap < taps; ++tap) add(std::integral_constant<int, 1>{}, tap);
}

// Calls f(K, step), constants, with the K that suits a line's taps, for steps of 1 and 2. fp64, in which no
// network computes, has three: each K costs its compiler seconds.
template <typename A, typename F>
inline void with_line(const TapAxis& w, F f) {
  const auto with_step = [&](auto k) {
    w.step == 2 ? f(k, std::integral_constant<int, 2>{}) : f(k, std::integral_constant<int, 1>{});
  };
  if (w.taps == 1) return with_step(std::integral_constant<int, 1>{});
  if (w.taps == 3) return with_step(std::integral_constant<int, 3>{});
  if constexpr (sizeof(A) == sizeof(float)) {
    if (w.taps == 2) return with_step(std::integral_constant<int, 2>{});
    if (w.taps == 5) return with_step(std::integral_constant<int, 5>{});
    if (w.taps == 7) return with_step(std::integral_constant<int, 7>{});
  }
  with_step(std::integral_constant<int, 4>{});
}

// Rows [row, row + rows) of grid slice gd of image n; channels [r0, r0 + count).
template <typename T>
struct RowsTask {
  const TapConv& t;
  const TapAxes& a;
  const T* source;
  T* result;
  int64_t n, gd, row, rows, r0, count;
  const Acc<T>* weights;  // [source channel of a group][tap][channel of the block]
  int64_t block;
  const Acc<T>* bias;
};

// The same for groups: of K taps there are 4 · K weights in registers.
template <typename A, typename F>
inline void with_line_of_groups(const TapAxis& w, F f) {
  const auto with_step = [&](auto k) {
    w.step == 2 ? f(k, std::integral_constant<int, 2>{}) : f(k, std::integral_constant<int, 1>{});
  };
  if constexpr (sizeof(A) == sizeof(float))
    if (w.taps != 1) return with_step(std::integral_constant<int, 3>{});
  with_step(std::integral_constant<int, 1>{});
}

// One tile: `positions` of grid row y from x on, the `lanes` channels from c on.
template <int I, int K, int step, bool whole, typename T>
__attribute__((always_inline)) inline void depthwise_tile(const RowsTask<T>& s, int64_t y, int64_t x,
                                                          int64_t c, int64_t lanes) {
  using A = Acc<T>;
  constexpr int P = kPositionsAtOnce;
  constexpr int64_t L = kLanes<A>;
  const TapAxes& a = s.a;
  const TapConv& t = s.t;
  const int64_t channels = t.p->groups * I, taps = a.w.taps, columns = (P - 1) * step + imax(taps, 1);
  const auto get = [&](const T* p) { return whole ? load(p) : load_first(p, lanes); };
  // Taps in the order of the columns that they read.
  const bool backwards = a.w.off_step < 0;
  const int64_t weight_step = backwards ? -s.block : s.block;
  const int64_t w0 = x * step + min_offset(a.w);
  const bool interior = w0 >= 0 && w0 + columns <= a.w.source;
  const int64_t begin = imin(columns, imax(0, -w0)), end = imax(begin, imin(columns, a.w.source - w0));
  alignas(64) A line_of[kTileColumnsAtMost * L];
  if (!interior) {
    zero_row(line_of, begin * L);
    zero_row(line_of + end * L, (columns - end) * L);
  }

  Vec<A> sum[P];
#pragma GCC unroll 8
  for (int u = 0; u < P; ++u) sum[u] = Vec<A>{};
  for (int64_t d = 0; d < a.d.taps; ++d) {
    const int64_t sd = source_at(a.d, s.gd, d);
    if (!inside(a.d, sd)) continue;
    for (int64_t h = 0; h < a.h.taps; ++h) {
      const int64_t sh = source_at(a.h, s.row + y, h);
      if (!inside(a.h, sh)) continue;
      const T* from =
          s.source + (((s.n * t.source.d + sd) * t.source.h + sh) * t.source.w + w0) * channels + s.r0 + c;
      const int64_t first = (d * a.h.taps + h) * taps + (backwards ? taps - 1 : 0);
      const A* weights = s.weights + first * s.block + c;
      const auto add = [&](auto column) __attribute__((always_inline)) {
        add_line<I, K, step, A>(sum, taps, weights, weight_step, tap_count(a) * s.block, column);
      };
      if (interior) {
        add([&](int64_t i) { return get(from + i * channels); });
      } else {
        for (int64_t i = begin; i < end; ++i) store(line_of + i * L, get(from + i * channels));
        add([&](int64_t i) { return load(line_of + i * L); });
      }
    }
  }
  const Vec<A> bias = load(s.bias + c);
  const int64_t positions = imin(P, a.w.grid - x);
  T* to = s.result +
          (((s.n * t.result.d + result_at(a.d, s.gd)) * t.result.h + result_at(a.h, s.row + y)) * t.result.w +
           result_at(a.w, x)) *
              channels +
          s.r0 + c;
#pragma GCC unroll 8
  for (int u = 0; u < P; ++u) {
    if (u >= positions) break;
    T* place = to + u * a.w.out_step * channels;
    const Vec<A> y = sum[u] + bias;  // at the end: a large bias would round each step of the sum
    if (whole)
      store(place, y);
    else
      store_first(place, y, lanes);
  }
}

template <int I, int K, int step, typename T>
void depthwise_tiles(const RowsTask<T>& s) {
  constexpr int64_t L = kLanes<Acc<T>>;
  for (int64_t y = 0; y < s.rows; ++y)
    for (int64_t x = 0; x < s.a.w.grid; x += kPositionsAtOnce) {
      int64_t c = 0;
      for (; c + L <= s.count; c += L) depthwise_tile<I, K, step, true>(s, y, x, c, L);
      if (c < s.count) depthwise_tile<I, K, step, false>(s, y, x, c, s.count - c);
    }
}

template <typename T>
void depthwise_rows(const RowsTask<T>& s) {
  if (s.t.inner == 1)
    return with_line<Acc<T>>(s.a.w, [&](auto k, auto step) { depthwise_tiles<1, k.value, step.value>(s); });
  with_line_of_groups<Acc<T>>(s.a.w, [&](auto k, auto step) {
    if (s.t.inner == 2)
      depthwise_tiles<2, k.value, step.value>(s);
    else if (s.t.inner == 4)
      depthwise_tiles<4, k.value, step.value>(s);
    else if constexpr (kLanes<Acc<T>> >= 8)
      depthwise_tiles<8, k.value, step.value>(s);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
