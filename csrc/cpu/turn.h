// Matrices turned over: rows become columns.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "vec.h"

namespace fastops {
namespace cpu {
namespace {

// to[column][row] = from[row][column], L × L at a time; at the ends the last whole square once more.
template <typename T, typename To>
void turn_over(const T* from, int64_t from_row, int64_t rows, int64_t columns, To* to, int64_t to_row) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (rows < L || columns < L) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) to[j * to_row + i] = from_acc<To>(to_acc(from[i * from_row + j]));
    return;
  }
  for (int64_t i0 = 0; i0 < rows; i0 += L)
    for (int64_t j0 = 0; j0 < columns; j0 += L) {
      const int64_t i = imin(i0, rows - L), j = imin(j0, columns - L);
      Vec<Acc<T>> square[L];
      for (int64_t l = 0; l < L; ++l) square[l] = load(from + (i + l) * from_row + j);
      transpose(square);
      for (int64_t l = 0; l < L; ++l) store(to + (j + l) * to_row + i, square[l]);
    }
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
