// How a block of the depthwise weight gradients adds up what its threads have.
#pragma once

#include "conv_depthwise.h"

namespace fastops {
namespace cuda {
namespace {

// Sums over the threads that have the same channels, those of one lane (lanes: a power of two, at most
// most_lanes and 32),
// in an order that is always the same: over a warp by exchange, then over warps. put(value, lane, u, sum) is
// called for each once. All threads come here together.
template <int most_lanes, typename A, int values, int width, typename Put>
__device__ inline void add_up_block(int lanes, A (&sums)[values][width], const Put& put) {
  constexpr int warps = kDepthwiseThreads / 32;
  using Sums = A[warps][values][most_lanes * width];
  FASTOPS_SHARED(of_warps, Sums);
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
#pragma unroll
  for (int i = 0; i < values; ++i)
#pragma unroll
    for (int u = 0; u < width; ++u) {
      A sum = sums[i][u];
      for (int distance = 16; distance >= lanes; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (lane < lanes) of_warps[warp][i][lane * width + u] = sum;
    }
  __syncthreads();
  for (int i = t; i < values * lanes * width; i += kDepthwiseThreads) {
    const int value = i % values, place = i / values;
    A sum = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum += of_warps[w][value][place];
    put(value, place / width, place % width, sum);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
