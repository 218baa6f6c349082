// Weights of interpolated uint8 images in fixed point, the same on host and device: w stands for
// w / 2^precision. As fine as 16 bits allow, as torch (and Pillow) have it, so that results equal
// torch's bit for bit.
#pragma once

#include <cstdint>

#include "types.h"

namespace fastops {

// The finest precision at which the largest weight of an axis stays within 16 bits.
FASTOPS_INLINE int precision_for(double largest) {
  int precision = 0;
  for (; precision < 22; ++precision)
    if (0.5 + largest * (1 << (precision + 1)) >= (1 << 15)) break;
  return precision;
}

FASTOPS_INLINE int16_t fixed_weight(double weight, int precision) {
  const double v = weight * (1 << precision);
  return static_cast<int16_t>(v < 0 ? v - 0.5 : v + 0.5);
}

// What a sum of products starts from, so that it is rounded to nearest.
FASTOPS_INLINE int32_t fixed_half(int precision) { return 1 << (precision - 1); }

// A sum of products as an element.
FASTOPS_INLINE uint8_t fixed_to_u8(int32_t sum, int precision) {
  const int32_t v = sum >> precision;
  return static_cast<uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
}

}  // namespace fastops
