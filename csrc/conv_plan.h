// Which kernel, tile and split serve one pass of a convolution on a GPU: a pure function of the params
// and of the device, which can be asked without a GPU (fastops.explain).
#pragma once

#include "conv.h"
#include "device.h"

namespace fastops {

enum class ConvPass : int32_t { kForward, kInputGrad, kWeightGrad };

// y's pixels (or, in the weight gradient, w's rows) × channels that a block computes, and in steps of how
// many products.
struct ConvTile {
  int64_t m = 0, n = 0, k = 0;
  int64_t stages = 0;  // of tiles in shared memory
};

struct ConvPlan {
  ConvKernel kernel = ConvKernel::kDirect;
  ConvTile tile;
  bool vectors = false;  // 16 bytes of channels at a time
  bool copies = false;   // contiguous tensors are copied to channels_last first, the result copied back
  int64_t splits = 1;    // of the weight gradient's sum over n and pixels; combined in order
  int64_t blocks = 0;
  // The model: what the pass has to compute and to move at least, and the time that the plan would take.
  double flops = 0, bytes = 0, waves = 0, seconds = 0;
  double roof = 0;  // the time of flops and bytes at the device's ceilings, over `seconds`
};

// The plan of one pass. Throws if p.kernel_family asks for kernels that do not serve it.
ConvPlan conv_plan(const ConvParams& p, ConvPass pass, const Device& device);
// Whether a family of kernels can serve the pass at all.
bool conv_kernel_serves(ConvKernel kernel, const ConvParams& p, ConvPass pass, const Device& device);

// Multiplications of one sample that are not with padding or inserted zeros, at most: taps · channels.
inline int64_t conv_taps(const ConvParams& p) { return volume(p.kernel); }

}  // namespace fastops
