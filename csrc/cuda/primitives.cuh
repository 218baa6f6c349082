// What kernels need that is not C++: shared memory, and instructions without an intrinsic. All inline
// PTX is here. Under a compiler that knows no CUDA (the tests run the kernels without a GPU), the same
// names come from whoever compiles.
#pragma once

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// FASTOPS_SHARED(tile, float[32][33]): an array that the block shares, uninitialised.
#define FASTOPS_SHARED(name, ...) __shared__::fastops::cuda::Shared<__VA_ARGS__> name

namespace fastops {
namespace cuda {

template <typename T>
using Shared = T;

// The block's shared memory beyond the declared arrays, of the size given to launch().
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

// Copies 16 bytes from global to shared memory while the thread goes on; zeros if !valid. Both addresses
// are multiples of 16; `from` must be an address inside the tensor also if !valid.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid) {
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes)
               : "memory");
}
// Makes a group of this thread's copies since the last commit.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the newest `groups_left` groups of this thread are still under way. Other threads
// see the copies after a barrier.
template <int groups_left>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}

// Four 8×8 matrices of 16-bit elements from shared memory. Lane 8·j + i brings the address of row i of matrix
// j, 16 bytes, aligned; lane l gets elements 2·(l % 4) and the next of row l / 4 of each. The other one gets
// them of the transposed matrices. Of 32-bit elements a matrix has 8×4, and a lane gets element l % 4.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// d += a · b of a warp. Lane l holds, with g = l / 4 and t = l % 4, of d (16×8) the elements (g, 2t), (g, 2t
// + 1), (g + 8, 2t), (g + 8, 2t + 1). 16-bit types: a is 16×16, in registers of two neighbours of a row: (g,
// 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8); b is 16×8, in registers of two of a column: (2t, g), (2t +
// 8, g). float: numbers of 10 bits, TF32; a is 16×8: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b is
// 8×8: (t, g), (t + 4, g).
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same<T, __half>::value || std::is_same<T, __nv_bfloat16>::value ||
                std::is_same<T, float>::value);
  if constexpr (std::is_same<T, __half>::value)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else if constexpr (std::is_same<T, __nv_bfloat16>::value)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest number of 10 bits (ties: away from zero), as mma<float> takes it.
__device__ __forceinline__ uint32_t to_tf32(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}

}  // namespace cuda
}  // namespace fastops

#endif
