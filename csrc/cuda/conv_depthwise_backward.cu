// Both gradients of a depthwise convolution at once, for the usual kernels: 3 × 3, 5 × 5 and 7 × 7 of stride
// 1 whose result has the input's size.
//
//   dx[i] = Σ over taps of w[tap] · dy[i + pad − tap],   dw[tap] = Σ over i of x[i] · dy[i + pad − tap]
//
// Seen from a position i of the input, both need the same window of dy. A thread reads x and the window of
// its run once, adds each element of dy to the run's gradients and to the sums of all taps, which it has in
// registers: 9 of 4 channels, 25 of 2 or 49 of one. So memory is read 2 X + Y, not 2 (X + Y). Blocks add up
// the sums as conv_depthwise_weight_grad.cu's do.
#include "conv_depthwise.h"
#include "conv_depthwise_sums.h"

namespace fastops {
namespace cuda {
namespace {

constexpr int kBackwardRun = 4;  // shorter than elsewhere: the taps' sums take the registers

template <typename T, int width, int kernel, bool planes>
__global__ void __launch_bounds__(kDepthwiseThreads, 4)
    depthwise_backward_kernel(DepthwiseArgs a, int64_t share, const T* dy, const T* x, const T* w, T* dx,
                              Acc<T>* partials, Acc<T>* bias_partials) {
  using A = Acc<T>;
  constexpr int run = kBackwardRun, count = kernel * kernel, pitch = planes ? 1 : kDepthwisePitch;
  struct alignas(16) Weights {
    A v[count][pitch];
  };
  FASTOPS_SHARED(weights, Weights);
  const DepthwiseAxis& along = a.along[0];
  const DepthwiseAxis& across = a.across[0];
  const unsigned split = blockIdx.x / static_cast<unsigned>(a.channel_tiles);
  const int tile = static_cast<int>(blockIdx.x - split * static_cast<unsigned>(a.channel_tiles));
  const int t = threadIdx.x, lane = t & (a.lanes - 1), slot = t / a.lanes;
  const int first_channel = tile * a.lanes * width, channel = first_channel + lane * width;
  const int64_t runs = a.n * along.runs * across.grid;
  const int64_t end = (split + 1) * share < runs ? (split + 1) * share : runs;
  // Taps are numbered as their elements of dy lie: from the filter's last one.
  const auto tap_of = [&](int number) {
    const int r = number / kernel, s = number % kernel;
    return (kernel - 1 - r) * a.tap_across + (kernel - 1 - s) * a.tap_along;
  };
  for (int i = t % 32; i < count; i += 32)
    for (int c = t / 32; c < a.lanes * width; c += kDepthwiseThreads / 32)
      if (first_channel + c < a.channels)
        weights.v[i][c] = to_acc(w[int64_t{first_channel + c} * count + tap_of(i)]);
  __syncthreads();

  A sums[count + 1][width] = {};  // the last: of dy
  for (int64_t index = split * share + slot; index < end && channel < a.channels;
       index += kDepthwiseThreads / a.lanes) {
    const RunPlace at = run_at<planes, run>(along, across, index);
    const int64_t place = at.image * a.result_n + channel * a.result_c + at.across * a.result_across +
                          int64_t{at.along} * a.result_along;
    A of_x[run][width], of_dx[run][width] = {};
#pragma unroll
    for (int i = 0; i < run; ++i)
      load<T, width>(of_x[i], along_line(x + place, i, a.result_along), at.along + i < along.grid);
    const int column = at.along + along.off0;
#pragma unroll
    for (int r = 0; r < kernel; ++r) {
      const int row = at.across + across.off0 + r;
      if (!within(row, across.source)) continue;
      const T* const from = dy + at.image * a.source_n + channel * a.source_c + row * a.source_across +
                            int64_t{column} * a.source_along;
      A of_w[kernel][width];
#pragma unroll
      for (int s = 0; s < kernel; ++s) {
        const auto& pack = *reinterpret_cast<const Pack<A, width>*>(&weights.v[r * kernel + s][lane * width]);
#pragma unroll
        for (int u = 0; u < width; ++u) of_w[s][u] = pack.v[u];
      }
#pragma unroll
      for (int j = 0; j < run - 1 + kernel; ++j) {
        A one[width];
        const bool exists = within(column + j, along.source);
        load<T, width>(one, along_line(from, j, a.source_along), exists);
#pragma unroll
        for (int i = 0; i < run; ++i) {
          const int s = j - i;
          if (s < 0 || s >= kernel) continue;
#pragma unroll
          for (int u = 0; u < width; ++u) {
            of_dx[i][u] = multiply_add(one[u], of_w[s][u], of_dx[i][u]);
            // Where there is no dy, x may be infinite: 0 · ∞ is NaN. (A predicated FMA costs as much as
            // another.)
            A& sum = sums[r * kernel + s][u];
            if (exists) sum = multiply_add(one[u], of_x[i][u], sum);
            if (r == kernel / 2 && s == kernel / 2) sums[count][u] += one[u];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < run; ++i) {
      if (at.along + i >= along.grid) break;
      Pack<T, width> pack;
#pragma unroll
      for (int u = 0; u < width; ++u) pack.v[u] = from_acc<T>(of_dx[i][u]);
      *reinterpret_cast<Pack<T, width>*>(along_line(dx + place, i, a.result_along)) = pack;
    }
  }

  add_up_block<kDepthwiseThreads / 32, planes ? 1 : kMostLanes<width>>(
      a.lanes, 1, sums, [&](int, int value, int of_lane, int u, A sum) {
        const int k = first_channel + of_lane * width + u;
        if (k >= a.channels) return;
        const int64_t filter = int64_t{split} * a.channels + k;
        if (value < count)
          partials[filter * count + tap_of(value)] = sum;
        else if (bias_partials != nullptr)
          bias_partials[filter] = sum;
      });
}

// Channels of a thread, whose sums of all taps take 36 to 50 registers.
constexpr int backward_width(int64_t kernel) { return kernel == 3 ? 4 : kernel == 5 ? 2 : 1; }

}  // namespace

bool depthwise_fuses(const ConvParams& p) {
  const auto same = [&](int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                        int64_t dilation) {
    return stride == 1 && dilation == 1 && 2 * pad == kernel - 1 && in == out;
  };
  // In fp64 the sums would take twice the registers.
  return p.dtype != DType::kF64 && p.k == p.c &&
         conv_kernel_serves(ConvKernel::kDepthwise, p, ConvPass::kWeightGrad, Device()) &&
         p.kernel.h == p.kernel.w && (p.kernel.h == 3 || p.kernel.h == 5 || p.kernel.h == 7) &&
         same(p.in.h, p.out.h, p.kernel.h, p.stride.h, p.pad.h, p.dilation.h) &&
         same(p.in.w, p.out.w, p.kernel.w, p.stride.w, p.pad.w, p.dilation.w);
}

int64_t depthwise_backward_splits(const ConvParams& p, const Device& device) {
  const int64_t width =
      p.channels_last && p.c % backward_width(p.kernel.h) == 0 ? backward_width(p.kernel.h) : 1;
  const DepthwiseLanes lanes(p.channels_last, p.c, width, element_bytes(p.dtype));
  const int64_t along = p.channels_last ? p.in.w : p.in.h, across = p.channels_last ? p.in.h : p.in.w;
  return depthwise_splits(p, lanes.tiles, kDepthwiseThreads / 32, lanes.slots(),
                          p.n * across * ceil_div(along, kBackwardRun), device);
}

void depthwise_backward(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                        const void* w, void* dx, void* partials, bool with_bias, void* stream) {
  check_extents(p);
  void* const bias_partials = WeightPartials(p, plan.splits).bias_part(partials, with_bias);
  const bool aligned = (address(dy) | address(x) | address(dx)) % 16 == 0;
  DepthwiseArgs args(p, true, kBackwardRun);
  const auto start = [&](auto type, auto channels, auto kernel, auto layout) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    constexpr int width = decltype(channels)::value;
    constexpr bool planes = decltype(layout)::value;
    const DepthwiseLanes lanes(!planes, args.channels, width, sizeof(T));
    args.lanes = static_cast<int>(lanes.lanes);
    args.channel_tiles = static_cast<int>(lanes.tiles);
    const int64_t runs = p.n * args.along[0].runs * args.across[0].grid, blocks = lanes.tiles * plan.splits;
    launch("conv_backward", depthwise_backward_kernel<T, width, decltype(kernel)::value, planes>,
           static_cast<unsigned>(blocks), kDepthwiseThreads, 0, stream, args, ceil_div(runs, plan.splits),
           static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(w), static_cast<T*>(dx),
           static_cast<A*>(partials), static_cast<A*>(bias_partials));
  };
  const auto with_kernel = [&](auto type, auto kernel) {
    constexpr int width = backward_width(decltype(kernel)::value);
    if (!p.channels_last)
      start(type, Width<1>(), kernel, std::true_type());
    else if (p.c % width == 0 && aligned)
      start(type, Width<width>(), kernel, std::false_type());
    else
      start(type, Width<1>(), kernel, std::false_type());
  };
  const auto with_type = [&](auto type) {
    if (p.kernel.h == 3)
      with_kernel(type, Width<3>());
    else if (p.kernel.h == 5)
      with_kernel(type, Width<5>());
    else
      with_kernel(type, Width<7>());
  };
  if (p.dtype == DType::kF32)
    with_type(Type<float>());
  else if (p.dtype == DType::kF16)
    with_type(Type<__half>());
  else
    with_type(Type<__nv_bfloat16>());
}

}  // namespace cuda
}  // namespace fastops
