// Weights as the tensor-core kernels read them: for each result channel, the products' other factor in
// the order of (tap, source channel), the channels of a tap filled up with zeros to whole 16 bytes.
#pragma once

#include "conv_families.h"
#include "dispatch.h"
#include "launch.h"
#include "packs.h"

namespace fastops {
namespace cuda {
namespace {

// packed[result channel][tap][source channel]: for the forward pass the result's channels are k and the
// source's those of a group; for the input gradient the other way round.
struct PackedWeights {
  int64_t outer, taps, inner, inner_padded;  // outer: of a group, as inner

  PackedWeights(const ConvParams& p, bool input_grad) {
    const int64_t k = p.k / p.groups, c = p.c / p.groups, elements = 16 / element_bytes(p.dtype);
    outer = input_grad ? c : k;
    inner = input_grad ? k : c;
    taps = conv_taps(p);
    inner_padded = round_up(inner, elements);
  }
  int64_t elements(const ConvParams& p) const { return p.groups * outer * taps * inner_padded; }
};

// Whether w itself has that form.
inline bool is_packed(const ConvParams& p, bool input_grad) {
  const PackedWeights packed(p, input_grad);
  return !input_grad && packed.inner == packed.inner_padded && (p.weight_channels_last || packed.taps == 1);
}

inline int64_t packed_bytes(const ConvParams& p, bool input_grad) {
  // A w that is packed but not at a multiple of 16 bytes is copied; whoever asks does not know.
  return PackedWeights(p, input_grad).elements(p) * element_bytes(p.dtype);
}

// Strides of w in elements, to outer and inner channels of a group and to taps.
struct WeightStrides {
  int64_t group, outer, tap, inner;
  WeightStrides(const ConvParams& p, bool input_grad) {
    const int64_t c = p.c / p.groups, taps = conv_taps(p);
    const int64_t to_k = c * taps, to_c = p.weight_channels_last ? 1 : taps;
    group = p.k / p.groups * to_k;
    outer = input_grad ? to_c : to_k;
    inner = input_grad ? to_k : to_c;
    tap = p.weight_channels_last ? c : 1;
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    pack_weights_kernel(const T* w, T* packed, PackedWeights shape, WeightStrides from, int64_t elements) {
  for (int64_t i = first_item(); i < elements; i += item_stride()) {
    const int64_t row = i / shape.inner_padded, inner = i - row * shape.inner_padded;
    const int64_t channel = row / shape.taps, tap = row - channel * shape.taps;
    const int64_t group = channel / shape.outer, outer = channel - group * shape.outer;
    packed[i] = inner < shape.inner
                    ? w[group * from.group + outer * from.outer + tap * from.tap + inner * from.inner]
                    : from_acc<T>(0);
  }
}

// w, or a packed copy of it in the workspace.
template <typename T>
const T* packed_weights(const ConvParams& p, bool input_grad, const void* w, void* workspace, void* stream) {
  if (is_packed(p, input_grad) && address(w) % 16 == 0) return static_cast<const T*>(w);
  const PackedWeights shape(p, input_grad);
  const int64_t elements = shape.elements(p);
  launch("pack_weights", pack_weights_kernel<T>, blocks_for(elements), kThreads, 0, stream,
         static_cast<const T*>(w), static_cast<T*>(workspace), shape, WeightStrides(p, input_grad), elements);
  return static_cast<const T*>(workspace);
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
