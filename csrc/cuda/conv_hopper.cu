// Convolution on sm_90a's tensor cores: as conv_gemm.cu a product of matrices that are never made, with rows
// that are y's pixels and a sum over (tap, channel). One warp feeds a ring of tiles in shared memory by TMA,
// which walks over windows itself (im2col) and fills padding with zeros; two warpgroups multiply (wgmma).
//
// A tile is 128 pixels × 64 or 128 channels, by steps of 64 channels of one tap: 16 KiB of x and 8 or 16 KiB
// of w. Four stages are 128 KiB at most; one step takes 512 clocks or so, and three of them cover the latency
// of memory.
#include <cstring>

#include "../conv_cost.h"
#include "conv_pack.h"
#include "primitives_sm90.cuh"
#include "tensor_map.h"

namespace fastops {
namespace cuda {
namespace {

constexpr int kWarpgroup = 128, kBlock = 3 * kWarpgroup;
constexpr int kPixels = 128, kDepth = 64, kStages = 4;
// Of 65,536 registers: 168 for each thread at first, then 128 · (40 + 2 · 232).
constexpr int kFeedersRegisters = 40, kMultipliersRegisters = 232;

struct HopperArgs {
  int64_t pixels;                               // of all images
  int k, column_tiles, chunks, taps_h, taps_w;  // chunks: of kDepth channels
  int out_h, out_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  bool relu;
};

template <typename T, int channels>
struct Ring {
  T x[kStages][kPixels][kDepth];
  T w[kStages][channels][kDepth];
  uint64_t full[kStages], empty[kStages];
};

// Which stage, and the parity of the phase that its barrier is in.
struct Stage {
  int at = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++at == kStages) at = 0, parity ^= 1;
  }
};

// Fills the ring, over all steps.
template <typename T, int channels>
__device__ void feed(Ring<T, channels>& ring, const CUtensorMap* x, const CUtensorMap* w, const HopperArgs& a,
                     int64_t first, int column) {
  prefetch_tensor_map(x);
  prefetch_tensor_map(w);
  const int64_t image = int64_t{a.out_h} * a.out_w;
  const int n = static_cast<int>(first / image), pixel = static_cast<int>(first - n * image);
  const int row = pixel / a.out_w, h = row * a.stride_h - a.pad_h;
  const int left = (pixel - row * a.out_w) * a.stride_w - a.pad_w;
  Stage stage;
  int tap = 0;
  for (int i = 0; i < a.taps_h; ++i)
    for (int j = 0; j < a.taps_w; ++j, ++tap)
      for (int chunk = 0; chunk < a.chunks; ++chunk) {
        // Before the first phase of a barrier is one of parity 1, long over.
        barrier_wait(&ring.empty[stage.at], stage.parity ^ 1);
        uint64_t* const full = &ring.full[stage.at];
        barrier_arrive_expect(full, (kPixels + channels) * kDepth * sizeof(T));
        tensor_copy_im2col(ring.x[stage.at], x, full, chunk * kDepth, left, h, n,
                           static_cast<uint16_t>(j * a.dilation_w), static_cast<uint16_t>(i * a.dilation_h));
        tensor_copy_3d(ring.w[stage.at], w, full, chunk * kDepth, tap, column);
        stage.advance();
      }
}

// d = the sum over all steps, of 64 pixels from the `rows`-th of the tile on.
template <typename T, int channels>
__device__ __forceinline__ void multiply(Ring<T, channels>& ring, float (&d)[channels / 2], int steps,
                                         int rows) {
#pragma unroll
  for (int i = 0; i < channels / 2; ++i) d[i] = 0.0f;
  const uint64_t x0 = matrix_descriptor(ring.x[0][rows]), w0 = matrix_descriptor(ring.w[0]);
  Stage stage;
  int before = 0;  // the stage that is released next
  for (int step = 0; step < steps; ++step) {
    barrier_wait(&ring.full[stage.at], stage.parity);
    const uint64_t x = x0 + static_cast<unsigned>(stage.at) * (sizeof(ring.x[0]) / 16);
    const uint64_t w = w0 + static_cast<unsigned>(stage.at) * (sizeof(ring.w[0]) / 16);
    wgmma_fence(d);
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i) wgmma<T>(d, x + 2 * i, w + 2 * i);
    wgmma_commit();
    // The products of the step before have read their stage.
    wgmma_wait<1>(d);
    if (step > 0) barrier_arrive(&ring.empty[before]);
    before = stage.at;
    stage.advance();
  }
  wgmma_wait<0>(d);
}

template <typename T>
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
  const T two[] = {from_acc<T>(low), from_acc<T>(high)};
  uint32_t bits;
  memcpy(&bits, two, sizeof bits);
  return bits;
}

// Four lanes have two channels each of four times 8 of a pixel; each is to have the 8 of one of them.
__device__ __forceinline__ uint4 gather_channels(const uint32_t (&v)[4]) {
  constexpr unsigned all = 0xffffffff;
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  const uint32_t from0 = __shfl_xor_sync(all, odd ? v[0] : v[1], 1), own0 = odd ? v[1] : v[0];
  const uint32_t from2 = __shfl_xor_sync(all, odd ? v[2] : v[3], 1), own2 = odd ? v[3] : v[2];
  // Of the 8 channels `odd` and of those 2 + odd: this pair of lanes' four.
  const uint32_t low[2] = {odd ? from0 : own0, odd ? own0 : from0};
  const uint32_t high[2] = {odd ? from2 : own2, odd ? own2 : from2};
  const uint32_t far0 = __shfl_xor_sync(all, upper ? low[0] : high[0], 2);
  const uint32_t far1 = __shfl_xor_sync(all, upper ? low[1] : high[1], 2);
  return upper ? make_uint4(far0, far1, high[0], high[1]) : make_uint4(low[0], low[1], far0, far1);
}

