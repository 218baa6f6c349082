// The weight gradient of a depthwise convolution:
//
//   dw[k][tap] = Σ over n and the pixels of dy of dy[pixel][k] · x[where the tap of the pixel lies][k /
//   multiplier]
//
// A block has one tile of channels and its split's part of the runs. Each of its warps has a unit of taps,
// whose sums its threads keep in registers: of 3 × 3 taps all nine, of larger kernels a row of up to 7. So x
// and dy are read from memory once, and from the L1 cache by the warps of the other units, which go through
// the same runs. In the end the threads' sums are added up in a fixed order.
#include "conv_depthwise.h"
#include "conv_depthwise_sums.h"

namespace fastops {
namespace cuda {
namespace {

// Of dy. Where a vector's sums leave few registers, or its elements take most, half as long as elsewhere.
template <typename T, int width, int taps, int step>
constexpr int kGradRun = width == 4 && (taps == 3 || sizeof(T) == 4) ? 4 : kRun<T, step>;

template <typename T, int width, int rows, int taps, int step, bool planes>
__global__ void __launch_bounds__(32 * kDepthwiseMostWarps, 2)
    depthwise_weight_grad_kernel(DepthwiseArgs a, int row_units, int units, int unit_groups,
                                 int units_at_once, int64_t share, const T* dy, const T* x, Acc<T>* partials,
                                 Acc<T>* bias_partials) {
  using A = Acc<T>;
  constexpr int run = kGradRun<T, width, taps, step>, count = rows * taps;
  const DepthwiseAxis& along = a.along[0];
  const DepthwiseAxis& across = a.across[0];
  const unsigned outer = blockIdx.x / static_cast<unsigned>(unit_groups);
  const int first_unit =
      static_cast<int>(blockIdx.x - outer * static_cast<unsigned>(unit_groups)) * units_at_once;
  const unsigned split = outer / static_cast<unsigned>(a.channel_tiles);
  const int tile = static_cast<int>(outer - split * static_cast<unsigned>(a.channel_tiles));
  const int warp = static_cast<int>(threadIdx.x) / 32, of_warp = static_cast<int>(threadIdx.x) % 32;
  const int run_warp = warp / units_at_once, unit = first_unit + warp - run_warp * units_at_once;
  // The unit's first row and column of taps.
  const auto row_of_unit = [&](int number) { return number / row_units * rows; };
  const auto tap_of_unit = [&](int number) { return number % row_units * taps; };
  const int row0 = row_of_unit(unit), tap0 = tap_of_unit(unit);
  const int lane = of_warp & (a.lanes - 1), slots_of_warp = 32 / a.lanes;
  const int slots = static_cast<int>(blockDim.x) / 32 / units_at_once * slots_of_warp;
  const int slot = run_warp * slots_of_warp + of_warp / a.lanes;
  const int first_channel = tile * a.lanes * width, channel = first_channel + lane * width;
  const bool with_bias = bias_partials != nullptr && unit == 0;
  const int64_t runs = a.n * along.runs * across.grid;
  const int64_t first = split * share, left = runs - first < share ? runs - first : share;
  const int end = unit < units && channel < a.channels ? static_cast<int>(left) : 0;

  A sums[count + 1][width] = {};  // the last: of dy
  for (int number = slot; number < end; number += slots) {
    const RunPlace at = run_at<planes, run>(along, across, first + number);
    const int image = static_cast<int>(at.image);
    const T* const dy_run = dy + image * a.result_n + channel * a.result_c + at.across * a.result_across +
                            int64_t{at.along} * a.result_along;
    const T* const plane = x + image * a.source_n + a.by_multiplier(channel) * a.source_c;
    const int column = at.along * along.step + along.off0 + tap0 * along.off_step;
    const auto row_of = [&](int r) {
      const int row = at.across * across.step + across.off0 + (row0 + r) * across.off_step;
      return row0 + r < across.taps ? row : kNowhere;
    };
    const auto get = [&](int row, int j, A(&to)[width]) {
      const T* const line = plane + row * a.source_across + int64_t{column} * a.source_along;
      load<T, width>(to, along_line(line, j, a.source_along), within(column + j, along.source));
    };
    if constexpr (step > 0) {
      const int exist = along.grid - at.along;  // of the run
      A of_dy[run][width];
#pragma unroll
      for (int i = 0; i < run; ++i)
        load<T, width>(of_dy[i], along_line(dy_run, i, a.result_along), i < exist);
      if (with_bias) {
#pragma unroll
        for (int u = 0; u < width; ++u) {
          A some = 0;
#pragma unroll
          for (int i = 0; i < run; ++i) some += of_dy[i][u];
          sums[count][u] += some;
        }
      }
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        const int row = row_of(r);
        if (!within(row, across.source)) continue;
#pragma unroll
        for (int j = 0; j < (run - 1) * step + taps; ++j) {
          A one[width];
          get(row, j, one);
#pragma unroll
          for (int i = 0; i < run; ++i) {
            // Where there is no dy, x may be infinite: 0 · ∞ is NaN. (A predicated FMA costs as much as
            // another.)
            const int s = j - i * step;
            if (s < 0 || s >= taps || i >= exist) continue;
#pragma unroll
            for (int u = 0; u < width; ++u)
              sums[r * taps + s][u] = multiply_add(one[u], of_dy[i][u], sums[r * taps + s][u]);
          }
        }
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < run && at.along + i < along.grid; ++i) {
        A of_dy[width];
        load<T, width>(of_dy, along_line(dy_run, i, a.result_along), true);
        if (with_bias) {
#pragma unroll
          for (int u = 0; u < width; ++u) sums[count][u] += of_dy[u];
        }
#pragma unroll
        for (int r = 0; r < rows; ++r) {
          const int row = row_of(r);
          if (!within(row, across.source)) continue;
#pragma unroll
          for (int s = 0; s < taps; ++s) {
            A one[width];
            get(row, i * along.step + s * along.off_step, one);
#pragma unroll
            for (int u = 0; u < width; ++u)
              sums[r * taps + s][u] = multiply_add(one[u], of_dy[u], sums[r * taps + s][u]);
          }
        }
      }
    }
  }

