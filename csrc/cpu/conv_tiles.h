// What the two kinds of tiles of a dense convolution, conv_rows.h and conv_planes.h, have in common.
#pragma once

#include <cstdint>

#include "conv_weights.h"
#include "gemm.h"
#include "tap_conv.h"

namespace fastops {
namespace cpu {
namespace {

// Words of a block of k. NCHW: of pairs more, so that sums are written and read again less often.
template <typename W>
constexpr int64_t kPlaneDepth = kPerWord<W> == 1 ? kTileDepth<Acc<W>> : 384;
// Positions of one tile. NCHW: a block of B is 256 × 208 words of 4 bytes = 208 KiB, or 312 KiB, in L2; its
// rows are 13 cache lines apart, an odd number, so that a column panel spreads over all sets of L1.
constexpr int64_t kPlanePositions = 192;
template <typename A>
constexpr int64_t kPlaneStride = kPlanePositions + 64 / static_cast<int64_t>(sizeof(A));
// channels_last: 96 × 256 words of gathered A = 96 KiB, in L2.
template <typename A>
constexpr int64_t kRowStride = kTileDepth<A> + 64 / static_cast<int64_t>(sizeof(A));
// Result channels whose sums a tile holds in scratch memory, where they cannot go to the result itself.
// NCHW: what they share is gathered anew for others.
inline int64_t scratch_channels(const TapConv& t) { return t.p->channels_last ? 128 : 512; }

template <typename T, typename W>
struct Call {
  using A = Acc<T>;
  const TapConv& t;
  const T* source;
  T* result;
  const T* unpacked;        // weights
  const A* bias;            // [group][padded channel]
  int64_t channels_stride;  // of bias
};

// Of one thread.
template <typename W>
struct Scratch {
  W* gathered;
  Acc<W>* sums;
  W* panel;  // NCHW: rows before they are interleaved
};

// NCHW: a tile's positions are contiguous in the result.
inline bool is_contiguous(const TapAxes& a) {
  return a.w.out_step == 1 && a.h.out_step == 1 && a.d.out_step == 1;
}
// The sums may go to the result, of whose type they are.
template <typename T>
bool sums_in_result(const TapConv& t, const TapAxes& a) {
  return !kNarrow<T> && (t.p->channels_last || is_contiguous(a));
}

}  // namespace
}  // namespace cpu
}  // namespace fastops
