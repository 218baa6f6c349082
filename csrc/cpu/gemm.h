// The register tile of every matrix product on the CPU: a few rows of A, given by pointers, times a
// panel of B, packed, accumulated in registers.
//
//   acc[m][v] += Σ_k A[m][k] · B[k][v·lanes …]
//
// Six rows × two vectors on AVX2: 12 accumulators + 2 of B + 1 of A fit the 16 registers, and 12
// independent FMAs cover the latency of 4 cycles × 2 units. On AVX-512, six rows × four vectors: 24 +
// 4 + 1 of 32. Per k the tile loads 6 + 2 values for 12 FMAs, so both load ports keep up.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "vec.h"

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

// The rows of A for one stretch of k: A[m][k] = rows[m][k · step].
template <typename A>
struct RowSet {
  const A* rows[kTileRows];
};

template <int rows, int vectors, typename A>
struct Tile {
  Vec<A> acc[rows][vectors] = {};

  // Adds one stretch of k.
  __attribute__((always_inline)) void multiply(const RowSet<A>& a, int64_t step, const A* b, int64_t b_stride,
                                               int64_t depth) {
    for (int64_t k = 0; k < depth; ++k) {
      Vec<A> column[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) column[v] = load(b + k * b_stride + v * kLanes<A>);
#pragma GCC unroll 6
      for (int m = 0; m < rows; ++m) {
        const Vec<A> value = broadcast(a.rows[m][k * step]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) acc[m][v] += value * column[v];
      }
    }
  }

  // Writes the sums: c[m][…] = base(m, v) + acc[m][v], where base is what belongs there before the
  // first stretch of k, and c's own value after it. A long sum is a sum of short ones: each stretch
  // starts from zero, which keeps the rounding error at that of 256 terms rather than of all.
  // Of the last vector only `last` lanes exist in c.
  template <typename Base>
  __attribute__((always_inline)) void add_to(A* const (&c)[rows], bool first, int64_t last, Base base) const {
#pragma GCC unroll 6
    for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        A* to = c[m] + v * kLanes<A>;
        if (v + 1 < vectors || last == kLanes<A>)
          store(to, (first ? base(m, v) : load(to)) + acc[m][v]);
        else
          store_first(to, (first ? base(m, v) : load_first(to, last)) + acc[m][v], last);
      }
    }
  }
};

// Calls f(Count<rows>, Count<vectors>) for run-time counts, 1 ≤ rows ≤
// kTileRows, 1 ≤ vectors ≤ kTileVectors.
template <int n>
struct Count {
  static constexpr int value = n;
};
template <int vectors, typename F>
inline void with_rows(int64_t rows, F f) {
  static_assert(kTileRows == 6, "one case per number of rows");
  switch (rows) {
    case 1:
      return f(Count<1>{}, Count<vectors>{});
    case 2:
      return f(Count<2>{}, Count<vectors>{});
    case 3:
      return f(Count<3>{}, Count<vectors>{});
    case 4:
      return f(Count<4>{}, Count<vectors>{});
    case 5:
      return f(Count<5>{}, Count<vectors>{});
    default:
      return f(Count<6>{}, Count<vectors>{});
  }
}
template <typename F>
inline void with_tile(int64_t rows, int64_t vectors, F f) {
  if constexpr (kTileVectors == 4) {
    if (vectors == 4) return with_rows<4>(rows, f);
    if (vectors == 3) return with_rows<3>(rows, f);
  }
  if (vectors == 2) return with_rows<2>(rows, f);
  return with_rows<1>(rows, f);
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
