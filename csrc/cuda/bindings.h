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

// A launcher may be followed by "<op>_workspace", the bytes of workspace that it wants given the params,
// and by "<op>_reports", if it takes a word for what it has to report.
inline void bind(pybind11::module_ m) {
  kernel(m, "avg_pool", avg_pool);
  kernel(m, "avg_pool_adjoint", avg_pool_adjoint);
  kernel(m, "max_pool", max_pool);
  kernel(m, "gather", gather);
  kernel(m, "scatter_add", scatter_add);
  kernel(m, "max_unpool", max_unpool);
  m.def("max_unpool_workspace", max_unpool_workspace);
  m.attr("max_unpool_reports") = true;
  kernel(m, "max_unpool_adjoint", max_unpool_adjoint);
  m.def("max_unpool_adjoint_workspace", max_unpool_workspace);
  m.def("device", device);
  kernel(m, "conv", conv);
  m.def("conv_workspace", conv_workspace);
  kernel(m, "conv_input_grad", conv_input_grad);
  m.def("conv_input_grad_workspace", conv_input_grad_workspace);
  kernel(m, "conv_weight_grad", conv_weight_grad);
  m.def("conv_weight_grad_workspace", conv_weight_grad_workspace);
  kernel(m, "conv_backward", conv_backward);
  m.def("conv_backward_workspace", conv_backward_workspace);
  kernel(m, "conv_bias_grad", conv_bias_grad);
  m.def("conv_bias_grad_workspace", conv_bias_grad_workspace);
  kernel(m, "interpolate_nearest", interpolate_nearest);
  kernel(m, "interpolate_nearest_adjoint", interpolate_nearest_adjoint);
  m.def("interpolate_nearest_adjoint_workspace", interpolate_nearest_adjoint_workspace);
  kernel(m, "interpolate_weighted", interpolate_weighted);
  m.def("interpolate_weighted_workspace", interpolate_weighted_workspace);
  kernel(m, "interpolate_weighted_adjoint", interpolate_weighted_adjoint);
  m.def("interpolate_weighted_adjoint_workspace", interpolate_weighted_adjoint_workspace);
  kernel(m, "interpolate_weighted_u8", interpolate_weighted_u8);
  m.def("interpolate_weighted_u8_workspace", interpolate_weighted_u8_workspace);

  kernel(m, "batch_norm_stats", batch_norm_stats);
  m.def("batch_norm_stats_workspace", batch_norm_stats_workspace);
  kernel(m, "batch_norm_apply", batch_norm_apply);
  kernel(m, "batch_norm", batch_norm);
  m.def("batch_norm_workspace", batch_norm_workspace);
  kernel(m, "batch_norm_backward", batch_norm_backward);
  m.def("batch_norm_backward_workspace", batch_norm_backward_workspace);
  kernel(m, "batch_norm_double_backward", batch_norm_double_backward);
  m.def("batch_norm_double_backward_workspace", batch_norm_double_backward_workspace);
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
