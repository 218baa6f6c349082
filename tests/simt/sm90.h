// Small kernels of sm_90a's primitives: to compare with what these are to do, and with bugs to be found.
#pragma once

#include <cstdint>

namespace sm90 {

// Elements are bfloat16 if `bfloat`, otherwise half.

// y = rows × 64, the box of x (planes, lines, columns) that begins at (plane, line, column).
constexpr int kRows = 24;
void tiled(const void* x, void* y, int64_t planes, int64_t lines, int64_t columns, int64_t plane,
           int64_t line, int64_t column, bool bfloat, void* stream);

// y = 32 × 64: of 32 windows from the first-th on, the element at the tap; channels from `channel` on.
constexpr int kPixels = 32;
struct Image {
  int64_t n, c, h, w, out_h, out_w, stride_h, stride_w, pad_h, pad_w;
};
void im2col(const void* x, void* y, const int64_t* image, int64_t first, int64_t channel, int64_t more_h,
            int64_t more_w, bool bfloat, void* stream);

// y = a · bᵀ, of floats; a is 64·i × k, b is 64, 128 or 256 × k; across: both are given transposed. One block
// for each 64 rows: a warp copies to a ring of two stages, a warpgroup multiplies.
enum class Bug : int {
  kNone,
  kParity,        // consumers wait for the other parity
  kExpect,        // nobody says how many bytes will come
  kWait,          // stages are released while products read them
  kRelease,       // the producer does not wait until a stage is released
  kFence,         // no fence after barriers are made
  kAccumulators,  // no wait for the last products
  kBytes,         // more bytes are expected than come
};
void matmul(const void* a, const void* b, float* y, int64_t m, int64_t n, int64_t k, bool across, int bug,
            bool bfloat, void* stream);

}  // namespace sm90
