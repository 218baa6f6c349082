// From a run-time DType to a compile-time element type: the only switch over dtypes on the CPU.
#pragma once

#include <stdexcept>
#include <utility>

#include "../types.h"
#include "vec.h"

namespace fastops {
namespace cpu {
namespace {

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with T = double, float, Half or BFloat16.
template <typename F>
void dispatch_floating(DType dtype, F f) {
  switch (dtype) {
    case DType::kF64:
      return f(Type<double>{});
    case DType::kF32:
      return f(Type<float>{});
    case DType::kF16:
      return f(Type<Half>{});
    case DType::kBF16:
      return f(Type<BFloat16>{});
    case DType::kU8:
      break;
  }
  throw std::invalid_argument("fastops: this kernel takes float64, float32, float16 and bfloat16");
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
