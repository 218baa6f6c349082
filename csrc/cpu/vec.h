// Vectors of the instruction set being compiled for, written with the compilers' vector extensions
// (GCC and Clang): arithmetic, comparison and selection are plain operators, so kernels hold no
// intrinsics. The few conversions that compilers vectorise badly are the only exceptions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__F16C__) || defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "../types.h"

namespace fastops {
namespace cpu {
namespace {

// 16-bit floats are storage only: every kernel loads them into fp32 and rounds once, on store.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type in which elements of T are accumulated.
template <typename T>
struct AccumulateIn {
  using type = float;
};
template <>
struct AccumulateIn<double> {
  using type = double;
};
template <typename T>
using Acc = typename AccumulateIn<T>::type;

// ---- one element -------------------------------------------------------------------------------

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(h & 0x7fffu) << 13;
  // The exponent is rebiased by a multiplication, which also normalises subnormals; inf and NaN keep
  // an exponent of all ones.
  if ((h & 0x7c00u) == 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | rest);
  return bit_cast<float>(bit_cast<uint32_t>(bit_cast<float>(rest) * 0x1p112f) | sign);
}

// Round to nearest, ties to even.
inline uint16_t float_to_half(float f) {
  const uint32_t bits = bit_cast<uint32_t>(f);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x1ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds past 65504
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 aligns the mantissa so that the addition itself rounds.
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline float bfloat16_to_float(uint16_t b) { return bit_cast<float>(static_cast<uint32_t>(b) << 16); }

inline uint16_t float_to_bfloat16(float f) {
  const uint32_t bits = bit_cast<uint32_t>(f);
  if (f != f) return static_cast<uint16_t>(bits >> 16 | 0x40u);  // stay a NaN
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float to_acc(float v) { return v; }
inline double to_acc(double v) { return v; }
inline float to_acc(uint8_t v) { return static_cast<float>(v); }
inline float to_acc(Half v) { return half_to_float(v.bits); }
inline float to_acc(BFloat16 v) { return bfloat16_to_float(v.bits); }

template <typename T>
inline T from_acc(Acc<T> v) {
  return static_cast<T>(v);
}
template <>
inline Half from_acc<Half>(float v) {
  return {float_to_half(v)};
}
template <>
inline BFloat16 from_acc<BFloat16>(float v) {
  return {float_to_bfloat16(v)};
}

// ---- one vector --------------------------------------------------------------------------------

// FASTOPS_VECTOR_BYTES: to try a width that the processor lacks (CXXFLAGS=-DFASTOPS_VECTOR_BYTES=64 and
// FASTOPS_ISA=baseline run what AVX-512 would, in pieces of 16 bytes).
#if defined(FASTOPS_VECTOR_BYTES) && !defined(__AVX2__)
constexpr int kVectorBytes = FASTOPS_VECTOR_BYTES;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Lanes of a vector of A (float or double).
template <typename A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <typename E, int lanes>
struct VectorOf {
  typedef E type __attribute__((vector_size(sizeof(E) * lanes)));
};
// A vector of accumulators: Vec<float>, Vec<double>.
template <typename A>
using Vec = typename VectorOf<A, kLanes<A>>::type;
// What comparing two Vec<A> gives: -1 or 0 per lane. `mask ? a : b` selects.
template <typename A>
using Mask = typename VectorOf<std::conditional_t<sizeof(A) == 8, int64_t, int32_t>, kLanes<A>>::type;

template <typename A>
inline Vec<A> broadcast(A v) {
  return v - Vec<A>{};  // not +: −0 + 0 is +0, so compilers would have to add
}

// 0, 1, 2, …, for comparisons that choose lanes.
template <typename A>
using LaneNumber = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
template <typename M, int... i>
inline M number_lanes(std::integer_sequence<int, i...>) {
  return M{i...};
}
template <typename A>
inline Mask<A> lane_numbers() {
  return number_lanes<Mask<A>>(std::make_integer_sequence<int, kLanes<A>>{});
}

template <typename V, typename E>
inline V load_bits(const E* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Loads kLanes<Acc<T>> elements, at any alignment, into accumulators.
inline Vec<float> load(const float* p) { return load_bits<Vec<float>>(p); }
inline Vec<double> load(const double* p) { return load_bits<Vec<double>>(p); }

constexpr int kF = kLanes<float>;
using U8xF = VectorOf<uint8_t, kF>::type;
using U16xF = VectorOf<uint16_t, kF>::type;
using U32xF = VectorOf<uint32_t, kF>::type;

inline Vec<float> load(const uint8_t* p) {
  return __builtin_convertvector(__builtin_convertvector(load_bits<U8xF>(p), Mask<float>), Vec<float>);
}
inline Vec<float> load(const BFloat16* p) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepu16_epi32(load_bits<__m256i>(p));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu16_epi32(load_bits<__m128i>(p));
#else
  const U32xF wide = __builtin_convertvector(load_bits<U16xF>(p), U32xF);
#endif
  return bit_cast<Vec<float>>(bit_cast<U32xF>(wide) << 16);
}
inline Vec<float> load(const Half* p) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_cvtph_ps(load_bits<__m256i>(p)));
#elif defined(__F16C__)
  return bit_cast<Vec<float>>(_mm256_cvtph_ps(load_bits<__m128i>(p)));
#else
  Vec<float> v;
  for (int i = 0; i < kF; ++i) v[i] = half_to_float(p[i].bits);
  return v;
#endif
}

// Stores a vector of accumulators, rounding to nearest even where T is narrower.
inline void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }
inline void store(BFloat16* p, Vec<float> v) {
  const U32xF bits = bit_cast<U32xF>(v);
  const U32xF rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const U32xF result = v != v ? (bits >> 16 | 0x40u) : rounded;
#if defined(__AVX512F__)
  const __m256i narrow = _mm512_cvtepi32_epi16(bit_cast<__m512i>(result));
#elif defined(__AVX2__)
  const __m256i all = bit_cast<__m256i>(result);  // below 2^16, so saturating changes nothing
  const __m128i narrow = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
#else
  const U16xF narrow = __builtin_convertvector(result, U16xF);
#endif
  std::memcpy(p, &narrow, sizeof narrow);
}
inline void store(Half* p, Vec<float> v) {
#if defined(__AVX512F__)
  const __m256i h = _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &h, sizeof h);
#elif defined(__F16C__)
  const __m128i h = _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &h, sizeof h);
