// Plans of the depthwise kernels on tensor cores: conv_toeplitz.cu.
#include <algorithm>

#include "conv_cost.h"
#include "toeplitz_shape.h"

namespace fastops {
namespace {

int64_t squares(const ConvParams& p, ConvPass pass) {
  const Extent& out = pass == ConvPass::kForward ? p.out : p.in;
  return p.n * ceil_div(p.c, kToeplitzPlanes) * ceil_div(out.h, kToeplitzTile) *
         ceil_div(out.w, kToeplitzTile);
}

}  // namespace

bool toeplitz_serves(const ConvParams& p, ConvPass pass, const Device& device) {
  const bool half = p.dtype == DType::kF16 || p.dtype == DType::kBF16;
  const auto plain = [](const Extent& e) { return e.h == 1 && e.w == 1; };
  return pass != ConvPass::kWeightGrad && half && depthwise_serves(p, pass) && p.k == p.c &&
         plain(p.stride) && plain(p.dilation) && p.kernel.w >= kToeplitzLeast &&
         p.kernel.w <= kToeplitzMost && (!p.channels_last || p.c % kToeplitzPlanes == 0) &&
         toeplitz_shared(p) <= device.shared_bytes && squares(p, pass) < int64_t{1} << 31;
}

ConvPlan toeplitz_plan(const ConvParams& p, ConvPass pass, const Device& device) {
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
