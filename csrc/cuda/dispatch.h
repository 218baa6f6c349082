// From a run-time DType to a compile-time element type: the only switch over dtypes on the GPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>

#include "../types.h"

namespace fastops {
namespace cuda {
namespace {

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with T = double, float, __half or __nv_bfloat16.
template <typename F>
void dispatch_floating(DType dtype, F f) {
  switch (dtype) {
    case DType::kF64:
      return f(Type<double>{});
    case DType::kF32:
      return f(Type<float>{});
    case DType::kF16:
      return f(Type<__half>{});
    case DType::kBF16:
      return f(Type<__nv_bfloat16>{});
    case DType::kU8:
      break;
  }
  throw std::invalid_argument("fastops: this kernel takes float64, float32, float16 and bfloat16");
}

// The type in which elements of T are accumulated, and the way there and back.
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

__device__ inline double to_acc(double v) { return v; }
__device__ inline float to_acc(float v) { return v; }
__device__ inline float to_acc(__half v) { return __half2float(v); }
__device__ inline float to_acc(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ inline T from_acc(Acc<T> v) {
  return static_cast<T>(v);
}
template <>
__device__ inline __half from_acc<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ inline __nv_bfloat16 from_acc<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// a · b + c, rounded once. Said explicitly where a compiler must not contract in two ways what is computed
// twice.
__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

}  // namespace
}  // namespace cuda
}  // namespace fastops
