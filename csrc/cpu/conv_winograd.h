// Convolution by 3 × 3 with Winograd's F(2 × 2, 3 × 3), channels_last: 16 multiplications for 2 × 2 results,
// not 36.
//
//   Y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A      d: 4 × 4 of the source, Y: 2 × 2 of the result, a tile
//
// The product ⊙, summed over source channels, is sixteen matrix products, one per element e of the 4 × 4,
//
//   M[e][tile][o] = Σ_c V[e][tile][c] · U[e][c][o]      U in panels of columns
//
// V and M exist for one block of tiles at a time, in L2. All factors are 0, ±1 and ½, and no product
// that enters a result reads a source element outside of the result's window, so that errors stay near
// those of the plain sum. Infinities are what remains: inf − inf would be NaN where the plain sum has inf.
// A tile row that holds any result which is not finite is marked, and computed again without Winograd.
#pragma once

#include "conv_weights.h"
#include "gemm.h"
#include "parallel.h"
#include "tap_conv.h"

namespace fastops {
namespace cpu {
namespace {

constexpr int kElements = 16;

struct WinogradShape {
  int64_t tile_rows, tile_columns;  // of an image
  int64_t tiles;                    // of a block, at most
  int64_t blocks;                   // of all images' tiles
  int64_t outer;                    // result channels of a task, whole panels
  int64_t parts;                    // tasks along them
  int64_t weights;                  // elements of U, of a group
  int64_t u_stride, v_row, v_stride, m_stride;
  int64_t scratch;  // of a thread: V, M, and zeros
};

// Whether it pays: its transforms cost about 200 operations a tile and channel, of 16 · channels that the
// products take of 36; and U is 16 / 9 of the weights, written and read for few positions in vain; for more
// of them where it does not stay in the last-level cache.
template <typename W>
bool winograd_serves(const TapConv& t) {
  const ConvParams& p = *t.p;
  const auto same = [](const Extent& e, int64_t d, int64_t h, int64_t w) {
    return e.d == d && e.h == h && e.w == w;
  };
  if (!std::is_same_v<W, float> || !same(p.kernel, 1, 3, 3) || !same(p.stride, 1, 1, 1)) return false;
  if (!same(p.dilation, 1, 1, 1) || p.in.d != 1 || p.out.d != 1 || p.pad.d != 0) return false;
  const int64_t least = t.inner * t.outer * kElements * int64_t{4} <= int64_t{16} << 20 ? 192 : 512;
  return p.channels_last && t.inner >= 32 && t.outer >= 32 && p.n * volume(t.result) >= least;
}

inline WinogradShape winograd_shape(const TapConv& t, const TapAxes& a) {
  constexpr int64_t L = kLanes<float>, nr = kTileColumns<float>;
  constexpr int64_t kMinTasks = 8;
  // Each number of U is used by so many tiles per trip.
  constexpr int64_t kTiles = 48;
  WinogradShape s;
  s.tile_rows = ceil_div(a.h.grid, 2), s.tile_columns = ceil_div(a.w.grid, 2);
  const int64_t all = s.tile_rows * s.tile_columns * t.p->n;
  s.tiles = round_up(ceil_div(all, imax(1, ceil_div(all, kTiles))), kTileRows);
  s.blocks = ceil_div(all, s.tiles);
  const int64_t panels = ceil_div(t.outer, nr), tasks = imax(1, s.blocks * t.p->groups);
  s.outer = ceil_div(panels, imin(panels, ceil_div(kMinTasks, tasks))) * nr;
  s.parts = ceil_div(t.outer, s.outer);
  s.u_stride = t.inner * panels * nr;
  s.weights = kElements * s.u_stride;
  // Elements e are a cache line more than a multiple of 4 KiB apart, or their stores would meet in one set.
  s.v_row = round_up(t.inner, L);
  s.v_stride = s.tiles * s.v_row + 16;
  s.m_stride = s.tiles * nr + 16;
  s.scratch = kElements * (s.v_stride + s.m_stride) + round_up(t.inner, 16);
  return s;
}

// ---- the three transforms, of vectors --------------------------------------------------------------

using VecF = Vec<float>;

// One line of G: 3 → 4.
inline void transform_taps(VecF a, VecF b, VecF c, VecF (&to)[4]) {
  const VecF outer = (a + c) * 0.5f, middle = b * 0.5f;
  to[0] = a, to[1] = outer + middle, to[2] = outer - middle, to[3] = c;
}
// One line of Bᵀ: 4 → 4.
inline void transform_source(VecF a, VecF b, VecF c, VecF d, VecF (&to)[4]) {
  to[0] = a - c, to[1] = b + c, to[2] = c - b, to[3] = b - d;
}

// V's sixteen vectors of a 4 × 4 of source vectors, to to[e · stride].
template <typename Load>
inline void transform_tile(Load source, float* to, int64_t stride) {
  VecF lines[4][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    transform_source(source(i, 0), source(i, 1), source(i, 2), source(i, 3), lines[i]);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    VecF column[4];
    transform_source(lines[0][j], lines[1][j], lines[2][j], lines[3][j], column);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store(to + (4 * i + j) * stride, column[i]);
  }
}

// y[i][j] of the sixteen vectors from[e · stride].
inline void transform_result(const float* from, int64_t stride, VecF base, VecF (&y)[2][2]) {
  VecF lines[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const VecF m1 = load(from + (4 + j) * stride), m2 = load(from + (8 + j) * stride);
    lines[0][j] = load(from + j * stride) + (m1 + m2);
    lines[1][j] = (m1 - m2) - load(from + (12 + j) * stride);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    y[i][0] = lines[i][0] + (lines[i][1] + lines[i][2]) + base;
    y[i][1] = (lines[i][1] - lines[i][2]) - lines[i][3] + base;
  }
}

inline bool any_not_finite(VecF sum_of_differences) {
  bool any = false;
  for (int l = 0; l < kLanes<float>; ++l) any |= sum_of_differences[l] != 0.0f;
  return any;
}

// ---- weights ---------------------------------------------------------------------------------------

// U of the L result channels from o0 on, of a group; lanes are result channels. L source channels at a time
// are brought into the order of lanes, reading what lies together.
template <typename T>
void winograd_weights(const TapConv& t, const TapAxes& a, const WinogradShape& s, const T* w, int64_t o0,
                      float* u) {
  constexpr int64_t L = kLanes<float>, nr = kTileColumns<float>;
  int64_t place[9];
  for (int64_t q = 0; q < 9; ++q) {  // where windows are read backwards, so are the taps
    const int64_t h = a.h.off_step < 0 ? 2 - q / 3 : q / 3, x = a.w.off_step < 0 ? 2 - q % 3 : q % 3;
    place[q] = tap_at(t, a, h * 3 + x).index * t.w_tap;
  }
  const int64_t outer = imax(0, imin(L, t.outer - o0));  // beyond the last channel there are zeros
  const T* end = w + (t.outer - 1) * t.w_outer + (t.inner - 1) * t.w_inner + 8 * t.w_tap + 1;
  alignas(64) float taps[9][L][L];  // [tap][source channel][lane]
  std::memset(taps, 0, sizeof taps);
  for (int64_t i0 = 0; i0 < t.inner; i0 += L) {
    const int64_t inner = imin(L, t.inner - i0);
    const T* from = w + o0 * t.w_outer + i0 * t.w_inner;
    const bool whole = inner == L && outer == L;
    if (whole && t.w_outer == 1) {
      for (int64_t q = 0; q < 9; ++q)
        for (int64_t i = 0; i < L; ++i) store(taps[q][i], load(from + place[q] + i * t.w_inner));
    } else if (whole && t.w_inner == 1) {
      for (int64_t q = 0; q < 9; ++q) {
        VecF lines[L];
        for (int64_t l = 0; l < L; ++l) lines[l] = load(from + place[q] + l * t.w_outer);
        transpose(lines);
        for (int64_t i = 0; i < L; ++i) store(taps[q][i], lines[i]);
      }
    } else if (whole && L > 9 && end - from >= (L - 1) * (t.w_outer + t.w_inner) + L) {
      // The nine taps of a pair of channels lie together: a vector, of which the rest is ignored.
      for (int64_t i = 0; i < L; ++i) {
        VecF lines[L];
        for (int64_t l = 0; l < L; ++l) lines[l] = load(from + i * t.w_inner + l * t.w_outer);
        transpose(lines);
        for (int64_t q = 0; q < 9; ++q) store(taps[q][i], lines[place[q] % L]);
      }
    } else {
      for (int64_t l = 0; l < outer; ++l)
        for (int64_t i = 0; i < inner; ++i)
          for (int q = 0; q < 9; ++q) taps[q][i][l] = to_acc(from[place[q] + i * t.w_inner + l * t.w_outer]);
    }
    for (int64_t i = 0; i < inner; ++i) {
      VecF columns[3][4];
      for (int j = 0; j < 3; ++j)
        transform_taps(load(taps[j][i]), load(taps[3 + j][i]), load(taps[6 + j][i]), columns[j]);
      float* to = u + o0 / nr * t.inner * nr + (i0 + i) * nr + o0 % nr;
      for (int e = 0; e < 4; ++e) {
        VecF line[4];
        transform_taps(columns[0][e], columns[1][e], columns[2][e], line);
        for (int j = 0; j < 4; ++j) store(to + (4 * e + j) * s.u_stride, line[j]);
      }
    }
  }
}

// ---- products --------------------------------------------------------------------------------------

// m[tile][o] = Σ_c v[tile][c] · u[c][o] for the `columns` channels of a panel.
inline void multiply_panel(const float* v, int64_t v_row, int64_t tiles, const float* u, int64_t columns,
                           int64_t depth, float* m) {
  constexpr int64_t nr = kTileColumns<float>;
  for (int64_t k0 = 0; k0 < depth; k0 += kTileDepth<float>)
    for (int64_t r = 0; r < tiles; r += kTileRows) {
      const int64_t rows = imin(kTileRows, tiles - r);
      const float* from[kTileRows];
      TileTask<float, float> task = {};
      task.rows = from, task.segments = 1, task.step = 1, task.depth = imin(kTileDepth<float>, depth - k0);
      task.panel = u + k0 * nr, task.panel_stride = nr;
      task.first = k0 == 0, task.sum_lanes = task.out_lanes = kLanes<float>;
      for (int64_t i = 0; i < rows; ++i) from[i] = v + (r + i) * v_row + k0, task.sums[i] = m + (r + i) * nr;
      run_tile(rows, ceil_div(columns, kLanes<float>), task);
    }
}

// ---- a block of tiles ------------------------------------------------------------------------------

template <typename T>
struct Winograd {
  const TapConv& t;
  const TapAxes& a;
  const WinogradShape& s;
  const T* source;
  T* result;
  const float* bias;  // of all groups, each padded to `padded`
  int64_t padded;
  uint8_t* marks;  // of all tile rows

