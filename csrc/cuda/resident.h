// Slabs that stay: a block that has all items of its groups keeps them in its shared memory, so that they
// are read once.
#pragma once

#include "slabs.h"

namespace fastops {
namespace cuda {
namespace {

constexpr int kResidentThreads = 512;
// The shared memory of a block that keeps its slab: what is left to one block on every GPU since sm_80.
constexpr int64_t kResidentBytes = 99 << 10;
constexpr int64_t kSmallSlab = 16 << 10;  // bytes; less time than the launches of separate passes take

// A block that has whole slabs of its groups keeps them in shared memory. A thread fetches and uses its
// own items only: [round][thread]; behind the tensors there is room for combine() and for coefficients.
struct ResidentPlan {
  Slabs s;
  int64_t tensor_bytes;  // of each tensor's slabs
  int64_t shared_bytes;  // 0: not possible, or not worth it
};

inline ResidentPlan resident_plan(const BatchNormParams& p, int64_t tensors, int64_t item_bytes,
                                  int64_t channel_bytes) {
  ResidentPlan r{slabs_of(p), 0, 0};
  Slabs& s = r.s;
  const int64_t bytes = element_bytes(p.dtype), all = s.items * s.width * bytes;  // of one group
  if (s.fold > 1 || all > kResidentBytes) return r;
  const auto fits = [&](int64_t lanes) {
    arrange(s, bytes, kResidentThreads, lanes);
    s.share = static_cast<int>(s.items);
    complete(s);
    const int64_t each = s.rows ? s.width : 1;
    r.tensor_bytes = round_up(ceil_div(s.items, s.slices) * s.threads() * s.width * bytes, 16);
    r.shared_bytes = tensors * r.tensor_bytes + each * (s.threads() * item_bytes + s.lanes * channel_bytes);
    return r.shared_bytes <= kResidentBytes;
  };
  for (int64_t lanes = 8; lanes > 0; lanes /= 2)
    if (fits(lanes) && s.tiles >= kProcessors) return r;
  if (!fits(1) || all > kSmallSlab) r.shared_bytes = 0;
  return r;
}

// The same where a block has all items of its groups.
template <bool rows>
__device__ inline Place place_of_all(const Slabs& s) {
  Place me = place<rows>(s);
  me.split = 0;
  me.group = int64_t{blockIdx.x} * s.lanes + me.lane;
  return me;
}

// Starts to copy this thread's items to its column of `slab`; wait_for_copies<0>() ends it.
template <bool rows, typename T, int width>
__device__ inline void fetch(const Slabs& s, const Place& me, const T* from, Pack<T, width>* slab) {
  constexpr int batch = width == 1 ? 8 : 4;
  for_items<rows, batch>(s, me, [&](const int64_t (&at)[batch], int k, int valid) {
    Pack<T, width>* to = slab + k * blockDim.x + threadIdx.x;
    if (sizeof(T) * width == 16 && s.aligned) {
#pragma unroll
      for (int b = 0; b < batch; ++b)
        if (b < valid) copy_async_16(to + b * blockDim.x, from + at[b] * width, true);
      return;
    }
    Pack<T, width> v[batch];
    load(from, at, valid, s.aligned, v);
#pragma unroll
    for (int b = 0; b < batch; ++b)
      if (b < valid) to[b * blockDim.x] = v[b];
  });
  commit_copies();
}

}  // namespace
}  // namespace cuda
}  // namespace fastops
