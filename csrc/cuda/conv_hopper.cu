// Convolution and its input gradient on sm_90a's tensor cores: as conv_gemm.cu a product of matrices that are
// never made, with rows that are the result's pixels and a sum over (tap, source channel). One warp feeds a
// ring of tiles in shared memory by TMA, which walks over windows itself (im2col) and fills padding with
// zeros; two warpgroups multiply (wgmma). Each stride phase of an input gradient is a product of its own,
// with a tensor map of its own, in one launch.
//
// A step is 64 channels of one tap: of 128 pixels and of 64, 128 or 256 result channels, 24, 32 or 48 KiB
// from the L2 cache for 2 · 128 · channels · 64 operations: 256, 512 or 1,024 clocks of the tensor cores. At
// the 40 bytes a clock that the L2 cache gives, loading takes 614, 819 or 1,229: wide tiles where there are
// channels enough. Blocks stay, and take tile after tile: the next one's stages fill while the last one is
// written. Of the narrow ones three share a multiprocessor (registers: 72 a thread; shared memory: 72 KiB),
// of the next two (112; 96 KiB): while one writes, another multiplies.
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
  int tiles, row_tiles;                          // in all; of the largest phase
  int channels, column_tiles, chunks, kernel_w;  // of the result; chunks: of kDepth source channels
  int64_t image, row;                            // of the result, in pixels
  bool relu;
};

template <int channels>
constexpr int kStages = channels == 256 ? 4 : 3;
// Blocks that share a multiprocessor, and registers of a thread that let them.
template <int channels>
constexpr int kBlocks = channels == 64    ? 3
                        : channels == 128 ? 2
                                          : 1;
template <int channels>
constexpr int kRegisters = channels == 64    ? 72
                           : channels == 128 ? 112
                                             : 224;

template <typename T, int channels>
struct Ring {
  static constexpr int kOfStages = kStages<channels>;
  T x[kOfStages][kPixels][kDepth];
  // A row for each result channel; in the input gradient, where w lies across, 64 source channels with a row
  // each for every 64 of the result's.
  T w[kOfStages][channels][kDepth];
  uint64_t full[kOfStages], empty[kOfStages];
};

// A block's tile of that number: which phase, the first of its pixels there, and its first channel.
struct Tile {
  int phase, column;
  int64_t first;
  __device__ Tile(int number, const HopperArgs& a, int channels) {
    const int row = number / a.column_tiles;
    column = (number - row * a.column_tiles) * channels;
    phase = row / a.row_tiles;
    first = int64_t{row - phase * a.row_tiles} * kPixels;
  }
};

// Fills the ring, over all steps of a tile.
template <bool input_grad, typename T, int channels>
__device__ void feed(Ring<T, channels>& ring, Stage<kStages<channels>>& stage, const CUtensorMap* x,
                     const CUtensorMap* w, const HopperArgs& a, const Phase& phase, const Tile& tile) {
  const WindowStart start(tile.first, phase.h, phase.w);
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
        if constexpr (input_grad) {
#pragma unroll
          for (int c = 0; c < channels; c += kDepth)
            tensor_copy_3d(ring.w[stage.at][c], w, full, tile.column + c, tap, chunk * kDepth);
        } else {
          tensor_copy_3d(ring.w[stage.at], w, full, chunk * kDepth, tap, tile.column);
        }
        stage.advance();
      }
    }
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

// As many blocks as fit on the device: while its multipliers write a tile out, the next one's stages fill.
template <bool input_grad, typename T, int channels>
__global__ void __launch_bounds__(kHopperThreads<2>) __maxnreg__(kRegisters<channels>)
    conv_hopper_kernel(const __grid_constant__ Maps maps, const __grid_constant__ HopperArgs a, const T* bias,
                       T* y) {
  auto& ring = *dynamic_shared<Ring<T, channels>>();
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup;
  make_ring<2>(ring);
  Stage<kStages<channels>> stage;
  if (group == 2) {
    if (threadIdx.x % 32 != 0) return;
    prefetch_tensor_map(&maps.source[0]);
    prefetch_tensor_map(&maps.w);
    for (int number = static_cast<int>(blockIdx.x); number < a.tiles; number += static_cast<int>(gridDim.x)) {
      const Tile tile(number, a, channels);
      const Phase& phase = a.phases[tile.phase];
      if (tile.first < phase.pixels)  // the phases differ by a row or a column
        feed<input_grad>(ring, stage, &maps.source[tile.phase], &maps.w, a, phase, tile);
    }
  } else {
    const uint64_t x = matrix_descriptor(ring.x[0][group * 64]);
    const uint64_t w = input_grad ? matrix_descriptor_across(ring.w[0], kDepth * kDepth * sizeof(T))
                                  : matrix_descriptor(ring.w[0]);
    for (int number = static_cast<int>(blockIdx.x); number < a.tiles; number += static_cast<int>(gridDim.x)) {
      const Tile tile(number, a, channels);
      const Phase& phase = a.phases[tile.phase];
      if (tile.first >= phase.pixels) continue;
      float d[channels / 2];
      multiply<T, false, input_grad>(ring.full, ring.empty, stage, d, phase.h.taps * phase.w.taps * a.chunks,
                                     x, sizeof(ring.x[0]), w, sizeof(ring.w[0]));
      write_out<T, channels>(d, bias, y, a, phase, tile.first + group * 64, tile.column);
    }
  }
}

