// Tiles of two matrices in shared memory, and their product on tensor cores by one block.
//
// The product is over an index k, in steps of 64 bytes of elements: kStep. A tile lies k-major, a row of 64
// bytes for each row of the matrix, or row-major, a row of all the matrix's rows for each k: whichever way
// global memory has it, so that a copy needs no transposition. ldmatrix turns what has to be turned.
#pragma once

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

// A register of an operand, as mma takes it; and what rounding took off.
template <typename P>
__device__ inline void split(uint32_t& big, uint32_t& small) {
  if constexpr (std::is_same<typename P::T, float>::value) {
    const float v = __uint_as_float(big);
    if constexpr (P::kThree) {
      // Cut off, not rounded: the largest numbers stay finite, and what is left has 13 bits.
      big &= 0xFFFFE000u;
      small = (big & 0x7F800000u) != 0x7F800000u ? to_tf32(v - __uint_as_float(big)) : 0;
    } else {
      big = to_tf32(v);
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

// This thread's part of the block's product.
template <typename P, typename S>
struct Sums {
  using T = typename P::T;
  float d[S::kM][S::kN][4] = {};
  int lane, row0, column0;  // of this warp

  __device__ Sums() {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    row0 = warp / S::kWarpsN * 16 * S::kM;
    column0 = warp % S::kWarpsN * 8 * S::kN;
  }

  // d += a · b over one step.
  template <typename A, typename B>
  __device__ void add(const A& a_tile, const B& b_tile) {
#pragma unroll
    for (int step = 0; step < kStep<T> / kDepth<T>; ++step) add_depth(a_tile, b_tile, step);
  }
  // The same over the step-th part of it, one mma deep.
  template <typename A, typename B>
  __device__ void add_depth(const A& a_tile, const B& b_tile, int step) {
    uint32_t b[S::kN][2], b_rest[P::kThree ? S::kN : 1][2];
#pragma unroll
    for (int j = 0; j < S::kN; j += 2) {
      uint32_t pair[2][2];
      b_tile.load_b(pair, column0 + 8 * j, step, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        b[j + i / 2][i % 2] = pair[i / 2][i % 2];
        split<P>(b[j + i / 2][i % 2], b_rest[P::kThree ? j + i / 2 : 0][i % 2]);
      }
    }
#pragma unroll
    for (int i = 0; i < S::kM; ++i) {
      uint32_t a[4], a_rest[4];
      a_tile.load_a(a, row0 + 16 * i, step, lane);
#pragma unroll
      for (int r = 0; r < 4; ++r) split<P>(a[r], a_rest[r]);
#pragma unroll
      for (int j = 0; j < S::kN; ++j) {
        if constexpr (P::kThree) {  // the small ones first
          mma<T>(d[i][j], a_rest, b[j]);
          mma<T>(d[i][j], a, b_rest[j]);
        }
        mma<T>(d[i][j], a, b[j]);
      }
    }
  }

  // sums[row] += Σ a over the step: a product with ones.
  template <typename A>
  __device__ void add_rows(float (&sums)[S::kM][4], const A& a_tile) {
    const uint32_t one = sizeof(T) == 4                   ? 0x3F800000u
                         : std::is_same<T, __half>::value ? 0x3C003C00u
                                                          : 0x3F803F80u;
    const uint32_t ones[2] = {one, one};
#pragma unroll
    for (int step = 0; step < kStep<T> / kDepth<T>; ++step)
#pragma unroll
      for (int i = 0; i < S::kM; ++i) {
        uint32_t a[4], a_rest[4];
        a_tile.load_a(a, row0 + 16 * i, step, lane);
#pragma unroll
        for (int r = 0; r < 4; ++r) split<P>(a[r], a_rest[r]);
        if constexpr (P::kThree) mma<T>(sums[i], a_rest, ones);
        mma<T>(sums[i], a, ones);
      }
  }

  // Calls f(row, column, first, second) for each pair of neighbouring columns that this thread has.
  template <typename F>
  __device__ void for_each_pair(F f) {
#pragma unroll
    for (int i = 0; i < S::kM; ++i)
#pragma unroll
      for (int j = 0; j < S::kN; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          f(row0 + 16 * i + 8 * half + lane / 4, column0 + 8 * j + lane % 4 * 2, d[i][j][2 * half],
            d[i][j][2 * half + 1]);
  }
};

}  // namespace
}  // namespace cuda
}  // namespace fastops
