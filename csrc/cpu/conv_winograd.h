// Convolution by 3 × 3 with Winograd's F(2 × 2, 3 × 3): 16 multiplications for 2 × 2 results, not 36.
//
//   Y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A      d: 4 × 4 of the source, Y: 2 × 2 of the result, a tile
//
// The product ⊙, summed over source channels, is sixteen matrix products, one per element e of the 4 × 4:
//   NCHW:          M[e][o][tile]  = Σ_c U[e][o][c]    · V[e][c][tile]
//   channels_last: M[e][tile][o]  = Σ_c V[e][tile][c] · U[e][c][o], U in panels of columns
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
  int64_t blocks;                   // NCHW: of an image; channels_last: of all
  int64_t outer;                    // result channels of a task, whole units
  int64_t parts;                    // tasks along them
  int64_t unit;                     // result channels whose M exists at once
  int64_t weights;                  // elements of U, of a group
  int64_t u_stride, v_row, v_stride, m_row, m_stride;
  int64_t scratch;  // of a thread: V, M, and zeros or rows of the source
};

// Whether it pays: its transforms cost about 200 operations a tile and channel, of 16 · channels that the
// products take of 36; and U is 16 / 9 of the weights, written and read for few positions in vain.
template <typename T>
bool winograd_serves(const TapConv& t) {
  const ConvParams& p = *t.p;
  const auto same = [](const Extent& e, int64_t d, int64_t h, int64_t w) {
    return e.d == d && e.h == h && e.w == w;
  };
  if (!std::is_same<Acc<T>, float>::value || !same(p.kernel, 1, 3, 3) || !same(p.stride, 1, 1, 1))
    return false;
  if (!same(p.dilation, 1, 1, 1) || p.in.d != 1 || p.out.d != 1 || p.pad.d != 0) return false;
  const int64_t positions = (p.channels_last ? p.n : imin(p.n, 1)) * volume(t.result);
  return t.inner >= 32 && t.outer >= 32 && positions >= 192;
}

