// Positions inside a plane, as tensors (int64 or int32) and as lanes beside vectors of values.
#pragma once

#include <stdexcept>

#include "dispatch.h"
#include "vec.h"

namespace fastops {
namespace cpu {
namespace {

// Calls f(Type<P>{}) with P = int64_t or int32_t.
template <typename F>
void dispatch_positions(IndexType type, F f) {
  switch (type) {
    case IndexType::kI64:
      return f(Type<int64_t>{});
    case IndexType::kI32:
      return f(Type<int32_t>{});
    case IndexType::kU8:
      break;
  }
  throw std::invalid_argument("fastops: positions are int64 or int32");
}

// The first `count` lanes, as they are.
template <typename E, typename M>
inline void store_lanes(E* p, M v, int64_t count) {
  std::memcpy(p, &v,
              count == static_cast<int64_t>(sizeof v / sizeof(E)) ? sizeof v
                                                                  : static_cast<size_t>(count) * sizeof(E));
}

// p[i] = base + where[i], for the first `count` lanes.
template <typename M, typename P>
inline void store_positions(P* p, M where, int64_t base, int64_t count) {
  constexpr int lanes = sizeof(M) / sizeof(where[0]);
  if (count == lanes && sizeof(P) > sizeof(where[0])) {
    // A widened vector is two vectors: a half each, which is what the processor converts well.
    using Half = typename VectorOf<int32_t, lanes / 2>::type;
    using Wide = typename VectorOf<P, lanes / 2>::type;
    for (int half = 0; half < 2; ++half) {
      Half narrow;
      std::memcpy(&narrow, reinterpret_cast<const char*>(&where) + half * sizeof narrow, sizeof narrow);
      const Wide wide = __builtin_convertvector(narrow, Wide) + static_cast<P>(base);
      std::memcpy(p + half * lanes / 2, &wide, sizeof wide);
    }
    return;
  }
  using Wide = typename VectorOf<P, lanes>::type;
  store_lanes(p, __builtin_convertvector(where, Wide) + static_cast<P>(base), count);
}
// The same, but -1 where not `exists`.
template <typename M, typename P>
inline void store_positions(P* p, M where, M exists, int64_t base, int64_t count) {
  using Wide = typename VectorOf<P, sizeof(M) / sizeof(where[0])>::type;
  const Wide wide = __builtin_convertvector(where, Wide) + static_cast<P>(base);
  store_lanes(p, wide | __builtin_convertvector(~exists, Wide), count);
}

// p[i] − base as lanes, for the first `count` of them (all: count = lanes). The difference should fit; of one
// that does not, as of a position that is none, there remain the lower bits.
template <typename M, typename P>
inline M load_positions(const P* p, int64_t base, int64_t count) {
  constexpr int lanes = sizeof(M) / sizeof(M{}[0]);
  using U = std::make_unsigned_t<P>;
  typename VectorOf<U, lanes>::type wide{};
  if (count == lanes)
    std::memcpy(&wide, p, sizeof wide);
  else
    std::memcpy(&wide, p, static_cast<size_t>(count) * sizeof(P));
  return __builtin_convertvector(wide - static_cast<U>(base), M);
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
