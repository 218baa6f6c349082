// What a launcher is asked to serve, checked on the host before a kernel sees it: the params alone, which of
// the tensors may be left out, and the number of threads. What kernels cannot serve is refused with
// std::invalid_argument, a ValueError in Python, that names the field. A wrong address that is not null is
// beyond this: whoever has addresses has taken them from tensors of the shapes that the params say.
#pragma once

#include <cstddef>
#include <cstdint>

#include "batch_norm.h"
#include "conv_plan.h"
#include "indexed.h"
#include "interpolate.h"
#include "pool.h"

namespace fastops {

// A tensor of a launcher.
template <typename P>
struct Operand {
  const char* name = nullptr;
  int64_t (*elements)(const P&) = nullptr;  // it may be null where they are none; no function: anywhere
};

// What a launcher wants. Its arguments after the params are the operands, a workspace where there is one,
// and at the end the number of threads or a stream.
template <typename P>
struct Contract {
  void (*params)(const P&);  // throws where they cannot be served
  Operand<P> operands[12];   // ended by one without a name
  // What the absence of some tensors asks of others, by their addresses in the order of the operands.
  void (*together)(const P&, const uintptr_t* addresses) = nullptr;
};

extern const Contract<ConvParams> kConv, kConvInputGrad, kConvWeightGrad, kConvBackward, kConvBiasGrad;
extern const Contract<PoolParams> kAvgPool, kAvgPoolAdjoint, kMaxPool, kGather, kScatterAdd;
extern const Contract<UnpoolParams> kMaxUnpool, kMaxUnpoolAdjoint;
extern const Contract<BatchNormParams> kBatchNormStats, kBatchNormApply, kBatchNorm, kBatchNormBackward,
    kBatchNormDoubleBackward;
extern const Contract<InterpolateParams> kInterpolateNearest, kInterpolateNearestAdjoint,
    kInterpolateWeighted, kInterpolateWeightedAdjoint, kInterpolateWeightedU8;

void validate(const ConvParams& p);
void validate(const InterpolateParams& p);
void validate(const Device& device);
void validate(ConvPass pass);
void validate(ConvKernel kernel);
void validate_threads(int64_t threads);
// The arguments of forward_taps and input_grad_taps (phase 0 for the former), and of interpolate_table.
void validate_taps(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                   int64_t phase);
void validate_table(const InterpolateParams& p, int axis, bool fixed_point);

[[noreturn]] void refuse_null(const char* tensor);

// The operands' addresses; returns how many there are.
template <typename P>
size_t validate_operands(const Contract<P>& contract, const P& p, const uintptr_t* addresses) {
  size_t i = 0;
  for (; contract.operands[i].name != nullptr; ++i)
    if (addresses[i] == 0 && contract.operands[i].elements != nullptr && contract.operands[i].elements(p) > 0)
      refuse_null(contract.operands[i].name);
  if (contract.together != nullptr) contract.together(p, addresses);
  return i;
}

}  // namespace fastops