  const auto put = [&](int of_unit, int value, int of_lane, int u, A sum) {
    const int k = first_channel + of_lane * width + u, number = first_unit + of_unit;
    if (k >= a.channels || number >= units) return;
    const int64_t filter = int64_t{split} * a.channels + k;
    if (value == count) {
      if (bias_partials != nullptr && number == 0) bias_partials[filter] = sum;
      return;
    }
    const int r = row_of_unit(number) + value / taps, s = tap_of_unit(number) + value % taps;
    if (r < across.taps && s < along.taps)
      partials[filter * a.taps + r * a.tap_across + s * a.tap_along] = sum;
  };
  add_up_block<kDepthwiseMostWarps, planes ? 1 : kMostLanes<width>>(a.lanes, units_at_once, sums, put);
}

}  // namespace

void depthwise_weight_grad(const ConvParams& p, const ConvPlan& plan, const void* dy, const void* x,
                           void* partials, bool with_bias, void* stream) {
  check_extents(p);
  void* const bias_partials = WeightPartials(p, plan.splits).bias_part(partials, with_bias);
  const int sliding = depthwise_step(p, false);
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    dispatch_depthwise<T>(p, address(x) | address(dy), [&](auto channels, auto layout) {
      constexpr int width = decltype(channels)::value;
      constexpr bool planes = decltype(layout)::value;
      const DepthwiseLanes lanes(!planes, p.k, width, sizeof(T));
      const DepthwiseTaps units(p);
      const int64_t blocks = units.groups * lanes.tiles * plan.splits;
      if (blocks >= int64_t{1} << 31)
        throw std::invalid_argument("fastops: convolution: the tensor is too large");
      dispatch_step(sliding, [&](auto step) {
        const auto start = [&](auto rows, auto taps) {
          constexpr int of_row = decltype(taps)::value;
          DepthwiseArgs args(p, false, kGradRun<T, width, of_row, decltype(step)::value>);
          args.lanes = static_cast<int>(lanes.lanes);
          args.channel_tiles = static_cast<int>(lanes.tiles);
          const int64_t runs = p.n * args.along[0].runs * args.across[0].grid;
          launch("conv_weight_grad",
                 depthwise_weight_grad_kernel<T, width, decltype(rows)::value, of_row, decltype(step)::value,
                                              planes>,
                 static_cast<unsigned>(blocks), static_cast<unsigned>(32 * units.warps()), 0, stream, args,
                 static_cast<int>(ceil_div(args.along[0].taps, of_row)), static_cast<int>(units.units),
                 static_cast<int>(units.groups), static_cast<int>(units.units_at_once),
                 ceil_div(runs, plan.splits), static_cast<const T*>(dy), static_cast<const T*>(x),
                 static_cast<A*>(partials), static_cast<A*>(bias_partials));
        };
        if (units.along == 3)
          start(Width<3>(), Width<3>());
        else if (units.along == 5)
          start(Width<1>(), Width<5>());
        else
          start(Width<1>(), Width<7>());
      });
    });
  });
}

}  // namespace cuda
}  // namespace fastops
