// Tensor maps of the emulation: what the driver's functions, which tensor_maps.cpp has twins of, keep in one.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <vector>

namespace simt {

struct Map {
  uint32_t magic;
  uint8_t rank, im2col, each[5];
  const char* address;
  uint64_t size[5], stride[5];  // bytes; stride[0] is an element's
  uint16_t box[5];              // or channels and pixels
  int8_t lower[2], upper[2];    // of w and h
};
constexpr uint32_t kMapMagic = 0x7A3A9E01;
static_assert(sizeof(Map) <= sizeof(CUtensorMap));

// 16 bytes of a box; from: null for zeros.
struct Piece {
  char* to;
  const char* from;
};

// The box as pieces in the order of its elements: from `first` on, in windows at the taps `more`.
std::vector<Piece> pieces_of(const Map& map, char* to, const int* first, const uint16_t* more);

}  // namespace simt
