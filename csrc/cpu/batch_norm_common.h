// What the forward and the backward of batch normalisation share on the CPU: values of channels, the parts
// of a workspace, and the value before a ReLU.
#pragma once

#include "channelwise.h"

namespace fastops {
namespace cpu {
namespace {

// ---- per-channel values ------------------------------------------------------------------------

// Parameters, running statistics and their gradients, in a dtype of their own.
inline double get(DType dtype, const void* values, int64_t c, double if_null) {
  if (values == nullptr) return if_null;
  switch (dtype) {
    case DType::kF64:
      return static_cast<const double*>(values)[c];
    case DType::kF32:
      return static_cast<double>(static_cast<const float*>(values)[c]);
    case DType::kF16:
      return static_cast<double>(to_acc(static_cast<const Half*>(values)[c]));
    default:
      return static_cast<double>(to_acc(static_cast<const BFloat16*>(values)[c]));
  }
}

inline void set(DType dtype, void* values, int64_t c, double v) {
  if (values == nullptr) return;
  switch (dtype) {
    case DType::kF64:
      static_cast<double*>(values)[c] = v;
      return;
    case DType::kF32:
      static_cast<float*>(values)[c] = static_cast<float>(v);
      return;
    case DType::kF16:
      static_cast<Half*>(values)[c] = from_acc<Half>(static_cast<float>(v));
      return;
    default:
      static_cast<BFloat16*>(values)[c] = from_acc<BFloat16>(static_cast<float>(v));
  }
}

// The parts of a workspace, as batch_norm_workspace() counts them.
template <typename A>
struct Workspace {
  A* tables;       // `tables` coefficients of each entry
  double* totals;  // `sums` totals of each channel
  void* partials;
  Workspace(void* memory, const BatchNormSplit& s, int sums, int tables_) {
    double* const base = static_cast<double*>(memory);
    tables = reinterpret_cast<A*>(base);
    totals = base + tables_ * s.stride;
    partials = totals + sums * s.stride;
  }
};

// Coefficients of channel c are in place; repeats them for the entries that stand for the same channel.
template <typename A>
void fold(const BatchNormParams& p, const BatchNormSplit& s, A* tables, int count) {
  for (int k = 0; k < count; ++k)
    for (int64_t j = p.c; j < s.width; ++j) tables[k * s.stride + j] = tables[k * s.stride + j - p.c];
}

inline double elements(const BatchNormParams& p) { return static_cast<double>(p.n * volume(p.in)); }

// ---- the value before a ReLU -------------------------------------------------------------------

// Coefficients of z, in tables 0, 1 and 2: mean, invstd · weight, bias.
template <typename A>
void pre_activation_tables(const BatchNormParams& p, const BatchNormSplit& s, const void* weight,
                           const void* bias, const void* mean, const void* invstd, A* tables) {
  for (int64_t c = 0; c < p.c; ++c) {
    const double r = static_cast<double>(static_cast<const A*>(invstd)[c]);
    tables[c] = static_cast<const A*>(mean)[c];
    tables[s.stride + c] = static_cast<A>(r * get(p.param_dtype, weight, c, 1));
    tables[2 * s.stride + c] = static_cast<A>(get(p.param_dtype, bias, c, 0));
  }
  fold(p, s, tables, 3);
}

// One vector of z = (x − mean) · (invstd · weight) + bias, plus the residual where `add`. Forward and
// backward have it from here, with the same roundings, so that they agree where z > 0.
template <typename T, bool add, typename Part>
inline Vec<Acc<T>> pre_activation(const T* x, const T* residual, int64_t i, const Vec<Acc<T>>* k, Part part) {
  Vec<Acc<T>> z = (part.load(x + i) - k[0]) * k[1] + k[2];
  if constexpr (add) z += part.load(residual + i);
  return z;
}

// The largest value that rounds to a T of zero: half the smallest T above zero.
template <typename T>
constexpr Acc<T> kRoundsToZero = 0;
template <>
constexpr float kRoundsToZero<Half> = 0x1p-25f;
template <>
constexpr float kRoundsToZero<BFloat16> = 0x1p-134f;

// v where a ReLU lets z through, else 0: where z, rounded to T, is positive or NaN.
template <typename T>
inline Vec<Acc<T>> through_relu(Vec<Acc<T>> z, Vec<Acc<T>> v) {
  return z <= broadcast(kRoundsToZero<T>) ? Vec<Acc<T>>{} : v;
}

// f(flag), a constant.
template <typename F>
inline void dispatch_flag(bool flag, F f) {
  flag ? f(std::true_type{}) : f(std::false_type{});
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
