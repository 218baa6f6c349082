// Tiles of two matrices in shared memory, and their product on tensor cores by one block.
//
// The product is over an index k, in steps of 64 bytes of elements: kStep. A tile lies k-major, a row of 64
// bytes for each row of the matrix, or row-major, a row of all the matrix's rows for each k: whichever way
// global memory has it, so that a copy needs no transposition. ldmatrix turns what has to be turned.
#pragma once

#include "../conv.h"
#include "dispatch.h"
#include "packs.h"
#include "primitives.cuh"

namespace fastops {
namespace cuda {
namespace {

template <typename T>
constexpr int kElements = 16 / sizeof(T);  // of 16 bytes: a chunk
constexpr int kChunks = 4;                 // of a step
template <typename T>
constexpr int kStep = kChunks * kElements<T>;
template <typename T>
constexpr int kDepth = 2 * kElements<T>;  // of one mma: two chunks

// ---- tiles -----------------------------------------------------------------------------------------

// [row][k], 64 bytes a row. Two rows share the 128 bytes that a cycle reads; ldmatrix takes 8 rows at one
// chunk, so the chunks of every second pair of rows change places to lie in different banks.
template <typename T, int rows>
struct KMajorTile {
  static constexpr int kBytes = rows * 64;
  unsigned char* bytes;

  __device__ T* chunk(int row, int at) const {
    return reinterpret_cast<T*>(bytes + row * 64 + ((at ^ (row >> 1 & 3)) << 4));
  }
  __device__ void put(int row, int k, T v) const { chunk(row, k / kElements<T>)[k % kElements<T>] = v; }
  // Rows first … first + 15 as mma's a.
  __device__ void load_a(uint32_t (&a)[4], int first, int step, int lane) const {
    ldmatrix_x4(a, chunk(first + lane % 16, 2 * step + lane / 16));
  }
  // The same rows as columns of b, eight each.
  __device__ void load_b(uint32_t (&b)[2][2], int first, int step, int lane) const {
    uint32_t r[4];
    ldmatrix_x4(r, chunk(first + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
  }
};

// [k][row]. Eight elements more than a row has: successive rows then begin 16 (two-byte elements) or 32
// bytes further on in the banks, which is what ldmatrix, and single loads at (k + t, row + g), want.
template <typename T, int rows>
struct RowMajorTile {
  static constexpr int kPitch = rows + 8;
  static constexpr int kBytes = kStep<T> * kPitch * static_cast<int>(sizeof(T));
  unsigned char* bytes;

  __device__ T* at(int row, int k) const { return reinterpret_cast<T*>(bytes) + k * kPitch + row; }
  __device__ void put(int row, int k, T v) const { *at(row, k) = v; }
  __device__ void load_a(uint32_t (&a)[4], int first, int step, int lane) const {
    if constexpr (sizeof(T) == 2) {
      ldmatrix_x4_trans(a, at(first + lane / 8 % 2 * 8, step * kDepth<T> + lane / 16 * 8 + lane % 8));
    } else {
      const int row = first + lane / 4, k = step * kDepth<T> + lane % 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = __float_as_uint(*at(row + i % 2 * 8, k + i / 2 * 4));
    }
  }
  __device__ void load_b(uint32_t (&b)[2][2], int first, int step, int lane) const {
    if constexpr (sizeof(T) == 2) {
      uint32_t r[4];
      ldmatrix_x4_trans(r, at(first + lane / 16 * 8, step * kDepth<T> + lane / 8 % 2 * 8 + lane % 8));
      b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
    } else {
      const int row = first + lane / 4, k = step * kDepth<T> + lane % 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = __float_as_uint(*at(row + i / 2 * 8, k + i % 2 * 4));
    }
  }
};

// ---- products --------------------------------------------------------------------------------------

// How products are made: of 16-bit elements exactly; of fp32 in TF32, or in three of its products.
template <typename Element, bool three>
struct Products {
  using T = Element;
  static constexpr bool kThree = three;
};

// Calls f with a Products<...> of the params' dtype.
template <typename F>
void dispatch_products(const ConvParams& p, F f) {
  if (p.dtype == DType::kBF16) return f(Products<__nv_bfloat16, false>{});
  if (p.dtype == DType::kF16) return f(Products<__half, false>{});
  if (p.tf32) return f(Products<float, false>{});
  f(Products<float, true>{});
}

// A register of an operand, as mma takes it; and, with_rest, what rounding took off.
template <typename T, bool with_rest>
__device__ inline void split(uint32_t& big, uint32_t& rest) {
  rest = 0;
  if constexpr (std::is_same<T, float>::value) {
    const uint32_t bits = big;
    big = to_tf32(__uint_as_float(bits));
    if constexpr (with_rest) {
      // The largest numbers stay finite: they are cut off. Infinity and NaN have no rest.
      if (big << 1 == 0xFF000000u) big = bits & 0xFFFFE000u;
      if ((big & 0x7F800000u) != 0x7F800000u) rest = to_tf32(__uint_as_float(bits) - __uint_as_float(big));
    }
  }
}

// Warps × what each computes: 16 · m rows, 8 · n columns (n even).
template <int warps_m_, int warps_n_, int m_, int n_>
struct Shape {
  static constexpr int kWarpsM = warps_m_, kWarpsN = warps_n_, kM = m_, kN = n_;
  static constexpr int kThreadsOf = 32 * kWarpsM * kWarpsN;
  static constexpr int kRows = kWarpsM * 16 * kM, kColumns = kWarpsN * 8 * kN;
};

template <typename T>
constexpr int kParts = kStep<T> / kDepth<T>;  // of a step: one mma deep each

// Long sums in fp32 are made in two stages: of kFold steps, and of those. A sum of 4,096 products, in steps
// of 16, then has 16 terms, of 16 steps' each, where one chain would have 256: the error is a third.
constexpr int kFold = 16;
__device__ inline void add_to(float (&sums)[4], const float (&some)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) sums[r] += some[r];
}
__device__ inline void fold(float (&before)[4], float (&now)[4]) {
  add_to(before, now);
#pragma unroll
  for (int r = 0; r < 4; ++r) now[r] = 0;
}

// This thread's part of the block's product. `folds`: for long sums.
template <typename P, typename S, bool folds = P::kThree>
struct Sums {
  using T = typename P::T;
  int lane, row0, column0;  // of this warp

