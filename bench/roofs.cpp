// The CPU's ceilings, compiled for the machine that it is on and called by bench/machine.py: loops that do
// nothing but multiply and add, and a copy. One call is one thread.
#include <cstddef>
#include <cstring>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#else
constexpr int kBytes = 32;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
// Latency 4 at two a cycle needs 8 chains; 12 leave room, and fit 16 registers with the factors.
constexpr int kChains = 12;

// All chains compute the same: the compiler must not find out.
template <typename T>
inline void opaque(T& sum) {
#if defined(__AVX512F__)
  asm("" : "+v"(sum));
#elif defined(__x86_64__)
  asm("" : "+x"(sum));
#else
  asm("" : "+m"(sum));
#endif
}
}  // namespace

extern "C" {

// Operations done; `result` keeps the compiler from leaving the loop out.
double fma_fp32(long turns, float* result) {
  Vector sums[kChains];
#pragma GCC unroll 12
  for (auto& sum : sums) sum = Vector{};
  const Vector a = Vector{} + *result, b = Vector{} + 0.5f;
  for (long t = 0; t < turns; ++t)
#pragma GCC unroll 12
    for (auto& sum : sums) {
      sum = sum * a + b;
      opaque(sum);
    }
#pragma GCC unroll 12
  for (int i = 1; i < kChains; ++i) sums[0] += sums[i];
  *result = sums[0][0];
  return 2.0 * turns * kChains * (kBytes / 4);
}

// The same through VDPBF16PS; 0 where the processor has none.
double fma_bf16(long turns, float* result) {
#if defined(__AVX512BF16__)
  __m512 sums[kChains];
  for (auto& sum : sums) sum = _mm512_set1_ps(0.f);
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(*result), _mm512_set1_ps(*result));
  for (long t = 0; t < turns; ++t)
#pragma GCC unroll 12
    for (auto& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, a, a);
      opaque(sum);
    }
#pragma GCC unroll 12
  for (int i = 1; i < kChains; ++i) sums[0] += sums[i];
  *result = sums[0][0];
  return 4.0 * turns * kChains * 16;
#else
  (void)turns, (void)result;
  return 0.0;
#endif
}

void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
}
