// Several elements that a thread takes with one access.
#pragma once

#include <cstdint>

namespace fastops {
namespace cuda {
namespace {

// Neighbouring elements that a thread takes together: one access, where they have up to 16 bytes.
template <typename T, int width>
struct alignas(sizeof(T) * width < 16 ? sizeof(T) * width : 16) Pack {
  T v[width];
};
// The same at any address.
template <typename T, int width>
struct LoosePack {
  T v[width];
};

// Whether runs of `elements` of elements of `bytes`, one after the other from each of the (combined)
// addresses, are made of aligned 16 bytes.
inline bool vectors_fit(int64_t elements, int64_t bytes, uintptr_t addresses) {
  return elements > 0 && elements * bytes % 16 == 0 && addresses % 16 == 0;
}

inline uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

}  // namespace
}  // namespace cuda
}  // namespace fastops
