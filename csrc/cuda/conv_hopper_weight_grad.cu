// The weight gradient of convolutions on sm_90a's tensor cores: dw[k, (tap, c)] = Σ over pixels of dy[pixel,
// k] · x[the pixel's window, (tap, c)]. Both operands come as rows of pixels, and wgmma reads them across.
//
// A step is 64 pixels: of 64 or 128 channels of dy, and of two or four times 64 channels of x, each of any
// one tap. The sum over pixels is cut into parts, for enough blocks; conv.cu adds them up. By 128 × 256 a
// step is 48 KiB for 1,024 clocks of the tensor cores, as in conv_hopper.cu.
#include "conv_hopper.h"
#include "packs.h"
#include "primitives_sm90.cuh"

namespace fastops {
namespace cuda {
namespace {

struct WeightArgs {
  HopperAxis h, w;
  int64_t steps;  // of all parts
  int64_t parts;
  int k, c, chunks;  // chunks: of kDepth channels of x
  int columns;       // taps · chunks
  int row_tiles, column_tiles;
};

template <int groups, int columns>
constexpr int kStages = groups == 2 && columns == 4 ? 4 : 3;
// Registers of a thread, so that one block fits on a multiprocessor, or two, or three.
template <int groups, int columns>
constexpr int kRegisters = columns == 4  ? 224
                           : groups == 2 ? 112
                                         : 128;

template <typename T, int groups, int columns>
struct Ring {
  static constexpr int kOfStages = kStages<groups, columns>;
  T dy[kOfStages][groups][kDepth][kDepth];  // [pixel][channel]
  T x[kOfStages][columns][kDepth][kDepth];
  uint64_t full[kOfStages], empty[kOfStages];
};

// Fills the ring, over the steps [begin, end).
template <typename T, int groups, int columns>
__device__ void feed(Ring<T, groups, columns>& ring, const CUtensorMap* dy, const CUtensorMap* x,
                     const WeightArgs& a, int64_t begin, int64_t end, int row, int column) {
  prefetch_tensor_map(dy);
  prefetch_tensor_map(x);
  Stage<kStages<groups, columns>> stage;
  int channel[columns], more_h[columns], more_w[columns];
#pragma unroll
  for (int i = 0; i < columns; ++i) {
    // Beyond the last column come its values again, and nobody looks at them.
    const int at = column + i < a.columns ? column + i : a.columns - 1;
    const int tap = at / a.chunks, tap_h = tap / a.w.taps;
    channel[i] = (at - tap * a.chunks) * kDepth;
    more_h[i] = tap_h * a.h.off_step;
    more_w[i] = (tap - tap_h * a.w.taps) * a.w.off_step;
  }
  for (int64_t step = begin; step < end; ++step) {
    const WindowStart start(step * kDepth, a.h, a.w);
    barrier_wait(&ring.empty[stage.at], stage.parity ^ 1);
    uint64_t* const full = &ring.full[stage.at];
    barrier_arrive_expect(full, (groups + columns) * kDepth * kDepth * sizeof(T));
#pragma unroll
    for (int i = 0; i < groups; ++i)
      tensor_copy_2d(ring.dy[stage.at][i], dy, full, row + i * kDepth, static_cast<int>(step * kDepth));
#pragma unroll
    for (int i = 0; i < columns; ++i)
      tensor_copy_im2col(ring.x[stage.at][i], x, full, channel[i], start.w, start.h, start.n,
                         static_cast<uint16_t>(more_w[i]), static_cast<uint16_t>(more_h[i]));
    stage.advance();
  }
}

template <typename T, int groups, int columns>
__global__ void __launch_bounds__(kHopperThreads<groups>) __maxnreg__((kRegisters<groups, columns>))
    conv_hopper_weight_grad_kernel(const __grid_constant__ CUtensorMap dy,
                                   const __grid_constant__ CUtensorMap x,
                                   const __grid_constant__ WeightArgs a, float* partials) {
  auto& ring = *dynamic_shared<Ring<T, groups, columns>>();
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup;
  // Neighbouring blocks have the same pixels, which come from the L2 cache.
  const int64_t line = blockIdx.x / static_cast<unsigned>(a.column_tiles);
  const int column = static_cast<int>(blockIdx.x - line * a.column_tiles) * columns;
  const int64_t part = line / a.row_tiles;
  const int row = static_cast<int>(line - part * a.row_tiles) * groups * kDepth;
  const int64_t begin = a.steps * part / a.parts, end = a.steps * (part + 1) / a.parts;
  make_ring<groups>(ring);
  if (group == groups) {
    if (threadIdx.x % 32 == 0) feed(ring, &dy, &x, a, begin, end, row, column);
    return;
  }
  float d[columns * kDepth / 2];
  constexpr int tile = kDepth * kDepth * sizeof(T);
  Stage<kStages<groups, columns>> stage;
  multiply<T, true, true>(ring.full, ring.empty, stage, d, static_cast<int>(end - begin),
                          matrix_descriptor_across(ring.dy[0][group], tile), sizeof(ring.dy[0]),
                          matrix_descriptor_across(ring.x[0], tile), sizeof(ring.x[0]));
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
  partials += part * a.k * (static_cast<int64_t>(a.h.taps) * a.w.taps * a.c);
  const int taps = a.h.taps * a.w.taps, k0 = row + group * kDepth + 16 * warp + lane / 4;
#pragma unroll
  for (int q = 0; q < columns; ++q) {
    const int at = column + q, tap = at / a.chunks, c0 = (at - tap * a.chunks) * kDepth + lane % 4 * 2;
    if (at >= a.columns) break;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int k = k0 + 8 * h;
      float* const to = partials + (static_cast<int64_t>(k) * taps + tap) * a.c + c0;
#pragma unroll
      for (int j = 0; j < kDepth / 8; ++j) {
        const float* const from = d + 4 * (q * (kDepth / 8) + j) + 2 * h;
        if (k < a.k && c0 + 8 * j < a.c)
          *reinterpret_cast<float2*>(to + 8 * j) = make_float2(from[0], from[1]);
      }
    }
  }
}

template <typename T>
void run(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x, float* partials,
         void* stream) {
  WeightArgs a = {};
  a.h = HopperAxis(forward_taps(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h));
  a.w = HopperAxis(forward_taps(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w));
  const int64_t pixels = p.n * volume(p.out);
  a.steps = ceil_div(pixels, kDepth);
  a.parts = plan.splits;
  a.k = static_cast<int>(p.k), a.c = static_cast<int>(p.c);
  a.chunks = static_cast<int>(ceil_div(p.c, kDepth));
  a.columns = static_cast<int>(conv_taps(p)) * a.chunks;
  const auto dy_map = tiled_map<T, 2>(static_cast<const T*>(dy), {p.k, pixels}, {kDepth, kDepth});
  const auto x_map = im2col_map(static_cast<const T*>(x), p.n, p.c, a.h.windows(), a.w.windows(), kDepth);
  const auto start = [&](auto groups_, auto columns_) {
    constexpr int groups = decltype(groups_)::value, columns = decltype(columns_)::value;
    a.row_tiles = static_cast<int>(ceil_div(p.k, groups * kDepth));
    a.column_tiles = static_cast<int>(ceil_div(a.columns, columns));
    launch("conv_hopper_weight_grad", conv_hopper_weight_grad_kernel<T, groups, columns>,
           static_cast<unsigned>(a.parts * a.row_tiles * a.column_tiles), kHopperThreads<groups>,
           sizeof(Ring<T, groups, columns>), stream, dy_map, x_map, a, partials);
  };
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  using Four = std::integral_constant<int, 4>;
  if (plan.tile.m == 64)
    start(One{}, Two{});
  else if (plan.tile.n == 128)
    start(Two{}, Two{});
  else
    start(Two{}, Four{});
}

}  // namespace

void hopper_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                        void* workspace, void* stream) {
  if (!p.channels_last) {
    const LayoutCopies copies(p, hopper_own_bytes(p, ConvPass::kWeightGrad, plan.splits));
    to_channels_last(p.n, p.k, p.out, dy, copies.y(workspace), stream);
    to_channels_last(p.n, p.c, p.in, x, copies.x(workspace), stream);
    return hopper_weight_grad(in_channels_last(p), plan, copies.y(workspace), copies.x(workspace), workspace,
                              stream);
  }
  if ((address(dy) | address(x)) % 16 != 0) {
    ConvPlan other = gemm_plan(p, ConvPass::kWeightGrad, current_device());
    other.splits = plan.splits;  // as many as there is place for
    return gemm_weight_grad(p, other, dy, x, workspace, false, stream);
  }
  if (p.dtype == DType::kF16)
    run<__half>(p, plan, dy, x, static_cast<float*>(workspace), stream);
  else
    run<__nv_bfloat16>(p, plan, dy, x, static_cast<float*>(workspace), stream);
}

}  // namespace cuda
}  // namespace fastops