inline WinogradShape winograd_shape(const TapConv& t, const TapAxes& a) {
  constexpr int64_t L = kLanes<float>, nr = kTileColumns<float>, pad = 16;
  constexpr int64_t kMinTasks = 8;
  const bool last = t.p->channels_last;
  WinogradShape s;
  s.tile_rows = ceil_div(a.h.grid, 2), s.tile_columns = ceil_div(a.w.grid, 2);
  const int64_t all = s.tile_rows * s.tile_columns * (last ? t.p->n : 1);
  // channels_last: V of 512 KiB at most. NCHW: as many columns as a register tile has with AVX-512.
  const int64_t most = last ? imax(kTileRows, imin(48, 8192 / t.inner / kTileRows * kTileRows)) : 64;
  s.blocks = imax(1, ceil_div(all, most));
  s.tiles = round_up(ceil_div(all, s.blocks), last ? kTileRows : L);
  s.blocks = ceil_div(all, s.tiles);
  s.unit = last ? nr : 48;
  const int64_t units = ceil_div(t.outer, s.unit), tasks = s.blocks * t.p->groups * (last ? 1 : t.p->n);
  s.parts = imin(units, ceil_div(kMinTasks, imax(1, tasks)));
  s.outer = ceil_div(units, s.parts) * s.unit;
  s.parts = ceil_div(t.outer, s.outer);
  // Elements e are a cache line more than a multiple of 4 KiB apart, or their stores would meet in one set.
  s.u_stride = t.inner * (last ? round_up(t.outer, nr) : t.outer);
  s.weights = kElements * s.u_stride;
  s.v_row = last ? round_up(t.inner, L) : s.tiles + L;
  s.v_stride = (last ? s.tiles : t.inner) * s.v_row + pad;
  s.m_row = last ? nr : s.tiles;
  s.m_stride = (last ? s.tiles : s.unit) * s.m_row + pad;
  const int64_t lines = last ? t.inner : 4 * (2 * s.tiles + 4 * L);
  s.scratch = kElements * (s.v_stride + s.m_stride) + L + round_up(lines, 16);
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

// U of result channels [o0, o1) of a group. Lanes are source channels (NCHW) or result channels.
template <typename T>
void winograd_weights(const TapConv& t, const TapAxes& a, const WinogradShape& s, const T* w, int64_t o0,
                      int64_t o1, float* u) {
  constexpr int64_t L = kLanes<float>, nr = kTileColumns<float>;
  const bool last = t.p->channels_last;
  const int64_t lane_step = last ? t.w_outer : t.w_inner;
  int64_t place[9];
  for (int64_t q = 0; q < 9; ++q) {  // where windows are read backwards, so are the taps
    const int64_t h = a.h.off_step < 0 ? 2 - q / 3 : q / 3, x = a.w.off_step < 0 ? 2 - q % 3 : q % 3;
    place[q] = tap_at(t, a, h * 3 + x).index * t.w_tap;
  }
  const auto transform = [&](int64_t o, int64_t i, int64_t lanes, float* to) {
    const T* from = w + o * t.w_outer + i * t.w_inner;
    VecF taps[9];
    for (int q = 0; q < 9; ++q) {
      if (lane_step == 1 && lanes == L) {
        taps[q] = load(from + place[q]);
        continue;
      }
      float line[L] = {};
      for (int64_t l = 0; l < lanes; ++l) line[l] = to_acc(from[place[q] + l * lane_step]);
      taps[q] = load(line);
    }
    VecF columns[3][4];
    for (int j = 0; j < 3; ++j) transform_taps(taps[j], taps[3 + j], taps[6 + j], columns[j]);
    for (int e = 0; e < 4; ++e) {
      VecF line[4];
      transform_taps(columns[0][e], columns[1][e], columns[2][e], line);
      for (int j = 0; j < 4; ++j)
        if (last || lanes == L)  // panels have room, for zeros
          store(to + (4 * e + j) * s.u_stride, line[j]);
        else
          store_first(to + (4 * e + j) * s.u_stride, line[j], lanes);
    }
  };
  if (last)
    for (int64_t i = 0; i < t.inner; ++i)
      for (int64_t o = o0; o < round_up(o1, nr); o += L)
        transform(o, i, imax(0, imin(L, o1 - o)), u + o / nr * t.inner * nr + i * nr + o % nr);
  else
    for (int64_t o = o0; o < o1; ++o)
      for (int64_t i = 0; i < t.inner; i += L) transform(o, i, imin(L, t.inner - i), u + o * t.inner + i);
}

// ---- products --------------------------------------------------------------------------------------

// m[row][column] = Σ_k a[row][k] · b[k][column], for at most nr columns.
inline void multiply_block(const float* a, int64_t a_row, int64_t rows, const float* b, int64_t b_row,
                           int64_t columns, int64_t depth, float* m, int64_t m_row) {
  for (int64_t k0 = 0; k0 < depth; k0 += kTileDepth<float>) {
    const int64_t k1 = imin(depth, k0 + kTileDepth<float>);
    for (int64_t r = 0; r < rows; r += kTileRows)
      with_tile(imin(kTileRows, rows - r), ceil_div(columns, kLanes<float>), [&](auto R, auto V) {
        Tile<decltype(R)::value, decltype(V)::value, float> tile;
        RowSet<float> from;
        float* to[decltype(R)::value];
        for (int i = 0; i < decltype(R)::value; ++i) {
          from.rows[i] = a + (r + i) * a_row + k0;
          to[i] = m + (r + i) * m_row;
        }
        tile.multiply(from, 1, b + k0 * b_row, b_row, k1 - k0);
        tile.add_to(to, k0 == 0, kLanes<float>, [](int, int) { return VecF{}; });
      });
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

  // f(n, run) for the runs of a tile row of the tiles [begin, end), counted from image n on.
  template <typename F>
  void for_each_tile_run(int64_t n, int64_t begin, int64_t end, F f) const {
    const int64_t tiles = s.tile_rows * s.tile_columns;
    for (int64_t at = begin; at < end;) {
      const int64_t image = at / tiles, tile = at % tiles, w = tile % s.tile_columns;
      const int64_t count = imin(s.tile_columns - w, end - at);
      f(n + image, Run{at - begin, count, 0, tile / s.tile_columns, w});
      at += count;
    }
  }

  void rows_to_v(int64_t g, int64_t begin, int64_t end, float* v, float* zeros) const;
  void rows_from_m(int64_t g, int64_t begin, int64_t end, int64_t o, int64_t count, const float* m) const;
  void planes_to_v(int64_t n, int64_t g, int64_t begin, int64_t end, float* v, float* lines) const;
  void planes_from_m(int64_t n, int64_t g, int64_t begin, int64_t end, int64_t o0, int64_t o1,
                     const float* m) const;

  // Tiles [begin, end) of image n (channels_last: of all), result channels [o0, o1) of group g.
  void block(int64_t n, int64_t g, int64_t begin, int64_t end, int64_t o0, int64_t o1, const float* u,
             float* scratch) const {
    const bool last = t.p->channels_last;
    float *v = scratch, *m = v + kElements * s.v_stride, *rest = m + kElements * s.m_stride + kLanes<float>;
    if (last)
      rows_to_v(g, begin, end, v, rest);
    else
      planes_to_v(n, g, begin, end, v, rest);
    constexpr int64_t nr = kTileColumns<float>;
    for (int64_t o = o0; o < o1; o += s.unit) {
      const int64_t count = imin(s.unit, o1 - o), tiles = end - begin;
      for (int64_t e = 0; e < kElements; ++e) {
        const float *ue = u + e * s.u_stride, *ve = v + e * s.v_stride;
        float* me = m + e * s.m_stride;
        if (last)
          multiply_block(ve, s.v_row, tiles, ue + o / nr * t.inner * nr, nr, count, t.inner, me, s.m_row);
        else
          for (int64_t j = 0; j < tiles; j += nr)
            multiply_block(ue + o * t.inner, t.inner, count, ve + j, s.v_row, imin(nr, tiles - j), t.inner,
                           me + j, s.m_row);
      }
      if (last)
        rows_from_m(g, begin, end, o, count, m);
      else
        planes_from_m(n, g, begin, end, o, o + count, m);
    }
  }
};

// channels_last: lanes are source channels, then result channels.
template <typename T>
void Winograd<T>::rows_to_v(int64_t g, int64_t begin, int64_t end, float* v, float* zeros) const {
  constexpr int64_t L = kLanes<float>;
  const int64_t channels = t.p->groups * t.inner;
  for (int64_t i = 0; i < t.inner; ++i) zeros[i] = 0.0f;  // of T, whose zero has the same bits
  const T* nothing = reinterpret_cast<const T*>(zeros);
  for_each_tile_run(0, begin, end, [&](int64_t n, const Run& run) {
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

template <typename T>
void Winograd<T>::rows_from_m(int64_t g, int64_t begin, int64_t end, int64_t o, int64_t count,
                              const float* m) const {
  constexpr int64_t L = kLanes<float>;
  const int64_t channels = t.p->groups * t.outer;
  for_each_tile_run(0, begin, end, [&](int64_t n, const Run& run) {
    const int64_t h = 2 * run.h, high = imin(2, a.h.grid - h);
    VecF differences{};
    for (int64_t k = 0; k < run.count; ++k) {
      const int64_t w = 2 * (run.w + k), wide = imin(2, a.w.grid - w);
      T* to = result + ((n * t.result.h + h) * t.result.w + w) * channels + g * t.outer + o;
      for (int64_t c = 0; c < count; c += L) {
        VecF y[2][2];
        transform_result(m + (run.column + k) * s.m_row + c, s.m_stride, load(bias + g * padded + o + c), y);
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

// NCHW: lanes are tiles next to each other.
template <typename T>
void Winograd<T>::planes_to_v(int64_t n, int64_t g, int64_t begin, int64_t end, float* v,
                              float* lines) const {
  constexpr int64_t L = kLanes<float>;
  const int64_t plane = volume(t.source), stride = 2 * s.tiles + 4 * L;
  const T* image = source + (n * t.p->groups + g) * t.inner * plane;
  for_each_tile_run(n, begin, end, [&](int64_t, const Run& run) {
    const int64_t h0 = first_row(run.h), w0 = first_column(run.w), width = 2 * run.count + 2;
    const int64_t left = imin(width, imax(0, -w0)), right = imax(left, imin(width, a.w.source - w0));
    for (int64_t c = 0; c < t.inner; ++c) {
      for (int64_t i = 0; i < 4; ++i) {
        float* line = lines + i * stride;
        if (!inside(a.h, h0 + i)) {
          if (c == 0) zero_row(line, width);
          continue;
        }
        zero_row(line, left);
        copy_row(image + c * plane + (h0 + i) * t.source.w + w0 + left, 1, line + left, right - left);
        zero_row(line + right, width - right);
      }
      float* to = v + c * s.v_row + run.column;
      for (int64_t k = 0; k < run.count; k += L) {
        Pair<VecF> pairs[4][2];
        for (int i = 0; i < 4; ++i)
          for (int j = 0; j < 2; ++j) {
            const float* at = lines + i * stride + 2 * (k + j);
            pairs[i][j] = deinterleave(load(at), load(at + L));
          }
        transform_tile([&](int i, int j) { return j % 2 ? pairs[i][j / 2].second : pairs[i][j / 2].first; },
                       to + k, s.v_stride);
      }
    }
  });
}

template <typename T>
void Winograd<T>::planes_from_m(int64_t n, int64_t g, int64_t begin, int64_t end, int64_t o0, int64_t o1,
                                const float* m) const {
  constexpr int64_t L = kLanes<float>;
  const int64_t plane = volume(t.result);
  for_each_tile_run(n, begin, end, [&](int64_t, const Run& run) {
    const int64_t h = 2 * run.h, high = imin(2, a.h.grid - h);
    VecF differences{};
    for (int64_t o = o0; o < o1; ++o) {
      T* to = result + ((n * t.p->groups + g) * t.outer + o) * plane + h * t.result.w + 2 * run.w;
      const VecF base = broadcast(bias[g * padded + o]);
      for (int64_t k = 0; k < run.count; k += L) {
        VecF y[2][2];
        transform_result(m + (o - o0) * s.m_row + run.column + k, s.m_stride, base, y);
        const int64_t wide = imin(2 * imin(L, run.count - k), a.w.grid - 2 * (run.w + k));
        for (int64_t i = 0; i < high; ++i) {
          const Pair<VecF> line = interleave(y[i][0], y[i][1]);
          T* place = to + i * t.result.w + 2 * k;
          if (wide == 2 * L) {
            store(place, line.first), store(place + L, line.second);
            differences += (line.first - line.first) + (line.second - line.second);
            continue;
          }
          const int64_t one = imin(L, wide), two = wide - one;
          const VecF first = keep_first_lanes<float>(line.first, one);
          const VecF second = keep_first_lanes<float>(line.second, two);
          store_first(place, first, one);
          if (two > 0) store_first(place + L, second, two);
          differences += (first - first) + (second - second);
        }
      }
    }
    if (any_not_finite(differences)) mark(n, run.h);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
