// The Python names of the CUDA launchers.
#pragma once

#include "../bind.h"
#include "../interpolate.h"

namespace fastops {
namespace cuda {
namespace {

inline void bind(pybind11::module_ m) {
  kernel(m, "interpolate_nearest", interpolate_nearest);
  kernel(m, "interpolate_nearest_adjoint", interpolate_nearest_adjoint);
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
