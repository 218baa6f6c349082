// Between layouts: (n, c, pixels) to (n, pixels, c) and back, of 16-bit elements, through tiles in shared
// memory.
#pragma once

#include "../geometry.h"
#include "launch.h"
#include "packs.h"

namespace fastops {
namespace cuda {
namespace {

constexpr int kSquare = 64;  // rows and columns of a tile
// Elements of a row of the tile: 33 words. Columns are read by 8 lanes that are 8 rows, 264 words, apart: in
// four of the 32 banks each twice.
constexpr int kSquarePitch = kSquare + 2;

// Each of so many matrices, rows × columns, into columns × rows; eight neighbours of a row at once where
// `wide_from`, of a column where `wide_to`.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    transpose_image_kernel(const T* from, T* to, int64_t rows, int64_t columns, unsigned row_tiles,
                           unsigned column_tiles, bool wide_from, bool wide_to) {
  static_assert(sizeof(T) == 2);
  struct alignas(16) Square {
    T v[kSquare][kSquarePitch];
  };
  FASTOPS_SHARED(tile, Square);
  const unsigned image = blockIdx.x / (row_tiles * column_tiles);
  const unsigned place = blockIdx.x - image * (row_tiles * column_tiles), row_tile = place / column_tiles;
  const int64_t row0 = int64_t{row_tile} * kSquare;
  const int64_t column0 = int64_t{place - row_tile * column_tiles} * kSquare;
  from += image * rows * columns + row0 * columns + column0;
  to += image * rows * columns + column0 * rows + row0;
  // Of the tile, what there is.
  const int height = static_cast<int>(imin(rows - row0, kSquare));
  const int width = static_cast<int>(imin(columns - column0, kSquare));
  const int t = static_cast<int>(threadIdx.x);
  const int step_from = wide_from ? 8 : 1, step_to = wide_to ? 8 : 1;
#pragma unroll 2
  for (int i = t * step_from; i < kSquare * kSquare; i += kThreads * step_from) {
    const int row = i / kSquare, column = i % kSquare;
    if (row >= height || column >= width) continue;
    const T* const at = from + row * columns + column;
    if (wide_from) {
      const auto eight = *reinterpret_cast<const Pack<T, 8>*>(at);
#pragma unroll
      for (int u = 0; u < 8; u += 2)
        *reinterpret_cast<Pack<T, 2>*>(&tile.v[row][column + u]) = {{eight.v[u], eight.v[u + 1]}};
    } else {
      tile.v[row][column] = *at;
    }
  }
  __syncthreads();
#pragma unroll 2
  for (int i = t * step_to; i < kSquare * kSquare; i += kThreads * step_to) {
    const int column = i / kSquare, row = i % kSquare;
    if (row >= height || column >= width) continue;
    T* const at = to + column * rows + row;
    if (wide_to) {
      Pack<T, 8> eight;
#pragma unroll
      for (int u = 0; u < 8; ++u) eight.v[u] = tile.v[row + u][column];
      *reinterpret_cast<Pack<T, 8>*>(at) = eight;
    } else {
      *at = tile.v[row][column];
    }
  }
}

inline void transpose(int64_t count, int64_t rows, int64_t columns, const void* source, void* result,
                      void* stream) {
  const auto* const from = static_cast<const uint16_t*>(source);
  auto* const to = static_cast<uint16_t*>(result);
  const int64_t row_tiles = ceil_div(rows, kSquare), column_tiles = ceil_div(columns, kSquare);
  launch("transpose_image", transpose_image_kernel<uint16_t>,
         static_cast<unsigned>(count * row_tiles * column_tiles), kThreads, 0, stream, from, to, rows,
         columns, static_cast<unsigned>(row_tiles), static_cast<unsigned>(column_tiles),
         columns % 8 == 0 && address(from) % 16 == 0, rows % 8 == 0 && address(to) % 16 == 0);
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
