// The choice of kernels for convolutions on a GPU, and the model of their cost that it is made by.
//
// A plan's time is the largest of what its blocks compute, what they move through the L2 cache, and what the
// whole has to move through memory, plus a launch; it orders candidates, and promises nothing. The rates are
// the architectures' own (per multiprocessor and clock); what a kernel reaches of them, kReach, is to be
// measured, and is a guess until then.
#include "conv_plan.h"

#include <algorithm>
#include <stdexcept>

namespace fastops {
namespace {

constexpr double kLaunch = 3e-6;  // of a kernel that depends on the one before
constexpr double kReach = 0.8;    // of the instructions' rate, by a loop that also has to load
// Bytes per multiprocessor and clock from the L2 cache, and from shared memory.
constexpr double kFromL2 = 40, kFromShared = 128;

// Operations (two per multiply-add) per multiprocessor and clock.
struct Rates {
  double fp32, fp64, tensor, tensor_async;  // tensor: 16-bit, by mma.sync; by wgmma where there is one
};
Rates rates(const Device& device) {
  switch (device.capability) {
    case 80:
      return {128, 64, 2048, 2048};
    case 86:
      return {256, 4, 512, 512};
    case 89:
      return {256, 4, 1024, 1024};
    case 90:
      return {256, 128, 2540, 4096};  // mma.sync reaches some 62 % of wgmma
    default:
      return device.capability > 90 ? Rates{256, 128, 2048, 4096} : Rates{128, 4, 512, 512};
  }
}
// What fp32 costs there: TF32 has half the rate, three products for one a third of that.
double products(const ConvParams& p) { return p.dtype == DType::kF32 ? (p.tf32 ? 2 : 6) : 1; }

bool is_flat(const ConvParams& p) { return p.in.d == 1 && p.out.d == 1 && p.kernel.d == 1; }

// ---- what a pass has to do ---------------------------------------------------------------------------

// The same for all three passes, if no product with an inserted zero is counted.
double flops_of(const ConvParams& p) {
  return 2.0 * static_cast<double>(p.n * volume(p.out) * p.k * (p.c / p.groups) * conv_taps(p));
}
double bytes_of(const ConvParams& p) {
  const int64_t elements =
      p.n * (p.c * volume(p.in) + p.k * volume(p.out)) + p.k * (p.c / p.groups) * conv_taps(p);
  return static_cast<double>(elements * element_bytes(p.dtype));
}
// The least time: at the ceilings of the device's best unit for the dtype.
double roof_seconds(const ConvParams& p, const Device& device) {
  const Rates rate = rates(device);
  const double per_clock = p.dtype == DType::kF64              ? rate.fp64
                           : p.dtype == DType::kF32 && !p.tf32 ? rate.fp32
                                                               : rate.tensor_async / products(p);
  const double compute =
      flops_of(p) / (per_clock * static_cast<double>(device.multiprocessors) * device.clock_hz);
  const double memory = bytes_of(p) / device.bandwidth;
  return std::max(compute, memory);
}

// Completes a plan whose blocks take so many clocks of a multiprocessor and read so many bytes each.
void finish(ConvPlan& plan, const ConvParams& p, const Device& device, double block_clocks,
            double block_bytes, double more_bytes, int launches) {
  const double processors = static_cast<double>(device.multiprocessors);
  plan.flops = flops_of(p);
  plan.bytes = bytes_of(p);
  plan.waves = static_cast<double>(plan.blocks) / processors;
  // Of the last blocks each has a multiprocessor for itself.
  const double rounds = static_cast<double>(ceil_div(plan.blocks, device.multiprocessors));
  const double compute = rounds * block_clocks / device.clock_hz;
  const double l2 = rounds * block_bytes / kFromL2 / device.clock_hz;
  const double memory = (plan.bytes + more_bytes) / device.bandwidth;
  plan.seconds = kLaunch * launches + std::max(compute, std::max(l2, memory));
  plan.roof = roof_seconds(p, device) / plan.seconds;
}

// ---- direct: conv_direct.cu, conv_direct_weight_grad.cu ---------------------------------------------

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
  const double per_clock = kReach * (p.dtype == DType::kF64 ? rate.fp64 : rate.fp32);
  const double share = flops_of(p) / static_cast<double>(plan.blocks);
  // Columns that a tile has and the group has not are computed too.
  const double waste = static_cast<double>(round_up(columns, plan.tile.n)) / static_cast<double>(columns);
  const double loads =
      share / 2 * (1.0 / static_cast<double>(plan.tile.m) + 1.0 / static_cast<double>(plan.tile.n));
  finish(plan, p, device, share * waste / per_clock, loads * static_cast<double>(element_bytes(p.dtype)), 0,
         weight ? 2 : 1);
  return plan;
}

// ---- tensor cores: conv_gemm.cu, conv_gemm_weight_grad.cu ---------------------------------------------

// Whether coordinates, and offsets inside an image, are small enough for 32 bits.
bool fits_gemm(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  constexpr int64_t limit = int64_t{1} << 28;
  return in < limit && out < limit && kernel < limit && stride < limit && pad < limit && dilation < limit &&
         (kernel - 1) * dilation < limit && out * stride < limit;
}
bool gemm_serves(const ConvParams& p, ConvPass pass) {
  constexpr int64_t most = int64_t{1} << 28;
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  return is_flat(p) && p.dtype != DType::kF64 && (p.groups == 1 || (c >= 8 && k >= 8)) &&
         fits_gemm(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h) &&
         fits_gemm(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w) && volume(p.in) < most &&
         volume(p.out) < most && conv_taps(p) * (c + 8) < most && conv_taps(p) * (k + 8) < most &&
         p.groups < most && (pass != ConvPass::kInputGrad || (p.stride.h <= 4 && p.stride.w <= 4));
}

// A tile, with what one of its warps computes.
struct GemmTile {
  int64_t m, n, warp_m, warp_n;
};

// Clocks and bytes of one step of 64 bytes of elements.
struct GemmStep {
  double clocks, bytes;
};
GemmStep step_of(const ConvParams& p, const GemmTile& tile, bool vectors, const Device& device) {
  const double m = static_cast<double>(tile.m), n = static_cast<double>(tile.n);
  const double k = 64.0 / static_cast<double>(element_bytes(p.dtype));
  const double multiply = 2 * m * n * k / (rates(device).tensor / products(p));
  // Each warp reads its rows and columns from shared memory; all of them are written once.
  const double warps = m / static_cast<double>(tile.warp_m) * n / static_cast<double>(tile.warp_n);
  const double shared = 64 * (warps * static_cast<double>(tile.warp_m + tile.warp_n) + m + n) / kFromShared;
  // Single elements: a load, a store and their share of addresses by a warp, of four that can be issued.
  const double single = vectors ? 0 : m * k / 32 * 4 / 2;
  return {std::max(multiply, std::max(shared, single)) / kReach, 64 * (m + n)};
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
    tiles[count++] = three && !vectors ? GemmTile{64, 64, 32, 16} : GemmTile{128, 64, 32, 32};
    tiles[count++] = {64, 32, 32, 16};
  }
  return count;
}

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
    const GemmStep step = step_of(p, tile, vectors, device);
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
        plan.splits = imax(fewest, imin(wanted, most));
        plan.blocks = tiles_in_all * plan.splits;
        const double per_block = static_cast<double>(ceil_div(steps, plan.splits));
        // Parts are written and read again.
        const double parts = 8 * weights * static_cast<double>(plan.splits);
        finish(plan, p, device, per_block * step.clocks, per_block * step.bytes, parts, 2);
        if (best.blocks == 0 || plan.seconds < best.seconds) best = plan;
      }
    } else {
      const int64_t pixels = p.n * volume(forward ? p.out : p.in), outer = forward ? k : c;
      plan.blocks = phases * ceil_div(ceil_div(pixels, phases), tile.m) * ceil_div(outer, tile.n) * p.groups;
      const double per_block =
          static_cast<double>(ceil_div(conv_taps(p) * round_up(inner, e), depth * phases));
      // Weights that are not in the kernels' order are put into it first.
      const bool packs = !forward || inner % e != 0 || (!p.weight_channels_last && conv_taps(p) > 1);
      finish(plan, p, device, (per_block + 4) * step.clocks, per_block * step.bytes, 0, packs ? 2 : 1);
      if (best.blocks == 0 || plan.seconds < best.seconds) best = plan;
    }
  }
  return best;
}