#else
  for (int i = 0; i < kF; ++i) p[i].bits = float_to_half(v[i]);
#endif
}

// v with the lanes from `count` on set to 0 (whatever they hold: NaN and infinities too).
template <typename A>
inline Vec<A> keep_first_lanes(Vec<A> v, int64_t count) {
  return lane_numbers<A>() < static_cast<LaneNumber<A>>(count) ? v : Vec<A>{};
}

// The lanes' sum in fp64, by halves: a chain of as many additions as there are lanes would be most of a short
// run's time.
template <int n>
inline double sum_of_doubles(typename VectorOf<double, n>::type v) {
  if constexpr (n == 2) {
    return v[0] + v[1];
  } else {
    typename VectorOf<double, n / 2>::type half[2];
    std::memcpy(half, &v, sizeof v);
    return sum_of_doubles<n / 2>(half[0] + half[1]);
  }
}
inline double sum_of_lanes(Vec<double> v) { return sum_of_doubles<kLanes<double>>(v); }
inline double sum_of_lanes(Vec<float> v) {
  typename VectorOf<float, kF / 2>::type half[2];
  std::memcpy(half, &v, sizeof v);
  using Wide = VectorOf<double, kF / 2>::type;
  return sum_of_doubles<kF / 2>(__builtin_convertvector(half[0], Wide) +
                                __builtin_convertvector(half[1], Wide));
}

