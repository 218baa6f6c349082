// The families of convolution kernels: what conv.cu chooses from. Each takes the params and the plan.
//
// Weight gradients are computed in plan.splits parts of the sum over n and the pixels. Part s leaves, in
// the accumulation type, partials[s][k][tap][channel of the group] and then, for all s, sums of dy:
// bias_partials[s][k]; finish_weight_grad adds them up, in a fixed order.
#pragma once

#include "../conv_plan.h"

namespace fastops {
namespace cuda {

// Where the parts are, in a workspace.
struct WeightPartials {
  int64_t splits, weights, channels;  // of w, of y
  int64_t bytes;                      // of a number
  WeightPartials(const ConvParams& p, int64_t parts)
      : splits(parts),
        weights(p.k * conv_taps(p) * (p.c / p.groups)),
        channels(p.k),
        bytes(p.dtype == DType::kF64 ? 8 : 4) {}
  int64_t total_bytes() const { return splits * (weights + channels) * bytes; }
  // Null if nobody wants db.
  void* bias_part(void* partials, bool with_bias) const {
    return with_bias ? static_cast<char*>(partials) + splits * weights * bytes : nullptr;
  }
};

// Bytes of a weight gradient in parts whose place serves conv_bias_grad afterwards.
inline int64_t weight_grad_workspace(const ConvParams& p, int64_t splits) {
  return imax(WeightPartials(p, splits).total_bytes(), conv_bias_grad_workspace(p));
}

// dw and db (or null) from the parts.
void finish_weight_grad(const ConvParams& p, int64_t splits, const void* partials, void* dw, void* db,
                        void* stream);

// conv_direct.cu, conv_direct_weight_grad.cu: anything.
void direct_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
                 void* y, void* stream);
void direct_input_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* w,
                       const void* bias, void* dx, void* stream);
// Writes the parts; with_bias: also the sums of dy.
void direct_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                        void* partials, bool with_bias, void* stream);

// conv_depthwise.cu, conv_depthwise_weight_grad.cu: one input channel per group.
void depthwise_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
                    void* y, void* stream);
void depthwise_input_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* w,
                          const void* bias, void* dx, void* stream);
void depthwise_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                           void* partials, bool with_bias, void* stream);
// Both at once, where depthwise_fuses; in so many parts.
bool depthwise_fuses(const ConvParams& p);
int64_t depthwise_backward_splits(const ConvParams& p, const Device& device);
void depthwise_backward(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                        const void* w, void* dx, void* partials, bool with_bias, void* stream);

// conv_toeplitz.cu, conv_toeplitz_weight_grad.cu: the same with large kernels, on tensor cores.
void toeplitz_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
                   void* y, void* stream);
void toeplitz_input_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* w,
                         const void* bias, void* dx, void* stream);
// Without the sums of dy.
void toeplitz_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                          void* partials, void* stream);

// conv_stem.cu: few input channels.
void stem_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
               void* y, void* stream);
void stem_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                      void* partials, bool with_bias, void* stream);

// conv_gemm.cu, conv_gemm_weight_grad.cu: tensor cores.
int64_t gemm_workspace(const ConvParams& p, ConvPass pass);  // of the first two
void gemm_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
               void* y, void* workspace, void* stream);
void gemm_input_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* w,
                     const void* bias, void* dx, void* workspace, void* stream);
void gemm_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                      void* partials, bool with_bias, void* stream);

// conv_hopper.cu, conv_hopper_weight_grad.cu: tensor cores of sm_90a, fed by TMA.
int64_t hopper_workspace(const ConvParams& p, ConvPass pass, int64_t splits);
void hopper_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
                 void* y, void* workspace, void* stream);
void hopper_input_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* w,
                       const void* bias, void* dx, void* workspace, void* stream);
// Writes the parts to the beginning of the workspace; without the sums of dy.
void hopper_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                        void* workspace, void* stream);

}  // namespace cuda
}  // namespace fastops
