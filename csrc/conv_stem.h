// What the stem kernels (cuda/conv_stem*.cu) and their plans both need to know: the tile of y's pixels that a
// block computes at a time, the patch of x that it reads for it, and the shared memory that this takes.
#pragma once

#include "conv.h"

namespace fastops {

// A tile is so many pixels wide: a row of it is one operand of mma, and 32 bytes of y in 16-bit types.
constexpr int kStemColumns = 16;
// And so high. The weight gradient keeps two stages of dy's tile and of the patch, so fp32 has half the rows.
constexpr int kStemRows = 8;
inline int64_t stem_grad_rows(const ConvParams& p) { return 16 / element_bytes(p.dtype); }

// Dynamic shared memory of a block at most: what any device of capability 80 and more lets it have.
constexpr int64_t kStemShared = 99 << 10;

// The part of x under a tile, as [row][column][channel] in shared memory, with zeros for the padding.
struct StemPatch {
  int64_t rows, columns, pitch;  // pitch: elements of a row
  int64_t second = 0;            // where its second copy begins; 0: there is none
  int64_t elements;              // in all

  // pairs: two neighbouring 16-bit elements are read at once, so that every pixel's first element has to be
  // at an even place. If the pixels are an odd number of elements apart, the odd ones read a second copy,
  // which is shifted by one; it begins 16 banks after the first. The pair at the end of a window may reach
  // one element beyond the row.
  StemPatch(const ConvParams& p, int64_t tile_rows, bool pairs)
      : rows((tile_rows - 1) * p.stride.h + p.kernel.h),
        columns((kStemColumns - 1) * p.stride.w + p.kernel.w) {
    pitch = columns * p.c;
    if (pairs) pitch = round_up(pitch + 2, 2);
    elements = rows * pitch;
    if (pairs && p.stride.w * p.c % 2 != 0) {
      second = round_up(imax(elements - 32, 0), 64) + 32;
      elements += second;
    }
  }
  int64_t bytes(const ConvParams& p) const { return round_up(elements * element_bytes(p.dtype), 16); }
};

// The forward pass: its products' sum over (r, s, c), in words of 4 bytes, each r filled up to whole words
// (a pair of 16-bit elements then never is of two rows) and the whole to steps of 64 bytes. 7×7×3 in 16 bits
// are 7 · 11 = 77 words, in 5 steps of 16: 160 products for 147. Filling up each r to whole mma operands
// instead would make 7 · 32 of it; single taps of 4 channels, 49 · 4 = 196.
struct StemForward {
  int64_t row_words, steps, weight_pitch;                  // pitch in bytes: of a result channel
  int64_t words_at, bias_at, patch_at, staged_at, shared;  // in bytes; weights come first
  StemForward(const ConvParams& p, int64_t columns) {
    const int64_t bytes = element_bytes(p.dtype), e = 16 / bytes, pixels = kStemRows * kStemColumns;
    row_words = ceil_div(p.kernel.w * p.c * bytes, 4);
    steps = ceil_div(p.kernel.h * row_words, 16);
    weight_pitch = 64 * steps + 16;  // rows of 16 bytes at one place then lie in different banks
    words_at = columns * weight_pitch;
    bias_at = words_at + steps * 16 * 8;
    patch_at = bias_at + columns * 4;
    staged_at = patch_at + StemPatch(p, kStemRows, bytes == 2).bytes(p);
    shared = staged_at + bytes * imax(pixels * (columns + e), columns * (pixels + e));
  }
};

// The weight gradient: two stages of dy's tile, 64 channels, and of the patch.
struct StemGrad {
  int64_t dy_bytes, stage_bytes, shared;
  explicit StemGrad(const ConvParams& p) {
    const int64_t bytes = element_bytes(p.dtype), rows = stem_grad_rows(p);
    dy_bytes = rows * kStemColumns * (p.channels_last ? 64 + 8 : 64) * bytes;
    stage_bytes = dy_bytes + StemPatch(p, rows, false).bytes(p);
    shared = 2 * stage_bytes;
  }
};

}  // namespace fastops
