// Instructions of sm_90a: barriers in shared memory that count bytes, copies of boxes of tensors (TMA), and
// the products of a warpgroup (wgmma). As in primitives.cuh, elsewhere than under nvcc the same names come
// from whoever compiles. Code for other architectures traps.
#pragma once

#include <cuda.h>

#include "primitives.cuh"

#if defined(__CUDACC__)

namespace fastops {
namespace cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FASTOPS_SM90(...) __VA_ARGS__
#else
#define FASTOPS_SM90(...) __trap()
#endif

// Where p is in shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- barriers: 8 bytes of shared memory -----------------------------------------------------------------

// A phase of the barrier is over when so many arrivals, and as many bytes as they said, have come. The first
// phase has parity 0. One thread makes it, and fences before others, or copies, get to know it.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  FASTOPS_SM90(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                            "r"(arrivals) : "memory"));
}
__device__ __forceinline__ void fence_barrier_init() {
  FASTOPS_SM90(asm volatile("fence.mbarrier_init.release.cluster;" :: : "memory"));
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  FASTOPS_SM90(
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory"));
}
// Arrives, and says that the phase has to see so many bytes of copies too.
__device__ __forceinline__ void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  FASTOPS_SM90(
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                   "r"(bytes) : "memory"));
}
// Waits until the phase with this parity is over: the current one, or the one before it. Whoever falls behind
// by two phases waits for the wrong one.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  uint32_t over = 0;
  while (!over)
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
#else
  __trap();
#endif
}

// Shared memory that threads have written is seen by copies and products that are issued after.
__device__ __forceinline__ void fence_proxy_async() {
  FASTOPS_SM90(asm volatile("fence.proxy.async.shared::cta;" :: : "memory"));
}

// ---- copies of boxes of tensors -------------------------------------------------------------------------

// The map is a parameter of the kernel (const __grid_constant__ CUtensorMap). One thread copies for all; the
// bytes of the whole box, zeros outside of the tensor, are counted by the barrier. `to` is a multiple of 128,
// and of 1024 if the box is swizzled; coordinates are of the box's first element, the densest one first.
__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  FASTOPS_SM90(asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"));
}
__device__ __forceinline__ void tensor_copy_2d(void* to, const CUtensorMap* map, uint64_t* barrier, int x,
                                               int y) {
  FASTOPS_SM90(asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y) : "memory"));
}
__device__ __forceinline__ void tensor_copy_3d(void* to, const CUtensorMap* map, uint64_t* barrier, int x,
                                               int y, int z) {
  FASTOPS_SM90(asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z) : "memory"));
}
// Pixels of an NHWC tensor one after the other, as windows lie: from the window whose first element is (n, h,
// w) on, the element of each at (more_h, more_w) from its first one; channels from c on.
__device__ __forceinline__ void tensor_copy_im2col(void* to, const CUtensorMap* map, uint64_t* barrier, int c,
                                                   int w, int h, int n, uint16_t more_w, uint16_t more_h) {
  FASTOPS_SM90(asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n), "h"(more_w),
      "h"(more_h) : "memory"));
}

// ---- products of a warpgroup ----------------------------------------------------------------------------

// Between what threads have done with accumulators and the products that add to them.
template <int count>
__device__ __forceinline__ void wgmma_fence(float (&d)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(d[i])::"memory");
  FASTOPS_SM90(asm volatile("wgmma.fence.sync.aligned;" :: : "memory"));
}
// Makes a group of the products since the last commit.
__device__ __forceinline__ void wgmma_commit() {
  FASTOPS_SM90(asm volatile("wgmma.commit_group.sync.aligned;" :: : "memory"));
}
// Waits until at most the newest `groups_left` groups are still under way: the others no longer read shared
// memory; only if none is left are the accumulators to be looked at.
template <int groups_left, int count>
__device__ __forceinline__ void wgmma_wait(float (&d)[count]) {
  FASTOPS_SM90(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups_left) : "memory"));
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// The operands %i … of an instruction, and the accumulators that they are.
#define FASTOPS_NAMES_32                                                                            \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FASTOPS_NAMES_64                                                                              \
  FASTOPS_NAMES_32                                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
  "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTOPS_NAMES_128                                                                             \
  FASTOPS_NAMES_64                                                                                    \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, " \
  "%83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, " \
  "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, "  \
  "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FASTOPS_SUMS_8(i)                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define FASTOPS_SUMS_32(i) \
  FASTOPS_SUMS_8(i), FASTOPS_SUMS_8(i + 8), FASTOPS_SUMS_8(i + 16), FASTOPS_SUMS_8(i + 24)
