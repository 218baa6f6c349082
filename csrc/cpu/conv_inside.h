// NCHW convolutions by way of channels_last: where a convolution multiplies much for each element that it
// moves, turning its operands over costs less than what channels_last saves (its source is gathered by
// pointers, its tiles reach over images, Winograd has whole vectors of channels however small the image).
#pragma once

#include "parallel.h"
#include "tap_conv.h"

namespace fastops {
namespace cpu {
namespace {

struct Inside {
  ConvParams p;            // of the images that are turned over at once
  int64_t source, result;  // their elements
};

// Turning an element over takes about a cycle from the caches, in which a core multiplies 16 or 32 times.
inline bool pays_inside(const TapConv& t) {
  if (t.p->channels_last || t.inner < 16 || t.outer < 16) return false;
  const double moved = static_cast<double>(t.inner) * static_cast<double>(volume(t.source)) +
                       static_cast<double>(t.outer) * static_cast<double>(volume(t.result));
  const double places = static_cast<double>(volume(t.input_grad ? t.source : t.result));
  const double products = static_cast<double>(t.inner * t.outer * volume(t.p->kernel)) * places;
  return products >= 128.0 * moved;
}

inline Inside channels_last_inside(const TapConv& t) {
  constexpr int64_t kElements = int64_t{1} << 22;  // 16 MB of fp32: in the last-level cache, or nearly
  const int64_t source = t.p->groups * t.inner * volume(t.source),
                result = t.p->groups * t.outer * volume(t.result);
  Inside inside = {*t.p, 0, 0};
  inside.p.channels_last = true;
  inside.p.n = imin(t.p->n, imax(1, kElements / imax(1, source + result)));
  inside.source = round_up(inside.p.n * source, 64), inside.result = round_up(inside.p.n * result, 64);
  return inside;
}

// In elements of the accumulation type.
template <typename T>
int64_t inside_elements(const Inside& inside) {
  return (inside.source + inside.result) / static_cast<int64_t>(sizeof(Acc<T>) / sizeof(T));
}

// to[column][row] = from[row][column], L × L at a time; at the ends the last whole square once more.
template <typename T>
void turn_over(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to, int64_t to_row) {
  constexpr int64_t L = kLanes<Acc<T>>;
  if (rows < L || columns < L) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) to[j * to_row + i] = from[i * from_row + j];
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

// Positions of one task; of each channel two cache lines of fp32 or more.
constexpr int64_t kTurned = 32;

template <typename T>
void to_channels_last(int64_t n, int64_t channels, int64_t positions, const T* from, T* to, int threads) {
  const int64_t blocks = ceil_div(positions, kTurned);
  parallel_for(threads, n * blocks, kTurned * channels / 4, [&](int64_t task, int) {
    const int64_t image = task / blocks * channels * positions;
    const int64_t begin = task % blocks * kTurned, count = imin(kTurned, positions - begin);
    turn_over(from + image + begin, positions, channels, count, to + image + begin * channels, channels);
  });
}

template <typename T>
void to_contiguous(int64_t n, int64_t channels, int64_t positions, const T* from, T* to, int threads) {
  const int64_t blocks = ceil_div(positions, kTurned);
  parallel_for(threads, n * blocks, kTurned * channels / 4, [&](int64_t task, int) {
    const int64_t image = task / blocks * channels * positions;
    const int64_t begin = task % blocks * kTurned, count = imin(kTurned, positions - begin);
    turn_over(from + image + begin * channels, channels, count, channels, to + image + begin, positions);
  });
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
