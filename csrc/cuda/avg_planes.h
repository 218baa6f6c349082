// Averages of whole planes on the GPU: a reduction by several threads in a fixed order.
#pragma once

#include "primitives.cuh"
#include "windows.h"

namespace fastops {
namespace cuda {
namespace {

// sums[u] = Σ packs[i].v[u] over i = begin, begin + step … < end. A long sum is a sum of short ones: that
// keeps the rounding error small, where a sum of a constant would be rounded the same way thousands of times.
constexpr int kShortSum = 16;
template <typename A, int width, typename P>
__device__ inline void sum_packs(A (&sums)[width], const P* packs, int64_t begin, int64_t end, int64_t step) {
  for (int64_t first = begin; first < end; first += kShortSum * step) {
    A some[width] = {};
    for (int64_t i = first; i < imin(first + kShortSum * step, end); i += step) {
      const P v = packs[i];
#pragma unroll
      for (int u = 0; u < width; ++u) some[u] += to_acc(v.v[u]);
    }
#pragma unroll
    for (int u = 0; u < width; ++u) sums[u] += some[u];
  }
}

// A plane is `packs` packs without a gap; `team` threads of a block, one warp or all, have one plane.
template <typename T, typename P, int team>
__global__ void average_planes_kernel(Acc<T> scale, int64_t planes, int64_t packs, const P* x, T* y) {
  using A = Acc<T>;
  constexpr int width = sizeof(P) / sizeof(T);
  constexpr int teams = kThreads / team, warps = team / 32;
  FASTOPS_SHARED(partial, A[kThreads / 32]);
  const int member = threadIdx.x % team, warp = threadIdx.x / 32;
  for (int64_t first = blockIdx.x * int64_t{teams}; first < planes; first += gridDim.x * int64_t{teams}) {
    const int64_t plane = first + threadIdx.x / team;
    A sums[width] = {};
    if (plane < planes) sum_packs(sums, x + plane * packs, member, packs, team);
    A sum = sums[0];
#pragma unroll
    for (int u = 1; u < width; ++u) sum += sums[u];
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    if (warps > 1) {
      if (threadIdx.x % 32 == 0) partial[warp] = sum;
      __syncthreads();
      sum = 0;
      for (int j = 0; j < warps; ++j) sum += partial[j];
      __syncthreads();  // the next plane's sums overwrite these
    }
    if (member == 0 && plane < planes) y[plane] = from_acc<T>(sum * scale);
  }
}

// The same for channels_last: `lanes` neighbouring threads (a power of two, at most 32) have a group of
// channels each; the kThreads / lanes slices of the block share out the pixels.
template <typename T, typename P>
__global__ void average_images_kernel(Acc<T> scale, int64_t images, int64_t pixels, int64_t groups, int lanes,
                                      const P* x, P* y) {
  using A = Acc<T>;
  constexpr int width = sizeof(P) / sizeof(T);
  FASTOPS_SHARED(partial, A[width][kThreads]);
  const int lane = threadIdx.x % lanes, slice = threadIdx.x / lanes, slices = kThreads / lanes;
  const int64_t parts = (groups + lanes - 1) / lanes;
  for (int64_t part = blockIdx.x; part < images * parts; part += gridDim.x) {
    const int64_t image = part / parts, group = part % parts * lanes + lane;
    A sums[width] = {};
    if (group < groups)
      sum_packs(sums, x + image * pixels * groups + group, slice * groups, pixels * groups, slices * groups);
#pragma unroll
    for (int u = 0; u < width; ++u) partial[u][threadIdx.x] = sums[u];
    __syncthreads();
    if (slice == 0 && group < groups) {
      P result;
#pragma unroll
      for (int u = 0; u < width; ++u) {
        A sum = 0;
        for (int from = 0; from < slices; from += kShortSum) {
          A some = 0;
          for (int s = from; s < imin(from + kShortSum, slices); ++s) some += partial[u][s * lanes + lane];
          sum += some;
        }
        result.v[u] = from_acc<T>(sum * scale);
      }
      y[image * groups + group] = result;
    }
    __syncthreads();  // the next part's sums overwrite these
  }
}

// Fewer elements than this are left to one thread per output.
constexpr int64_t kLeastPlane = 32;
// From so many on, a plane has a block instead of a warp: 8 accesses for each of its threads.
constexpr int64_t kLargePlane = 8 * kThreads;

bool is_whole(const PoolAxis& a) {
  if (a.out != 1) return false;
  const Range r = window(a, 0);
  return r.begin == 0 && r.end == a.in;
}
bool averages_planes(const PoolParams& p) {
  return volume(p.in) >= kLeastPlane && is_whole(axis_d(p)) && is_whole(axis_h(p)) && is_whole(axis_w(p));
}

template <typename T, typename P>
void average_planes(const PoolParams& p, Acc<T> scale, const void* x, void* y, void* stream) {
  const int64_t planes = p.n * p.c, packs = volume(p.in) / static_cast<int64_t>(sizeof(P) / sizeof(T));
  const bool large = packs >= kLargePlane;
  const int64_t teams = large ? 1 : kThreads / 32;
  launch("avg_pool", large ? average_planes_kernel<T, P, kThreads> : average_planes_kernel<T, P, 32>,
         blocks_for(ceil_div(planes, teams) * kThreads), kThreads, 0, stream, scale, planes, packs,
         static_cast<const P*>(x), static_cast<T*>(y));
}
template <typename T, typename P>
void average_images(const PoolParams& p, Acc<T> scale, const void* x, void* y, void* stream) {
  const int64_t groups = p.c / static_cast<int64_t>(sizeof(P) / sizeof(T));
  int lanes = 1;
  while (lanes < 32 && lanes < groups) lanes *= 2;
  launch("avg_pool", average_images_kernel<T, P>, blocks_for(p.n * ceil_div(groups, lanes) * kThreads),
         kThreads, 0, stream, scale, p.n, volume(p.in), groups, lanes, static_cast<const P*>(x),
         static_cast<P*>(y));
}

template <typename T>
void average_all(const PoolParams& p, const void* x, void* y, void* stream) {
  using A = Acc<T>;
  const bool pad = p.count_include_pad;
  const A divisor = p.divisor_override != 0
                        ? A(p.divisor_override)
                        : A(window_count(axis_d(p), 0, pad) * window_count(axis_h(p), 0, pad) *
                            window_count(axis_w(p), 0, pad));
  const bool images = p.channels_last && p.c > 1;
  const auto average = [&](auto pack) {
    using P = typename decltype(pack)::type;
    (images ? average_images<T, P> : average_planes<T, P>)(p, 1 / divisor, x, y, stream);
  };
  // The size of a pack follows from the shape alone, and the order of summation from that size: the
  // result does not depend on the addresses.
  constexpr int width = 16 / sizeof(T);
  const uintptr_t addresses = images ? address(x) | address(y) : address(x);
  if ((images ? p.c : volume(p.in)) % width != 0)
    average(Type<Pack<T, 1>>{});
  else if (addresses % 16 == 0)
    average(Type<Pack<T, width>>{});
  else
    average(Type<LoosePack<T, width>>{});
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
