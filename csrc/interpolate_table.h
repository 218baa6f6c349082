// Interpolation along one axis as a table, made on the host: for kernels that are not compiled with taps.h.
#pragma once

#include <cstdint>
#include <vector>

#include "interpolate.h"

namespace fastops {

// Result r = Σ_k weight[r · taps + k] · source[begin[r] + k], k < count[r].
struct InterpolateTable {
  int64_t taps = 1;
  std::vector<int32_t> begin, count;
  std::vector<double> weight;  // empty: all are 1
  // Where fixed point was asked for: the weights are integers, for weight / 2^precision.
  int precision = 0;
};

// axis: 0, 1, 2 for d, h, w. adjoint: the transposed matrix. fixed_point: weights of uint8 images.
InterpolateTable interpolate_table(const InterpolateParams& p, int axis, bool adjoint, bool fixed_point);

}  // namespace fastops
