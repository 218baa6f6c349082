// What the depthwise kernels on tensor cores share: how 8 planes come to shared memory, and rows that can be
// read in pairs from any element on.
#pragma once

#include <cstring>

#include "../toeplitz_shape.h"
#include "dispatch.h"
#include "packs.h"
#include "primitives.cuh"

namespace fastops {
namespace cuda {
namespace {

// A block has so many planes, a warp each.
constexpr int kPlanes = kToeplitzPlanes, kToeplitzThreads = 32 * kPlanes;

// A line of kToeplitzTaps elements, twice: once more one place later, so that pairs at odd places are aligned
// too. The second copy begins 32 later, in other banks.
constexpr int kDoubled = 2 * kToeplitzTaps;
// Where the second copy has what the first has at place − 1.
__device__ inline int second_copy(int place) { return kToeplitzTaps + (place + 32) % kToeplitzTaps; }
// The elements at a place of a doubled line and at the next.
template <typename T>
__device__ __forceinline__ uint32_t pair_at(const T* line, int place) {
  uint32_t pair;
  memcpy(&pair, line + (place % 2 == 0 ? place : second_copy(place + 1)), sizeof pair);
  return pair;
}

template <typename T>
__device__ inline bool is_finite(T v) {
  const float f = to_acc(v);
  return f - f == 0.0f;
}

// Part of an image's planes, from row h and column w on, which may lie outside.
template <typename T>
struct Window {
  const T* tensor;
  int channels, height, width;
  bool channels_last;
  int64_t n;
  int channel, h, w;

  __device__ bool has(int row, int column) const {
    return h + row >= 0 && h + row < height && w + column >= 0 && w + column < width;
  }
};

// Calls put(plane, row, column, element) for all of `rows` × `columns`, zeros outside; whether what this
// thread has seen is finite.
template <int columns, typename T, typename Put>
__device__ __forceinline__ bool load_window(const Window<T>& a, int rows, const Put& put) {
  const int t = static_cast<int>(threadIdx.x);
  bool finite = true;
  const T zero = from_acc<T>(0);
  if (a.channels_last) {
    const T* const tensor = a.tensor + a.n * a.height * a.width * a.channels + a.channel;
    for (int i = t; i < rows * columns; i += kToeplitzThreads) {
      const int row = i / columns, column = i - row * columns;
      Pack<T, kPlanes> pixel;
#pragma unroll
      for (int u = 0; u < kPlanes; ++u) pixel.v[u] = zero;
      if (a.has(row, column))
        pixel = *reinterpret_cast<const Pack<T, kPlanes>*>(
            tensor + (int64_t{a.h + row} * a.width + a.w + column) * a.channels);
#pragma unroll
      for (int u = 0; u < kPlanes; ++u) {
        put(u, row, column, pixel.v[u]);
        finite &= is_finite(pixel.v[u]);
      }
    }
  } else {
    const T* const tensor = a.tensor + (a.n * a.channels + a.channel) * a.height * a.width;
    for (int i = t; i < kPlanes * rows * columns; i += kToeplitzThreads) {
      const int line = i / columns, column = i - line * columns, u = line / rows, row = line - u * rows;
      const bool exists = a.channel + u < a.channels && a.has(row, column);
      const T v = exists ? tensor[(int64_t{u} * a.height + a.h + row) * a.width + a.w + column] : zero;
      put(u, row, column, v);
      finite &= is_finite(v);
    }
  }
  return finite;
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
