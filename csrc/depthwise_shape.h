// How the depthwise kernels share out their work: pure arithmetic, for the plan and for the launchers.
//
// A thread computes a run of neighbouring results, of one channel or of a vector of them. In channels_last
// runs go along w, and neighbouring threads (lanes) have neighbouring channels; in contiguous planes runs go
// along h, and neighbouring threads have neighbouring columns. So neighbours read neighbours in either, and
// the inputs of a run's windows overlap in one thread's registers.
#pragma once

#include "conv_plan.h"

namespace fastops {

constexpr int kDepthwiseThreads = 128;
// Which step along the source a kernel is compiled for, where taps are neighbours: 1, 2, or 0: any. In the
// input gradient every phase has step 1.
inline int depthwise_step(const ConvParams& p, bool input_grad) {
  const int64_t stride = p.channels_last ? p.stride.w : p.stride.h;
  const int64_t dilation = p.channels_last ? p.dilation.w : p.dilation.h;
  if (input_grad) return dilation == gcd(stride, dilation) ? 1 : 0;
  return dilation == 1 && stride <= 2 ? static_cast<int>(stride) : 0;
}
// Results of a run: 8; 4 in fp64, whose sums take as many registers, and at step 2, where they come from as
// many inputs.
constexpr int depthwise_run(int bytes_of_sum, int step) { return bytes_of_sum == 8 || step == 2 ? 4 : 8; }
// Channels of a vector: four, in fp64 two. With 8 of 16 bits, sums and weights would take twice the registers
// for the same number of products per load, and leave a run half as long.
constexpr int depthwise_width(int bytes) { return bytes == 8 ? 2 : 4; }
// Channels that a block has at most: 128 bytes of 16-bit elements, a line of the cache.
constexpr int kDepthwiseChannels = 64;

inline int64_t depthwise_multiplier(const ConvParams& p) { return p.k / p.groups; }

// Whether channels can be taken as vectors, if addresses allow.
inline bool depthwise_vectors(const ConvParams& p) {
  return p.channels_last && p.k == p.c &&
         p.c % depthwise_width(static_cast<int>(element_bytes(p.dtype))) == 0;
}

// How channels are shared out: `lanes` (a power of two, at most a warp) threads × `width` channels, in tiles.
struct DepthwiseLanes {
  int64_t width = 1, lanes = 1, tiles = 1;

  DepthwiseLanes(bool channels_last, int64_t channels, int64_t channel_width, int64_t bytes) {
    if (!channels_last) {
      tiles = channels;
      return;
    }
    width = channel_width;
    const int64_t vectors = ceil_div(channels, width), most = imin(32, kDepthwiseChannels / width);
    int64_t least = 0;
    // The fewest lanes without a channel, of runs of 32 bytes at least: a sector.
    for (int64_t l = most; l == most || l * width * bytes >= 32; l /= 2) {
      const int64_t taken = round_up(vectors, l);
      if (least == 0 || taken < least) least = taken, lanes = l, tiles = taken / l;
    }
  }
  int64_t slots() const { return kDepthwiseThreads / lanes; }  // runs that a block has at once
};

// How often a block with weights in shared memory takes runs: as often as leaves 8 blocks for each
// multiprocessor, two rounds of what is resident, and no more than 4 times, when loading the weights is a
// few per cent.
inline int64_t depthwise_reps(int64_t blocks, const Device& device) {
  return imax(1, imin(4, blocks / (8 * device.multiprocessors)));
}

// Taps that a thread of the weight gradient has in registers, a unit: neighbours along its run, and rows of
// them; of 3 × 3 taps all, of larger kernels a row of up to 7. The warps of a block have the units of a
// kernel, up to 8 of them, for the same runs, so that they find x and dy in the L1 cache; if there are few
// units, several warps share out the runs.
constexpr int kDepthwiseMostWarps = 8;
struct DepthwiseTaps {
  int64_t along, across;  // of a unit
  int64_t units;          // that make the kernel
  int64_t groups, units_at_once, run_warps;

  explicit DepthwiseTaps(const ConvParams& p) {
    const int64_t k_along = p.channels_last ? p.kernel.w : p.kernel.h;
    const int64_t k_across = p.channels_last ? p.kernel.h : p.kernel.w;
    along = k_along <= 3 ? 3 : k_along <= 5 ? 5 : 7;
    across = along == 3 ? 3 : 1;
    units = ceil_div(k_along, along) * ceil_div(k_across, across);
    groups = ceil_div(units, kDepthwiseMostWarps);
    units_at_once = ceil_div(units, groups);
    run_warps = imax(1, 4 / units_at_once);
  }
  int64_t warps() const { return units_at_once * run_warps; }
};

// Into how many parts a sum over `runs` is cut, where a part takes `blocks` blocks of so many warps, which
// have `slots` runs at once: as fill the device twice with 16 warps a multiprocessor; a part has a round of
// runs at least, and all take 64 MiB at most.
inline int64_t depthwise_splits(const ConvParams& p, int64_t blocks, int64_t warps, int64_t slots,
                                int64_t runs, const Device& device) {
  const int64_t bytes = p.k * (conv_taps(p) + 1) * (p.dtype == DType::kF64 ? 8 : 4);
  const int64_t wanted = ceil_div(32 * device.multiprocessors, blocks * warps);
  const int64_t fewest = imax(1, ceil_div(runs, int64_t{1} << 29));  // kernels count them in 32 bits
  return imax(fewest, imin(wanted, imin(runs / slots, (int64_t{64} << 20) / bytes)));
}

}  // namespace fastops
