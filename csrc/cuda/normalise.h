// What forward and backward of batch normalisation share: parameters, and the affine map.
#pragma once

#include "channelwise.h"

namespace fastops {
namespace cuda {
namespace {

// Elements of T or, beside a 16-bit T, of float; or absent.
template <typename T>
struct Parameter {
  const void* values;
  bool wide;

  Parameter(const BatchNormParams& p, const void* v) : values(v), wide(p.param_dtype != p.dtype) {}
  __device__ Acc<T> get(int64_t c, Acc<T> if_absent) const {
    if (values == nullptr) return if_absent;
    return wide ? static_cast<const Acc<T>*>(values)[c] : to_acc(static_cast<const T*>(values)[c]);
  }
};
template <typename T>
struct MutableParameter : Parameter<T> {
  MutableParameter(const BatchNormParams& p, void* v) : Parameter<T>(p, v) {}
  __device__ void set(int64_t c, double v) const {
    void* const to = const_cast<void*>(this->values);
    if (to == nullptr) return;
    if (this->wide)
      static_cast<Acc<T>*>(to)[c] = static_cast<Acc<T>>(v);
    else
      static_cast<T*>(to)[c] = from_acc<T>(static_cast<Acc<T>>(v));
  }
};

// a · b + c, rounded once: what is computed twice must not be contracted in two ways.
__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// y = (x − mean) · scale + bias (+ residual), of one channel.
template <typename T>
struct Affine {
  using A = Acc<T>;
  A mean, scale, bias;

  // scale is the product in A: exact in fp64 and then rounded, it would be the same.
  __device__ static Affine of(A mean, A invstd, A weight, A bias) { return {mean, invstd * weight, bias}; }
  // Before the ReLU, as it is stored. An absent residual is −0.
  __device__ T operator()(A x, A residual) const {
    return from_acc<T>(multiply_add(x - mean, scale, bias) + residual);
  }
};

// The ReLU: 0 where v ≤ 0; NaN stays, and so does its gradient.
template <typename T>
__device__ inline bool cut_off(T v) {
  return to_acc(v) <= 0;
}

// What makes the coefficients.
template <typename T>
struct AffineTables {
  const Acc<T>* mean;
  const Acc<T>* invstd;
  Parameter<T> weight, bias;
  __device__ Affine<T> at(int64_t c) const {
    return Affine<T>::of(mean[c], invstd[c], weight.get(c, 1), bias.get(c, 0));
  }
};

inline double elements_of(const BatchNormParams& p) { return static_cast<double>(p.n * volume(p.in)); }

}  // namespace
}  // namespace cuda
}  // namespace fastops
