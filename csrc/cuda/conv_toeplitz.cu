// Depthwise convolution with large kernels on tensor cores, and its input gradient (the same, with the taps
// turned round); conv_toeplitz_weight_grad.cu has the other gradient. A row of taps is the product of rows of
// the source with a banded matrix, whose element at (column of the source, column of the result) is the tap
// of their distance: 16 rows of the source × 64 columns times a band of 64 × 32 for 16 × 32 results and 31
// taps, 12 products of 16 × 8 × 16. That is 3,072 operations an output for 1,922, but at ten times the rate
// of the FP32 cores.
//
// A band depends on the distance only, so of its 16 × 8 fragments, in steps of 8, there are reach + 2
// different ones, each made of two of reach + 3 registers: a lane's pair of neighbouring taps. They are
// loaded once for a row of taps, and serve 24 products of 8 fragments of the source, which ldmatrix loads at
// any row: 7 + 32 rows of 128 bytes of shared memory for 24 products of 1.6 clocks, as balanced as it gets. A
// block has 8 planes, a warp each, in 132 KiB for 31 × 31.
//
// What the band has of zeros meets elements that no tap of the result belongs to: an infinity or a NaN there
// must not show. A block that finds one among its inputs goes tap by tap instead.
#include "conv_families.h"
#include "conv_toeplitz.h"
#include "dispatch.h"
#include "launch.h"

