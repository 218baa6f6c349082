// Plans of the depthwise kernels: conv_depthwise.cu, conv_depthwise_weight_grad.cu,
// conv_depthwise_backward.cu.
#include <algorithm>
#include <cmath>

#include "conv_cost.h"
#include "depthwise_shape.h"

namespace fastops {
namespace {

// Whether coordinates, also those of a run's windows, are small enough for 32 bits.
bool fits_depthwise(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  constexpr int64_t limit = int64_t{1} << 28;
  return in < limit && out < limit && kernel < limit && 8 * stride < limit && pad < limit &&
         dilation < limit && (kernel - 1) * dilation < limit && out * stride < limit;
}

}  // namespace

// Not: a third axis, and input gradients of a stride beyond 4, whose phases would not fit into the kernel's
// parameters; the direct kernels have them.
bool depthwise_serves(const ConvParams& p, ConvPass pass) {
  constexpr int64_t most = int64_t{1} << 28;
  return is_flat(p) && p.groups == p.c && p.c > 0 && p.k % p.c == 0 && p.k < most && p.n < most &&
         fits_depthwise(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h) &&
         fits_depthwise(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w) &&
         volume(p.in) < most && volume(p.out) < most && conv_taps(p) * depthwise_multiplier(p) < most &&
         (pass != ConvPass::kInputGrad || (p.stride.h <= 4 && p.stride.w <= 4));
}

ConvPlan depthwise_plan(const ConvParams& p, ConvPass pass, const Device& device) {
  ConvPlan plan;
  plan.kernel = ConvKernel::kDepthwise;
  const bool weight = pass == ConvPass::kWeightGrad, input_grad = pass == ConvPass::kInputGrad;
  const int64_t bytes = element_bytes(p.dtype),
                run = depthwise_run(bytes == 8 ? 8 : 4, depthwise_step(p, input_grad));
  plan.vectors = depthwise_vectors(p);
  const int64_t width = plan.vectors ? depthwise_width(static_cast<int>(bytes)) : 1;
  const DepthwiseLanes lanes(p.channels_last, input_grad ? p.c : p.k, width, bytes);
  const Extent& grid = input_grad ? p.in : p.out;
  const int64_t phases_h = input_grad ? imin(p.stride.h, p.in.h) : 1;
  const int64_t phases_w = input_grad ? imin(p.stride.w, p.in.w) : 1;
  const int64_t grid_h = ceil_div(grid.h, imax(1, phases_h)), grid_w = ceil_div(grid.w, imax(1, phases_w));
  // Runs of a channel, in all phases.
  const int64_t runs = p.n * phases_h * phases_w *
                       (p.channels_last ? grid_h * ceil_div(grid_w, run) : grid_w * ceil_div(grid_h, run));
  const DepthwiseTaps taps(p);
  const int64_t slots = weight ? taps.run_warps * 32 / lanes.lanes : lanes.slots();
  plan.tile = {slots * run, lanes.lanes * width, weight ? taps.along : 1, 1};
  if (weight) {
    const int64_t blocks = lanes.tiles * taps.groups;
    plan.splits = depthwise_splits(p, blocks, taps.warps(), slots, runs, device);
    plan.blocks = blocks * plan.splits;
  } else {
    plan.blocks = lanes.tiles * ceil_div(runs, slots);
  }
  plan.blocks = imax(plan.blocks, 1);

  // A run's instructions for each of its channels: of a row of taps, a load of each source element, its
  // conversion, and whether it exists (shared by a vector), and the products. Four warps issue at once, as
  // many lanes multiply; threads without a run and the ends of runs take as long as all others.
  const double along = static_cast<double>(p.channels_last ? p.kernel.w : p.kernel.h) /
                       static_cast<double>(input_grad ? (p.channels_last ? phases_w : phases_h) : 1);
  const double across = static_cast<double>(p.channels_last ? p.kernel.h : p.kernel.w) /
                        static_cast<double>(input_grad ? (p.channels_last ? phases_h : phases_w) : 1);
  const int64_t stride = p.channels_last ? p.stride.w : p.stride.h;
  const bool slides = depthwise_step(p, input_grad) > 0;
  const double r = static_cast<double>(run), v = static_cast<double>(width);
  const double step = input_grad ? 1 : static_cast<double>(stride);
  const double segments = std::ceil(along / 7);
  const double elements = slides ? segments * ((r - 1) * step + along / segments) : r * along;
  const double terms = input_grad ? static_cast<double>(depthwise_multiplier(p)) : 1;
  const double convert = bytes == 2 ? 1 : 0;
  const double products = terms * across * r * along;
  const double loads =
      terms * across * elements * (3 / v + convert) +
      (weight ? static_cast<double>(taps.units) * r * (2 / v + convert) : 2 * along * across / v);
  const double issue = (products + loads + 2 * r) / 128;
  const double multiply = products / (bytes == 8 ? rates(device).fp64 / 2 : rates(device).fp32 / 2);
  // L1 takes 64 bytes of a warp's access per clock at best, and no more than one access of a warp.
  const double level1 = terms * across * elements * std::max(static_cast<double>(bytes) / 64, 1 / (32 * v));
  const double each = std::max(std::max(issue, multiply), level1) / kDepthwiseReach;
  const int64_t rounds = weight ? ceil_div(imax(runs, 1), plan.splits * slots) : 1;
  const double threads = static_cast<double>(slots * lanes.lanes * rounds) * v;  // of one channel, in a block
  PlanCost cost;
  cost.block_clocks = threads * each / static_cast<double>(weight ? taps.groups : 1);
  // Through the L2 cache: the source with the rows around a block's, of which it finds some again in L1; what
  // the ends of runs share with their neighbours is there. In the weight gradient, dy too.
  const double source = terms * r * step * step * std::min(across / step, 2.0) + (weight ? r : 0);
  cost.block_bytes = threads * source * static_cast<double>(bytes);
  cost.launches = weight ? 2 : 1;
  if (weight)
    cost.more_bytes = static_cast<double>(2 * plan.splits * p.k * conv_taps(p) * (bytes == 8 ? 8 : 4));
  finish(plan, p, device, cost);
  return plan;
}

}  // namespace fastops
