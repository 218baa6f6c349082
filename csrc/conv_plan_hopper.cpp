// Plans of the kernel for sm_90a: conv_hopper.cu.
#include <algorithm>

#include "conv_cost.h"

namespace fastops {
namespace {

// Whether copies of windows can describe an axis: its corners are of 8 bits, and so are offsets of taps and
// what the stride may be.
bool fits_windows(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t upper = (out - 1) * stride - pad + 1 - in;
  return stride <= 8 && pad <= 128 && upper >= -128 && upper <= 127 && (kernel - 1) * dilation <= 255;
}

}  // namespace

bool hopper_serves(const ConvParams& p, ConvPass pass) {
  const bool half = p.dtype == DType::kF16 || p.dtype == DType::kBF16;
  // Where tensors are not at multiples of 16 bytes, the other kernel on tensor cores takes over.
  return pass == ConvPass::kForward && half && p.channels_last && p.groups == 1 && p.c % 8 == 0 &&
         p.k % 8 == 0 && gemm_serves(p, pass) && p.n < int64_t{1} << 31 &&
         p.n * p.c * volume(p.in) < int64_t{1} << 38 &&
         fits_windows(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h) &&
         fits_windows(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w);
}

ConvPlan hopper_plan(const ConvParams& p, ConvPass, const Device& device) {
  const int64_t pixels = p.n * volume(p.out), steps = conv_taps(p) * ceil_div(p.c, 64);
  ConvPlan best;
  for (const int64_t channels : {128, 64}) {
    const double m = 128, n = static_cast<double>(channels);
    const double multiply = 2 * m * n * 64 / rates(device).tensor_async;
    // Each of two warpgroups reads its own rows and all columns; all of them are written once.
    const double shared = 128 * (m + 2 * n + m + n) / kFromShared;
    const double clocks = std::max(multiply, shared) / kReach;
    ConvPlan plan;
    plan.kernel = ConvKernel::kHopper;
    plan.tile = {128, channels, 64, 4};
    plan.vectors = true;
    plan.blocks = ceil_div(pixels, 128) * ceil_div(p.k, channels);
    const double count = static_cast<double>(steps);
    // A block begins with an empty ring, and has the multiprocessor for itself while it writes.
    const double ends = 1000 + m * n * 2 / kFromL2;
    const bool packs = !p.weight_channels_last && conv_taps(p) > 1;
    finish(plan, p, device, {count * clocks + ends, count * 128 * (m + n), 0, packs ? 2 : 1});
    if (best.blocks == 0 || plan.seconds < best.seconds) best = plan;
  }
  return best;
}

}  // namespace fastops
