// Plans of the direct kernels: conv_direct.cu, conv_direct_weight_grad.cu.
#include "conv_cost.h"

namespace fastops {
namespace {

// Into how many parts the sum of the direct weight gradient is cut. A block has 64 columns (tap, c) × 64 or,
// for few channels, 8 channels k of a group; 4 blocks of 128 threads or more are resident on a
// multiprocessor, so many in all are one wave. A part has 64 pixels at least, and less than 2^29 (the kernel
// counts them in 32 bits); the parts take no more than 64 MiB.
int64_t splits_of_direct(const ConvParams& p, const Device& device) {
  const int64_t pixels = p.n * volume(p.out), rows = p.k / p.groups;
  const int64_t columns = conv_taps(p) * (p.c / p.groups);
  const int64_t blocks = p.groups * ceil_div(columns, 64) * ceil_div(rows, rows <= 8 ? 8 : 64);
  const int64_t bytes = p.k * (columns + 1) * (p.dtype == DType::kF64 ? 8 : 4);
  const int64_t wanted = 4 * device.multiprocessors / blocks;
  const int64_t most = imin(pixels / 64, (int64_t{64} << 20) / bytes);
  return imax(imax(1, imin(wanted, most)), ceil_div(pixels, int64_t{1} << 29));
}

}  // namespace

ConvPlan direct_plan(const ConvParams& p, ConvPass pass, const Device& device) {
  ConvPlan plan;
  plan.kernel = ConvKernel::kDirect;
  const bool weight = pass == ConvPass::kWeightGrad;
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  const int64_t rows = weight ? k : p.n * volume(pass == ConvPass::kForward ? p.out : p.in);
  const int64_t columns = weight ? conv_taps(p) * c : pass == ConvPass::kForward ? k : c;
  plan.tile = {64, 64, 16, 1};
  if (weight ? k <= 8 : columns <= 8) plan.tile = weight ? ConvTile{8, 64, 16, 1} : ConvTile{128, 8, 16, 1};
  if (weight) plan.splits = splits_of_direct(p, device);
  plan.blocks = ceil_div(rows, plan.tile.m) * ceil_div(columns, plan.tile.n) * p.groups * plan.splits;
  const Rates rate = rates(device);
  const double per_clock = kDirectReach * (p.dtype == DType::kF64 ? rate.fp64 : rate.fp32);
  const double share = flops_of(p) / static_cast<double>(plan.blocks);
  // Rows and columns that a tile has and the group has not are computed too.
  const auto waste_of = [](int64_t size, int64_t tile) {
    return static_cast<double>(round_up(imax(size, 1), tile)) / static_cast<double>(imax(size, 1));
  };
  const double waste = waste_of(rows, plan.tile.m) * waste_of(columns, plan.tile.n);
  const double loads =
      share / 2 * (1.0 / static_cast<double>(plan.tile.m) + 1.0 / static_cast<double>(plan.tile.n));
  finish(plan, p, device,
         {share * waste / per_clock, loads * static_cast<double>(element_bytes(p.dtype)), 0, weight ? 2 : 1});
  return plan;
}

}  // namespace fastops
