// The Python names of the CUDA launchers.
#pragma once

#include "../batch_norm.h"
#include "../bind.h"
#include "../indexed.h"
#include "../interpolate.h"
#include "../pool.h"

namespace fastops {
namespace cuda {
namespace {

inline void bind(pybind11::module_ m) {
  kernel(m, "avg_pool", avg_pool);
  kernel(m, "avg_pool_adjoint", avg_pool_adjoint);
  kernel(m, "max_pool", max_pool);
  kernel(m, "gather", gather);
  kernel(m, "scatter_add", scatter_add);
  kernel(m, "interpolate_nearest", interpolate_nearest);
  kernel(m, "interpolate_nearest_adjoint", interpolate_nearest_adjoint);

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
