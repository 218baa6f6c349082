// Weight gradient of 3 × 3 convolutions by Winograd, channels_last: the adjoint of conv_winograd.h in w.
//
//   dw = Gᵀ [Σ_tile (Bᵀ d B) ⊙ (A dY Aᵀ)] G      d: 4 × 4 of x, dY: 2 × 2 of dy
//
// Per element e of the 4 × 4 a matrix product whose depth is the tiles of all images:
//
//   M[e][c][k] = Σ_tile V[e][tile][c] · D[e][tile][k]      D in panels of columns
//
// A task owns M for 64 × 64 channels, 16 · 64 · 64 · 4 bytes = 256 KiB, in L2, and goes over the tiles in
// blocks of which V and D exist at a time; its transforms cost an eighth of the products. NCHW operands are
// turned over first, some images at a time.
#pragma once

#include "conv_inside.h"
#include "conv_winograd.h"

namespace fastops {
namespace cpu {
namespace {

constexpr int64_t kChannelsOfM = 64;

struct WeightShape {
  int64_t tile_rows, tile_columns, images, tiles;  // tiles of so many images, turned over together
  int64_t chunks_c, chunks_k, splits;              // tasks of a group; splits: along the blocks of tiles
  int64_t v_stride, d_stride, m_stride;
  int64_t m, scratch;           // elements of M of a task; of a thread
  int64_t x_turned, dy_turned;  // elements of T
};
constexpr int64_t kTilesOfBlock = 48;

inline ConvParams in_channels_last(ConvParams p) {
  p.channels_last = true;
  return p;
}

// U's counterpart M has 16 / 9 of the weights' numbers, and is read once per split: not for many weights.
template <typename W>
bool winograd_weight_grad_serves(const ConvParams& p) {
  const ConvParams last = in_channels_last(p);
  const TapConv t = tap_conv(last, false);
  return winograd_serves<W>(t) && t.p->groups * t.inner * t.outer * kElements * int64_t{4} <= int64_t{32}
                                                                                                  << 20;
}

inline WeightShape weight_shape(const ConvParams& p) {
  constexpr int64_t kMinTasks = 8;
  const TapConv t = tap_conv(p, false);
  WeightShape s = {};
  s.tile_rows = ceil_div(p.out.h, 2), s.tile_columns = ceil_div(p.out.w, 2);
  s.images = p.channels_last ? p.n : imin(p.n, channels_last_inside(t).p.n);
  s.tiles = s.images * s.tile_rows * s.tile_columns;
  s.chunks_c = ceil_div(t.inner, kChannelsOfM), s.chunks_k = ceil_div(t.outer, kChannelsOfM);
  s.splits = imin(ceil_div(s.tiles, kTilesOfBlock), ceil_div(kMinTasks, p.groups * s.chunks_c * s.chunks_k));
  s.v_stride = s.d_stride = kTilesOfBlock * kChannelsOfM + 16;  // not a multiple of 4 KiB
  s.m_stride = kChannelsOfM * kChannelsOfM + 16;
  s.m = kElements * s.m_stride;
  s.scratch = kElements * (s.v_stride + s.d_stride) + kChannelsOfM;
  if (!p.channels_last) {
    s.x_turned = round_up(s.images * p.c * volume(p.in), 64);
    s.dy_turned = round_up(s.images * p.k * volume(p.out), 64);
  }
  return s;
}

template <typename T>
int64_t winograd_weight_grad_words(const ConvParams& p, int threads) {
  const WeightShape s = weight_shape(p);
  return s.x_turned + s.dy_turned + s.splits * p.groups * s.chunks_c * s.chunks_k * s.m +
         threads * round_up(s.scratch, 16);
}

// ---- transforms ------------------------------------------------------------------------------------

// One line of A: 2 → 4.
inline void transform_gradient(VecF a, VecF b, VecF (&to)[4]) {
  to[0] = a, to[1] = a + b, to[2] = a - b, to[3] = -b;
}
// One line of Gᵀ: 4 → 3.
inline void transform_sums(VecF a, VecF b, VecF c, VecF d, VecF (&to)[3]) {
  const VecF middle = (b + c) * 0.5f;
  to[0] = a + middle, to[1] = (b - c) * 0.5f, to[2] = middle + d;
}

// V or D of the tiles [begin, end) of some images, channels [c0, c0 + count) of a tensor of `channels`. The
// n × n elements of a tile begin at 2 · tile + first and lie inside `size`, or are zero.
// to[e · stride + place(tile, c)]
template <int n, typename T, typename Transform, typename Place>
void transform_tiles(const WeightShape& s, const T* from, const Extent& size, int64_t channels, int64_t c0,
                     int64_t count, int64_t first_h, int64_t first_w, int64_t begin, int64_t end, Place place,
                     Transform transform) {
  constexpr int64_t L = kLanes<float>;
  alignas(64) static constexpr T zeros[kChannelsOfM] = {};
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t w0 = 2 * (tile % s.tile_columns) + first_w;
    const int64_t h0 = 2 * (tile / s.tile_columns % s.tile_rows) + first_h;
    const T* image = from + tile / s.tile_columns / s.tile_rows * volume(size) * channels + c0;
    const T* at[n][n];
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const int64_t h = h0 + i, w = w0 + j;
        at[i][j] = h >= 0 && h < size.h && w >= 0 && w < size.w ? image + (h * size.w + w) * channels : zeros;
      }
    int64_t c = 0;
    for (; c + L <= count; c += L)
      transform([&](int i, int j) { return load(at[i][j] + c); }, place(tile - begin, c));
    if (c < count)
      transform([&](int i, int j) { return load_first(at[i][j] + c, count - c); }, place(tile - begin, c));
  }
}

// ---- one task --------------------------------------------------------------------------------------

// Adds the tiles [begin, end) to M of channels [c0, c1) × [k0, k1) of group g, or starts with them.
template <typename T>
void add_tiles(const TapConv& t, const TapAxes& a, const WeightShape& s, const T* dy, const T* x, int64_t g,
               int64_t c0, int64_t c1, int64_t k0, int64_t k1, int64_t begin, int64_t end, bool first,
               float* m, float* scratch) {
  constexpr int64_t nr = kTileColumns<float>;
  float *v = scratch, *d = v + kElements * s.v_stride;
  for (int64_t b = begin; b < end; b += kTilesOfBlock, first = false) {
    const int64_t tiles = imin(kTilesOfBlock, end - b);
    transform_tiles<4>(
        s, x, t.source, t.p->c, g * t.inner + c0, c1 - c0, a.h.off0, a.w.off0, b, b + tiles,
        [&](int64_t tile, int64_t c) { return v + tile * kChannelsOfM + c; },
        [&](auto source, float* to) { transform_tile(source, to, s.v_stride); });
    transform_tiles<2>(
        s, dy, t.result, t.p->k, g * t.outer + k0, k1 - k0, 0, 0, b, b + tiles,
        [&](int64_t tile, int64_t k) { return d + (k / nr * kTilesOfBlock + tile) * nr + k % nr; },
        [&](auto source, float* to) {
          VecF lines[2][4];
          for (int i = 0; i < 2; ++i) transform_gradient(source(i, 0), source(i, 1), lines[i]);
          for (int j = 0; j < 4; ++j) {
            VecF column[4];
            transform_gradient(lines[0][j], lines[1][j], column);
            for (int i = 0; i < 4; ++i) store(to + (4 * i + j) * s.d_stride, column[i]);
          }
        });
    for (int64_t e = 0; e < kElements; ++e)
      for (int64_t k = 0; k < k1 - k0; k += nr) {
        const float* row[kTileRows];
        TileTask<float, float> task = {};
        task.rows = row, task.segments = 1, task.step = kChannelsOfM, task.depth = tiles;
        task.panel = d + e * s.d_stride + k * kTilesOfBlock, task.panel_stride = nr;
        task.first = first, task.sum_lanes = task.out_lanes = kLanes<float>;
        for (int64_t c = 0; c < c1 - c0; c += kTileRows) {
          const int64_t rows = imin(kTileRows, c1 - c0 - c);
          for (int64_t i = 0; i < rows; ++i) {
            row[i] = v + e * s.v_stride + c + i;
            task.sums[i] = m + e * s.m_stride + (c + i) * kChannelsOfM + k;
          }
          run_tile(rows, ceil_div(imin(nr, k1 - k0 - k), kLanes<float>), task);
        }
      }
  }
}

// dw of L result channels from o0 on and all source channels. Returns whether it is finite.
template <typename T>
bool gradient_of_sums(const TapConv& t, const WeightShape& s, const float* m, int64_t m_split, int64_t o0,
                      T* dw) {
  constexpr int64_t L = kLanes<float>;
  const int64_t outer = imin(L, t.outer - o0);
  VecF differences{};
  for (int64_t i0 = 0; i0 < t.inner; i0 += L) {
    const int64_t inner = imin(L, t.inner - i0);
    alignas(64) float taps[9][L][L] = {};  // [tap][source channel][result channel]
    for (int64_t i = 0; i < inner; ++i) {
      const int64_t c = i0 + i;
      const float* from = m + (c / kChannelsOfM * s.chunks_k + o0 / kChannelsOfM) * s.m +
                          c % kChannelsOfM * kChannelsOfM + o0 % kChannelsOfM;
      VecF sum[kElements] = {};
      for (int64_t split = 0; split < s.splits; ++split)
        for (int e = 0; e < kElements; ++e) sum[e] += load(from + split * m_split + e * s.m_stride);
      VecF lines[4][3];
      for (int e = 0; e < 4; ++e)
        transform_sums(sum[4 * e], sum[4 * e + 1], sum[4 * e + 2], sum[4 * e + 3], lines[e]);
      for (int j = 0; j < 3; ++j) {
        VecF column[3];
        transform_sums(lines[0][j], lines[1][j], lines[2][j], lines[3][j], column);
        for (int q = 0; q < 3; ++q) {
          const VecF value = keep_first_lanes<float>(column[q], outer);
          differences += value - value;
          store(taps[3 * q + j][i], value);
        }
      }
    }
    T* to = dw + o0 * t.w_outer + i0 * t.w_inner;
    if (t.w_inner == 1) {
      for (int64_t q = 0; q < 9; ++q) {
        VecF square[L];
        for (int64_t i = 0; i < L; ++i) square[i] = load(taps[q][i]);
        transpose(square);
        for (int64_t o = 0; o < outer; ++o) store_first(to + o * t.w_outer + q * t.w_tap, square[o], inner);
      }
    } else {
      for (int64_t o = 0; o < outer; ++o)
        for (int64_t i = 0; i < inner; ++i)
          for (int q = 0; q < 9; ++q)
            to[o * t.w_outer + i * t.w_inner + q * t.w_tap] = from_acc<T>(taps[q][i][o]);
    }
  }
  return !any_not_finite(differences);
}

// Returns whether dw is finite; where not, it is to be computed without Winograd.
template <typename T>
bool run_winograd_weight_grad(const ConvParams& p, const T* dy, const T* x, T* dw, void* memory,
                              int threads) {
  const WeightShape s = weight_shape(p);
  float* words = static_cast<float*>(memory);
  float *m = words + s.x_turned + s.dy_turned,
        *scratch = m + s.splits * p.groups * s.chunks_c * s.chunks_k * s.m;
  T* x_rows = reinterpret_cast<T*>(words);
  T* dy_rows = reinterpret_cast<T*>(words + s.x_turned);
  const int64_t of_group = s.chunks_c * s.chunks_k * s.m, m_split = p.groups * of_group;

  ConvParams q = in_channels_last(p);
  for (int64_t n = 0; n < p.n; n += s.images) {
    q.n = imin(s.images, p.n - n);
    const T *x_of = x + n * p.c * volume(p.in), *dy_of = dy + n * p.k * volume(p.out);
    if (!p.channels_last) {
      to_channels_last(q.n, p.c, volume(p.in), x_of, x_rows, threads);
      to_channels_last(q.n, p.k, volume(p.out), dy_of, dy_rows, threads);
      x_of = x_rows, dy_of = dy_rows;
    }
    const TapConv t = tap_conv(q, false);
    const TapAxes a = tap_axes(t, 0);
    const int64_t tiles = q.n * s.tile_rows * s.tile_columns;
    const int64_t per_split = ceil_div(ceil_div(s.tiles, kTilesOfBlock), s.splits) * kTilesOfBlock;
    const int64_t tasks = s.splits * p.groups * s.chunks_c * s.chunks_k;
    parallel_for(threads, tasks, per_split * kChannelsOfM * kChannelsOfM, [&](int64_t task, int slot) {
      const int64_t k0 = task % s.chunks_k * kChannelsOfM, c0 = task / s.chunks_k % s.chunks_c * kChannelsOfM;
      const int64_t g = task / s.chunks_k / s.chunks_c % p.groups,
                    split = task / s.chunks_k / s.chunks_c / p.groups;
      const int64_t begin = imin(split * per_split, tiles), end = imin(begin + per_split, tiles);
      float* mine = m + task * s.m;
      if (n == 0 && begin == end) zero_row(mine, s.m);
      add_tiles(t, a, s, dy_of, x_of, g, c0, imin(c0 + kChannelsOfM, t.inner), k0,
                imin(k0 + kChannelsOfM, t.outer), begin, end, n == 0, mine,
                scratch + slot * round_up(s.scratch, 16));
    });
  }

  const TapConv t = tap_conv(q, false);
  const int64_t blocks = ceil_div(t.outer, kLanes<float>);
  std::atomic<bool> finite{true};
  parallel_for(threads, p.groups * blocks, t.inner * kElements * s.splits, [&](int64_t task, int) {
    const int64_t g = task / blocks;
    if (!gradient_of_sums(t, s, m + g * of_group, m_split, task % blocks * kLanes<float>,
                          dw + weight_group(t, g)))
      finite.store(false);
  });
  return finite.load();
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
