// How a block of the depthwise weight gradients adds up what its threads have.
#pragma once

#include "conv_depthwise.h"

namespace fastops {
namespace cuda {
namespace {

// Sums over the threads that have the same channels, those of one lane (lanes: a power of two, at most
// most_lanes), and of one of `units` units: warp w has unit w % units. In an order that is always the same:
// over a warp by exchange, then over its unit's warps. put(unit, value, lane, u, sum) is called for each
// once. All threads come here together.
template <int most_warps, int most_lanes, typename A, int values, int width, typename Put>
__device__ inline void add_up_block(int lanes, int units, A (&sums)[values][width], const Put& put) {
  using Sums = A[most_warps][values][most_lanes * width];
  FASTOPS_SHARED(of_warps, Sums);
  const int t = threadIdx.x, threads = blockDim.x, warp = t / 32, lane = t % 32;
#pragma unroll
  for (int i = 0; i < values; ++i)
#pragma unroll
    for (int u = 0; u < width; ++u) {
      A sum = sums[i][u];
      for (int distance = 16; distance >= lanes; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (lane < lanes) of_warps[warp][i][lane * width + u] = sum;
    }
  __syncthreads();
  for (int i = t; i < units * values * lanes * width; i += threads) {
    const int item = i / values, value = i - item * values;
    const int unit = item / (lanes * width), place = item - unit * lanes * width;
    A sum = 0;
    for (int w = unit; w < threads / 32; w += units) sum += of_warps[w][value][place];
    put(unit, value, place / width, place % width, sum);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
