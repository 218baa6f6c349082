// The kernels of sm90.h.
#include "sm90.h"

#include "../../csrc/cuda/primitives_sm90.cuh"
#include "../../csrc/cuda/tensor_map.h"

namespace sm90 {
namespace {

using namespace fastops::cuda;

constexpr int kThreads = 128;

// One box in shared memory, and the barrier that its bytes are counted by.
template <typename T, int rows>
struct Box {
  T v[rows][64];
  uint64_t barrier;
};

template <typename T, int rows>
__device__ void write_out(const Box<T, rows>& box, T* y) {
  for (int i = threadIdx.x; i < rows * 64; i += kThreads) {
    const int row = i / 64, column = i % 64;
    y[i] = box.v[row][(column / 8 ^ row % 8) * 8 + column % 8];
  }
}

template <typename T, int rows>
__device__ Box<T, rows>& make_box() {
  auto& box = *dynamic_shared<Box<T, rows>>();
  if (threadIdx.x == 0) {
    barrier_init(&box.barrier, 1);
    fence_barrier_init();
    barrier_arrive_expect(&box.barrier, sizeof(box.v));
  }
  return box;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    tiled_kernel(const __grid_constant__ CUtensorMap map, T* y, int plane, int line, int column) {
  auto& box = make_box<T, kRows>();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&map);
    tensor_copy_3d(box.v, &map, &box.barrier, column, line, plane);
  }
  __syncthreads();
  barrier_wait(&box.barrier, 0);
  write_out(box, y);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    im2col_kernel(const __grid_constant__ CUtensorMap map, T* y, int c, int w, int h, int n, int more_w,
                  int more_h) {
  auto& box = make_box<T, kPixels>();
  if (threadIdx.x == 0)
    tensor_copy_im2col(box.v, &map, &box.barrier, c, w, h, n, static_cast<uint16_t>(more_w),
                       static_cast<uint16_t>(more_h));
  __syncthreads();
  barrier_wait(&box.barrier, 0);
  write_out(box, y);
}

// Rows of 64 elements: 64 of a and n of b, twice. Across: 64 rows for each 64 of a's rows, and b's.
template <typename T, int n>
struct Ring {
  T a[2][64][64];
  T b[2][n][64];
  uint64_t full[2], empty[2];
};

template <typename T, int n, bool across>
__global__ void __launch_bounds__(kThreads + 32)
    matmul_kernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* y,
                  int steps, Bug bug) {
  auto& ring = *dynamic_shared<Ring<T, n>>();
  const int t = threadIdx.x, warp = t / 32, lane = t % 32, row = 64 * static_cast<int>(blockIdx.x);
  if (t == 0) {
    for (int s = 0; s < 2; ++s) {
      barrier_init(&ring.full[s], 1);
      barrier_init(&ring.empty[s], kThreads);
    }
    if (bug != Bug::kFence) fence_barrier_init();
  }
  __syncthreads();
  if (warp == kThreads / 32) {
    if (lane == 0)
      for (int i = 0; i < steps; ++i) {
        const int s = i % 2, round = i / 2;
        if (round > 0 && bug != Bug::kRelease) barrier_wait(&ring.empty[s], (round - 1) % 2);
        constexpr int bytes = (64 + n) * 64 * sizeof(T);
        if (bug == Bug::kExpect)
          barrier_arrive(&ring.full[s]);
        else
          barrier_arrive_expect(&ring.full[s], bytes + (bug == Bug::kBytes ? 16 : 0));
        if (across) {
          tensor_copy_2d(ring.a[s], &a, &ring.full[s], row, 64 * i);
          for (int j = 0; j < n; j += 64) tensor_copy_2d(ring.b[s][j], &b, &ring.full[s], j, 64 * i);
        } else {
          tensor_copy_2d(ring.a[s], &a, &ring.full[s], 64 * i, row);
          tensor_copy_2d(ring.b[s], &b, &ring.full[s], 64 * i, 0);
        }
      }
    return;
  }
  float d[n / 2] = {};
  for (int i = 0; i < steps; ++i) {
    const int s = i % 2, round = i / 2;
    barrier_wait(&ring.full[s], (round + (bug == Bug::kParity ? 1 : 0)) % 2);
    wgmma_fence(d);
    constexpr int tile = 64 * 64 * sizeof(T), next = across ? 128 : 2;
    const uint64_t left = across ? matrix_descriptor_across(ring.a[s], tile) : matrix_descriptor(ring.a[s]);
    const uint64_t right = across ? matrix_descriptor_across(ring.b[s], tile) : matrix_descriptor(ring.b[s]);
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma<T, across, across>(d, left + next * k, right + next * k);
    wgmma_commit();
    if (bug == Bug::kWait) barrier_arrive(&ring.empty[s]);
    if (bug != Bug::kAccumulators) wgmma_wait<0>(d);
    if (bug == Bug::kAccumulators) wgmma_wait<1>(d);
    if (bug != Bug::kWait) barrier_arrive(&ring.empty[s]);
  }
#pragma unroll
  for (int i = 0; i < n / 2; ++i) {
    const int of = row + 16 * warp + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    y[of * n + column] = d[i];
  }
  if (bug == Bug::kAccumulators) wgmma_wait<0>(d);
}

template <typename F>
void with_type(bool bfloat, F f) {
  if (bfloat)
    f(__nv_bfloat16());
  else
    f(__half());
}

}  // namespace

