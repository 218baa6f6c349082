// The register tile of every matrix product on the CPU: a few rows of A, given by pointers, times a
// panel of B, packed, accumulated in registers.
//
//   acc[m][v] += Σ_k A[m][k] · B[k][v·lanes …]
//
// A and B consist of words (words.h): numbers, or pairs of bf16, of which k counts the pairs.
//
// Six rows × two vectors on AVX2: 12 accumulators + 2 of B + 1 of A fit the 16 registers, and 12
// independent FMAs cover the latency of 4 cycles × 2 units. On AVX-512, six rows × four vectors: 24 +
// 4 + 1 of 32. Per k the tile loads 6 + 2 values for 12 FMAs, so both load ports keep up.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "words.h"

namespace fastops {
namespace cpu {
namespace {

constexpr int kTileRows = 6;
constexpr int kTileVectors = kVectorBytes == 64 ? 4 : 2;
template <typename A>
constexpr int kTileColumns = kTileVectors * kLanes<A>;

// Depth of one pass over k: a panel of B, 256 × 16 floats = 16 KiB, stays in half of L1 while the rows
// of A stream through.
template <typename A>
constexpr int64_t kTileDepth = 1024 / static_cast<int64_t>(sizeof(A));

// One tile: what to multiply, and where its sums go.
template <typename T, typename W>
struct TileTask {
  using A = Acc<W>;
  // A[m][k] = rows[m][k · step], for k < depth. Then those of the next segment, whose pointers lie
  // `next_rows` further, and so on; the panel goes on through all of them.
  const W* const* rows;
  int64_t segments;
  int64_t next_rows;
  int64_t step;
  int64_t depth;
  const W* panel;
  int64_t panel_stride;
  // The sums of the stretches of k before are in `sums`, except before the first; the bias is added there,
  // one number per row or per column, or none. After the last they go to `out`, rounded. The two may be the
  // same. Of the last vector only so many lanes exist in each.
  bool first, last;
  const A* bias;
  bool bias_of_rows;
  int64_t sum_lanes, out_lanes;
  A* sums[kTileRows];
  T* out[kTileRows];
};

// A long sum is a sum of short ones: each stretch of k starts from zero, which keeps the rounding error at
// that of 256 terms rather than of all.
//
// Not inlined: with little else alive, all accumulators stay in registers.
template <int rows, int vectors, typename T, typename W>
__attribute__((noinline)) void run_tile(const TileTask<T, W>& task) {
  using A = Acc<W>;
  constexpr int64_t L = kLanes<A>;
  Vec<A> acc[rows][vectors] = {};
  const W* panel = task.panel;
  const W* const* next = task.rows;
  const int64_t step = task.step, stride = task.panel_stride;
  for (int64_t segment = task.segments; segment > 0; --segment, next += task.next_rows) {
    const W* row[rows];
#pragma GCC unroll 6
    for (int m = 0; m < rows; ++m) row[m] = next[m];
    for (int64_t k = 0, depth = task.depth; k < depth; ++k, panel += stride) {
      Words<W> column[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) column[v] = load_words(panel + v * L);
#pragma GCC unroll 6
      for (int m = 0; m < rows; ++m) {
        const Words<W> value = broadcast_word(row[m] + k * step);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) acc[m][v] = multiply_add(acc[m][v], value, column[v]);
      }
    }
  }

  const bool whole_sums = task.sum_lanes == L, whole_out = task.out_lanes == L;
#pragma GCC unroll 6
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      A* at = task.sums[m] + v * L;
      const bool all = v + 1 < vectors || whole_sums;
      if (!task.first)
        acc[m][v] += all ? load(at) : load_first(at, task.sum_lanes);
      else if (task.bias != nullptr)
        acc[m][v] += task.bias_of_rows ? broadcast(task.bias[m]) : load(task.bias + v * L);
      if (!task.last) {
        if (all)
          store(at, acc[m][v]);
        else
          store_first(at, acc[m][v], task.sum_lanes);
      } else if (v + 1 < vectors || whole_out) {
        store_sums<W>(task.out[m] + v * L, acc[m][v]);
      } else {
        store_first(task.out[m] + v * L, acc[m][v], task.out_lanes);
      }
    }
  }
}

// For run-time counts, 1 ≤ rows ≤ kTileRows, 1 ≤ vectors ≤ kTileVectors.
template <int vectors, typename T, typename W>
inline void run_tile_of(int64_t rows, const TileTask<T, W>& task) {
  static_assert(kTileRows == 6, "one case per number of rows");
  switch (rows) {
    case 1:
      return run_tile<1, vectors>(task);
    case 2:
      return run_tile<2, vectors>(task);
    case 3:
      return run_tile<3, vectors>(task);
    case 4:
      return run_tile<4, vectors>(task);
    case 5:
      return run_tile<5, vectors>(task);
    default:
      return run_tile<6, vectors>(task);
  }
}
template <typename T, typename W>
inline void run_tile(int64_t rows, int64_t vectors, const TileTask<T, W>& task) {
  if constexpr (kTileVectors == 4) {
    if (vectors == 4) return run_tile_of<4>(rows, task);
    if (vectors == 3) return run_tile_of<3>(rows, task);
  }
  if (vectors == 2) return run_tile_of<2>(rows, task);
  return run_tile_of<1>(rows, task);
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
