// The choice of kernels for convolutions on a GPU, and the model of their cost that it is made by.
#include "conv_plan.h"

#include <algorithm>
#include <stdexcept>

#include "conv_cost.h"

namespace fastops {
namespace {

constexpr double kLaunch = 3e-6;  // of a kernel that depends on the one before

double bytes_of(const ConvParams& p) {
  const int64_t elements =
      p.n * (p.c * volume(p.in) + p.k * volume(p.out)) + p.k * (p.c / p.groups) * conv_taps(p);
  return static_cast<double>(elements * element_bytes(p.dtype));
}

// The least time: at the ceilings of the device's best unit for the dtype.
double roof_seconds(const ConvParams& p, const Device& device) {
  const Rates rate = rates(device);
  const double tensor = rate.tensor_async / tensor_cost(p);
  const double per_clock = p.dtype == DType::kF64 ? rate.fp64 : std::max(rate.fp32, tensor);
  const double compute =
      flops_of(p) / (per_clock * static_cast<double>(device.multiprocessors) * device.clock_hz);
  const double memory = bytes_of(p) / device.bandwidth;
  return std::max(compute, memory);
}

}  // namespace

// ---- the model ---------------------------------------------------------------------------------------

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

double flops_of(const ConvParams& p) {
  return 2.0 * static_cast<double>(p.n * volume(p.out) * p.k * (p.c / p.groups) * conv_taps(p));
}

void finish(ConvPlan& plan, const ConvParams& p, const Device& device, const PlanCost& cost) {
  const double processors = static_cast<double>(device.multiprocessors);
  plan.flops = flops_of(p);
  plan.bytes = bytes_of(p);
  plan.waves = static_cast<double>(plan.blocks) / processors;
  // Of the last blocks each has a multiprocessor for itself.
  const double rounds = static_cast<double>(ceil_div(plan.blocks, device.multiprocessors));
  const double compute = rounds * cost.block_clocks / device.clock_hz;
  const double l2 = rounds * cost.block_bytes / kFromL2 / device.clock_hz;
  const double memory = (plan.bytes + cost.more_bytes) / device.bandwidth;
  plan.seconds = kLaunch * cost.launches + cost.before + std::max(compute, std::max(l2, memory));
  plan.roof = roof_seconds(p, device) / plan.seconds;
}

// ---- the choice --------------------------------------------------------------------------------------

namespace {

ConvPlan plan_of(ConvKernel kernel, const ConvParams& p, ConvPass pass, const Device& device) {
  switch (kernel) {
    case ConvKernel::kDepthwise:
      return depthwise_plan(p, pass, device);
    case ConvKernel::kStem:
      return stem_plan(p, pass, device);
    case ConvKernel::kGemm:
      return gemm_plan(p, pass, device);
    case ConvKernel::kHopper:
      return hopper_plan(p, pass, device);
    case ConvKernel::kToeplitz:
      return toeplitz_plan(p, pass, device);
    default:
      return direct_plan(p, pass, device);
  }
}

}  // namespace

bool conv_kernel_serves(ConvKernel kernel, const ConvParams& p, ConvPass pass, const Device& device) {
  switch (kernel) {
    case ConvKernel::kDirect:
      return true;
    case ConvKernel::kDepthwise:
      return depthwise_serves(p, pass);
    case ConvKernel::kStem:
      return device.capability >= 80 && stem_serves(p, pass);
    case ConvKernel::kGemm:
      return device.capability >= 80 && gemm_serves(p, pass);
    case ConvKernel::kHopper:
      return device.capability == 90 && hopper_serves(p, pass);
    case ConvKernel::kToeplitz:
      return device.capability >= 80 && toeplitz_serves(p, pass, device);
    default:
      return false;
  }
}

ConvPlan conv_plan(const ConvParams& p, ConvPass pass, const Device& device) {
  if (p.kernel_family != ConvKernel::kAuto) {
    if (!conv_kernel_serves(p.kernel_family, p, pass, device))
      throw std::invalid_argument("fastops: these kernels do not serve this convolution");
    const ConvPlan plan = plan_of(p.kernel_family, p, pass, device);
    if (plan.blocks == 0) throw std::invalid_argument("fastops: these kernels have no such tile");
    return plan;
  }
  ConvPlan best = direct_plan(p, pass, device);
  for (const ConvKernel kernel : {ConvKernel::kDepthwise, ConvKernel::kToeplitz, ConvKernel::kStem,
                                  ConvKernel::kGemm, ConvKernel::kHopper}) {
    if (!conv_kernel_serves(kernel, p, pass, device)) continue;
    if (kernel == ConvKernel::kHopper && !device.hopper_kernels) continue;
    const ConvPlan plan = plan_of(kernel, p, pass, device);
    if (plan.blocks > 0 && plan.seconds < best.seconds) best = plan;
  }
  return best;
}

}  // namespace fastops
