// Dense and grouped convolution on the CPU, forward and input gradient: a tiled implicit GEMM.
//
// NCHW: rows of the product are result channels, columns are positions. A block of the source is
//   gathered once per tile of positions into B[k][position] (the im2col matrix, never whole), the
//   weights are the rows A[o][k]; k runs over (channel, tap).
// channels_last: rows are positions, columns are result channels. The source is its own A: for each
//   tap a position's channels are contiguous, so rows are pointers into it (or to zeros, in the
//   padding), and nothing is gathered; the weights are packed into panels B[k][o], k over (tap, channel).
//
// The input gradient is the same problem with source and result exchanged, once per stride phase.
//
// Both take words (words.h): numbers in the type of the sums, or pairs of bf16 as they lie in memory.
#include "../conv.h"
#include "conv_depthwise.h"
#include "conv_planes.h"
#include "conv_rows.h"
#include "dispatch.h"
#include "parallel.h"

namespace fastops {
namespace cpu {
namespace {

// Fewer tiles than this are split along the result channels as well.
constexpr int64_t kMinTasks = 8;

// How a call is divided. A pure function of the params: results must not depend on the threads.
struct Division {
  int64_t tile;      // positions
  int64_t channels;  // result channels of one task
  int64_t parts;     // tasks along the result channels of a group
  int64_t tiles;     // of all images (channels_last) or of one
  bool shared;       // NCHW: what the parts of a tile share is gathered before them
};
template <typename T>
Division divide(const TapConv& t, const TapAxes& a) {
  using A = Acc<T>;
  const bool last = t.p->channels_last;
  const int64_t unit = last ? kTileColumns<A> : kTileRows, images = last ? 1 : t.p->n;
  const int64_t positions = grid_size(a) * (last ? t.p->n : 1), most = last ? kRowPositions : kPlanePositions;
  Division d;
  d.tiles = ceil_div(positions, most);
  d.tile = last ? most : imin(most, round_up(ceil_div(positions, imax(1, d.tiles)), kLanes<A>));
  const int64_t tasks = imax(1, d.tiles * images * t.p->groups);
  d.channels = round_up(ceil_div(t.outer, ceil_div(kMinTasks, tasks)), unit);
  if (!sums_in_result<T>(t, a)) d.channels = imin(d.channels, round_up(scratch_channels(t), unit));
  d.parts = ceil_div(t.outer, d.channels);
  d.shared = !last && tasks < kMinTasks && d.parts > 1;
  return d;
}

// ---- scratch memory ------------------------------------------------------------------------------

// Words (as wide as sums) of each part of the workspace.
struct Workspace {
  int64_t bias;     // all groups, each padded to full vectors
  int64_t weights;  // all groups and phases
  int64_t shared;   // of the phase with most
  int64_t scratch;  // of one thread: gathered block, then sums, then a panel
  int64_t sums;     // where the sums begin in it
  int64_t panel;
};
template <typename T, typename W>
Workspace workspace(const TapConv& t) {
  using A = Acc<W>;
  constexpr int64_t nr = kTileColumns<A>;
  const bool last = t.p->channels_last;
  const int64_t padded = round_up(t.outer, nr);
  Workspace w = {};
  w.bias = round_up(t.p->groups * padded, 16);
  for (int64_t phase = 0; phase < phases(t); ++phase) {
    const TapAxes a = merge_rows(tap_axes(t, phase));
    const Order order = order_of<W>(t, a);
    const Division div = divide<T>(t, a);
    w.weights += t.p->groups * (last ? padded * order.words : t.outer * weight_row_words<T, W>(t, order));
    if (div.shared)
      w.shared = imax(w.shared, t.p->n * t.p->groups * div.tiles * order.words * kPlaneStride<A>);
  }
  w.weights = round_up(w.weights, 16);
  w.sums = last ? kRowPositions * kRowStride<A> : kPlaneDepth<W> * kPlaneStride<A>;
  w.panel = w.sums + (scratch_channels(t) + nr) * kPlaneStride<A>;
  w.scratch = round_up(w.panel + (last ? kTileDepth<A> * nr : kInterleavedWords * kPlaneStride<A>), 16);
  return w;
}

// ---- one call ------------------------------------------------------------------------------------

template <typename T, typename W>
void run(const TapConv& t, const T* source, const T* w, const T* bias, T* result, void* memory, int threads) {
  using A = Acc<T>;
  static_assert(sizeof(A) == sizeof(W), "the workspace counts both");
  const Workspace sizes = workspace<T, W>(t);
  const bool last = t.p->channels_last;
  A* padded_bias = static_cast<A*>(memory);
  W* packed = static_cast<W*>(memory) + sizes.bias;
  W* shared = packed + sizes.weights;
  const auto scratch_of = [&](int slot) {
    const int64_t at = sizes.bias + sizes.weights + sizes.shared + slot * sizes.scratch;
    W* words = static_cast<W*>(memory) + at;
    return Scratch<W>{words, static_cast<A*>(memory) + at + sizes.sums, words + sizes.panel};
  };

  const int64_t padded = round_up(t.outer, kTileColumns<A>);
  for (int64_t i = 0; i < t.p->groups * padded; ++i)
    padded_bias[i] =
        bias != nullptr && i % padded < t.outer ? to_acc(bias[i / padded * t.outer + i % padded]) : A(0);
  const Call<T, W> call = {t, source, result, w, padded_bias, padded};

  int64_t weights_before = 0;
  for (int64_t phase = 0; phase < phases(t); ++phase) {
    const TapAxes a = merge_rows(tap_axes(t, phase));
    const Order order = order_of<W>(t, a);
    const Division div = divide<T>(t, a);
    const int64_t positions = grid_size(a);
    if (positions == 0) continue;
    const int64_t group_size = last ? padded * order.words : t.outer * weight_row_words<T, W>(t, order);
    const W* weights = packed + weights_before;
    if (packs_in_tile(t, a)) {
      weights = nullptr;
    } else if (weights_as_they_are<T, W>(t)) {
      weights = reinterpret_cast<const W*>(w);
    } else {
      const int64_t block = kTileColumns<A>, blocks = ceil_div(t.outer, block);
      parallel_for(threads, t.p->groups * blocks, order.words * block, [&](int64_t task, int) {
        const int64_t g = task / blocks, o0 = task % blocks * block, o1 = imin(o0 + block, t.outer);
        const T* from = w + weight_group(t, g);
        W* to = packed + weights_before + g * group_size;
        if (last)
          for_each_block<T, W>(t, a, [&](const Block& b) {
            const int64_t at = first_word(b, order, kPerWord<W>);
            pack_panel(t, a, from, o0, o1, b, to + o0 * order.words + at * kTileColumns<A>);
          });
        else
          pack_rows(t, a, order, from, o0, o1, to);
      });
    }
    const int64_t range = last ? t.p->n * positions : positions, images = last ? 1 : t.p->n;
    const int64_t tiles = images * t.p->groups * div.tiles, tile_words = order.words * kPlaneStride<A>;
    const auto gather = [&](int64_t tile, int64_t k0, int64_t k1, int slot) {
      const int64_t begin = tile % div.tiles * div.tile, image = tile / div.tiles;
      gather_plane_block(call, a, order, image / t.p->groups, image % t.p->groups, begin,
                         imin(begin + div.tile, range), k0, k1,
                         shared + tile * tile_words + k0 * kPlaneStride<A>,
                         reinterpret_cast<Element<W>*>(scratch_of(slot).panel));
    };
    if (div.shared)
      for_each_plane_block<W>(order, [&](int64_t k0, int64_t k1) {
        parallel_for(threads, tiles, (k1 - k0) * div.tile,
                     [&](int64_t tile, int slot) { gather(tile, k0, k1, slot); });
      });
    const int64_t work = div.tile * div.channels * imax(order.words, 1) / 8;
    parallel_for(threads, tiles * div.parts, work, [&](int64_t task, int slot) {
      const int64_t part = task % div.parts, tile = task / div.parts;
      const int64_t g = tile / div.tiles % t.p->groups, n = tile / div.tiles / t.p->groups;
      const int64_t begin = tile % div.tiles * div.tile, end = imin(begin + div.tile, range);
      const int64_t o0 = part * div.channels, o1 = imin(o0 + div.channels, t.outer);
      const W* mine = weights == nullptr ? nullptr : weights + g * group_size;
      if (last)
        row_tile(call, a, mine, g, begin, end, o0, o1, scratch_of(slot));
      else
        plane_tile(call, a, mine, n, g, begin, end, o0, o1, div.shared ? shared + tile * tile_words : nullptr,
                   scratch_of(slot));
    });
    weights_before += t.p->groups * group_size;
  }
}

void run_typed(const ConvParams& p, bool input_grad, const void* source, const void* w, const void* bias,
               void* result, void* memory, int threads) {
  dispatch_words(p.dtype, [&](auto type, auto word) {
    using T = typename decltype(type)::type;
    run<T, typename decltype(word)::type>(tap_conv(p, input_grad), static_cast<const T*>(source),
                                          static_cast<const T*>(w), static_cast<const T*>(bias),
                                          static_cast<T*>(result), memory, threads);
  });
}

int64_t workspace_typed(const ConvParams& p, bool input_grad, int threads) {
  int64_t bytes = 0;
  dispatch_words(p.dtype, [&](auto type, auto word) {
    using W = typename decltype(word)::type;
    const Workspace w = workspace<typename decltype(type)::type, W>(tap_conv(p, input_grad));
    bytes = (w.bias + w.weights + w.shared + threads * w.scratch) * static_cast<int64_t>(sizeof(W));
  });
  return bytes;
}

// y = max(y, 0), with NaN kept: a pass of its own, since what one of the tasks above leaves of y is seldom
// contiguous.
template <typename T>
void relu_in_place(T* y, int64_t count, int threads) {
  using A = Acc<T>;
  constexpr int64_t block = 4096;
  parallel_for(threads, ceil_div(count, block), block, [&](int64_t task, int) {
    const int64_t end = imin((task + 1) * block, count);
    for (int64_t i = task * block; i < end; i += kLanes<A>) {
      const int64_t lanes = imin(kLanes<A>, end - i);
      const Vec<A> v = load_first(y + i, lanes);
      store_first(y + i, v < Vec<A>{} ? Vec<A>{} : v, lanes);
    }
  });
}

}  // namespace

template <>
int64_t conv_workspace<kIsa>(const ConvParams& p, int threads) {
  return few_channels_per_group(p) ? depthwise_workspace<kIsa>(p, false, threads)
                                   : workspace_typed(p, false, threads);
}

template <>
int64_t conv_input_grad_workspace<kIsa>(const ConvParams& p, int threads) {
  return few_channels_per_group(p) ? depthwise_workspace<kIsa>(p, true, threads)
                                   : workspace_typed(p, true, threads);
}

template <>
void conv<kIsa>(const ConvParams& p, const void* x, const void* w, const void* bias, void* y, void* workspace,
                int threads) {
  if (few_channels_per_group(p))
    depthwise_conv<kIsa>(p, false, x, w, bias, y, workspace, threads);
  else
    run_typed(p, false, x, w, bias, y, workspace, threads);
  if (p.relu)
    dispatch_floating(p.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      relu_in_place(static_cast<T*>(y), p.n * p.k * volume(p.out), threads);
    });
}

template <>
void conv_input_grad<kIsa>(const ConvParams& p, const void* dy, const void* w, const void* bias, void* dx,
                           void* workspace, int threads) {
  if (few_channels_per_group(p)) return depthwise_conv<kIsa>(p, true, dy, w, bias, dx, workspace, threads);
  run_typed(p, true, dy, w, bias, dx, workspace, threads);
}

}  // namespace cpu
}  // namespace fastops
