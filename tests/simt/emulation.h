// CUDA's language for a C++ compiler: included before a .cu file is compiled as C++ (-include), on top
// of the real CUDA headers, which bring the types and the declarations of host functions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "engine.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __maxnreg__
#undef __grid_constant__
#undef __constant__
#undef __shared__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
#define __constant__
#define __shared__ static_assert(false, "shared memory is declared with FASTOPS_SHARED")

#define threadIdx (::simt::current->position)
#define blockIdx (::simt::current->block_position)
#define blockDim (::simt::current->block_size)
#define gridDim (::simt::current->grid_size)
#define warpSize 32
#define cudaLaunchKernelEx(...) ::simt::launch(__VA_ARGS__)

// Where a function is called: its last parameters.
#define SIMT_CALLER const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define SIMT_SITE \
  ::simt::Site { file_, line_ }

namespace simt {

template <typename... Params, typename... Args>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args... args) {
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> params;
  } call{kernel, {static_cast<Params>(args)...}};
  return run_grid(
      *config, reinterpret_cast<const void*>(kernel),
      [](void* p) { std::apply(static_cast<Call*>(p)->kernel, static_cast<Call*>(p)->params); }, &call);
}

inline unsigned lane() { return current->index % 32; }

// The value that lane `source` brings; undefined (all bits set) if that lane is not in the mask.
template <typename T>
T shuffle(uint32_t mask, T value, unsigned source, const char* name, Site site) {
  static_assert(std::is_trivially_copyable<T>::value && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8));
  struct Lane {
    T in, out;
    unsigned source;
  } mine{value, value, source};
  std::memset(static_cast<void*>(&mine.out), 0xFF, sizeof(T));
  const auto exchange = [](void* const* lanes) {
    for (int i = 0; i < 32; ++i)
      if (auto* to = static_cast<Lane*>(lanes[i]))
        if (const auto* from = static_cast<const Lane*>(lanes[to->source])) to->out = from->in;
  };
  collective(mask, name, &mine, exchange, false, site);
  return mine.out;
}

// *p = f(*p), atomically; returns what *p was.
template <typename T, typename F>
T update(T* p, F f) {
  T before{}, after{};
  do {
    after = f(before);
  } while (!compare_exchange(p, &before, &after, sizeof(T)));
  return before;
}

template <typename T>
struct Identity {
  using type = T;
};
template <typename T>
using Same = typename Identity<T>::type;  // takes no part in the deduction of T

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(static_cast<void*>(&to), &from, sizeof to);
  return to;
}

// ldmatrix: the lanes learn each other's rows, and each reads its elements.
inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, Site site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail(site, "ldmatrix: a row that is not at a multiple of 16");
  check_shared(row, 16, "ldmatrix", site);
  struct Lane {
    const void* row;
    const void* rows[32];
  } mine{row, {}};
  const auto exchange = [](void* const* lanes) {
    for (int i = 0; i < 32; ++i)
      for (int j = 0; j < 32; ++j)
        static_cast<Lane*>(lanes[i])->rows[j] = static_cast<const Lane*>(lanes[j])->row;
  };
  collective(~0u, "ldmatrix", &mine, exchange, false, site);
  const unsigned major = lane() / 4, minor = lane() % 4 * 2;
  for (unsigned m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (unsigned i = 0; i < 2; ++i)
      pair[i] = transposed ? static_cast<const uint16_t*>(mine.rows[8 * m + minor + i])[major]
                           : static_cast<const uint16_t*>(mine.rows[8 * m + major])[minor + i];
    r[m] = pair[0] | uint32_t{pair[1]} << 16;
  }
}

// What a register of mma's operand holds.
template <typename T>
float operand(uint32_t bits, unsigned half) {
  if constexpr (sizeof(T) == 2)
    return static_cast<float>(simt::bits<T>(static_cast<uint16_t>(bits >> 16 * half)));
  else
    return simt::bits<float>(bits & ~0x1FFFu);  // no more is looked at
}

template <typename T>
void multiply_matrices(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  constexpr unsigned per = sizeof(T) == 2 ? 2 : 1, depth = 8 * per;  // elements of a register
  struct Lane {
    float* d;
    const uint32_t *a, *b;
  } mine{d, a, b};
  const auto product = [](void* const* lanes) {
    float left[16][depth], right[depth][8];
    for (unsigned l = 0; l < 32; ++l) {
      const Lane& lane = *static_cast<const Lane*>(lanes[l]);
      const unsigned g = l / 4, t = l % 4 * per;
      for (unsigned i = 0; i < per; ++i) {
        for (unsigned q = 0; q < 4; ++q)
          left[g + q % 2 * 8][t + i + q / 2 * 4 * per] = operand<T>(lane.a[q], i);
        for (unsigned q = 0; q < 2; ++q) right[t + i + q * 4 * per][g] = operand<T>(lane.b[q], i);
      }
    }
    for (unsigned l = 0; l < 32; ++l) {
      const Lane& lane = *static_cast<const Lane*>(lanes[l]);
      for (unsigned q = 0; q < 4; ++q) {
        const unsigned row = l / 4 + q / 2 * 8, column = l % 4 * 2 + q % 2;
        // Products are exact, and tensor cores add those of one instruction with bits to spare.
        double sum = lane.d[q];
        for (unsigned k = 0; k < depth; ++k) sum += double{left[row][k]} * double{right[k][column]};
        lane.d[q] = static_cast<float>(sum);
      }
    }
  };
  collective(~0u, "mma", &mine, product, false, site);
}

}  // namespace simt

// ---- barriers and warps -------------------------------------------------------------------------

