// The Python names of the CUDA launchers.
#pragma once

#include "../batch_norm.h"
#include "../bind.h"
#include "../conv.h"
#include "../indexed.h"
#include "../interpolate.h"
#include "../pool.h"

namespace fastops {
namespace cuda {
namespace {

// Each with its contract and, where it wants a workspace, the function that says how many bytes;
// "<op>_reports" stands beside it if it takes a word for what it has to report.
inline void bind(pybind11::module_ m) {
  kernel(m, "avg_pool", avg_pool, kAvgPool);
  kernel(m, "avg_pool_adjoint", avg_pool_adjoint, kAvgPoolAdjoint);
  kernel(m, "max_pool", max_pool, kMaxPool);
  kernel(m, "gather", gather, kGather);
  kernel(m, "scatter_add", scatter_add, kScatterAdd);
  kernel(m, "max_unpool", max_unpool, kMaxUnpool, max_unpool_workspace);
  m.attr("max_unpool_reports") = true;
  kernel(m, "max_unpool_adjoint", max_unpool_adjoint, kMaxUnpoolAdjoint, max_unpool_workspace);
  m.def("device", device);
  kernel(m, "conv", conv, kConv, conv_workspace);
  kernel(m, "conv_input_grad", conv_input_grad, kConvInputGrad, conv_input_grad_workspace);
  kernel(m, "conv_weight_grad", conv_weight_grad, kConvWeightGrad, conv_weight_grad_workspace);
  kernel(m, "conv_backward", conv_backward, kConvBackward, conv_backward_workspace);
  kernel(m, "conv_bias_grad", conv_bias_grad, kConvBiasGrad, conv_bias_grad_workspace);
  kernel(m, "interpolate_nearest", interpolate_nearest, kInterpolateNearest);
  kernel(m, "interpolate_nearest_adjoint", interpolate_nearest_adjoint, kInterpolateNearestAdjoint,
         interpolate_nearest_adjoint_workspace);
  kernel(m, "interpolate_weighted", interpolate_weighted, kInterpolateWeighted,
         interpolate_weighted_workspace);
  kernel(m, "interpolate_weighted_adjoint", interpolate_weighted_adjoint, kInterpolateWeightedAdjoint,
         interpolate_weighted_adjoint_workspace);
  kernel(m, "interpolate_weighted_u8", interpolate_weighted_u8, kInterpolateWeightedU8,
         interpolate_weighted_u8_workspace);

  kernel(m, "batch_norm_stats", batch_norm_stats, kBatchNormStats, batch_norm_stats_workspace);
  kernel(m, "batch_norm_apply", batch_norm_apply, kBatchNormApply);
  kernel(m, "batch_norm", batch_norm, kBatchNorm, batch_norm_workspace);
  kernel(m, "batch_norm_backward", batch_norm_backward, kBatchNormBackward, batch_norm_backward_workspace);
  kernel(m, "batch_norm_double_backward", batch_norm_double_backward, kBatchNormDoubleBackward,
         batch_norm_double_backward_workspace);
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