// What a warpgroup has of the tile into y: pixels from `first` on, channels from `column` on.
template <typename T, int channels>
__device__ __forceinline__ void write_out(const float (&d)[channels / 2], const T* bias, T* y,
                                          const HopperArgs& a, int64_t first, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
#pragma unroll
  for (int j = 0; j < channels / 8; j += 4) {
    float add[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int channel = column + 8 * (j + i / 2) + lane % 4 * 2 + i % 2;
      add[i] = bias && channel < a.k ? to_acc(bias[channel]) : 0.0f;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t pairs[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        float low = d[4 * (j + q) + 2 * h] + add[2 * q], high = d[4 * (j + q) + 2 * h + 1] + add[2 * q + 1];
        // NaN stays NaN.
        if (a.relu) low = low < 0.0f ? 0.0f : low, high = high < 0.0f ? 0.0f : high;
        pairs[q] = pair_of<T>(low, high);
      }
      const uint4 eight = gather_channels(pairs);
      const int64_t pixel = first + 16 * warp + lane / 4 + 8 * h;
      const int channel = column + 8 * (j + lane % 4);
      if (pixel < a.pixels && channel < a.k) *reinterpret_cast<uint4*>(y + pixel * a.k + channel) = eight;
    }
  }
}

template <typename T, int channels>
__global__ void __launch_bounds__(kBlock, 1)
    conv_hopper_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                       const T* bias, T* y, const HopperArgs a) {
  auto& ring = *dynamic_shared<Ring<T, channels>>();
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup;
  const int64_t row_tile = blockIdx.x / static_cast<unsigned>(a.column_tiles);
  const int64_t first = row_tile * kPixels;
  const int column = static_cast<int>(blockIdx.x - row_tile * a.column_tiles) * channels;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&ring.full[s], 1);
      barrier_init(&ring.empty[s], 2 * kWarpgroup);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (group == 0) {
    fewer_registers<kFeedersRegisters>();
    if (threadIdx.x == 0) feed(ring, &x, &w, a, first, column);
  } else {
    more_registers<kMultipliersRegisters>();
    float d[channels / 2];
    const int rows = (group - 1) * 64;
    multiply(ring, d, a.taps_h * a.taps_w * a.chunks, rows);
    write_out<T, channels>(d, bias, y, a, first + rows, column);
  }
}

template <typename T, int channels>
void run(const ConvParams& p, const ConvPlan& plan, const void* x, const T* w, const void* bias, void* y,
         void* stream) {
  const auto x_map = im2col_map(static_cast<const T*>(x), p.n, p.c, {p.in.h, p.out.h, p.stride.h, p.pad.h},
                                {p.in.w, p.out.w, p.stride.w, p.pad.w}, kPixels);
  const auto w_map = tiled_map<T, 3>(w, {p.c, conv_taps(p), p.k}, {kDepth, 1, channels});
  const auto small = [](int64_t v) { return static_cast<int>(v); };
  HopperArgs a;
  a.pixels = p.n * volume(p.out);
  a.k = small(p.k);
  a.column_tiles = small(ceil_div(p.k, channels));
  a.chunks = small(ceil_div(p.c, kDepth));
  a.taps_h = small(p.kernel.h), a.taps_w = small(p.kernel.w);
  a.out_h = small(p.out.h), a.out_w = small(p.out.w);
  a.stride_h = small(p.stride.h), a.stride_w = small(p.stride.w);
  a.pad_h = small(p.pad.h), a.pad_w = small(p.pad.w);
  a.dilation_h = small(p.dilation.h), a.dilation_w = small(p.dilation.w);
  a.relu = p.relu;
  launch("conv_hopper", conv_hopper_kernel<T, channels>, static_cast<unsigned>(plan.blocks), kBlock,
         sizeof(Ring<T, channels>), stream, x_map, w_map, static_cast<const T*>(bias), static_cast<T*>(y), a);
}

template <typename T>
void run(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias, void* y,
         void* workspace, void* stream) {
  const T* const packed = packed_weights<T>(p, false, w, workspace, stream);
  if (plan.tile.n == 64)
    run<T, 64>(p, plan, x, packed, bias, y, stream);
  else
    run<T, 128>(p, plan, x, packed, bias, y, stream);
}

}  // namespace

void hopper_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
                 void* y, void* workspace, void* stream) {
  if ((address(x) | address(y)) % 16 != 0)
    return gemm_conv(p, gemm_plan(p, ConvPass::kForward, current_device()), x, w, bias, y, workspace, stream);
  if (p.dtype == DType::kF16)
    run<__half>(p, plan, x, w, bias, y, workspace, stream);
  else
    run<__nv_bfloat16>(p, plan, x, w, bias, y, workspace, stream);
}

}  // namespace cuda
}  // namespace fastops