  __device__ Sums() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    row0 = warp / S::kWarpsN * 16 * S::kM;
    column0 = warp % S::kWarpsN * 8 * S::kN;
  }

  // The product += a · b over the step of that number.
  template <typename A, typename B>
  __device__ void add(int step, const A& a_tile, const B& b_tile) {
#pragma unroll
    for (int part = 0; part < kParts<T>; ++part) add_part(a_tile, b_tile, part);
    if (step % kFold == kFold - 1) fold_sums();
  }
  // The same over a part of a step, one mma deep; who calls this folds.
  template <typename A, typename B>
  __device__ void add_part(const A& a_tile, const B& b_tile, int part) {
    uint32_t b[S::kN][2], b_rest[P::kThree ? S::kN : 1][2];
#pragma unroll
    for (int j = 0; j < S::kN; j += 2) {
      uint32_t pair[2][2];
      b_tile.load_b(pair, column0 + 8 * j, part, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        b[j + i / 2][i % 2] = pair[i / 2][i % 2];
        split<T, P::kThree>(b[j + i / 2][i % 2], b_rest[P::kThree ? j + i / 2 : 0][i % 2]);
      }
    }
#pragma unroll
    for (int i = 0; i < S::kM; ++i) {
      uint32_t a[4], a_rest[4];
      a_tile.load_a(a, row0 + 16 * i, part, lane);
#pragma unroll
      for (int r = 0; r < 4; ++r) split<T, P::kThree>(a[r], a_rest[r]);
#pragma unroll
      for (int j = 0; j < S::kN; ++j) {
        if constexpr (P::kThree) {
          // The small ones first, and summed apart: tensor cores cut sums off where fp32 rounds them.
          float some[4] = {};
          mma<T>(some, a_rest, b[j]);
          mma<T>(some, a, b_rest[j]);
          mma<T>(some, a, b[j]);
          add_to(d[i][j], some);
        } else {
          mma<T>(d[i][j], a, b[j]);
        }
      }
    }
  }
  // Ends the first stage of a long sum in fp32.
  __device__ void fold_sums() {
    if constexpr (folds) {
#pragma unroll
      for (int i = 0; i < S::kM; ++i)
#pragma unroll
        for (int j = 0; j < S::kN; ++j) fold(before[i][j], d[i][j]);
    }
  }

