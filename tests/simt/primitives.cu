// Every primitive that kernels use, with the answers as whole numbers: to compare a GPU's with the
// emulation's (tests/test_gpu.py). Answers that depend on the order of threads are left out.
#include "../../csrc/cuda/primitives.cuh"

#include "../../csrc/cuda/dispatch.h"
#include "../../csrc/cuda/launch.h"
#include "primitives.h"

namespace primitives {
namespace {

using namespace fastops::cuda;

constexpr unsigned kAll = 0xffffffff;

// What the next answer of this thread is written to.
struct Answers {
  int* y;
  int row = 0;
  __device__ explicit Answers(int* to) : y(to) {}
  __device__ void operator()(int v) { y[kThreads * row++ + static_cast<int>(threadIdx.x)] = v; }
};

__device__ void shuffles(Answers& answer, int v) {
  answer(__shfl_sync(kAll, v, 11));
  answer(__shfl_sync(kAll, v, 35));  // lane 3
  answer(__shfl_sync(kAll, v, 13, 8));
  answer(__shfl_up_sync(kAll, v, 3));
  answer(__shfl_up_sync(kAll, v, 3, 16));
  answer(__shfl_down_sync(kAll, v, 5));
  answer(__shfl_down_sync(kAll, v, 5, 8));
  answer(__shfl_xor_sync(kAll, v, 6));
  answer(__shfl_xor_sync(kAll, v, 12, 8));  // half of the lanes would reach into a later group
  answer(static_cast<int>(__shfl_xor_sync(kAll, 0.5 * v, 1) * 2));
  answer(static_cast<int>(__half2float(__shfl_down_sync(kAll, __float2half_rn(float(v)), 1))));
  const unsigned half = threadIdx.x % 32 < 16 ? 0x0000ffff : 0xffff0000;
  answer(__shfl_xor_sync(half, v, 9));
  answer(static_cast<int>(__ballot_sync(half, v > 40)));
}

__device__ void votes(Answers& answer, int v) {
  answer(static_cast<int>(__ballot_sync(kAll, v % 3 == 0)));
  answer(__any_sync(kAll, v == 7));
  answer(__all_sync(kAll, v != 7));
  answer(__syncthreads_count(v > 40));
  answer(__syncthreads_or(v == 7) != 0);
  answer(__syncthreads_and(v != 7) != 0);
}

__device__ void atomics(Answers& answer, int v) {
  FASTOPS_SHARED(cells, int[8]);
  if (threadIdx.x < 8) cells[threadIdx.x] = 5;
  __syncthreads();
  atomicAdd(&cells[0], v);
  atomicMax(&cells[1], v);
  atomicMin(&cells[2], v);
  atomicExch(&cells[3], 9);
  atomicCAS(&cells[4], 5, 8);  // the first one changes it, the others find an 8
  atomicInc(reinterpret_cast<unsigned*>(&cells[5]), 10);
  __syncthreads();
  for (int i = 0; i < 6; ++i) answer(cells[i]);
}

__device__ void arithmetic(Answers& answer, int v) {
  const unsigned u = static_cast<unsigned>(v) * 2654435761u;
  answer(__popc(u));
  answer(__clz(static_cast<int>(u >> v % 32)));
  answer(__clz(0));
  answer(__ffs(v % 5 * 64));
  answer(static_cast<int>(__umulhi(u, 3000000019u)));
  answer(__float_as_int(__int_as_float(static_cast<int>(u)) == 0.0f ? 1.0f : 2.0f));
  answer(min(v, 50) + max(v, 60));
  // Rounding: to nearest, ties to even; small numbers to denormals, large ones to infinity.
  for (const float f : {float(v) + 1 / 3.0f, 2048.0f + 0.5f * float(v), float(v) * 1e-8f, float(v) * 1e3f}) {
    answer(__half_as_ushort(from_acc<__half>(f)));
    answer(__bfloat16_as_ushort(from_acc<__nv_bfloat16>(f)));
    answer(__float_as_int(to_acc(from_acc<__half>(f))));
    answer(__float_as_int(to_acc(from_acc<__nv_bfloat16>(f))));
  }
}

__device__ void copies(Answers& answer, const int* x) {
  int* const tile = dynamic_shared<int>();  // two stages of four ints per thread
  const int t = threadIdx.x;
  copy_async_16(tile + 4 * t, x + 4 * (t % 32), true);
  commit_copies();
  copy_async_16(tile + 4 * (kThreads + t), x + 4 * (t % 32), t % 2 == 0);
  commit_copies();
  wait_for_copies<1>();
  __syncthreads();
  answer(tile[4 * (kThreads - 1 - t) + 1]);
  wait_for_copies<0>();
  __syncthreads();
  answer(tile[4 * (kThreads + kThreads - 1 - t) + 2]);  // zero from every second thread
}

template <typename T, int width>
struct alignas(16) Rows {
  T v[16][width];
};

// Small whole numbers, so that every product and sum is exact.
template <typename T>
__device__ void matrices(Answers& answer, int v) {
  constexpr int width = 64 / sizeof(T);  // rows of 64 bytes
  FASTOPS_SHARED(shared, Rows<T, width>);
  auto& tile = shared.v;
  const int t = threadIdx.x, lane = t % 32;
  __syncthreads();
  for (int i = t; i < 16 * width; i += kThreads) tile[i / width][i % width] = from_acc<T>(float(i % 29 - 14));
  __syncthreads();
  uint32_t a[4], turned[4];
  // Rows 0 to 15 and the first 32 bytes of each, in the order of mma's registers.
  const void* const row = &tile[lane % 16][lane / 16 * (16 / sizeof(T))];
  ldmatrix_x4(a, row);
  ldmatrix_x4_trans(turned, row);
  for (int i = 0; i < 4; ++i) answer(static_cast<int>(a[i])), answer(static_cast<int>(turned[i]));
  float d[4] = {float(v), 1, 2, 3};
  const uint32_t b[2] = {a[1], a[2]};
  mma<T>(d, a, b);
  for (int i = 0; i < 4; ++i) answer(static_cast<int>(d[i]));
}

__global__ void primitives_kernel(const int* x, int* y) {
  Answers answer(y);
  const int v = x[threadIdx.x];
  shuffles(answer, v);
  votes(answer, v);
  atomics(answer, v);
  arithmetic(answer, v);
  copies(answer, x);
  matrices<__half>(answer, v);
  matrices<__nv_bfloat16>(answer, v);
  matrices<float>(answer, v);
  for (const float f : {1.0f + float(v) / 4096, -float(v) / 3, 1e38f * float(v % 4)})
    answer(static_cast<int>(to_tf32(f)));
}

}  // namespace

void run(const int* x, int* y, void* stream) {
  launch("primitives", primitives_kernel, 1, kThreads, 8 * kThreads * sizeof(int), stream, x, y);
}

}  // namespace primitives

// For whoever has compiled this file alone.
extern "C" void run_primitives(const int* x, int* y, void* stream) { primitives::run(x, y, stream); }