  int64_t first_row(int64_t tile_row) const { return source_at(a.h, 2 * tile_row, a.h.off_step < 0 ? 2 : 0); }
  int64_t first_column(int64_t tile) const { return source_at(a.w, 2 * tile, a.w.off_step < 0 ? 2 : 0); }
  void mark(int64_t n, int64_t tile_row) const {
    __atomic_store_n(marks + n * s.tile_rows + tile_row, uint8_t{1}, __ATOMIC_RELAXED);
  }

  // f(n, run) for the runs of a tile row of the tiles [begin, end), counted over all images.
  template <typename F>
  void for_each_tile_run(int64_t begin, int64_t end, F f) const {
    const int64_t tiles = s.tile_rows * s.tile_columns;
    for (int64_t at = begin; at < end;) {
      const int64_t tile = at % tiles, w = tile % s.tile_columns, count = imin(s.tile_columns - w, end - at);
      f(at / tiles, Run{at - begin, count, 0, tile / s.tile_columns, w});
      at += count;
    }
  }

  void to_v(int64_t g, int64_t begin, int64_t end, float* v, float* zeros) const;
  void from_m(int64_t g, int64_t begin, int64_t end, int64_t o, int64_t count, const float* m) const;

  // Tiles [begin, end), result channels [o0, o1) of group g.
  void block(int64_t g, int64_t begin, int64_t end, int64_t o0, int64_t o1, const float* u,
             float* scratch) const {
    constexpr int64_t nr = kTileColumns<float>;
    float *v = scratch, *m = v + kElements * s.v_stride, *zeros = m + kElements * s.m_stride;
    to_v(g, begin, end, v, zeros);
    for (int64_t o = o0; o < o1; o += nr) {
      const int64_t count = imin(nr, o1 - o);
      for (int64_t e = 0; e < kElements; ++e)
        multiply_panel(v + e * s.v_stride, s.v_row, end - begin, u + e * s.u_stride + o / nr * t.inner * nr,
                       count, t.inner, m + e * s.m_stride);
      from_m(g, begin, end, o, count, m);
    }
  }
};

// Lanes are source channels.
template <typename T>
void Winograd<T>::to_v(int64_t g, int64_t begin, int64_t end, float* v, float* zeros) const {
  constexpr int64_t L = kLanes<float>;
  const int64_t channels = t.p->groups * t.inner;
  for (int64_t i = 0; i < t.inner; ++i) zeros[i] = 0.0f;  // of T, whose zero has the same bits
  const T* nothing = reinterpret_cast<const T*>(zeros);
  for_each_tile_run(begin, end, [&](int64_t n, const Run& run) {
    const int64_t h0 = first_row(run.h);
    const T* image = source + n * volume(t.source) * channels + g * t.inner;
    for (int64_t k = 0; k < run.count; ++k) {
      const int64_t w0 = first_column(run.w + k);
      const T* from[4][4];
      for (int64_t i = 0; i < 4; ++i)
        for (int64_t j = 0; j < 4; ++j)
          from[i][j] = inside(a.h, h0 + i) && inside(a.w, w0 + j)
                           ? image + ((h0 + i) * t.source.w + w0 + j) * channels
                           : nothing;
      float* to = v + (run.column + k) * s.v_row;
      int64_t c = 0;
      for (; c + L <= t.inner; c += L)
        transform_tile([&](int i, int j) { return load(from[i][j] + c); }, to + c, s.v_stride);
      if (c < t.inner)
        transform_tile([&](int i, int j) { return load_first(from[i][j] + c, t.inner - c); }, to + c,
                       s.v_stride);
    }
  });
}

// Lanes are result channels.
template <typename T>
void Winograd<T>::from_m(int64_t g, int64_t begin, int64_t end, int64_t o, int64_t count,
                         const float* m) const {
  constexpr int64_t L = kLanes<float>;
  const int64_t channels = t.p->groups * t.outer;
  for_each_tile_run(begin, end, [&](int64_t n, const Run& run) {
    const int64_t h = 2 * run.h, high = imin(2, a.h.grid - h);
    VecF differences{};
    for (int64_t k = 0; k < run.count; ++k) {
      const int64_t w = 2 * (run.w + k), wide = imin(2, a.w.grid - w);
      T* to = result + ((n * t.result.h + h) * t.result.w + w) * channels + g * t.outer + o;
      for (int64_t c = 0; c < count; c += L) {
        VecF y[2][2];
        transform_result(m + (run.column + k) * kTileColumns<float> + c, s.m_stride,
                         load(bias + g * padded + o + c), y);
        for (int64_t i = 0; i < high; ++i)
          for (int64_t j = 0; j < wide; ++j) {
            T* place = to + (i * t.result.w + j) * channels + c;
            differences += y[i][j] - y[i][j];
            if (c + L <= count)
              store(place, y[i][j]);
            else
              store_first(place, y[i][j], count - c);
          }
      }
    }
    if (any_not_finite(differences)) mark(n, run.h);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