#define FASTOPS_WGMMA(TYPE, COLUMNS, NAMES, A, B, A_ACROSS, B_ACROSS, ...)                              \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." TYPE "." TYPE " {" NAMES "}, %" A \
               ", %" B ", 1, 1, 1, %" A_ACROSS ", %" B_ACROSS ";"                                       \
               : __VA_ARGS__                                                                            \
               : "l"(a), "l"(b), "n"(a_across ? 1 : 0), "n"(b_across ? 1 : 0))
#define FASTOPS_WGMMA_64(TYPE) \
  FASTOPS_WGMMA(TYPE, "64", FASTOPS_NAMES_32, "32", "33", "34", "35", FASTOPS_SUMS_32(0))
#define FASTOPS_WGMMA_128(TYPE)                                                            \
  FASTOPS_WGMMA(TYPE, "128", FASTOPS_NAMES_64, "64", "65", "66", "67", FASTOPS_SUMS_32(0), \
                FASTOPS_SUMS_32(32))
#define FASTOPS_WGMMA_256(TYPE)                                                                 \
  FASTOPS_WGMMA(TYPE, "256", FASTOPS_NAMES_128, "128", "129", "130", "131", FASTOPS_SUMS_32(0), \
                FASTOPS_SUMS_32(32), FASTOPS_SUMS_32(64), FASTOPS_SUMS_32(96))

// d += a · bᵀ of a warpgroup: a is 64×16, b 64×16, 128×16 or 256×16, by matrix_descriptor(), or, across, by
// matrix_descriptor_across(). Thread 32·w + l holds, with g = l / 4 and t = l % 4, of d the elements
// (16·w + g + 8·h, 8·j + 2·t + i) in d[4·j + 2·h + i].
template <typename T, bool a_across = false, bool b_across = false, int count>
__device__ __forceinline__ void wgmma(float (&d)[count], uint64_t a, uint64_t b) {
  static_assert(std::is_same<T, __half>::value || std::is_same<T, __nv_bfloat16>::value);
  static_assert(count == 32 || count == 64 || count == 128);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (std::is_same<T, __half>::value && count == 32)
    FASTOPS_WGMMA_64("f16");
  else if constexpr (std::is_same<T, __half>::value && count == 64)
    FASTOPS_WGMMA_128("f16");
  else if constexpr (std::is_same<T, __half>::value)
    FASTOPS_WGMMA_256("f16");
  else if constexpr (count == 32)
    FASTOPS_WGMMA_64("bf16");
  else if constexpr (count == 64)
    FASTOPS_WGMMA_128("bf16");
  else
    FASTOPS_WGMMA_256("bf16");
#else
  __trap();
#endif
}
#undef FASTOPS_WGMMA_64
#undef FASTOPS_WGMMA_128
#undef FASTOPS_WGMMA_256
#undef FASTOPS_WGMMA
#undef FASTOPS_SUMS_8
#undef FASTOPS_SUMS_32
#undef FASTOPS_NAMES_32
#undef FASTOPS_NAMES_64
#undef FASTOPS_NAMES_128

// The threads of a warpgroup give registers back, or get some more, up to so many each.
template <int registers>
__device__ __forceinline__ void fewer_registers() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
  FASTOPS_SM90(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers)));
}
template <int registers>
__device__ __forceinline__ void more_registers() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
  FASTOPS_SM90(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers)));
}

#undef FASTOPS_SM90

}  // namespace cuda
}  // namespace fastops

#endif

namespace fastops {
namespace cuda {

// A matrix of 16-bit elements in shared memory for wgmma: rows of 64, 128 bytes, with the 128-byte swizzle:
// 8 rows are an atom of 1024 bytes, at a multiple of 1024, in which 16 bytes c of row r are at c ^ r. Columns
// 16·i and the next 15 are the matrix at descriptor + 2·i, in units of 16 bytes.
__device__ inline uint64_t matrix_descriptor(const void* tile) {
  constexpr uint64_t between_atoms = 1024 / 16, swizzle_128 = 1;
  return uint64_t{(shared_address(tile) & 0x3FFFF) / 16} | uint64_t{1} << 16 | between_atoms << 32 |
         swizzle_128 << 62;
}

// A matrix that lies across, 16 bits an element: for each k a row of 64 of the matrix's rows, 128 bytes with
// the same swizzle; the next 64 of its rows `between` bytes further on, at a multiple of 1024. The next 16 k
// are at descriptor + 128.
__device__ inline uint64_t matrix_descriptor_across(const void* tile, int between) {
  constexpr uint64_t between_atoms = 1024 / 16, swizzle_128 = 1;
  return uint64_t{(shared_address(tile) & 0x3FFFF) / 16} | static_cast<uint64_t>(between / 16) << 16 |
         between_atoms << 32 | swizzle_128 << 62;
}

}  // namespace cuda
}  // namespace fastops