void tiled(const void* x, void* y, int64_t planes, int64_t lines, int64_t columns, int64_t plane,
           int64_t line, int64_t column, bool bfloat, void* stream) {
  with_type(bfloat, [&](auto type) {
    using T = decltype(type);
    const auto map = tiled_map<T, 3>(static_cast<const T*>(x), {columns, lines, planes}, {64, kRows / 2, 2});
    launch("tiled", tiled_kernel<T>, 1, kThreads, sizeof(Box<T, kRows>), stream, map, static_cast<T*>(y),
           plane, line, column);
  });
}

void im2col(const void* x, void* y, const int64_t* image, int64_t first, int64_t channel, int64_t more_h,
            int64_t more_w, bool bfloat, void* stream) {
  const Image i = {image[0], image[1], image[2], image[3], image[4],
                   image[5], image[6], image[7], image[8], image[9]};
  with_type(bfloat, [&](auto type) {
    using T = decltype(type);
    const auto map = im2col_map(static_cast<const T*>(x), i.n, i.c, {i.h, i.out_h, i.stride_h, i.pad_h},
                                {i.w, i.out_w, i.stride_w, i.pad_w}, kPixels);
    const int64_t n = first / (i.out_h * i.out_w), row = first / i.out_w % i.out_h, column = first % i.out_w;
    launch("im2col", im2col_kernel<T>, 1, kThreads, sizeof(Box<T, kPixels>), stream, map, static_cast<T*>(y),
           channel, column * i.stride_w - i.pad_w, row * i.stride_h - i.pad_h, n, more_w, more_h);
  });
}

void matmul(const void* a, const void* b, float* y, int64_t m, int64_t n, int64_t k, bool across, int bug,
            bool bfloat, void* stream) {
  with_type(bfloat, [&](auto type) {
    using T = decltype(type);
    const auto map = [&](const void* p, int64_t rows, uint32_t box) {
      if (across) return tiled_map<T, 2>(static_cast<const T*>(p), {rows, k}, {64, 64});
      return tiled_map<T, 2>(static_cast<const T*>(p), {k, rows}, {64, box});
    };
    const auto left = map(a, m, 64), right = map(b, n, static_cast<uint32_t>(n));
    const int steps = static_cast<int>(fastops::ceil_div(k, 64));
    const auto start = [&](auto columns) {
      constexpr int count = decltype(columns)::value;
      launch("matmul", across ? matmul_kernel<T, count, true> : matmul_kernel<T, count, false>,
             static_cast<unsigned>(m / 64), kThreads + 32, sizeof(Ring<T, count>), stream, left, right, y,
             steps, static_cast<Bug>(bug));
    };
    if (n == 64)
      start(std::integral_constant<int, 64>());
    else if (n == 128)
      start(std::integral_constant<int, 128>());
    else
      start(std::integral_constant<int, 256>());
  });
}

}  // namespace sm90

// For whoever has compiled this file alone.
extern "C" {
void run_tiled(const void* x, void* y, int64_t planes, int64_t lines, int64_t columns, int64_t plane,
               int64_t line, int64_t column, bool bfloat, void* stream) {
  sm90::tiled(x, y, planes, lines, columns, plane, line, column, bfloat, stream);
}
void run_im2col(const void* x, void* y, const int64_t* image, int64_t first, int64_t channel, int64_t more_h,
                int64_t more_w, bool bfloat, void* stream) {
  sm90::im2col(x, y, image, first, channel, more_h, more_w, bfloat, stream);
}
void run_matmul(const void* a, const void* b, float* y, int64_t m, int64_t n, int64_t k, bool across, int bug,
                bool bfloat, void* stream) {
  sm90::matmul(a, b, y, m, n, k, across, bug, bfloat, stream);
}
}