namespace fastops {
namespace cuda {
namespace {

constexpr int kTile = kToeplitzTile;

struct ToeplitzArgs {
  int64_t blocks_h, blocks_w, groups;  // squares of a plane; of planes
  int channels;
  int source_h, source_w, result_h, result_w;
  int taps_h, taps_w, before_h, before_w;  // before: the padding
  bool turned, channels_last, relu;
};

// A square's place: its image, first plane, and first row and column.
struct Square {
  int64_t n;
  int channel, h, w;
  __device__ explicit Square(const ToeplitzArgs& a) {
    // Neighbouring blocks have neighbouring channels of the same pixels.
    const int64_t place = blockIdx.x / a.groups, row = place / a.blocks_w;
    channel = static_cast<int>(blockIdx.x - place * a.groups) * kPlanes;
    n = row / a.blocks_h;
    h = static_cast<int>(row - n * a.blocks_h) * kTile;
    w = static_cast<int>(place - row * a.blocks_w) * kTile;
  }
};

// Rows of taps, t at place t + 16 of a doubled line.
constexpr int kFirstTap = 16;

template <typename T>
__device__ bool load_taps(const ToeplitzArgs& a, const Square& at, const T* w, T* taps) {
  const int filter = a.taps_h * a.taps_w;
  bool finite = true;
  for (int i = static_cast<int>(threadIdx.x); i < kPlanes * a.taps_h * kToeplitzTaps; i += kToeplitzThreads) {
    const int line = i / kToeplitzTaps, place = i % kToeplitzTaps, u = line / a.taps_h,
              row = line - u * a.taps_h;
    const int r = a.turned ? a.taps_h - 1 - row : row;
#pragma unroll
    for (int copy = 0; copy < 2; ++copy) {
      const int tap = place - kFirstTap - copy, s = a.turned ? a.taps_w - 1 - tap : tap;
      const bool exists = at.channel + u < a.channels && tap >= 0 && tap < a.taps_w;
      const T v = exists ? w[int64_t{at.channel + u} * filter + r * a.taps_w + s] : from_acc<T>(0);
      taps[line * kDoubled + (copy == 0 ? place : second_copy(place))] = v;
      finite &= is_finite(v);
    }
  }
  return finite;
}

// A warp's square, as mma has it: 16 rows × 8 columns each.
using Sums = float[2][4][4];
// Calls f(sum, row, column) for each that this lane has.
template <typename F>
__device__ __forceinline__ void for_each_sum(Sums& sums, F f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int q = 0; q < 4; ++q)
        f(sums[m][n][q], 16 * m + lane / 4 + q / 2 * 8, 8 * n + lane % 4 * 2 + q % 2);
}

template <typename T, int reach, int pitch>
__device__ __forceinline__ void multiply(const ToeplitzArgs& a, const T* plane, const T* taps, Sums& sums) {
  constexpr int chunks = toeplitz_columns(reach) / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, c = lane % 4;
  const T* from = plane + lane % 16 * pitch + lane / 16 * 8;
  for (int r = 0; r < a.taps_h; ++r, from += pitch, taps += kDoubled) {
    uint32_t band[reach + 3];
#pragma unroll
    for (int d = -1; d < reach + 2; ++d) {
      band[d + 1] = pair_at(taps, kFirstTap + 8 * d + 2 * c - g);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int j = 0; j < chunks; ++j) {
        uint32_t rows[4];
        ldmatrix_x4(rows, from + 16 * m * pitch + 16 * j);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const int d = 2 * j - n;
          if (d < -1 || d > reach) continue;
          const uint32_t fragment[2] = {band[d + 1], band[d + 2]};
          mma<T>(sums[m][n], rows, fragment);
        }
      }
  }
}

// The same tap by tap, only those that there are.
template <typename T, int pitch>
__device__ void add_taps(const ToeplitzArgs& a, const Square& at, const T* plane, const T* taps, Sums& sums) {
  for_each_sum(sums, [&](float& sum, int h, int w) {
    for (int r = 0; r < a.taps_h; ++r) {
      const int y = at.h + h - a.before_h + r;
      if (y < 0 || y >= a.source_h) continue;
      for (int s = 0; s < a.taps_w; ++s) {
        const int x = at.w + w - a.before_w + s;
        if (x >= 0 && x < a.source_w)
          sum = multiply_add(to_acc(plane[(h + r) * pitch + w + s]),
                             to_acc(taps[r * kDoubled + kFirstTap + s]), sum);
      }
    }
  });
}

template <typename T, int reach>
__global__ void __launch_bounds__(kToeplitzThreads, 1)
    toeplitz_kernel(const __grid_constant__ ToeplitzArgs a, const T* source, const T* w, const T* bias,
                    T* result) {
  constexpr int columns = toeplitz_columns(reach), pitch = toeplitz_pitch(reach);
  const Square at(a);
  const int t = static_cast<int>(threadIdx.x), warp = t / 32;
  const int plane = (kTile + a.taps_h - 1) * pitch;
  T* const planes = dynamic_shared<T>();
  T* const taps = planes + kPlanes * plane;
  const Window<T> window = {source, a.channels, a.source_h,        a.source_w,       a.channels_last,
                            at.n,   at.channel, at.h - a.before_h, at.w - a.before_w};
  const bool finite = load_window<columns>(window, kTile + a.taps_h - 1,
                                           [&](int u, int row, int column, T v) {
                                             planes[u * plane + row * pitch + column] = v;
                                           }) &
                      load_taps(a, at, w, taps);
  const bool any = __syncthreads_or(!finite);
  const T* const my_taps = taps + warp * a.taps_h * kDoubled;
  Sums sums = {};
  if (any)
    add_taps<T, pitch>(a, at, planes + warp * plane, my_taps, sums);
  else
    multiply<T, reach, pitch>(a, planes + warp * plane, my_taps, sums);

  // The results are staged where the planes were, in the order in which they are written.
  __syncthreads();
  const float add = bias && at.channel + warp < a.channels ? to_acc(bias[at.channel + warp]) : 0.0f;
  for_each_sum(sums, [&](float sum, int h, int column) {
    const int pixel = h * kTile + column;
    float v = sum + add;
    if (a.relu && v < 0) v = 0;  // a NaN stays
    planes[a.channels_last ? pixel * kPlanes + warp : warp * kTile * kTile + pixel] = from_acc<T>(v);
  });
  __syncthreads();
  if (a.channels_last) {
    result += at.n * a.result_h * a.result_w * a.channels + at.channel;
    for (int i = t; i < kTile * kTile; i += kToeplitzThreads) {
      const int h = at.h + i / kTile, column = at.w + i % kTile;
      if (h < a.result_h && column < a.result_w)
        *reinterpret_cast<Pack<T, kPlanes>*>(result + (int64_t{h} * a.result_w + column) * a.channels) =
            *reinterpret_cast<const Pack<T, kPlanes>*>(planes + i * kPlanes);
    }
  } else {
    result += (at.n * a.channels + at.channel) * a.result_h * a.result_w;
    for (int i = t; i < kPlanes * kTile * kTile; i += kToeplitzThreads) {
      const int u = i / (kTile * kTile), pixel = i % (kTile * kTile);
      const int h = at.h + pixel / kTile, column = at.w + pixel % kTile;
      if (at.channel + u < a.channels && h < a.result_h && column < a.result_w)
        result[(int64_t{u} * a.result_h + h) * a.result_w + column] = planes[i];
    }
  }
}

template <typename T>
void run(const char* name, const ConvParams& p, const ConvPlan& plan, bool input_grad, const void* source,
         const void* w, const void* bias, void* result, void* stream) {
  const Extent &from = input_grad ? p.out : p.in, &to = input_grad ? p.in : p.out;
  const auto narrow = [](int64_t v) { return static_cast<int>(v); };
  ToeplitzArgs a = {};
  a.blocks_h = ceil_div(to.h, kTile), a.blocks_w = ceil_div(to.w, kTile);
  a.groups = ceil_div(p.c, kPlanes);
  a.channels = narrow(p.c);
  a.source_h = narrow(from.h), a.source_w = narrow(from.w);
  a.result_h = narrow(to.h), a.result_w = narrow(to.w);
  a.taps_h = narrow(p.kernel.h), a.taps_w = narrow(p.kernel.w);
  a.before_h = narrow(input_grad ? p.kernel.h - 1 - p.pad.h : p.pad.h);
  a.before_w = narrow(input_grad ? p.kernel.w - 1 - p.pad.w : p.pad.w);
  a.turned = input_grad, a.channels_last = p.channels_last, a.relu = p.relu && !input_grad;
  const auto start = [&](auto reach) {
    launch(name, toeplitz_kernel<T, decltype(reach)::value>, static_cast<unsigned>(plan.blocks),
           kToeplitzThreads, static_cast<size_t>(toeplitz_shared(p)), stream, a,
           static_cast<const T*>(source), static_cast<const T*>(w), static_cast<const T*>(bias),
           static_cast<T*>(result));
  };
  if (toeplitz_reach(p.kernel.w) == 2)
    start(Width<2>());
  else
    start(Width<4>());
}

void run_pass(const char* name, const ConvParams& p, const ConvPlan& plan, bool input_grad,
              const void* source, const void* w, const void* bias, void* result, void* stream) {
  // Vectors of 8 channels at other addresses: the ordinary kernels.
  if (p.channels_last && (address(source) | address(result)) % 16 != 0)
    return input_grad ? depthwise_input_grad(p, plan, source, w, bias, result, stream)
                      : depthwise_conv(p, plan, source, w, bias, result, stream);
  if (p.dtype == DType::kF16)
    run<__half>(name, p, plan, input_grad, source, w, bias, result, stream);
  else
    run<__nv_bfloat16>(name, p, plan, input_grad, source, w, bias, result, stream);
}

}  // namespace

void toeplitz_conv(const ConvParams& p, const ConvPlan& plan, const void* x, const void* w, const void* bias,
                   void* y, void* stream) {
  run_pass("conv", p, plan, false, x, w, bias, y, stream);
}

void toeplitz_input_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* w,
                         const void* bias, void* dx, void* stream) {
  run_pass("conv_input_grad", p, plan, true, dy, w, bias, dx, stream);
}

}  // namespace cuda
}  // namespace fastops
