// Convolution and its input gradient on sm_90a's tensor cores: as conv_gemm.cu a product of matrices that are
// never made, with rows that are the result's pixels and a sum over (tap, source channel). One warp feeds a
// ring of tiles in shared memory by TMA, which walks over windows itself (im2col) and fills padding with
// zeros; two warpgroups multiply (wgmma). Each stride phase of an input gradient is a product of its own,
// with a tensor map of its own, in one launch.
//
// A step is 64 channels of one tap: of 128 pixels and of 64, 128 or 256 result channels, 24, 32 or 48 KiB
// from the L2 cache for 2 · 128 · channels · 64 operations: 256, 512 or 1,024 clocks of the tensor cores. At
// the 40 bytes a clock that the L2 cache gives, loading takes 614, 819 or 1,229: wide tiles where there are
// channels enough. A block of the narrow ones leaves room for two others on its multiprocessor (registers: 72
// a thread; shared memory: 72 KiB), of the next one for one (112; 96 KiB): while one begins or ends, another
// multiplies.
#include "conv_hopper.h"

#include <algorithm>
#include <cstring>

#include "conv_pack.h"
#include "primitives_sm90.cuh"

namespace fastops {
namespace cuda {
namespace {

constexpr int kPixels = 128;

// One stride phase: where its windows lie, and the pixels of the result that it has.
struct Phase {
  int64_t pixels;
  HopperAxis h, w;
};

constexpr int kMostPhases = 4;
struct Maps {
  CUtensorMap source[kMostPhases], w;
};
struct HopperArgs {
  Phase phases[kMostPhases];
  int64_t row_tiles;                             // of the largest phase
  int channels, column_tiles, chunks, kernel_w;  // of the result; chunks: of kDepth source channels
  int64_t image, row;                            // of the result, in pixels
  bool relu;
};

template <int channels>
constexpr int kStages = channels == 256 ? 4 : 3;
// Registers of a thread, so that three blocks fit on a multiprocessor, or two, or one.
template <int channels>
constexpr int kRegisters = channels == 64    ? 72
                           : channels == 128 ? 112
                                             : 224;

template <typename T, int channels>
struct Ring {
  T x[kStages<channels>][kPixels][kDepth];
  T w[kStages<channels>][channels][kDepth];
  uint64_t full[kStages<channels>], empty[kStages<channels>];
};

// Fills the ring, over all steps.
template <typename T, int channels>
__device__ void feed(Ring<T, channels>& ring, const CUtensorMap* x, const CUtensorMap* w, const HopperArgs& a,
                     const Phase& phase, int64_t first, int column) {
  prefetch_tensor_map(x);
  prefetch_tensor_map(w);
  const WindowStart start(first, phase.h, phase.w);
  Stage<kStages<channels>> stage;
  for (int i = 0; i < phase.h.taps; ++i)
    for (int j = 0; j < phase.w.taps; ++j) {
      const int tap =
          (phase.h.tap0 + i * phase.h.tap_step) * a.kernel_w + phase.w.tap0 + j * phase.w.tap_step;
      for (int chunk = 0; chunk < a.chunks; ++chunk) {
        // Before the first phase of a barrier is one of parity 1, long over.
        barrier_wait(&ring.empty[stage.at], stage.parity ^ 1);
        uint64_t* const full = &ring.full[stage.at];
        barrier_arrive_expect(full, (kPixels + channels) * kDepth * sizeof(T));
        tensor_copy_im2col(ring.x[stage.at], x, full, chunk * kDepth, start.w, start.h, start.n,
                           static_cast<uint16_t>(j * phase.w.off_step),
                           static_cast<uint16_t>(i * phase.h.off_step));
        tensor_copy_3d(ring.w[stage.at], w, full, chunk * kDepth, tap, column);
        stage.advance();
      }
    }
}

// d = the sum over all steps, of 64 pixels from the `rows`-th of the tile on.
template <typename T, int channels>
__device__ __forceinline__ void multiply(Ring<T, channels>& ring, float (&d)[channels / 2], int steps,
                                         int rows) {
#pragma unroll
  for (int i = 0; i < channels / 2; ++i) d[i] = 0.0f;
  const uint64_t x0 = matrix_descriptor(ring.x[0][rows]), w0 = matrix_descriptor(ring.w[0]);
  Stage<kStages<channels>> stage;
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

// What a warpgroup has of the tile into the result: pixels of the phase from `first` on, channels from
// `column` on.
template <typename T, int channels>
__device__ __forceinline__ void write_out(const float (&d)[channels / 2], const T* bias, T* y,
                                          const HopperArgs& a, const Phase& phase, int64_t first,
                                          int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
  T* to[2];  // null: no such pixel
  const int64_t area = int64_t{phase.h.grid} * phase.w.grid, image = first / area;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int i = 16 * warp + lane / 4 + 8 * h, pixel = static_cast<int>(first - image * area) + i;
    const int line = pixel / phase.w.grid, more = line / phase.h.grid;
    const int64_t at = (image + more) * a.image +
                       (phase.h.out0 + (line - more * phase.h.grid) * phase.h.out_step) * a.row +
                       phase.w.out0 + (pixel - line * phase.w.grid) * phase.w.out_step;
    to[h] = first + i < phase.pixels ? y + at * a.channels : nullptr;
  }
#pragma unroll
  for (int j = 0; j < channels / 8; j += 4) {
    float add[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int channel = column + 8 * (j + i / 2) + lane % 4 * 2 + i % 2;
      add[i] = bias && channel < a.channels ? to_acc(bias[channel]) : 0.0f;
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
      const int channel = column + 8 * (j + lane % 4);
      if (to[h] && channel < a.channels) *reinterpret_cast<uint4*>(to[h] + channel) = eight;
    }
  }
}

template <typename T, int channels>
__global__ void __launch_bounds__(kHopperThreads<2>) __maxnreg__(kRegisters<channels>)
    conv_hopper_kernel(const __grid_constant__ Maps maps, const __grid_constant__ HopperArgs a, const T* bias,
                       T* y) {
  auto& ring = *dynamic_shared<Ring<T, channels>>();
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup;
  const int64_t tile = blockIdx.x / static_cast<unsigned>(a.column_tiles);
  const int column = static_cast<int>(blockIdx.x - tile * a.column_tiles) * channels;
  const int of = static_cast<int>(tile / a.row_tiles);
  const Phase& phase = a.phases[of];
  const int64_t first = (tile - of * a.row_tiles) * kPixels;
  if (first >= phase.pixels) return;  // the phases differ by a row or a column
  make_ring<2>(ring);
  if (group == 2) {
    if (threadIdx.x % 32 == 0) feed(ring, &maps.source[of], &maps.w, a, phase, first, column);
  } else {
    float d[channels / 2];
    multiply(ring, d, phase.h.taps * phase.w.taps * a.chunks, group * 64);
    write_out<T, channels>(d, bias, y, a, phase, first + group * 64, column);
  }
}

template <typename T, int channels>
void start(const Maps& maps, HopperArgs& a, int phases, const void* bias, void* y, void* stream) {
  a.column_tiles = static_cast<int>(ceil_div(a.channels, channels));
  launch("conv_hopper", conv_hopper_kernel<T, channels>,
         static_cast<unsigned>(phases * a.row_tiles * a.column_tiles), kHopperThreads<2>,
         sizeof(Ring<T, channels>), stream, maps, a, static_cast<const T*>(bias), static_cast<T*>(y));
}

template <typename T>
void run(const ConvParams& p, const ConvPlan& plan, bool input_grad, const void* source, const void* w,
         const void* bias, void* result, void* workspace, void* stream) {
  const T* const packed = packed_weights<T>(p, input_grad, w, workspace, stream);
  const int64_t outer = input_grad ? p.c : p.k, inner = input_grad ? p.k : p.c;
  const Extent& out = input_grad ? p.in : p.out;
  HopperArgs a = {};
  a.channels = static_cast<int>(outer);
  a.chunks = static_cast<int>(ceil_div(inner, kDepth));
  a.kernel_w = static_cast<int>(p.kernel.w);
  a.image = volume(out), a.row = out.w;
  a.relu = p.relu && !input_grad;
  // Phases with most taps first: their blocks take longest.
  const int64_t phases_h = input_grad ? imin(p.stride.h, p.in.h) : 1;
  const int64_t phases_w = input_grad ? imin(p.stride.w, p.in.w) : 1;
  int phases = 0;
  for (int64_t i = 0; i < phases_h; ++i)
    for (int64_t j = 0; j < phases_w; ++j) {
      Phase& phase = a.phases[phases++];
      phase.h = HopperAxis(
          input_grad ? input_grad_taps(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h, i)
                     : forward_taps(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h));
      phase.w = HopperAxis(
          input_grad ? input_grad_taps(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w, j)
                     : forward_taps(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w));
      phase.pixels = p.n * phase.h.grid * phase.w.grid;
      a.row_tiles = imax(a.row_tiles, ceil_div(phase.pixels, kPixels));
    }
  std::stable_sort(a.phases, a.phases + phases, [](const Phase& one, const Phase& other) {
    return one.h.taps * one.w.taps > other.h.taps * other.w.taps;
  });
  Maps maps = {};
  for (int i = 0; i < phases; ++i) {
    const Phase& phase = a.phases[i];
    if (phase.h.taps * phase.w.taps > 0)
      maps.source[i] = im2col_map(static_cast<const T*>(source), p.n, inner, phase.h.windows(),
                                  phase.w.windows(), kPixels);
  }
  const uint32_t channels = static_cast<uint32_t>(plan.tile.n);
  maps.w = tiled_map<T, 3>(packed, {inner, conv_taps(p), outer}, {kDepth, 1, channels});
  if (channels == 64)
    start<T, 64>(maps, a, phases, bias, result, stream);
  else if (channels == 128)
    start<T, 128>(maps, a, phases, bias, result, stream);
  else
    start<T, 256>(maps, a, phases, bias, result, stream);
}

void run_pass(const ConvParams& p, const ConvPlan& plan, bool input_grad, const void* source, const void* w,
              const void* bias, void* result, void* workspace, void* stream) {
  if (p.dtype == DType::kF16)
    run<__half>(p, plan, input_grad, source, w, bias, result, workspace, stream);
  else
    run<__nv_bfloat16>(p, plan, input_grad, source, w, bias, result, workspace, stream);
}

bool in_place(const void* a, const void* b) { return (address(a) | address(b)) % 16 == 0; }

}  // namespace

void hopper_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
                 void* y, void* workspace, void* stream) {
  if (!in_place(x, y))
    return gemm_conv(p, gemm_plan(p, ConvPass::kForward, current_device()), x, w, bias, y, workspace, stream);
  run_pass(p, plan, false, x, w, bias, y, workspace, stream);
}

void hopper_input_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* w,
                       const void* bias, void* dx, void* workspace, void* stream) {
  if (!in_place(dy, dx))
    return gemm_input_grad(p, gemm_plan(p, ConvPass::kInputGrad, current_device()), dy, w, bias, dx,
                           workspace, stream);
  run_pass(p, plan, true, dy, w, bias, dx, workspace, stream);
}

}  // namespace cuda
}  // namespace fastops
