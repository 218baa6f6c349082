// What the tensor-core convolutions share: pixels, counted in 32 bits.
#pragma once

#include "conv_axes.h"
#include "conv_families.h"
#include "tensor_tiles.h"

namespace fastops {
namespace cuda {
namespace {

// An image and a place in its grid of pixels.
struct Pixel {
  int n, h, w;
};

// Pixels of a grid, in raster order of all images, counted from a block's first one: 64 bits are needed
// to say which that is, 32 from there.
struct PixelRun {
  int64_t image;  // of the first pixel
  int first;      // in that image
  int left;       // pixels from there to the last image's end, if less than `most`
  __device__ PixelRun(int64_t start, int64_t images, int area, int most) {
    image = start / area;
    first = static_cast<int>(start - image * area);
    const int64_t all = images * area - start;
    left = static_cast<int>(all < most ? all : most);
  }
  __device__ Pixel at(int i, const NarrowTapAxis& h, const NarrowTapAxis& w) const {
    const int index = first + i, row = w.by_grid(index), n = h.by_grid(row);
    return {n, row - n * h.grid, index - row * w.grid};
  }
};

}  // namespace
}  // namespace cuda
}  // namespace fastops
