// The kernels of planted.h, written as those of csrc/cuda are. Blocks have 64 threads.
#include "planted.h"

#include "../../csrc/cuda/launch.h"
#include "../../csrc/cuda/primitives.cuh"

namespace planted {
namespace {

using fastops::cuda::commit_copies;
using fastops::cuda::copy_async_16;
using fastops::cuda::launch;
using fastops::cuda::wait_for_copies;

constexpr int kBlock = 64;

// Each block of 64 reversed. Bug: no barrier between the writes to shared memory and the reads.
__global__ void missing_barrier_kernel(const float* x, float* y, int, bool broken) {
  FASTOPS_SHARED(tile, float[kBlock]);
  const int t = threadIdx.x, i = blockIdx.x * kBlock + t;
  tile[t] = x[i];
  if (!broken) __syncthreads();
  y[i] = tile[kBlock - 1 - t];
}

// The same. Bug: half of the threads return before the barrier.
__global__ void early_return_kernel(const float* x, float* y, int, bool broken) {
  FASTOPS_SHARED(tile, float[kBlock]);
  const int t = threadIdx.x, i = blockIdx.x * kBlock + t;
  tile[t] = x[i];
  if (broken && t >= kBlock / 2) return;
  __syncthreads();
  y[i] = tile[kBlock - 1 - t];
}

// y[i] = x[i - 1] + x[i] + x[i + 1], with zeros around. Bug: the right edge reads one too far.
__global__ void halo_kernel(const float* x, float* y, int n, bool broken) {
  const int i = blockIdx.x * kBlock + threadIdx.x;
  const float left = i > 0 ? x[i - 1] : 0.0f;
  const float right = i + 1 < n + (broken ? 1 : 0) ? x[i + 1] : 0.0f;
  y[i] = left + x[i] + right;
}

// The same through a tile in shared memory. Bug: the tile is an element short.
template <int kTile>
__device__ void halo_in_tile(const float* x, float* y, int n) {
  FASTOPS_SHARED(tile, float[kTile]);
  const int t = threadIdx.x, first = static_cast<int>(blockIdx.x) * kBlock - 1;
  float* const p = tile;
  for (int k = t; k < kBlock + 2; k += kBlock) p[k] = first + k >= 0 && first + k < n ? x[first + k] : 0.0f;
  __syncthreads();
  y[first + 1 + t] = p[t] + p[t + 1] + p[t + 2];
}
__global__ void short_tile_kernel(const float* x, float* y, int n, bool broken) {
  if (broken)
    halo_in_tile<kBlock + 1>(x, y, n);
  else
    halo_in_tile<kBlock + 2>(x, y, n);
}

// The sum of each warp, in its first lane's place; the rest of y is x. Bug: some lanes leave early.
__global__ void diverged_shuffle_kernel(const float* x, float* y, int, bool broken) {
  const int i = blockIdx.x * kBlock + threadIdx.x;
  float sum = x[i];
  for (int d = 16; d > 0; d /= 2) {
    if (broken && threadIdx.x % 32 >= 20 && d == 4) break;
    sum += __shfl_down_sync(0xffffffff, sum, d);
  }
  y[i] = threadIdx.x % 32 == 0 ? sum : x[i];
}

// y[t] = the sum over blocks of x[64 block + t]. Bug: every block adds to y, and no atomics.
__global__ void scatter_add_kernel(const float* x, float* y, int n, bool broken) {
  const int t = threadIdx.x;
  if (broken) {
    y[t] += x[blockIdx.x * kBlock + t];
  } else if (blockIdx.x == 0) {
    float sum = 0.0f;
    for (int i = t; i < n; i += kBlock) sum += x[i];
    y[t] = sum;
  }
}

// x, by way of shared memory. Bug: no wait for the copies.
__global__ void missing_wait_kernel(const float* x, float* y, int, bool broken) {
  FASTOPS_SHARED(tile, float4[kBlock / 4]);
  const int t = threadIdx.x, i = blockIdx.x * kBlock + t;
  if (t < kBlock / 4) copy_async_16(&tile[t], x + blockIdx.x * kBlock + 4 * t, true);
  commit_copies();
  if (!broken) wait_for_copies<0>();
  __syncthreads();
  y[i] = reinterpret_cast<const float*>(tile)[t];
}

// The same in two halves, through one buffer. Bug: the second half is fetched before everyone has
// read the first.
__global__ void early_refill_kernel(const float* x, float* y, int, bool broken) {
  FASTOPS_SHARED(half, float4[kBlock / 8]);
  const int t = threadIdx.x;
  for (int h = 0; h < 2; ++h) {
    const int first = blockIdx.x * kBlock + h * kBlock / 2;
    if (t < kBlock / 8) copy_async_16(&half[t], x + first + 4 * t, true);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    if (t >= kBlock / 2) y[first + t - kBlock / 2] = reinterpret_cast<const float*>(half)[t - kBlock / 2];
    if (!broken) __syncthreads();
  }
}

// The sum of each block in its first place, zeros elsewhere. Bug: sums are read of warps that are not
// there.
__global__ void uninitialised_kernel(const float* x, float* y, int, bool broken) {
  auto* const sums = fastops::cuda::dynamic_shared<float>();  // a place for each warp that a block may have
  const int t = threadIdx.x, i = blockIdx.x * kBlock + t;
  float sum = x[i];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffff, sum, d);
  if (t % 32 == 0) sums[t / 32] = sum;
  __syncthreads();
  float total = 0.0f;
  for (int w = 0; w < (broken ? 3 : kBlock / 32); ++w) total += sums[w];
  y[i] = t == 0 ? total : 0.0f;
}

// Each block of 64 reversed, by way of static and of dynamic shared memory: 48,000 bytes and 256. Bug: with
// 49,000 they are more than a kernel gets that has not asked.
template <int kBytes>
__device__ void reverse_in(const float* x, float* y) {
  FASTOPS_SHARED(tile, float[kBytes / sizeof(float)]);
  float* const copy = fastops::cuda::dynamic_shared<float>();
  const int t = threadIdx.x, i = blockIdx.x * kBlock + t;
  copy[t] = x[i];
  __syncthreads();
  tile[t] = copy[kBlock - 1 - t];
  y[i] = tile[t];
}
__global__ void unasked_kernel(const float* x, float* y, int, bool broken) {
  if (broken)
    reverse_in<49000>(x, y);
  else
    reverse_in<48000>(x, y);
}

// y[0] = the sum of x: each block stores its own, the last to finish adds them in order. y has room for
// the blocks' sums and a counter, zero before. Bug: no fence before a block says that it has finished.
__global__ void last_block_kernel(const float* x, float* y, int, bool broken) {
  FASTOPS_SHARED(last, bool);
  const int t = threadIdx.x, blocks = static_cast<int>(gridDim.x);
  float* const sums = y + 1;
  if (t == 0) {
    float sum = 0.0f;
    for (int i = 0; i < kBlock; ++i) sum += x[blockIdx.x * kBlock + i];
    sums[blockIdx.x] = sum;
    if (!broken) __threadfence();
    auto* const finished = reinterpret_cast<unsigned*>(sums + blocks);
    last = atomicAdd(finished, 1u) + 1 == gridDim.x;
    if (!broken) __threadfence();
  }
  __syncthreads();
  if (last && t == 0) {
    float sum = 0.0f;
    for (int b = 0; b < blocks; ++b) sum += sums[b];
    y[0] = sum;
  }
}

// y[i] = what lane i % 32 gets of the collectives, as a sum of small whole numbers. Bug: a lane is not in
// the mask that it gives.
__global__ void collectives_kernel(const float* x, float* y, int, bool broken) {
  const int i = blockIdx.x * kBlock + threadIdx.x, lane = threadIdx.x % 32;
  const unsigned all = 0xffffffff, half = lane < 16 ? 0x0000ffff : broken ? 0x7fff0000 : 0xffff0000;
  float sum = __shfl_sync(all, x[i], 11, 8) + __shfl_up_sync(all, x[i], 3, 16);
  sum += __shfl_down_sync(all, x[i], 5) + __shfl_xor_sync(half, x[i], 6);
  sum += __popc(__ballot_sync(half, x[i] > 4.0f));
  sum += __any_sync(all, x[i] > 10.0f) + 2 * __all_sync(all, x[i] > 0.0f);
  sum += __syncthreads_count(x[i] > 4.0f) + __syncthreads_or(x[i] > 99.0f) + __syncthreads_and(x[i] > 0.0f);
  y[i] = sum;
}

template <void (*kernel)(const float*, float*, int, bool)>
void launch_planted(const float* x, float* y, int n, bool broken) {
  launch("planted", kernel, n / kBlock, kBlock, kBlock * sizeof(float), nullptr, x, y, n, broken);
}

}  // namespace

const Kernel kKernels[12] = {
    {"unasked", launch_planted<unasked_kernel>},
    {"missing_barrier", launch_planted<missing_barrier_kernel>},
    {"early_return", launch_planted<early_return_kernel>},
    {"halo", launch_planted<halo_kernel>},
    {"short_tile", launch_planted<short_tile_kernel>},
    {"diverged_shuffle", launch_planted<diverged_shuffle_kernel>},
    {"scatter_add", launch_planted<scatter_add_kernel>},
    {"missing_wait", launch_planted<missing_wait_kernel>},
    {"early_refill", launch_planted<early_refill_kernel>},
    {"uninitialised", launch_planted<uninitialised_kernel>},
    {"collectives", launch_planted<collectives_kernel>},
    {"last_block", launch_planted<last_block_kernel>},
};

}  // namespace planted
