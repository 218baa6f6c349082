// The element types of positions inside a plane.
#pragma once

#include <stdexcept>

#include "dispatch.h"

namespace fastops {
namespace cuda {
namespace {

// What says that a window has no tap inside the input.
constexpr uint8_t kNoTap = 255;

// Stands for the type of positions that nobody wants.
struct NoPositions {};

// Calls f(Type<P>{}) with P = int64_t or int32_t, for positions in the plane, or uint8_t, for the numbers of
// taps.
template <typename F>
void dispatch_positions(IndexType type, F f) {
  switch (type) {
    case IndexType::kI64:
      return f(Type<int64_t>{});
    case IndexType::kI32:
      return f(Type<int32_t>{});
    case IndexType::kU8:
      return f(Type<uint8_t>{});
  }
  throw std::invalid_argument("fastops: positions are int64, int32 or uint8");
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