// ---- the choice --------------------------------------------------------------------------------------

ConvPlan plan_of(ConvKernel kernel, const ConvParams& p, ConvPass pass, const Device& device) {
  switch (kernel) {
    case ConvKernel::kGemm:
      return gemm_plan(p, pass, device);
    default:
      return direct_plan(p, pass, device);
  }
}

}  // namespace

bool conv_kernel_serves(ConvKernel kernel, const ConvParams& p, ConvPass pass, const Device& device) {
  switch (kernel) {
    case ConvKernel::kDirect:
      return true;
    case ConvKernel::kGemm:
      return device.capability >= 80 && gemm_serves(p, pass);
    default:
      return false;
  }
}

ConvPlan conv_plan(const ConvParams& p, ConvPass pass, const Device& device) {
  if (p.kernel_family != ConvKernel::kAuto) {
    if (!conv_kernel_serves(p.kernel_family, p, pass, device))
      throw std::invalid_argument("fastops: these kernels do not serve this convolution");
    return plan_of(p.kernel_family, p, pass, device);
  }
  ConvPlan best = direct_plan(p, pass, device);
  for (const ConvKernel kernel : {ConvKernel::kGemm}) {
    if (!conv_kernel_serves(kernel, p, pass, device)) continue;
    const ConvPlan plan = plan_of(kernel, p, pass, device);
    if (plan.seconds < best.seconds) best = plan;
  }
  return best;
}

}  // namespace fastops
