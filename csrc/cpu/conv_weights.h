// The weights of a convolution as the matrix product wants them: as they are, as rows, or in panels.
#pragma once

#include <cstdint>

#include "gemm.h"
#include "tap_conv.h"

namespace fastops {
namespace cpu {
namespace {

// Whether T is narrower than what it is accumulated in.
template <typename T>
constexpr bool kNarrow = sizeof(T) != sizeof(Acc<T>);
// Whether operands have to be widened for the product.
template <typename T, typename W>
constexpr bool kWidened = sizeof(T) != sizeof(Element<W>);

// Elements of a block of k.
template <typename W>
constexpr int64_t kBlockDepth = kTileDepth<Acc<W>> * kPerWord<W>;
// Where rows are read where they lie, a block of pairs may be deeper: sums are written and read again less
// often, and the panel of 256 KiB streams from L2 at 4 cache lines per 24 multiplications. A sum of 2048
// terms in fp32 is wrong by 2048 · 2⁻²⁴ = 2⁻¹³ at worst, which bf16 with its 2⁻⁹ does not show.
template <typename W>
constexpr int64_t kDirectDepth = kBlockDepth<W> * (kPerWord<W> == 1 ? 1 : 4);
// Below this many source channels, rows are gathered: a stretch of k per tap would be too short.
constexpr int64_t kMinDirectChannels = 16;
// Taps whose row pointers are prepared at once.
constexpr int64_t kMaxTapsPerBlock = 16;
// channels_last: positions of one tile, and of as many rows.
constexpr int64_t kRowPositions = 96;

// Contiguous weights of an NCHW call are read as they lie, tap fastest.
inline bool tap_fastest(const TapConv& t) { return !t.p->channels_last && !t.p->weight_channels_last; }

// Order of k: element tap · `tap` + channel · `channel`.
struct Order {
  int64_t tap, channel;
  int64_t depth;  // elements
  int64_t words;
};
template <typename W>
Order order_of(const TapConv& t, const TapAxes& a) {
  const int64_t taps = tap_count(a);
  if (tap_fastest(t)) return {1, taps, taps * t.inner, ceil_div(taps * t.inner, kPerWord<W>)};
  // A block begins with a word. One of several taps has an even number of them, if not all; where there is
  // one only, a tap has an even number of elements.
  const bool alone = t.p->channels_last && kPerWord<W> * t.inner > kBlockDepth<W>;
  const int64_t tap = alone ? round_up(t.inner, kPerWord<W>) : t.inner;
  return {tap, 1, taps * tap, ceil_div(taps * tap, kPerWord<W>)};
}

// channels_last: rows of the source's elements are copied for the product, rather than read where they lie.
template <typename T, typename W>
bool gathers(const TapConv& t) {
  return kWidened<T, W> || t.inner < kMinDirectChannels || t.inner % kPerWord<W> != 0;
}

// channels_last: a block of k, several taps with all channels, or one tap with some of them.
struct Block {
  int64_t tap0, tap1, i0, i1;
  bool first, last;
};
inline int64_t first_word(const Block& b, const Order& order, int64_t per_word) {
  return (b.tap0 * order.tap + b.i0) / per_word;
}
inline int64_t elements(const Block& b) { return (b.tap1 - b.tap0) * (b.i1 - b.i0); }

// channels_last: panels of weights are packed by the tile that needs each, block by block, in cache.
// Not of contiguous weights, whose taps lie together: block by block each would be read for every tap.
inline bool packs_in_tile(const TapConv& t, const TapAxes& a) {
  return t.p->channels_last && t.p->n * grid_size(a) <= kRowPositions &&
         !(t.w_tap == 1 && volume(t.p->kernel) > 1);
}

// Calls f(block), at least once: without taps or channels there is one empty block. Blocks are about equal.
template <typename T, typename W, typename F>
void for_each_block(const TapConv& t, const TapAxes& a, F f) {
  constexpr int64_t P = kPerWord<W>;
  const bool gather = gathers<T, W>(t);
  const int64_t depth = gather || packs_in_tile(t, a) ? kBlockDepth<W> : kDirectDepth<W>;
  const int64_t all = imax(tap_count(a), 1), inner = imax(t.inner, 1);
  const int64_t channels = imin(inner, round_up(ceil_div(inner, ceil_div(inner, depth)), P));
  int64_t taps = channels < inner ? 1 : imax(depth / inner, 1);
  if (!gather) taps = imin(taps, kMaxTapsPerBlock);
  if (taps > 1 && inner % P != 0) taps -= taps % P;
  taps = ceil_div(all, ceil_div(all, taps));
  if (taps > 1 && inner % P != 0) taps = round_up(taps, P);
  for (int64_t tap = 0; tap < all; tap += taps)
    for (int64_t i = 0; i < inner; i += channels)
      f(Block{tap, imin(tap + taps, tap_count(a)), i, imin(i + channels, t.inner), tap == 0 && i == 0,
              tap + taps >= all && i + channels >= inner});
}

// Packs result channels [o0, o1) of one block into a panel: to[word][o − o0], with zeros past the last
// channel up to a full vector, and where a word has no second element.
template <typename T, typename W>
void pack_panel(const TapConv& t, const TapAxes& a, const T* w, int64_t o0, int64_t o1, const Block& b,
                W* to) {
  using E = Element<W>;
  constexpr int64_t L = kLanes<Acc<W>>, P = kPerWord<W>, nr = kTileColumns<Acc<W>>;
  const int64_t channels = b.i1 - b.i0, count = o1 - o0, words = ceil_div(elements(b), P);
  const bool whole = channels % P == 0;  // no word has elements of two taps
  for (int64_t tap = b.tap0; tap < b.tap1; ++tap) {
    const T* from = w + tap_at(t, a, tap).index * t.w_tap + o0 * t.w_outer + b.i0 * t.w_inner;
    const int64_t k = (tap - b.tap0) * channels;
    if constexpr (!kWidened<T, W>) {
      if (whole && t.w_inner == 1) {
        transpose_words(from, t.w_outer, count, channels / P, to + k / P * nr, nr);
        continue;
      }
      if constexpr (P == 2) {
        if (whole && t.w_outer == 1 && count % L == 0) {
          for (int64_t i = 0; i < channels; i += 2, from += 2 * t.w_inner)
            for (int64_t o = 0; o < count; o += L)
              pair_rows(from + o, from + t.w_inner + o, to + (k + i) / 2 * nr + o);
          continue;
        }
      }
    }
    if constexpr (P == 1) {
      if (t.w_outer == 1) {
        for (int64_t i = 0; i < channels; ++i) copy_row(from + i * t.w_inner, 1, to + (k + i) * nr, count);
        continue;
      }
    }
    E* out = reinterpret_cast<E*>(to);
    for (int64_t o = 0; o < count; ++o)
      for (int64_t i = 0; i < channels; ++i)
        out[((k + i) / P * nr + o) * P + (k + i) % P] = to_element<W>(from[o * t.w_outer + i * t.w_inner]);
  }
  if (elements(b) % P != 0)
    for (int64_t o = 0; o < count; ++o) reinterpret_cast<E*>(to)[((words - 1) * nr + o) * P + P - 1] = E{};
  if (count % L != 0)
    for (int64_t k = 0; k < words; ++k) zero_row(to + k * nr + count, round_up(count, L) - count);
}

// Taps of whole_panel() at most.
constexpr int64_t kMaxPanelTaps = 64;

// Whether whole_panel() serves, for result channels in whole vectors: contiguous weights, all of their taps.
template <typename W>
bool packs_whole_panel(const TapConv& t, const TapAxes& a, const Order& order, int64_t count) {
  const int64_t taps = tap_count(a);
  return t.w_tap == 1 && taps > 1 && taps <= kMaxPanelTaps && taps == volume(t.p->kernel) &&
         count % kLanes<Acc<W>> == 0 && t.inner % kPerWord<W> == 0 && order.tap == t.inner;
}

// Packs result channels [o0, o1) of a phase: to[word][o − o0]. The taps of a pair of channels lie together:
// they are loaded as a vector, and those of L result channels transposed.
template <typename T, typename W>
void pack_whole_panel(const TapConv& t, const TapAxes& a, const T* w, int64_t o0, int64_t o1, W* to) {
  using A = Acc<W>;
  constexpr int64_t L = kLanes<A>, P = kPerWord<W>, nr = kTileColumns<A>;
  const int64_t taps = tap_count(a);
  const T* past = w + (t.outer - 1) * t.w_outer + (t.inner - 1) * t.w_inner + taps;
  const auto get = [](const T* p) {
    if constexpr (P == 1)
      return load(p);
    else
      return __builtin_convertvector(load_bits<U16xF>(p), U32xF);
  };
  Words<W> before[kMaxPanelTaps];  // of the first element of a word
  for (int64_t o = o0; o < o1; o += L)
    for (int64_t i = 0; i < t.inner; ++i)
      for (int64_t q = 0; q < taps; q += L) {
        const int64_t count = imin(L, taps - q);
        Words<W> square[L];
        for (int64_t l = 0; l < L; ++l) {
          const T* from = w + (o + l) * t.w_outer + i * t.w_inner + q;
          if (past - from >= L) {
            square[l] = get(from);
          } else {
            T padded[L] = {};
            std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(T));
            square[l] = get(padded);
          }
        }
        transpose(square);
        for (int64_t j = 0; j < count; ++j) {
          W* place = to + ((q + j) * t.inner + i) / P * nr + (o - o0);
          if constexpr (P == 1) {
            store(place, square[j]);
          } else if (i % P == 0) {
            before[q + j] = square[j];
          } else {
            const Words<W> both = before[q + j] | square[j] << 16;
            std::memcpy(static_cast<void*>(place), &both, sizeof both);
          }
        }
      }
}

// The weights as they are may serve as rows A[o][k].
template <typename T, typename W>
bool weights_as_they_are(const TapConv& t) {
  return !kWidened<T, W> && tap_fastest(t) && !t.input_grad &&
         t.inner * volume(t.p->kernel) % kPerWord<W> == 0;
}

// From one row of weights to the next. Packed ones are an odd number of cache lines apart: those of many
// channels would otherwise be a multiple of 4 KiB apart, in few sets of L1.
template <typename T, typename W>
int64_t weight_row_words(const TapConv& t, const Order& order) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(W));
  return weights_as_they_are<T, W>(t) ? order.words : (ceil_div(order.words, line) | 1) * line;
}