  // Adds f(row, column), two numbers, to each pair of neighbouring columns that this thread has.
  template <typename F>
  __device__ void add_pairs(F f) {
#pragma unroll
    for (int i = 0; i < S::kM; ++i)
#pragma unroll
      for (int j = 0; j < S::kN; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Pack<float, 2> pair = f(row_at(i, half), column_at(j));
          d[i][j][2 * half] += pair.v[0];
          d[i][j][2 * half + 1] += pair.v[1];
        }
  }
  // Calls f(row, column, first, second) for each pair of neighbouring columns that this thread has.
  template <typename F>
  __device__ void for_each_pair(F f) {
#pragma unroll
    for (int i = 0; i < S::kM; ++i)
#pragma unroll
      for (int j = 0; j < S::kN; ++j) {
        if constexpr (folds) fold(before[i][j], d[i][j]);
        const float (&sums)[4] = folds ? before[folds ? i : 0][folds ? j : 0] : d[i][j];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          f(row_at(i, half), column_at(j), sums[2 * half], sums[2 * half + 1]);
      }
  }

 private:
  __device__ int row_at(int i, int half) const { return row0 + 16 * i + 8 * half + lane / 4; }
  __device__ int column_at(int j) const { return column0 + 8 * j + lane % 4 * 2; }

  float d[S::kM][S::kN][4] = {};
  float before[folds ? S::kM : 1][folds ? S::kN : 1][4] = {};
};

// Σ over k of the rows of a: of 16-bit elements by a product with ones; of fp32, of which TF32 has only some
// bits, by plain additions, each thread of what it holds.
template <typename T, typename S>
struct RowSums {
  template <typename A>
  __device__ void add(int step, const A& a_tile, int row0, int lane) {
    const uint32_t one = std::is_same<T, __half>::value ? 0x3C003C00u : 0x3F803F80u;
    const uint32_t ones[2] = {one, one};
#pragma unroll 1
    for (int part = 0; part < kParts<T>; ++part)  // not at once, or registers would be short
#pragma unroll
      for (int i = 0; i < S::kM; ++i) {
        uint32_t a[4];
        a_tile.load_a(a, row0 + 16 * i, part, lane);
        if constexpr (kPlain) {
#pragma unroll
          for (int half = 0; half < 2; ++half)
            now[i][half] += __uint_as_float(a[half]) + __uint_as_float(a[half + 2]);
        } else {
          mma<T>(now[i], a, ones);
        }
      }
    if constexpr (kPlain)
      if (step % kFold == kFold - 1) {
#pragma unroll
        for (int i = 0; i < 2 * S::kM; ++i) before[i / 2][i % 2] += now[i / 2][i % 2], now[i / 2][i % 2] = 0;
      }
  }
  // Calls f(row of the warp, sum), in one lane for each row.
  template <typename F>
  __device__ void for_each(int lane, F f) const {
#pragma unroll
    for (int i = 0; i < 2 * S::kM; ++i) {
      float sum = now[i / 2][kPlain ? i % 2 : i % 2 * 2];
      if constexpr (kPlain) {
        sum += before[i / 2][i % 2];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
      }
      if (lane % 4 == 0) f(8 * i + lane / 4, sum);
    }
  }

 private:
  static constexpr bool kPlain = sizeof(T) == 4;
  float now[S::kM][kPlain ? 2 : 4] = {}, before[kPlain ? S::kM : 1][2] = {};
};

}  // namespace
}  // namespace cuda
}  // namespace fastops
