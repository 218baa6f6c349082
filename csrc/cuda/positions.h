// The element types of positions inside a plane.
#pragma once

#include <stdexcept>

#include "dispatch.h"

namespace fastops {
namespace cuda {
namespace {

// Stands for the type of positions that nobody wants.
struct NoPositions {};

// Calls f(Type<P>{}) with P = int64_t or int32_t.
template <typename F>
void dispatch_positions(IndexType type, F f) {
  switch (type) {
    case IndexType::kI64:
      return f(Type<int64_t>{});
    case IndexType::kI32:
      return f(Type<int32_t>{});
  }
  throw std::invalid_argument("fastops: positions are int64 or int32");
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
