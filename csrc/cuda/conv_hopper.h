// What the kernels for sm_90a share: a ring of stages between the warp that loads and the warpgroups that
// multiply, and where windows lie.
#pragma once

#include "../conv_cost.h"
#include "conv_families.h"
#include "primitives_sm90.cuh"
#include "tensor_map.h"
#include "transpose.h"

namespace fastops {
namespace cuda {
namespace {

// What a pass has in the workspace: packed weights; the parts of a weight gradient, and of db after those.
inline int64_t hopper_own_bytes(const ConvParams& p, ConvPass pass, int64_t splits) {
  if (pass != ConvPass::kWeightGrad) return gemm_workspace(p, pass);
  return weight_grad_workspace(p, splits);
}

// Where copies of contiguous images in channels_last are in the workspace: behind what the pass itself has
// there.
struct LayoutCopies {
  int64_t x_at, y_at, total;
  LayoutCopies(const ConvParams& p, int64_t own) {
    const int64_t bytes = p.channels_last ? 0 : element_bytes(p.dtype);
    x_at = round_up(own, 256);
    y_at = x_at + round_up(bytes * p.n * p.c * volume(p.in), 256);
    total = p.channels_last ? own : y_at + bytes * p.n * p.k * volume(p.out);
  }
  char* x(void* workspace) const { return static_cast<char*>(workspace) + x_at; }
  char* y(void* workspace) const { return static_cast<char*>(workspace) + y_at; }
};

// The params of the copies.
inline ConvParams in_channels_last(const ConvParams& p) {
  ConvParams copied = p;
  copied.channels_last = true;
  return copied;
}
inline void to_channels_last(int64_t n, int64_t c, const Extent& image, const void* from, void* to,
                             void* stream) {
  transpose(n, c, volume(image), from, to, stream);
}
inline void from_channels_last(int64_t n, int64_t c, const Extent& image, const void* from, void* to,
                               void* stream) {
  transpose(n, volume(image), c, from, to, stream);
}

constexpr int kWarpgroup = 128;
constexpr int kDepth = 64;  // elements of a row of a tile: 128 bytes, the swizzle's span
// Warpgroups that multiply, and one warp more.
template <int groups>
constexpr int kHopperThreads = groups * kWarpgroup + 32;

// Which stage, and the parity of the phase that its barrier is in.
template <int stages>
struct Stage {
  int at = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++at == stages) at = 0, parity ^= 1;
  }
};

// Two barriers a stage: `full` counts the bytes that come, `empty` the threads that have read them.
template <int groups, typename Ring>
__device__ void make_ring(Ring& ring) {
  constexpr int stages = sizeof(ring.full) / sizeof(uint64_t);
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      barrier_init(&ring.full[s], 1);
      barrier_init(&ring.empty[s], groups * kWarpgroup);
    }
    fence_barrier_init();
  }
  __syncthreads();
}

// d = the sum over `steps` steps, of one warpgroup: by each of kDepth terms, of the tiles at a and b in the
// first stage, which are so many bytes further on in each next one. Products read an operand along its rows,
// where 16 more terms are 2 units further, or across, where they are 128.
template <typename T, bool a_across, bool b_across, int stages, int count>
__device__ __forceinline__ void multiply(uint64_t (&full)[stages], uint64_t (&empty)[stages],
                                         Stage<stages>& stage, float (&d)[count], int steps, uint64_t a,
                                         unsigned a_bytes, uint64_t b, unsigned b_bytes) {
#pragma unroll
  for (int i = 0; i < count; ++i) d[i] = 0.0f;
  constexpr int next_a = a_across ? 128 : 2, next_b = b_across ? 128 : 2;
  int before = 0;  // the stage that is released next
  for (int step = 0; step < steps; ++step) {
    barrier_wait(&full[stage.at], stage.parity);
    const uint64_t a_here = a + static_cast<unsigned>(stage.at) * (a_bytes / 16);
    const uint64_t b_here = b + static_cast<unsigned>(stage.at) * (b_bytes / 16);
    wgmma_fence(d);
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i)
      wgmma<T, a_across, b_across>(d, a_here + next_a * i, b_here + next_b * i);
    wgmma_commit();
    // The products of the step before have read their stage.
    wgmma_wait<1>(d);
    if (step > 0) barrier_arrive(&empty[before]);
    before = stage.at;
    stage.advance();
  }
  wgmma_wait<0>(d);
  if (steps > 0) barrier_arrive(&empty[before]);
}

// geometry.h's TapAxis, its taps in the order in which they lie in the source: TMA's offsets only go forward.
struct HopperAxis {
  int source, grid, out0, out_step, step, taps, tap0, tap_step, off0, off_step;

  HopperAxis() = default;
  explicit HopperAxis(const TapAxis& a) {
    const auto narrow = [](int64_t v) { return static_cast<int>(v); };
    const bool back = a.off_step < 0;
    const int64_t last = a.taps > 0 ? a.taps - 1 : 0;
    source = narrow(a.source), grid = narrow(a.grid), out0 = narrow(a.out0), out_step = narrow(a.out_step);
    step = narrow(a.step), taps = narrow(a.taps);
    tap0 = narrow(back ? a.tap0 + last * a.tap_step : a.tap0);
    tap_step = narrow(back ? -a.tap_step : a.tap_step);
    off0 = narrow(back ? a.off0 + last * a.off_step : a.off0);
    off_step = narrow(back ? -a.off_step : a.off_step);
  }
  Windows windows() const { return {source, grid, step, -off0}; }
};

// Where the first window of a tile begins.
struct WindowStart {
  int n, h, w;
  __device__ WindowStart(int64_t pixel, const HopperAxis& along_h, const HopperAxis& along_w) {
    const int64_t line = pixel / along_w.grid, image = line / along_h.grid;
    n = static_cast<int>(image);
    h = static_cast<int>(line - image * along_h.grid) * along_h.step + along_h.off0;
    w = static_cast<int>(pixel - line * along_w.grid) * along_w.step + along_w.off0;
  }
};

}  // namespace
}  // namespace cuda
}  // namespace fastops
