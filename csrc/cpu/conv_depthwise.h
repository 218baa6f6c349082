// Convolution with few channels per group: see conv_depthwise.cpp.
#pragma once

#include <cstdint>

#include "../conv.h"

namespace fastops {
namespace cpu {

// Every group has one input channel.
FASTOPS_INLINE bool is_depthwise(const ConvParams& p) { return p.groups == p.c && p.c > 1; }

// A band holds all rows and columns that a window spans, read or not: not worth it for wide dilations.
FASTOPS_INLINE bool short_spans(const ConvParams& p) {
  return (p.kernel.d - 1) * p.dilation.d < 128 && (p.kernel.h - 1) * p.dilation.h < 128 &&
         (p.kernel.w - 1) * p.dilation.w < 128;
}

// Served by depthwise_conv: depthwise, or, in channels_last, groups so small that a matrix product would
// leave most lanes of a vector of result channels empty.
FASTOPS_INLINE bool few_channels_per_group(const ConvParams& p) {
  if (!short_spans(p)) return false;
  return is_depthwise(p) || (p.channels_last && p.groups > 1 && p.c / p.groups <= 8 && p.k / p.groups <= 8);
}

// Forward (source x, result y) or input gradient (source dy, result dx).
template <Isa>
void depthwise_conv(const ConvParams& p, bool input_grad, const void* source, const void* w, const void* bias,
                    void* result, void* workspace, int threads);
template <Isa>
int64_t depthwise_workspace(const ConvParams& p, bool input_grad, int threads);

template <Isa>
void depthwise_weight_grad(const ConvParams& p, const void* dy, const void* x, void* dw, void* workspace,
                           int threads);
template <Isa>
int64_t depthwise_weight_grad_workspace(const ConvParams& p, int threads);

}  // namespace cpu
}  // namespace fastops