template <bool input_grad, typename T, int channels>
void start(const Maps& maps, HopperArgs& a, int phases, const void* bias, void* y, void* stream) {
  a.column_tiles = static_cast<int>(ceil_div(a.channels, channels));
  a.tiles = phases * a.row_tiles * a.column_tiles;
  const int places = current_device().multiprocessors * kBlocks<channels>;
  launch("conv_hopper", conv_hopper_kernel<input_grad, T, channels>,
         static_cast<unsigned>(a.tiles < places ? a.tiles : places), kHopperThreads<2>,
         sizeof(Ring<T, channels>), stream, maps, a, static_cast<const T*>(bias), static_cast<T*>(y));
}

template <bool input_grad, typename T>
void run(const ConvParams& p, const ConvPlan& plan, const void* source, const void* w, const void* bias,
         void* result, void* workspace, void* stream) {
  // In the input gradient the products read these weights across: they need not be turned.
  const T* const packed = packed_weights<T>(p, false, w, workspace, stream);
  const int64_t inner = input_grad ? p.k : p.c;
  const Extent& out = input_grad ? p.in : p.out;
  HopperArgs a = {};
  a.channels = static_cast<int>(input_grad ? p.c : p.k);
  a.chunks = static_cast<int>(ceil_div(inner, kDepth));
  a.kernel_w = static_cast<int>(p.kernel.w);
  a.image = volume(out), a.row = out.w;
  a.relu = p.relu && !input_grad;
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
      a.row_tiles = static_cast<int>(imax(a.row_tiles, ceil_div(phase.pixels, kPixels)));
    }
  // Phases with most taps first: their tiles take longest.
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
  maps.w = tiled_map<T, 3>(packed, {p.c, conv_taps(p), p.k}, {kDepth, 1, input_grad ? kDepth : channels});
  if (channels == 64)
    start<input_grad, T, 64>(maps, a, phases, bias, result, stream);
  else if (channels == 128)
    start<input_grad, T, 128>(maps, a, phases, bias, result, stream);
  else
    start<input_grad, T, 256>(maps, a, phases, bias, result, stream);
}

template <bool input_grad>
void run_pass(const ConvParams& p, const ConvPlan& plan, const void* source, const void* w, const void* bias,
              void* result, void* workspace, void* stream) {
  if (p.dtype == DType::kF16)
    run<input_grad, __half>(p, plan, source, w, bias, result, workspace, stream);
  else
    run<input_grad, __nv_bfloat16>(p, plan, source, w, bias, result, workspace, stream);
}

bool in_place(const void* a, const void* b) { return (address(a) | address(b)) % 16 == 0; }

}  // namespace

int64_t hopper_workspace(const ConvParams& p, ConvPass pass, int64_t splits) {
  return LayoutCopies(p, hopper_own_bytes(p, pass, splits)).total;
}

void hopper_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
                 void* y, void* workspace, void* stream) {
  if (!p.channels_last) {
    const LayoutCopies copies(p, hopper_own_bytes(p, ConvPass::kForward, 1));
    to_channels_last(p.n, p.c, p.in, x, copies.x(workspace), stream);
    run_pass<false>(in_channels_last(p), plan, copies.x(workspace), w, bias, copies.y(workspace), workspace,
                    stream);
    return from_channels_last(p.n, p.k, p.out, copies.y(workspace), y, stream);
  }
  if (!in_place(x, y))
    return gemm_conv(p, gemm_plan(p, ConvPass::kForward, current_device()), x, w, bias, y, workspace, stream);
  run_pass<false>(p, plan, x, w, bias, y, workspace, stream);
}

void hopper_input_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* w,
                       const void* bias, void* dx, void* workspace, void* stream) {
  if (!p.channels_last) {
    const LayoutCopies copies(p, hopper_own_bytes(p, ConvPass::kInputGrad, 1));
    to_channels_last(p.n, p.k, p.out, dy, copies.y(workspace), stream);
    run_pass<true>(in_channels_last(p), plan, copies.y(workspace), w, bias, copies.x(workspace), workspace,
                   stream);
    return from_channels_last(p.n, p.c, p.in, copies.x(workspace), dx, stream);
  }
  if (!in_place(dy, dx))
    return gemm_input_grad(p, gemm_plan(p, ConvPass::kInputGrad, current_device()), dy, w, bias, dx,
                           workspace, stream);
  run_pass<true>(p, plan, dy, w, bias, dx, workspace, stream);
}

}  // namespace cuda
}  // namespace fastops
