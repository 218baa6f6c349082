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

// A workspace: coefficients of every channel, then partial results.
inline int64_t coefficient_bytes(const BatchNormParams& p, int64_t count) {
  return round_up(count * p.c * (p.dtype == DType::kF64 ? 8 : 4), 8);
}
inline int64_t workspace_bytes(const BatchNormParams& p, const Slabs& s, int64_t sums, int64_t coefficients) {
  return coefficient_bytes(p, coefficients) + 8 * sums * s.entries() * s.splits;
}
inline double* partials_in(void* workspace, const BatchNormParams& p, int64_t coefficients) {
  return reinterpret_cast<double*>(static_cast<unsigned char*>(workspace) +
                                   coefficient_bytes(p, coefficients));
}

inline double elements_of(const BatchNormParams& p) { return static_cast<double>(p.n * volume(p.in)); }

}  // namespace
}  // namespace cuda
}  // namespace fastops
