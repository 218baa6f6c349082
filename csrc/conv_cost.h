// The model of what a convolution costs on a GPU, and the families' plans that are made with it.
//
// A plan's time is the largest of what its blocks compute, what they move through the L2 cache, and what the
// whole has to move through memory, plus its launches; it orders candidates, and promises nothing. The rates
// are the architectures' own (per multiprocessor and clock); what a family's kernels reach of them has been
// measured on an H200 (docs/tuning-log.md).
#pragma once

#include "conv_plan.h"

namespace fastops {

constexpr double kDirectReach = 0.13, kDepthwiseReach = 0.32, kStemReach = 0.28, kGemmReach = 0.5,
                 kHopperReach = 0.8;
// Not measured yet.
constexpr double kToeplitzReach = 0.5;
// Bytes per multiprocessor and clock from the L2 cache, and from shared memory.
constexpr double kFromL2 = 40, kFromShared = 128;

// Operations (two per multiply-add) per multiprocessor and clock.
struct Rates {
  double fp32, fp64, tensor, tensor_async;  // tensor: 16-bit, by mma.sync; by wgmma where there is one
};
Rates rates(const Device& device);

// How many products of 16-bit elements one of the dtype costs on tensor cores: TF32 has half the rate, and
// fp32 takes three of those.
inline double tensor_cost(const ConvParams& p) { return p.dtype == DType::kF32 ? (p.tf32 ? 2 : 6) : 1; }
// Whether there is no third axis.
inline bool is_flat(const ConvParams& p) { return p.in.d == 1 && p.out.d == 1 && p.kernel.d == 1; }

// Whether the params leave a family this tile. A plan of no blocks says that there is none.
inline bool is_wanted(const ConvParams& p, int64_t tile_m, int64_t tile_n) {
  return (p.tile_m == 0 || p.tile_m == tile_m) && (p.tile_n == 0 || p.tile_n == tile_n);
}

// Operations of a pass: the same for all three, if no product with an inserted zero is counted.
double flops_of(const ConvParams& p);

// What a plan's blocks take, and what else there is to pay.
struct PlanCost {
  double block_clocks = 0;  // of a multiprocessor, if a block has it for itself
  double block_bytes = 0;   // that a block reads through the L2 cache
  double more_bytes = 0;    // through memory, beyond each tensor once
  int launches = 1;
  double before = 0;  // seconds of what nothing overlaps with: copies
};
// Completes a plan that has its blocks: what is to be done, and how long it would take.
void finish(ConvPlan& plan, const ConvParams& p, const Device& device, const PlanCost& cost);

// Each family, in conv_plan_<family>.cpp: whether it can serve a pass, and how it would.
bool depthwise_serves(const ConvParams& p, ConvPass pass);
ConvPlan depthwise_plan(const ConvParams& p, ConvPass pass, const Device& device);
bool stem_serves(const ConvParams& p, ConvPass pass);
ConvPlan stem_plan(const ConvParams& p, ConvPass pass, const Device& device);
bool gemm_serves(const ConvParams& p, ConvPass pass);
ConvPlan gemm_plan(const ConvParams& p, ConvPass pass, const Device& device);
bool hopper_serves(const ConvParams& p, ConvPass pass);
ConvPlan hopper_plan(const ConvParams& p, ConvPass pass, const Device& device);
bool toeplitz_serves(const ConvParams& p, ConvPass pass, const Device& device);
ConvPlan toeplitz_plan(const ConvParams& p, ConvPass pass, const Device& device);
ConvPlan direct_plan(const ConvParams& p, ConvPass pass, const Device& device);

}  // namespace fastops
