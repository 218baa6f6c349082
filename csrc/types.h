// Vocabulary shared by every kernel, on the host and on the device: element types, extents, and the
// two function qualifiers. Nothing here knows of torch, Python, or a particular op.
#pragma once

#include <cstdint>

// Functions in shared headers have internal linkage. The CPU kernels are compiled once per
// instruction set; a weak (COMDAT) copy would let the linker keep, say, the AVX-512 body of an inline
// function for all of them. tests/test_build.py checks that no such symbol exists.
#if defined(__CUDACC__)
#define FASTOPS_HD __host__ __device__
#else
#define FASTOPS_HD
#endif
#define FASTOPS_INLINE FASTOPS_HD static inline

namespace fastops {

// Element type of the tensors of one call. Accumulation is in fp64 for kF64 and fp32 for the rest.
enum class DType : int32_t { kF64 = 0, kF32 = 1, kF16 = 2, kBF16 = 3, kU8 = 4 };

FASTOPS_INLINE int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return 8;
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kU8:
      break;
  }
  return 1;
}

// Element type of a tensor that says where maxima were found: flat in the plane for kI64, which is what
// users get, and kI32. kU8: the number of the tap inside the window (tap_number), for those backends and
// windows that have it; 255: none.
enum class IndexType : int32_t { kI64 = 0, kI32 = 1, kU8 = 2 };

// Sizes of the spatial dimensions. 2-d layers have d = 1, 1-d layers d = h = 1.
struct Extent {
  int64_t d = 1;
  int64_t h = 1;
  int64_t w = 1;
};

FASTOPS_INLINE int64_t volume(const Extent& e) { return e.d * e.h * e.w; }

}  // namespace fastops
