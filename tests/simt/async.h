// Twins of csrc/cuda/primitives_sm90.cuh: included, after emulation.h, before the files that include that.
#pragma once

#include <cuda.h>

#include "emulation.h"

namespace simt {

// Barriers that count bytes. A phase that is over wakes whoever waits for it.
void mbarrier_init(void* barrier, uint32_t arrivals, Site site);
void mbarrier_fence_init();
void mbarrier_arrive(void* barrier, uint32_t bytes, Site site);
void mbarrier_wait(void* barrier, uint32_t parity, Site site);

// Where p is in shared memory.
uint32_t shared_address(const void* p, Site site);

// A box of a tensor into shared memory: at once, or when nothing else goes on any more, or between.
void tensor_copy(void* to, const CUtensorMap* map, void* barrier, int rank, const int* first,
                 const uint16_t* more, Site site);

// The products of a warp's 16 rows, `columns` of them. Operands are read at once or at the wait for them;
// accumulators are NaNs until that.
void wgmma_fence(Site site);
void wgmma(float* d, unsigned columns, uint64_t a, uint64_t b, bool bfloat, bool a_across, bool b_across,
           Site site);
void wgmma_commit(Site site);
void wgmma_wait(unsigned groups_left, Site site);

}  // namespace simt

namespace fastops {
namespace cuda {

inline uint32_t shared_address(const void* p, SIMT_CALLER) { return simt::shared_address(p, SIMT_SITE); }

inline void barrier_init(uint64_t* barrier, uint32_t arrivals, SIMT_CALLER) {
  simt::mbarrier_init(barrier, arrivals, SIMT_SITE);
}
inline void fence_barrier_init() { simt::mbarrier_fence_init(); }
inline void barrier_arrive(uint64_t* barrier, SIMT_CALLER) { simt::mbarrier_arrive(barrier, 0, SIMT_SITE); }
inline void barrier_arrive_expect(uint64_t* barrier, uint32_t bytes, SIMT_CALLER) {
  simt::mbarrier_arrive(barrier, bytes, SIMT_SITE);
}
inline void barrier_wait(uint64_t* barrier, uint32_t parity, SIMT_CALLER) {
  simt::mbarrier_wait(barrier, parity, SIMT_SITE);
}
inline void fence_proxy_async() {}

inline void prefetch_tensor_map(const CUtensorMap*) {}
inline void tensor_copy_2d(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, SIMT_CALLER) {
  const int first[] = {x, y};
  simt::tensor_copy(to, map, barrier, 2, first, nullptr, SIMT_SITE);
}
inline void tensor_copy_3d(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, int z,
                           SIMT_CALLER) {
  const int first[] = {x, y, z};
  simt::tensor_copy(to, map, barrier, 3, first, nullptr, SIMT_SITE);
}
inline void tensor_copy_im2col(void* to, const CUtensorMap* map, uint64_t* barrier, int c, int w, int h,
                               int n, uint16_t more_w, uint16_t more_h, SIMT_CALLER) {
  const int first[] = {c, w, h, n};
  const uint16_t more[] = {more_w, more_h};
  simt::tensor_copy(to, map, barrier, 4, first, more, SIMT_SITE);
}

template <int count>
void wgmma_fence(float (&)[count], SIMT_CALLER) {
  simt::wgmma_fence(SIMT_SITE);
}
inline void wgmma_commit(SIMT_CALLER) { simt::wgmma_commit(SIMT_SITE); }
template <int groups_left, int count>
void wgmma_wait(float (&)[count], SIMT_CALLER) {
  simt::wgmma_wait(groups_left, SIMT_SITE);
}
template <typename T, bool a_across = false, bool b_across = false, int count>
void wgmma(float (&d)[count], uint64_t a, uint64_t b, SIMT_CALLER) {
  static_assert(std::is_same<T, __half>::value || std::is_same<T, __nv_bfloat16>::value);
  static_assert(count == 32 || count == 64 || count == 128);
  simt::wgmma(d, 2 * count, a, b, std::is_same<T, __nv_bfloat16>::value, a_across, b_across, SIMT_SITE);
}

template <int registers>
void fewer_registers() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
}
template <int registers>
void more_registers() {
  static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256);
}

}  // namespace cuda
}  // namespace fastops
