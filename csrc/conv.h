// Convolution: the contract between Python and the kernels. Three ops, each the gradient of the others.
#pragma once

#include <cstdint>

#include "device.h"
#include "geometry.h"
#include "isa.h"
#include "types.h"

namespace fastops {

// Which family of kernels serves a convolution on a GPU; kAuto: whichever conv_plan.h chooses.
enum class ConvKernel : int32_t { kAuto, kDirect, kDepthwise, kStem, kGemm, kHopper, kToeplitz };

// x: (n, c, in), w: (k, c / groups, kernel), y: (n, k, out). x and y are dense in the same layout,
// contiguous or channels_last; w is dense in either.
struct ConvParams {
  DType dtype = DType::kF32;
  bool channels_last = false;         // x and y
  bool weight_channels_last = false;  // w: (k, kernel, c / groups) in memory
  int64_t n = 0;
  int64_t c = 0;
  int64_t k = 0;
  int64_t groups = 1;
  Extent in;
  Extent out;
  Extent kernel;
  Extent stride;
  Extent pad{0, 0, 0};  // before the first element; what follows the last one is implied by out
  Extent dilation;
  bool relu = false;  // y = max(y, 0), after the bias; the forward pass alone
  bool tf32 = false;  // on a GPU, fp32 products may be of 10 bits; where not, they are as exact as fp32's
  ConvKernel kernel_family = ConvKernel::kAuto;
  // Where not 0, of the plans only those with this tile, and with so many parts of a weight gradient's sum.
  int64_t tile_m = 0, tile_n = 0, splits = 0;
};

namespace cpu {

// Bytes of scratch memory that each launcher below wants, for a given number of threads.
template <Isa>
int64_t conv_workspace(const ConvParams& p, int threads);
template <Isa>
int64_t conv_input_grad_workspace(const ConvParams& p, int threads);
template <Isa>
int64_t conv_weight_grad_workspace(const ConvParams& p, int threads);
template <Isa>
int64_t conv_backward_workspace(const ConvParams& p, int threads);

// y = x ∗ w + bias. bias: (k), or null.
template <Isa>
void conv(const ConvParams& p, const void* x, const void* w, const void* bias, void* y, void* workspace,
          int threads);
// dx = the transpose of x ↦ x ∗ w, applied to dy; plus bias: (c), or null (for conv_transpose).
template <Isa>
void conv_input_grad(const ConvParams& p, const void* dy, const void* w, const void* bias, void* dx,
                     void* workspace, int threads);
// dw = the transpose of w ↦ x ∗ w, applied to dy; and db, or null.
template <Isa>
void conv_weight_grad(const ConvParams& p, const void* dy, const void* x, void* dw, void* db, void* workspace,
                      int threads);
// dx, dw and db (or null) at once.
template <Isa>
void conv_backward(const ConvParams& p, const void* dy, const void* x, const void* w, void* dx, void* dw,
                   void* db, void* workspace, int threads);
// db[k] = Σ dy over the batch and all positions.
template <Isa>
void conv_bias_grad(const ConvParams& p, const void* dy, void* db, int threads);

}  // namespace cpu

namespace cuda {

// The current GPU, as plans see it.
Device device();

// The same on a GPU, with the workspace that each wants.
int64_t conv_workspace(const ConvParams& p);
int64_t conv_input_grad_workspace(const ConvParams& p);
int64_t conv_weight_grad_workspace(const ConvParams& p);
int64_t conv_backward_workspace(const ConvParams& p);
int64_t conv_bias_grad_workspace(const ConvParams& p);

void conv(const ConvParams& p, const void* x, const void* w, const void* bias, void* y, void* workspace,
          void* stream);
void conv_input_grad(const ConvParams& p, const void* dy, const void* w, const void* bias, void* dx,
                     void* workspace, void* stream);
void conv_weight_grad(const ConvParams& p, const void* dy, const void* x, void* dw, void* db, void* workspace,
                      void* stream);
// Depthwise kernels read dy once here.
void conv_backward(const ConvParams& p, const void* dy, const void* x, const void* w, void* dx, void* dw,
                   void* db, void* workspace, void* stream);
void conv_bias_grad(const ConvParams& p, const void* dy, void* db, void* workspace, void* stream);

}  // namespace cuda

}  // namespace fastops
