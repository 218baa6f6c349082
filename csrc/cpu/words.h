// What matrix products multiply: words, each with as many bytes as the sums have. A word is a number, or,
// where the processor has VDPBF16PS, two numbers of bf16 next to each other along k:
//
//   sum += a.first · b.first + a.second · b.second
//
// That is twice the work per instruction, on half the bytes; kernels differ in how they pack their operands
// and in nothing else. The instruction takes subnormal numbers for zeros, and gives zeros for them.
//
// It is chosen at run time and written as assembly, so that no file needs flags of its own: functions
// compiled for another target are not inlined, and the rest of each kernel is for AVX-512 as all are.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../geometry.h"
#include "dispatch.h"
#include "vec.h"

#if defined(__AVX512F__) && defined(__x86_64__) && \
    ((defined(__clang__) && __clang_major__ >= 9) || (!defined(__clang__) && __GNUC__ >= 10))
#define FASTOPS_BF16_PAIRS 1
#else
#define FASTOPS_BF16_PAIRS 0
#endif

namespace fastops {
namespace cpu {
namespace {

struct BFloat16Pair {
  BFloat16 first;
  BFloat16 second;
};

template <typename W>
struct WordTraits {
  using element = W;
  using vector = Vec<W>;
};
template <>
struct WordTraits<BFloat16Pair> {
  using element = BFloat16;
  using vector = U32xF;
};
template <typename W>
using Element = typename WordTraits<W>::element;
// A vector of words: as many as a vector of sums has lanes.
template <typename W>
using Words = typename WordTraits<W>::vector;
// Elements of a word.
template <typename W>
constexpr int64_t kPerWord = static_cast<int64_t>(sizeof(W) / sizeof(Element<W>));

// An element of a tensor as one of a word.
template <typename W, typename T>
inline Element<W> to_element(T v) {
  if constexpr (std::is_same_v<T, Element<W>>)
    return v;
  else
    return to_acc(v);
}

template <typename W>
inline Words<W> load_words(const W* p) {
  return load_bits<Words<W>>(p);
}

inline Vec<float> broadcast_word(const float* p) { return broadcast(*p); }
inline Vec<double> broadcast_word(const double* p) { return broadcast(*p); }
inline U32xF broadcast_word(const BFloat16Pair* p) {
  uint32_t bits;  // aligned to two bytes only
  std::memcpy(&bits, p, sizeof bits);
  return U32xF{} + bits;
}

template <typename V>
inline V multiply_add(V sum, V a, V b) {
  return sum + a * b;
}

#if FASTOPS_BF16_PAIRS
inline Vec<float> multiply_add(Vec<float> sum, U32xF a, U32xF b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
inline bool has_bf16_pairs() { return __builtin_cpu_supports("avx512bf16"); }
#endif

// Writes sums of products of words, rounded. The instruction's sums are never subnormal, so one that
// rounds subnormal numbers to zero will do.
template <typename W, typename T>
inline void store_sums(T* to, Vec<Acc<W>> v) {
  store(to, v);
}
#if FASTOPS_BF16_PAIRS
template <>
inline void store_sums<BFloat16Pair, BFloat16>(BFloat16* to, Vec<float> v) {
  __m256i narrow;
  asm("vcvtneps2bf16 %1, %0" : "=v"(narrow) : "v"(v));
  std::memcpy(to, &narrow, sizeof narrow);
}
#endif

// Calls f(Type<T>{}, Type<W>{}): the type of the tensors, and that of the words of their products.
template <typename F>
void dispatch_words(DType dtype, F f) {
#if FASTOPS_BF16_PAIRS
  if (dtype == DType::kBF16 && has_bf16_pairs()) return f(Type<BFloat16>{}, Type<BFloat16Pair>{});
#endif
  dispatch_floating(dtype, [&](auto type) { f(type, Type<Acc<typename decltype(type)::type>>{}); });
}

// ---- packing -------------------------------------------------------------------------------------

// Words of elements of two rows, k and k + 1.
inline U32xF pair_elements(const BFloat16* first, const BFloat16* second) {
  const U32xF low = __builtin_convertvector(load_bits<U16xF>(first), U32xF);
  const U32xF high = __builtin_convertvector(load_bits<U16xF>(second), U32xF);
  return low | high << 16;
}
inline void pair_rows(const BFloat16* first, const BFloat16* second, BFloat16Pair* to) {
  const U32xF words = pair_elements(first, second);
  std::memcpy(static_cast<void*>(to), &words, sizeof words);
}

// to[k][row] = from[row][k], for `rows` rows and `depth` words of each, a row of `to` having `stride`
// words; rows up to a full vector become zeros.
template <typename W>
void transpose_words(const Element<W>* from, int64_t from_stride, int64_t rows, int64_t depth, W* to,
                     int64_t stride) {
  constexpr int64_t L = kLanes<Acc<W>>, P = kPerWord<W>;
  for (int64_t r0 = 0; r0 < rows; r0 += L)
    for (int64_t k = 0; k < depth; k += L) {
      const int64_t count = imin(L, depth - k);
      const Element<W>* at = from + r0 * from_stride + k * P;
      Words<W> square[L];
      if (count == L && rows - r0 >= L) {
#pragma GCC unroll 16
        for (int64_t r = 0; r < L; ++r) square[r] = load_bits<Words<W>>(at + r * from_stride);
      } else {
        for (int64_t r = 0; r < L; ++r) {
          square[r] = Words<W>{};
          if (r0 + r < rows)
            std::memcpy(&square[r], at + r * from_stride, static_cast<size_t>(count) * sizeof(W));
        }
      }
      transpose(square);
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(static_cast<void*>(to + (k + i) * stride + r0), &square[i], sizeof square[i]);
    }
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
