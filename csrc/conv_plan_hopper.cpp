// Plans of the kernels for sm_90a: conv_hopper.cu, conv_hopper_weight_grad.cu.
#include <algorithm>

#include "conv_cost.h"

namespace fastops {
namespace {

// Whether copies of windows can describe an axis: its corners are of 8 bits, and so are offsets of taps and
// what the stride may be.
bool fits_windows(const TapAxis& a) {
  if (a.taps == 0) return true;
  const int64_t reach = (a.taps - 1) * a.off_step;
  const int64_t lower = a.off0 + imin(reach, 0), upper = (a.grid - 1) * a.step + lower + 1 - a.source;
  return a.step <= 8 && lower >= -128 && lower <= 127 && upper >= -128 && upper <= 127 && reach <= 255 &&
         reach >= -255;
}

bool fits_axis(bool input_grad, int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
               int64_t dilation) {
  if (!input_grad) return fits_windows(forward_taps(in, out, kernel, stride, pad, dilation));
  if (stride > 2) return false;  // of two axes, four phases: as many tensor maps
  for (int64_t phase = 0; phase < imin(stride, in); ++phase)
    if (!fits_windows(input_grad_taps(in, out, kernel, stride, pad, dilation, phase))) return false;
  return true;
}

// What a block has, and how many share a multiprocessor: as in the kernels.
struct HopperTile {
  int64_t m, n, stages, blocks;
};

// A block's clocks and bytes: `steps` of 64 elements deep. It begins with an empty ring, and writes when
// others of its multiprocessor may go on.
PlanCost cost_of(const ConvParams& p, ConvPass pass, const HopperTile& tile, double steps,
                 const Device& device) {
  const double result_bytes = pass == ConvPass::kWeightGrad ? 4 : 2;
  const double m = static_cast<double>(tile.m), n = static_cast<double>(tile.n);
  const double multiply = 2 * m * n * 64 / rates(device).tensor_async / kHopperReach;
  const double ends = (1500 + m * n * result_bytes / kFromL2) / static_cast<double>(tile.blocks);
  PlanCost cost = {steps * multiply + ends, steps * 128 * (m + n), 0, 1};
  if (!p.channels_last) {
    // Both images are read and written once more, at nine tenths of a copy's speed.
    const double elements = static_cast<double>(p.n * (p.c * volume(p.in) + p.k * volume(p.out)));
    cost.before = 4 * elements / (0.9 * device.bandwidth);
    cost.launches += 2;
  }
  return cost;
}

ConvPlan plan_of(const ConvParams& p, const HopperTile& tile) {
  ConvPlan plan;
  plan.copies = !p.channels_last;
  plan.kernel = ConvKernel::kHopper;
  plan.tile = {tile.m, tile.n, 64, tile.stages};
  plan.vectors = true;
  return plan;
}

ConvPlan pixels_plan(const ConvParams& p, bool input_grad, const Device& device) {
  const int64_t phases = input_grad ? imin(p.stride.h, p.in.h) * imin(p.stride.w, p.in.w) : 1;
  const int64_t pixels = ceil_div(p.n * volume(input_grad ? p.in : p.out), phases);
  const int64_t outer = input_grad ? p.c : p.k, inner = input_grad ? p.k : p.c;
  const double steps = static_cast<double>(conv_taps(p) * ceil_div(inner, 64)) / static_cast<double>(phases);
  ConvPlan best;
  for (const HopperTile& tile :
       {HopperTile{128, 256, 4, 1}, HopperTile{128, 128, 3, 2}, HopperTile{128, 64, 3, 3}}) {
    if (!is_wanted(p, tile.m, tile.n) || (!p.tile_n && tile.n > 64 && outer <= tile.n / 2)) continue;
    ConvPlan plan = plan_of(p, tile);
    plan.blocks = phases * ceil_div(pixels, tile.m) * ceil_div(outer, tile.n);
    PlanCost cost = cost_of(p, input_grad ? ConvPass::kInputGrad : ConvPass::kForward, tile, steps, device);
    cost.launches += !p.weight_channels_last && conv_taps(p) > 1;  // packs w
    finish(plan, p, device, cost);
    if (best.blocks == 0 || plan.seconds < best.seconds) best = plan;
  }
  return best;
}

ConvPlan weight_plan(const ConvParams& p, const Device& device) {
  const int64_t columns = conv_taps(p) * ceil_div(p.c, 64), steps = ceil_div(p.n * volume(p.out), 64);
  const double weights = static_cast<double>(p.k * p.c * conv_taps(p));
  ConvPlan best;
  for (const HopperTile& tile :
       {HopperTile{128, 256, 4, 1}, HopperTile{128, 128, 3, 2}, HopperTile{64, 128, 3, 3}}) {
    if (!is_wanted(p, tile.m, tile.n) || (!p.tile_m && tile.m > 64 && p.k <= 64)) continue;
    const int64_t tiles = ceil_div(p.k, tile.m) * ceil_div(columns, tile.n / 64);
    // Parts that fill the device once, twice, …; of four steps at least; all take 64 MiB at most.
    const int64_t most = imax(1, imin(steps / 4, static_cast<int64_t>(67e6 / (4 * weights))));
    for (int64_t waves = 1; waves <= 4; ++waves) {
      ConvPlan plan = plan_of(p, tile);
      const int64_t wanted = waves * tile.blocks * device.multiprocessors / tiles;
      plan.splits = p.splits ? imin(p.splits, steps) : imax(1, imin(wanted, most));
      plan.blocks = tiles * plan.splits;
      const double each = static_cast<double>(ceil_div(steps, plan.splits));
      PlanCost cost = cost_of(p, ConvPass::kWeightGrad, tile, each, device);
      cost.more_bytes += 8 * weights * static_cast<double>(plan.splits);
      cost.launches += 1;
      finish(plan, p, device, cost);
      if (best.blocks == 0 || plan.seconds < best.seconds) best = plan;
    }
  }
  return best;
}

}  // namespace

bool hopper_serves(const ConvParams& p, ConvPass pass) {
  const bool half = p.dtype == DType::kF16 || p.dtype == DType::kBF16, grad = pass == ConvPass::kInputGrad;
  constexpr int64_t most = int64_t{1} << 31;
  // Where tensors in channels_last are not at multiples of 16 bytes, the other kernels on tensor cores take
  // over.
  return half && p.groups == 1 && p.c % 8 == 0 && p.k % 8 == 0 && gemm_serves(p, pass) && p.n < most &&
         p.n * p.c * volume(p.in) < int64_t{1} << 38 && p.n * p.k * volume(p.out) < int64_t{1} << 38 &&
         (pass != ConvPass::kWeightGrad || p.n * volume(p.out) < most) &&
         fits_axis(grad, p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h) &&
         fits_axis(grad, p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w);
}

ConvPlan hopper_plan(const ConvParams& p, ConvPass pass, const Device& device) {
  if (pass == ConvPass::kWeightGrad) return weight_plan(p, device);
  return pixels_plan(p, pass == ConvPass::kInputGrad, device);
}

}  // namespace fastops