// Packs result channels [o0, o1) of one group and phase as rows: to[o][k].
template <typename T, typename W>
void pack_rows(const TapConv& t, const TapAxes& a, const Order& order, const T* w, int64_t o0, int64_t o1,
               W* to) {
  using E = Element<W>;
  constexpr int64_t P = kPerWord<W>;
  const int64_t taps = tap_count(a), length = weight_row_words<T, W>(t, order) * P;
  const Extent& kernel = t.p->kernel;
  const auto row = [&](int64_t o) { return reinterpret_cast<E*>(to) + o * length; };
  if (taps == 0) return;
  int64_t i0 = 0;
  if constexpr (P == 2) {
    // w[i][o], to be transposed: in words of two rows, a square at a time.
    if (volume(kernel) == 1 && t.w_outer == 1 && taps == 1 && (o1 - o0) % kF == 0)
      for (; i0 + 2 * kF <= t.inner; i0 += 2 * kF)
        for (int64_t o = o0; o < o1; o += kF) {
          const T* from = w + i0 * t.w_inner + o;
          U32xF square[kF];
#pragma GCC unroll 16
          for (int r = 0; r < kF; ++r, from += 2 * t.w_inner)
            square[r] = pair_elements(from, from + t.w_inner);
          transpose(square);
#pragma GCC unroll 16
          for (int r = 0; r < kF; ++r)
            std::memcpy(static_cast<void*>(row(o + r) + i0), &square[r], sizeof square[r]);
        }
  }
  // The loop over what lies closest in memory is the innermost.
  if (tap_fastest(t)) {
    const bool all_taps = taps == volume(kernel);
    for (int64_t i = i0; i < t.inner; ++i)
      for (int64_t o = o0; o < o1; ++o) {
        const T* from = w + o * t.w_outer + i * t.w_inner;
        E* out = row(o) + i * taps;
        if (all_taps) {
          if (taps == 9)
            copy_row(from, 1, out, 9);  // without a loop
          else
            copy_row(from, 1, out, taps);
          continue;
        }
        for (int64_t d = 0; d < a.d.taps; ++d)
          for (int64_t h = 0; h < a.h.taps; ++h, out += a.w.taps)
            copy_row(from +
                         ((a.d.tap0 + d * a.d.tap_step) * kernel.h + a.h.tap0 + h * a.h.tap_step) * kernel.w +
                         a.w.tap0,
                     a.w.tap_step, out, a.w.taps);
      }
  } else {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const T* from = w + tap_at(t, a, tap).index * t.w_tap;
      for (int64_t o = o0; o < o1; ++o)
        copy_row(from + o * t.w_outer + i0 * t.w_inner, t.w_inner, row(o) + tap * order.tap + i0,
                 t.inner - i0);
    }
  }
  for (int64_t o = o0; o < o1; ++o) zero_row(row(o) + order.depth, order.words * P - order.depth);
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
