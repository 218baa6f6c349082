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

// Groups so small that a matrix product would leave most lanes of a vector of result channels empty; in NCHW
// where channels_last serves them well.
FASTOPS_INLINE bool has_small_groups(const ConvParams& p) {
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  const bool even = c == k && (c == 2 || c == 4 || c == 8) && p.c >= 16;
  return p.groups > 1 && c <= 8 && k <= 8 && (p.channels_last || even);
}

// Served by depthwise_conv.
FASTOPS_INLINE bool few_channels_per_group(const ConvParams& p) {
  return short_spans(p) && (is_depthwise(p) || has_small_groups(p));
}
// Whether x and dy of all images are few enough to be turned over for a weight gradient, whose sums belong
// together: 64 MB of fp32.
FASTOPS_INLINE bool few_to_turn_over(const ConvParams& p) {
  return p.n * (p.c * volume(p.in) + p.k * volume(p.out)) <= int64_t{1} << 24;
}
// Served by depthwise_weight_grad.
FASTOPS_INLINE bool weight_grad_of_few_channels(const ConvParams& p) {
  return few_channels_per_group(p) && (p.channels_last || is_depthwise(p) || few_to_turn_over(p));
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
