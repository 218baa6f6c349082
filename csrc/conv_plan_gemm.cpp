// Plans of the kernels on tensor cores: conv_gemm.cu, conv_gemm_weight_grad.cu.
#include <algorithm>

#include "conv_cost.h"

namespace fastops {
namespace {

// Whether coordinates, and offsets inside an image, are small enough for 32 bits.
bool fits_gemm(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  constexpr int64_t limit = int64_t{1} << 28;
  return in < limit && out < limit && kernel < limit && stride < limit && pad < limit && dilation < limit &&
         (kernel - 1) * dilation < limit && out * stride < limit;
}
}  // namespace

bool gemm_serves(const ConvParams& p, ConvPass pass) {
  constexpr int64_t most = int64_t{1} << 28;
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  return is_flat(p) && p.dtype != DType::kF64 && (p.groups == 1 || (c >= 8 && k >= 8)) &&
         fits_gemm(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h) &&
         fits_gemm(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w) && volume(p.in) < most &&
         volume(p.out) < most && conv_taps(p) * (c + 8) < most && conv_taps(p) * (k + 8) < most &&
         p.groups < most && (pass != ConvPass::kInputGrad || (p.stride.h <= 4 && p.stride.w <= 4));
}

namespace {

// A tile, with what one of its warps computes.
struct GemmTile {
  int64_t m, n, warp_m, warp_n;
};

// Clocks and bytes of one step of 64 bytes of elements.
struct GemmStep {
  double clocks, bytes;
};
GemmStep step_of(const ConvParams& p, const GemmTile& tile, bool weight, bool vectors, const Device& device) {
  const double m = static_cast<double>(tile.m), n = static_cast<double>(tile.n);
  const double k = 64.0 / static_cast<double>(element_bytes(p.dtype));
  const double multiply = 2 * m * n * k / (rates(device).tensor / tensor_cost(p));
  // Each warp reads its rows and columns from shared memory; all of them are written once.
  const double warps = m / static_cast<double>(tile.warp_m) * n / static_cast<double>(tile.warp_n);
  const double shared = 64 * (warps * static_cast<double>(tile.warp_m + tile.warp_n) + m + n) / kFromShared;
  // Single elements, in the weight gradient of both operands: a load, a store and their share of addresses by
  // a warp, of four that can be issued. On an H200 they take two to three times as long, and in the weight
  // gradient four times that where neighbouring pixels are not neighbours in memory.
  const double slow = weight ? (p.channels_last ? 12 : 3) : 2;
  const double single = vectors ? 0 : slow * (m + (weight ? n : 0)) * k / 32 * 4 / 2;
  return {std::max(multiply, std::max(shared, single)) / kGemmReach, 64 * (m + n)};
}

// The tiles that conv_gemm.cu has: large ones do least work for a product, small ones fill a GPU sooner.
int tiles_of(const ConvParams& p, bool weight, bool vectors, GemmTile (&tiles)[3]) {
  const bool three = p.dtype == DType::kF32 && !p.tf32;
  int count = 0;
  if (weight) {
    if (vectors && !three)
      tiles[count++] = p.dtype == DType::kF32 ? GemmTile{128, 64, 32, 32} : GemmTile{128, 128, 64, 32};
    tiles[count++] = {64, 64, 32, 16};
  } else {
    if (!three) tiles[count++] = {128, 128, 64, 32};
    tiles[count++] = three ? GemmTile{64, 64, 32, 16} : GemmTile{128, 64, 32, 32};
    tiles[count++] = {64, 32, 32, 16};
  }
  return count;
}

}  // namespace

ConvPlan gemm_plan(const ConvParams& p, ConvPass pass, const Device& device) {
  const bool weight = pass == ConvPass::kWeightGrad, forward = pass == ConvPass::kForward;
  const int64_t c = p.c / p.groups, k = p.k / p.groups, e = 16 / element_bytes(p.dtype), depth = 4 * e;
  const int64_t inner = forward ? c : k, phases = pass == ConvPass::kInputGrad ? p.stride.h * p.stride.w : 1;
  const bool vectors = p.channels_last && inner % e == 0 && (!weight || c % e == 0);
  const double weights = static_cast<double>(p.k * c * conv_taps(p));
  GemmTile tiles[3];
  ConvPlan best;
  for (int t = 0, count = tiles_of(p, weight, vectors, tiles); t < count; ++t) {
    const GemmTile& tile = tiles[t];
    if (!is_wanted(p, tile.m, tile.n)) continue;
    const GemmStep step = step_of(p, tile, weight, vectors, device);
    ConvPlan plan;
    plan.kernel = ConvKernel::kGemm;
    plan.tile = {tile.m, tile.n, depth, 4};
    plan.vectors = vectors;
    if (weight) {
      const int64_t columns = conv_taps(p) * round_up(c, e);
      const int64_t tiles_in_all = ceil_div(k, tile.m) * ceil_div(columns, tile.n) * p.groups;
      const int64_t steps = ceil_div(p.n * volume(p.out), depth);
      // Parts that fill the device once, twice, … A part has four steps at least, and pixels that 32 bits
      // count; all parts take 64 MiB at most.
      const int64_t fewest = imax(1, ceil_div(steps * depth, int64_t{1} << 29));
      const int64_t most = imin(steps / 4, static_cast<int64_t>(67e6 / (4 * weights)));
      for (int waves = 0; waves <= 8; ++waves) {
        const int64_t wanted = waves * 2 * device.multiprocessors / tiles_in_all;
        plan.splits = imax(fewest, p.splits ? imin(p.splits, steps) : imin(wanted, most));
        plan.blocks = tiles_in_all * plan.splits;
        const double per_block = static_cast<double>(ceil_div(steps, plan.splits));
        // Parts are written and read again.
        const double parts = 8 * weights * static_cast<double>(plan.splits);
        finish(plan, p, device, {per_block * step.clocks, per_block * step.bytes, parts, 2});
        if (best.blocks == 0 || plan.seconds < best.seconds) best = plan;
      }
    } else {
      const int64_t pixels = p.n * volume(forward ? p.out : p.in), outer = forward ? k : c;
      plan.blocks = phases * ceil_div(ceil_div(pixels, phases), tile.m) * ceil_div(outer, tile.n) * p.groups;
      const double per_block =
          static_cast<double>(ceil_div(conv_taps(p) * round_up(inner, e), depth * phases));
      // The pixels of one stride phase do not fill sectors of contiguous memory: those are read to be
      // written.
      const double scattered =
          phases > 1 && !p.channels_last
              ? 2.0 * static_cast<double>(p.n * p.c * volume(p.in) * element_bytes(p.dtype))
              : 0;
      // Weights that are not in the kernels' order are put into it first.
      const bool packs = !forward || inner % e != 0 || (!p.weight_channels_last && conv_taps(p) > 1);
      finish(plan, p, device,
             {(per_block + 4) * step.clocks, per_block * step.bytes, scattered, packs ? 2 : 1});
      if (best.blocks == 0 || plan.seconds < best.seconds) best = plan;
    }
  }
  return best;
}

}  // namespace fastops
