// What kernels need that is not C++: shared memory, and instructions without an intrinsic. All inline
// PTX is here. Under a compiler that knows no CUDA (the tests run the kernels without a GPU), the same
// names come from whoever compiles.
#pragma once

#if defined(__CUDACC__)

#include <cstdint>

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

}  // namespace cuda
}  // namespace fastops

#endif
