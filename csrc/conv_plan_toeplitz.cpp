// Plans of the depthwise kernels on tensor cores: conv_toeplitz.cu, conv_toeplitz_weight_grad.cu.
#include <algorithm>

#include "conv_cost.h"
#include "depthwise_shape.h"
#include "toeplitz_shape.h"

namespace fastops {
namespace {

int64_t squares(const ConvParams& p, ConvPass pass) {
  const Extent& out = pass == ConvPass::kForward ? p.out : p.in;
  return p.n * ceil_div(p.c, kToeplitzPlanes) * ceil_div(out.h, kToeplitzTile) *
         ceil_div(out.w, kToeplitzTile);
}

bool fits(const ConvParams& p, ConvPass pass, const Device& device) {
  constexpr int64_t most = int64_t{1} << 31;
  if (pass == ConvPass::kWeightGrad)
    return p.kernel.h <= kToeplitzMostGrad && p.kernel.w <= kToeplitzMostGrad &&
           toeplitz_grad_shared(p) <= device.shared_bytes && toeplitz_pieces(p) < most;
  return p.kernel.w <= kToeplitzMost && toeplitz_shared(p) <= device.shared_bytes && squares(p, pass) < most;
}

ConvPlan weight_grad_plan(const ConvParams& p, const Device& device) {
  const int64_t groups = ceil_div(p.c, kToeplitzPlanes), pieces = toeplitz_pieces(p);
  ConvPlan plan;
  plan.kernel = ConvKernel::kToeplitz;
  plan.tile = {kToeplitzMostGrad, kToeplitzPlanes, kToeplitzRows * kToeplitzColumns, 1};
  plan.vectors = p.channels_last;
  plan.splits = p.splits ? imin(p.splits, imax(1, pieces))
                         : depthwise_splits(p, groups, kToeplitzPlanes, 1, pieces, device);
  plan.blocks = groups * plan.splits;
  const double wide = p.kernel.w <= 16 ? 1 : 2, pairs = p.kernel.h <= 16 ? 1 : 2;
  // Of a row of x, by warp: products of 16 × 8 × 16, and rows of 128 bytes of shared memory.
  const double multiply = 2 * wide * 2 * pairs * 2 * 16 * 8 * 16 / rates(device).tensor;
  const double shared = 2 * pairs * 4 + 2 * wide + 3;
  // An element of x is stored twice, of dy once, after a load of 8 planes.
  const double x = kToeplitzRows * toeplitz_grad_columns(static_cast<int>(wide)),
               dy = static_cast<double>(kToeplitzRows + p.kernel.h - 1) * kToeplitzColumns;
  const double load = (2 * x + dy) / 32 + (x + dy) * 16 / kFromShared / kToeplitzPlanes;
  const double piece = kToeplitzPlanes * (kToeplitzRows * std::max(multiply, shared) / kToeplitzReach + load);
  const double share = static_cast<double>(ceil_div(pieces, plan.splits));
  PlanCost cost;
  cost.block_clocks = share * piece;
  cost.block_bytes = share * 2 * kToeplitzPlanes * (x + dy);
  cost.more_bytes = static_cast<double>(2 * plan.splits * p.k * conv_taps(p) * 4);
  cost.launches = 2;
  finish(plan, p, device, cost);
  return plan;
}

}  // namespace

bool toeplitz_serves(const ConvParams& p, ConvPass pass, const Device& device) {
  const bool half = p.dtype == DType::kF16 || p.dtype == DType::kBF16;
  const auto plain = [](const Extent& e) { return e.h == 1 && e.w == 1; };
  return half && depthwise_serves(p, pass) && p.k == p.c && plain(p.stride) && plain(p.dilation) &&
         p.kernel.w >= kToeplitzLeast && (!p.channels_last || p.c % kToeplitzPlanes == 0) &&
         fits(p, pass, device);
}

ConvPlan toeplitz_plan(const ConvParams& p, ConvPass pass, const Device& device) {
  if (pass == ConvPass::kWeightGrad) return weight_grad_plan(p, device);
  const int64_t reach = toeplitz_reach(p.kernel.w);
  ConvPlan plan;
  plan.kernel = ConvKernel::kToeplitz;
  plan.tile = {kToeplitzTile * kToeplitzTile, kToeplitzPlanes, 16, 1};
  plan.vectors = p.channels_last;
  plan.blocks = squares(p, pass);
  const double rows = static_cast<double>(p.kernel.h), columns = toeplitz_columns(static_cast<int>(reach));
  // Of a row of taps: products of 16 × 8 × 16, a third of the squares of a tile's four 8s by its source's 16s
  // not among them; and, by warp, rows of 128 bytes of shared memory.
  const double products = 2 * 4 * static_cast<double>(reach + 2) / 2;
  const double multiply = products * 2 * 16 * 8 * 16 / rates(device).tensor;
  const double shared = 2 * 4 * columns / 16 + static_cast<double>(reach + 3);
  // An element of the source is loaded once and stored to its plane; the result is staged.
  const double load = (kToeplitzTile + rows - 1) * columns / 32 * 2 + 3 * kToeplitzTile;
  const double clocks = kToeplitzPlanes * (rows * std::max(multiply, shared) / kToeplitzReach + load);
  const double bytes =
      2 * kToeplitzPlanes * ((kToeplitzTile + rows - 1) * columns + rows * static_cast<double>(p.kernel.w));
  finish(plan, p, device, {clocks, bytes, 0, 1});
  return plan;
}

}  // namespace fastops
