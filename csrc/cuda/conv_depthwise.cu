// Depthwise convolution and its input gradient: each channel of the result is a sum over taps of one channel
// of the source (in the input gradient: of those that the multiplier makes of it).
//
// A thread slides along its run: of the taps of a row it has the weights in registers, reads each element of
// the source once, and adds it to all the sums that it is part of. With runs of 8 and 4 channels, a row of s
// taps costs 8 + s − 1 loads for 32 · s multiplications. Rows of a kernel read the source again, from the L1
// cache. Stride phases of the input gradient are problems of their own, in one launch; no zero is multiplied.
//
// Of large kernels in 16-bit types conv_toeplitz.cu takes both passes.
#include "conv_depthwise.h"

namespace fastops {
namespace cuda {
namespace {

// Adds `taps` neighbouring taps to a run. get(j, x): the j-th source element of the run's windows;
// weight(s, w): that of a tap.
template <int taps, int step, typename A, int run, int width, typename Get, typename Weight>
__device__ __forceinline__ void add_taps(A (&sums)[run][width], const Get& get, const Weight& weight) {
  A w[taps][width];
#pragma unroll
  for (int s = 0; s < taps; ++s) weight(s, w[s]);
#pragma unroll
  for (int j = 0; j < (run - 1) * step + taps; ++j) {
    A x[width];
    get(j, x);
#pragma unroll
    for (int i = 0; i < run; ++i) {
      const int s = j - i * step;
      if (s < 0 || s >= taps) continue;
#pragma unroll
      for (int u = 0; u < width; ++u) sums[i][u] = multiply_add(x[u], w[s][u], sums[i][u]);
    }
  }
}

// The same for a number of taps, 1 to `most`, that all threads agree on.
template <int most, int step, typename A, int run, int width, typename Get, typename Weight>
__device__ __forceinline__ void add_some_taps(int taps, A (&sums)[run][width], const Get& get,
                                              const Weight& weight) {
  if constexpr (most > 1) {
    if (taps < most) return add_some_taps<most - 1, step>(taps, sums, get, weight);
  }
  add_taps<most, step>(sums, get, weight);
}

// Segments (up to `most` taps of a row) whose weights are in shared memory at once, for channels_last: all of
// a 7 × 7 kernel in fp32.
template <typename A>
constexpr int kSegments = 64 / sizeof(A);

// A fifth block of a multiprocessor, with fewer registers for each, makes 5 × 5 of stride 2 a tenth faster on
// an H200, and 3 × 3 of stride 1 slower.
template <typename T, int most, int step, bool planes>
constexpr int kDepthwiseBlocks = sizeof(T) == 2 && !planes && most == 7 && step == 2 ? 5 : 4;

template <typename T, int width, int most, int step, bool planes>
__global__ void __launch_bounds__(kDepthwiseThreads, (kDepthwiseBlocks<T, most, step, planes>))
    depthwise_kernel(DepthwiseArgs a, const T* source, const T* w, const T* bias, T* result) {
  using A = Acc<T>;
  constexpr int run = kRun<T, step>;
  constexpr int at_once = planes ? 1 : kSegments<A>, pitch = planes ? 1 : kDepthwisePitch;
  struct alignas(16) Weights {
    A v[at_once][most][pitch];
  };
  FASTOPS_SHARED(weights, Weights);
  const int t = threadIdx.x;
  const unsigned tiles = static_cast<unsigned>(a.channel_tiles);
  const unsigned phases = static_cast<unsigned>(a.phases_along * a.phases_across);
  const unsigned place = planes ? blockIdx.x : blockIdx.x / tiles;
  const int tile = planes ? 0 : static_cast<int>(blockIdx.x - place * tiles);
  const unsigned group = place / phases, phase = place - group * phases;
  const unsigned phase_across = phase / static_cast<unsigned>(a.phases_along);
  const DepthwiseAxis& along = a.along[phase - phase_across * a.phases_along];
  const DepthwiseAxis& across = a.across[phase_across];
  const int lane = planes ? 0 : t & (a.lanes - 1), slots = kDepthwiseThreads / a.lanes, slot = t / a.lanes;
  const int first_channel = tile * a.lanes * width;
  const int64_t runs = a.n * along.runs * across.grid * (planes ? a.channels : 1);
  const int row_segments = (along.taps + most - 1) / most;
  const int segments = a.terms * across.taps * row_segments;

  for (int rep = 0; rep < a.reps; ++rep) {
    const int64_t index = (int64_t{group} * a.reps + rep) * slots + slot;
    RunPlace at = run_at<planes, run>(along, across, index < runs ? index : 0);
    int channel = first_channel + lane * width, image = static_cast<int>(at.image);
    if constexpr (planes) {
      const Parts of_image = part(at.image, a.channels, a.by_channels);
      image = static_cast<int>(of_image.outer);
      channel = of_image.inner;
    }
    if (index >= runs || channel >= a.channels) at.across = -1;  // there is none
    A sums[run][width] = {};
    int term = 0, row = 0, first = 0;  // of the segment
    for (int segment = 0; segment < segments; ++segment) {
      if constexpr (!planes) {
        if (segment % at_once == 0 && (rep == 0 || segments > at_once)) {
          // A warp has the taps of a channel, as they lie in memory; other warps other channels.
          __syncthreads();
          const int left = segments - segment, taps_at_once = (left < at_once ? left : at_once) * most;
          for (int i = t % 32; i < taps_at_once; i += 32) {
            const int number = segment + i / most, of_row = number / row_segments;
            const int s = (number - of_row * row_segments) * most + i % most;
            const int of_term = across.by_taps(of_row), r = of_row - of_term * across.taps;
            if (s >= along.taps) continue;
            const int tap = (across.tap0 + r * across.tap_step) * a.tap_across +
                            (along.tap0 + s * along.tap_step) * a.tap_along;
            for (int c = t / 32; c < a.lanes * width; c += kDepthwiseThreads / 32) {
              const int64_t filter = int64_t{first_channel + c} * a.terms + of_term;
              if (first_channel + c < a.channels)
                weights.v[i / most][i % most][c] = to_acc(w[filter * a.taps + tap]);
            }
          }
          __syncthreads();
        }
      }
      // Places are computed where they are wanted: sums and weights take the registers.
      const int source_row = at.across * across.step + across.off0 + row * across.off_step;
      if (at.across >= 0 && within(source_row, across.source)) {
        const int column = at.along * along.step + along.off0 + first * along.off_step;
        const int of_channel = a.input_grad ? channel * a.multiplier + term : a.by_multiplier(channel);
        const T* const from = source + image * a.source_n + of_channel * a.source_c +
                              source_row * a.source_across + int64_t{column} * a.source_along;
        const auto get = [&](int j, A(&x)[width]) {
          load<T, width>(x, along_line(from, j, a.source_along), within(column + j, along.source));
        };
        const auto weight = [&](int s, A(&of_tap)[width]) {
          if constexpr (planes) {
            const int tap = (across.tap0 + row * across.tap_step) * a.tap_across +
                            (along.tap0 + (first + s) * along.tap_step) * a.tap_along;
            of_tap[0] = to_acc(w[(int64_t{channel} * a.terms + term) * a.taps + tap]);
          } else {
            const auto& pack =
                *reinterpret_cast<const Pack<A, width>*>(&weights.v[segment % at_once][s][lane * width]);
#pragma unroll
            for (int u = 0; u < width; ++u) of_tap[u] = pack.v[u];
          }
        };
        const int taps = along.taps - first < most ? along.taps - first : most;
        if constexpr (step > 0) {
          add_some_taps<most, step>(taps, sums, get, weight);
        } else {
          for (int s = 0; s < taps; ++s) {
            A one[width];
            weight(s, one);
#pragma unroll
            for (int i = 0; i < run; ++i) {
              A x[width];
              get(i * along.step + s * along.off_step, x);
#pragma unroll
              for (int u = 0; u < width; ++u) sums[i][u] = multiply_add(x[u], one[u], sums[i][u]);
            }
          }
        }
      }
      if ((first += most) >= along.taps) {
        first = 0;
        if (++row == across.taps) row = 0, ++term;
      }
    }

    if (at.across < 0) continue;
    T* const to = result + image * a.result_n + channel * a.result_c +
                  (across.out0 + at.across * across.out_step) * a.result_across +
                  (along.out0 + at.along * along.out_step) * int64_t{a.result_along};
    A add[width] = {};
    if (bias != nullptr) {
#pragma unroll
      for (int u = 0; u < width; ++u) add[u] = to_acc(bias[channel + u]);
    }
#pragma unroll
    for (int i = 0; i < run; ++i) {
      if (at.along + i >= along.grid) break;
      Pack<T, width> pack;
#pragma unroll
      for (int u = 0; u < width; ++u) {
        A v = sums[i][u] + add[u];
        if (a.relu && v < 0) v = 0;
        pack.v[u] = from_acc<T>(v);
      }
      *reinterpret_cast<Pack<T, width>*>(along_line(to, i * along.out_step, a.result_along)) = pack;
    }
  }
}

void run_depthwise(const char* name, const ConvParams& p, bool input_grad, const void* source, const void* w,
                   const void* bias, void* result, void* stream) {
  check_extents(p);
  const int sliding = depthwise_step(p, input_grad);
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    DepthwiseArgs args(p, input_grad, depthwise_run(sizeof(Acc<T>), sliding));
    int taps = 0;
    for (int i = 0; i < args.phases_along; ++i) taps = args.along[i].taps > taps ? args.along[i].taps : taps;
    dispatch_depthwise<T>(p, address(source) | address(result), [&](auto channels, auto layout) {
      constexpr int width = decltype(channels)::value;
      constexpr bool planes = decltype(layout)::value;
      const DepthwiseLanes lanes(!planes, args.channels, width, sizeof(T));
      args.lanes = static_cast<int>(lanes.lanes);
      args.channel_tiles = planes ? 1 : static_cast<int>(lanes.tiles);
      // The first phase has the most results.
      const int64_t runs = p.n * args.along[0].runs * args.across[0].grid * (planes ? args.channels : 1);
      const int64_t groups = ceil_div(runs, lanes.slots());
      const int64_t each = int64_t{args.channel_tiles} * args.phases_along * args.phases_across;
      // Weights in shared memory serve a block several times.
      if (!planes) args.reps = static_cast<int>(depthwise_reps(groups * each, current_device()));
      const int64_t blocks = ceil_div(groups, args.reps) * each;
      if (blocks == 0) return;
      if (blocks >= int64_t{1} << 31)
        throw std::invalid_argument("fastops: convolution: the tensor is too large");
      const auto start = [&](auto most, auto step) {
        launch(name, depthwise_kernel<T, width, decltype(most)::value, decltype(step)::value, planes>,
               static_cast<unsigned>(blocks), kDepthwiseThreads, 0, stream, args,
               static_cast<const T*>(source), static_cast<const T*>(w), static_cast<const T*>(bias),
               static_cast<T*>(result));
      };
      dispatch_step(sliding, [&](auto step) {
        // With 3 taps fewer registers are needed. Where taps share no inputs, nothing is to be known of them.
        if constexpr (decltype(step)::value == 0)
          start(Width<3>(), step);
        else if (taps <= 3)
          start(Width<3>(), step);
        else
          start(Width<7>(), step);
      });
    });
  });
}

}  // namespace

void depthwise_conv(const ConvParams& p, const ConvPlan&, const void* x, const void* w, const void* bias,
                    void* y, void* stream) {
  run_depthwise("conv", p, false, x, w, bias, y, stream);
}

void depthwise_input_grad(const ConvParams& p, const ConvPlan&, const void* dy, const void* w,
                          const void* bias, void* dx, void* stream) {
  run_depthwise("conv_input_grad", p, true, dy, w, bias, dx, stream);
}

}  // namespace cuda
}  // namespace fastops