inline void __syncthreads(SIMT_CALLER) { simt::barrier(false, SIMT_SITE); }
inline int __syncthreads_count(int predicate, SIMT_CALLER) {
  return static_cast<int>(simt::barrier(predicate != 0, SIMT_SITE));
}
inline int __syncthreads_or(int predicate, SIMT_CALLER) {
  return simt::barrier(predicate != 0, SIMT_SITE) > 0;
}
inline int __syncthreads_and(int predicate, SIMT_CALLER) {
  return simt::barrier(predicate == 0, SIMT_SITE) == 0;
}
inline void __syncwarp(uint32_t mask = ~0u, SIMT_CALLER) {
  simt::collective(mask, "__syncwarp", nullptr, nullptr, true, SIMT_SITE);
}

// Lanes exchange within groups of `width`; one that would reach out of its group gets its own value.
template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, SIMT_CALLER) {
  const unsigned w = static_cast<unsigned>(width), group = simt::lane() & ~(w - 1);
  return simt::shuffle(mask, value, group + (static_cast<unsigned>(source) & (w - 1)), "__shfl_sync",
                       SIMT_SITE);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, SIMT_CALLER) {
  const unsigned place = simt::lane() & (static_cast<unsigned>(width) - 1);
  return simt::shuffle(mask, value, simt::lane() - (place >= delta ? delta : 0), "__shfl_up_sync", SIMT_SITE);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, SIMT_CALLER) {
  const unsigned w = static_cast<unsigned>(width), place = simt::lane() & (w - 1);
  return simt::shuffle(mask, value, simt::lane() + (place + delta < w ? delta : 0), "__shfl_down_sync",
                       SIMT_SITE);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, SIMT_CALLER) {
  const unsigned w = static_cast<unsigned>(width), source = simt::lane() ^ static_cast<unsigned>(lanes);
  const bool beyond = (source & ~(w - 1)) > (simt::lane() & ~(w - 1));
  return simt::shuffle(mask, value, beyond ? simt::lane() : source, "__shfl_xor_sync", SIMT_SITE);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate, SIMT_CALLER) {
  struct Lane {
    bool in;
    uint32_t out;
  } mine{predicate != 0, 0};
  const auto vote = [](void* const* lanes) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i)
      if (lanes[i] && static_cast<const Lane*>(lanes[i])->in) votes |= 1u << i;
    for (int i = 0; i < 32; ++i)
      if (lanes[i]) static_cast<Lane*>(lanes[i])->out = votes;
  };
  simt::collective(mask, "a vote", &mine, vote, false, SIMT_SITE);
  return mine.out;
}
inline int __any_sync(uint32_t mask, int predicate, SIMT_CALLER) {
  return __ballot_sync(mask, predicate, file_, line_) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, SIMT_CALLER) {
  return __ballot_sync(mask, !predicate, file_, line_) == 0;
}

// ---- memory -------------------------------------------------------------------------------------

inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() { simt::fence(); }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}

template <typename T>
T atomicAdd(T* p, simt::Same<T> value) {
  return simt::update(p, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* p, simt::Same<T> value) {
  return simt::update(p, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* p, simt::Same<T> value) {
  return simt::update(p, [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicExch(T* p, simt::Same<T> value) {
  return simt::update(p, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* p, simt::Same<T> expected, simt::Same<T> value) {
  return simt::update(p, [=](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned last) {
  return simt::update(p, [=](unsigned old) { return old >= last ? 0u : old + 1; });
}

// ---- arithmetic ---------------------------------------------------------------------------------

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float __int_as_float(int v) { return simt::bits<float>(v); }
inline int __float_as_int(float v) { return simt::bits<int>(v); }
inline float __uint_as_float(unsigned v) { return simt::bits<float>(v); }
inline unsigned __float_as_uint(float v) { return simt::bits<unsigned>(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline double rsqrt(double v) { return 1.0 / std::sqrt(v); }

// ---- csrc/cuda/primitives.cuh: what is not C++ there -----------------------------------------------

#define FASTOPS_SHARED(name, ...)                                                     \
  using name##Type = __VA_ARGS__;                                                     \
  static const char name##_declared = 0;                                              \
  static_assert(sizeof(name##Type) <= (48 << 10), "static shared memory has 48 KiB"); \
  auto& name = *static_cast<name##Type*>(                                             \
      ::simt::shared_array(&name##_declared, sizeof(name##Type), alignof(name##Type), {__FILE__, __LINE__}))

namespace fastops {
namespace cuda {

template <typename T>
T* dynamic_shared(SIMT_CALLER) {
  return static_cast<T*>(simt::dynamic_shared_array(SIMT_SITE));
}
inline void copy_async_16(void* to, const void* from, bool valid, SIMT_CALLER) {
  simt::copy_async(to, valid ? from : nullptr, SIMT_SITE);
}
inline void commit_copies() { simt::commit_copies(); }
template <int groups_left>
void wait_for_copies() {
  simt::wait_for_copies(groups_left);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, SIMT_CALLER) {
  simt::load_matrices(r, row, false, SIMT_SITE);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, SIMT_CALLER) {
  simt::load_matrices(r, row, true, SIMT_SITE);
}
template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_CALLER) {
  simt::multiply_matrices<T>(d, a, b, SIMT_SITE);
}
inline uint32_t to_tf32(float v) {
  const uint32_t bits = __float_as_uint(v);
  return (bits & 0x7F800000u) == 0x7F800000u ? bits : (bits + 0x1000u) & ~0x1FFFu;
}

}  // namespace cuda
}  // namespace fastops