// Lane i of the result is lane index[i] of v; every index must be less than the number of lanes.
template <typename V, typename I>
inline V permute(V v, I index) {
#if defined(__clang__)
  V result;
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) result[i] = v[index[i]];
  return result;
#else
  return __builtin_shuffle(v, index);
#endif
}

// The first `count` elements only, 0 ≤ count ≤ lanes; the other lanes are 0 / are not written.
template <typename T>
inline Vec<Acc<T>> load_first(const T* p, int64_t count) {
#if defined(__AVX512F__)
  const unsigned mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 8) {
    return bit_cast<Vec<double>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p));
  } else if constexpr (sizeof(T) == 4) {
    return bit_cast<Vec<float>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p));
  } else if constexpr (sizeof(T) == 2) {
    T padded[kLanes<float>];
    const __m256i narrow = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p);
    std::memcpy(padded, &narrow, sizeof narrow);
    return load(padded);
  }
#endif
  T padded[kLanes<Acc<T>>] = {};
  std::memcpy(padded, p, static_cast<size_t>(count) * sizeof(T));
  return load(padded);
}
template <typename T>
inline void store_first(T* p, Vec<Acc<T>> v, int64_t count) {
  T padded[kLanes<Acc<T>>];
#if defined(__AVX512F__)
  const unsigned mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 8)
    return _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), bit_cast<__m512d>(v));
  if constexpr (sizeof(T) == 4)
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), bit_cast<__m512>(v));
  if constexpr (sizeof(T) == 2) {
    store(padded, v);
    return _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask), load_bits<__m256i>(padded));
  }
#endif
  store(padded, v);
  std::memcpy(p, padded, static_cast<size_t>(count) * sizeof(T));
}

// ---- rearranging two vectors, for strides of 2 -----------------------------------------------------

template <typename V>
struct Pair {
  V first;
  V second;
};

#if defined(__clang__) || __GNUC__ >= 12
template <typename V, int... i>
inline Pair<V> deinterleave_lanes(V a, V b, std::integer_sequence<int, i...>) {
  return {__builtin_shufflevector(a, b, (2 * i)...), __builtin_shufflevector(a, b, (2 * i + 1)...)};
}
template <typename V, int... i>
inline Pair<V> interleave_lanes(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i);
  return {__builtin_shufflevector(a, b, (i / 2 + i % 2 * n)...),
          __builtin_shufflevector(a, b, (n / 2 + i / 2 + i % 2 * n)...)};
}
#else
template <typename V, int... i>
inline Pair<V> deinterleave_lanes(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i);
  return {V{(2 * i < n ? a[2 * i % n] : b[2 * i % n])...},
          V{(2 * i < n ? a[2 * i % n + 1] : b[2 * i % n + 1])...}};
}
template <typename V, int... i>
inline Pair<V> interleave_lanes(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int n = sizeof...(i);
  return {V{(i % 2 ? b[i / 2] : a[i / 2])...}, V{(i % 2 ? b[n / 2 + i / 2] : a[n / 2 + i / 2])...}};
}
#endif

// Of the sequence a, b: its even and its odd elements.
template <typename V>
inline Pair<V> deinterleave(V a, V b) {
  return deinterleave_lanes(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>{});
}
// a0 b0 a1 b1 …: the inverse.
template <typename V>
inline Pair<V> interleave(V a, V b) {
  return interleave_lanes(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>{});
}

// Rows become columns. Each of log₂ n rounds interleaves the first half of the rows with the second, which
// rotates the bits of the number that row and column make by one.
template <typename V, int n = sizeof(V) / sizeof(std::declval<V>()[0])>
__attribute__((always_inline)) inline void transpose(V (&rows)[n]) {
  for (int size = 1; size < n; size *= 2) {
    V next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      const Pair<V> two = interleave(rows[i], rows[i + n / 2]);
      next[2 * i] = two.first, next[2 * i + 1] = two.second;
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
