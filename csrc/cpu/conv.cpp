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
#include "conv_inside.h"
#include "conv_planes.h"
#include "conv_rows.h"
#include "conv_winograd.h"
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

// marks: null, or of each image's pairs of result rows which ones are wanted.
template <typename T, typename W>
void run_direct(const Call<T, W>& call, void* memory, const uint8_t* marks, int threads) {
  using A = Acc<T>;
  static_assert(sizeof(A) == sizeof(W), "the workspace counts both");
  const TapConv& t = call.t;
  const Workspace sizes = workspace<T, W>(t);
  const bool last = t.p->channels_last;
  W* packed = static_cast<W*>(memory) + sizes.bias;
  W* shared = packed + sizes.weights;
  const auto scratch_of = [&](int slot) {
    const int64_t at = sizes.bias + sizes.weights + sizes.shared + slot * sizes.scratch;
    W* words = static_cast<W*>(memory) + at;
    return Scratch<W>{words, static_cast<A*>(memory) + at + sizes.sums, words + sizes.panel};
  };

  int64_t weights_before = 0;
  for (int64_t phase = 0; phase < phases(t); ++phase) {
    const TapAxes a = merge_rows(tap_axes(t, phase));
    const Order order = order_of<W>(t, a);
    const Division div = divide<T>(t, a);
    const int64_t positions = grid_size(a);
    if (positions == 0) continue;
    const int64_t group_size =
        last ? call.channels_stride * order.words : t.outer * weight_row_words<T, W>(t, order);
    const W* weights = packed + weights_before;
    if (packs_in_tile(t, a)) {
      weights = nullptr;
    } else if (weights_as_they_are<T, W>(t)) {
      weights = reinterpret_cast<const W*>(call.unpacked);
    } else {
      const int64_t block = kTileColumns<A>, blocks = ceil_div(t.outer, block);
      parallel_for(threads, t.p->groups * blocks, order.words * block, [&](int64_t task, int) {
        const int64_t g = task / blocks, o0 = task % blocks * block, o1 = imin(o0 + block, t.outer);
        const T* from = call.unpacked + weight_group(t, g);
        W* to = packed + weights_before + g * group_size;
        if (last && packs_whole_panel<W>(t, a, order, o1 - o0))
          pack_whole_panel(t, a, from, o0, o1, to + o0 * order.words);
        else if (last)
          for_each_block<T, W>(t, a, [&](const Block& b) {
            const int64_t at = first_word(b, order, kPerWord<W>);
            pack_panel(t, a, from, o0, o1, b, to + o0 * order.words + at * kTileColumns<A>);
          });
        else
          pack_rows(t, a, order, from, o0, o1, to);
      });
    }
    // Positions [begin, end) of image n (channels_last: counted over all images).
    const auto compute = [&](int64_t n, int64_t g, int64_t begin, int64_t end, int64_t part,
                             const W* gathered, int slot) {
      const int64_t o0 = part * div.channels, o1 = imin(o0 + div.channels, t.outer);
      const W* mine = weights == nullptr ? nullptr : weights + g * group_size;
      if (last)
        row_tile(call, a, mine, g, begin, end, o0, o1, scratch_of(slot));
      else
        plane_tile(call, a, mine, n, g, begin, end, o0, o1, gathered, scratch_of(slot));
    };
    const int64_t work = imin(div.channels, t.outer) * imax(order.words, 1) / 8;
    if (marks != nullptr) {
      const int64_t pair = 2 * a.w.grid, pairs = ceil_div(positions, pair);
      parallel_for(threads, t.p->n * pairs, pair * work, [&](int64_t task, int slot) {
        if (marks[task] == 0) return;
        const int64_t n = task / pairs, image = last ? n * positions : 0;
        const int64_t end = imin((task % pairs + 1) * pair, positions);
        for (int64_t at = task % pairs * pair; at < end; at += div.tile)
          for (int64_t g = 0; g < t.p->groups; ++g)
            for (int64_t part = 0; part < div.parts; ++part)
              compute(n, g, image + at, image + imin(at + div.tile, end), part, nullptr, slot);
      });
      continue;
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
    parallel_for(threads, tiles * div.parts, imin(div.tile, range) * work, [&](int64_t task, int slot) {
      const int64_t tile = task / div.parts, begin = tile % div.tiles * div.tile;
      compute(tile / div.tiles / t.p->groups, tile / div.tiles % t.p->groups, begin,
              imin(begin + div.tile, range), task % div.parts,
              div.shared ? shared + tile * tile_words : nullptr, slot);
    });
    weights_before += t.p->groups * group_size;
  }
}

// What Winograd wants beside it: U, a mark for each tile row, scratch memory of each thread.
inline int64_t winograd_words(const TapConv& t, const WinogradShape& s, int threads) {
  return t.p->groups * s.weights + round_up(t.p->n * s.tile_rows, 64) / 4 + threads * round_up(s.scratch, 16);
}

template <typename T>
void run_winograd(const Call<T, float>& call, void* direct, float* memory, int threads) {
  const TapConv& t = call.t;
  const TapAxes a = tap_axes(t, 0);
  const WinogradShape s = winograd_shape(t, a);
  const int64_t rows = t.p->n * s.tile_rows;
  float* u = memory;
  uint8_t* marks = reinterpret_cast<uint8_t*>(u + t.p->groups * s.weights);
  float* scratch = u + t.p->groups * s.weights + round_up(rows, 64) / 4;

  // Whole panels: what is beyond the last channel is zero.
  const int64_t block = kLanes<float>, blocks = call.channels_stride / block;
  parallel_for(threads, t.p->groups * blocks, block * t.inner * 16, [&](int64_t task, int) {
    const int64_t g = task / blocks;
    winograd_weights(t, a, s, call.unpacked + weight_group(t, g), task % blocks * block, u + g * s.weights);
  });
  for (int64_t row = 0; row < rows; ++row) marks[row] = 0;
  const Winograd<T> winograd = {t, a, s, call.source, call.result, call.bias, call.channels_stride, marks};
  const int64_t tiles = rows * s.tile_columns, tasks = t.p->groups * s.blocks * s.parts;
  parallel_for(threads, tasks, s.tiles * s.outer * t.inner * 2, [&](int64_t task, int slot) {
    const int64_t part = task % s.parts, tile = task / s.parts % s.blocks, g = task / s.parts / s.blocks;
    winograd.block(g, tile * s.tiles, imin((tile + 1) * s.tiles, tiles), part * s.outer,
                   imin((part + 1) * s.outer, t.outer), u + g * s.weights,
                   scratch + slot * round_up(s.scratch, 16));
  });
  bool any = false;
  for (int64_t row = 0; row < rows; ++row) any |= marks[row] != 0;
  if (any) run_direct(call, direct, marks, threads);
}

template <typename T, typename W>
int64_t workspace_words(const TapConv& t, int threads, bool with_winograd = true) {
  const Workspace w = workspace<T, W>(t);
  const int64_t words = w.bias + w.weights + w.shared + threads * w.scratch;
  if (!with_winograd || !winograd_serves<W>(t)) return words;
  return words + winograd_words(t, winograd_shape(t, tap_axes(t, 0)), threads);
}

template <typename T, typename W>
void run(const TapConv& t, const T* source, const T* w, const T* bias, T* result, void* memory, int threads) {
  using A = Acc<T>;
  const int64_t padded = round_up(t.outer, kTileColumns<A>);
  A* padded_bias = static_cast<A*>(memory);
  for (int64_t i = 0; i < t.p->groups * padded; ++i)
    padded_bias[i] =
        bias != nullptr && i % padded < t.outer ? to_acc(bias[i / padded * t.outer + i % padded]) : A(0);
  const Call<T, W> call = {t, source, result, w, padded_bias, padded};
  if constexpr (std::is_same_v<W, float>)
    if (winograd_serves<W>(t)) {
      float* more = static_cast<float*>(memory) + workspace_words<T, W>(t, threads, false);
      return run_winograd(call, memory, more, threads);
    }
  run_direct(call, memory, nullptr, threads);
}

void run_typed(const ConvParams& p, bool input_grad, const void* source, const void* w, const void* bias,
               void* result, void* memory, int threads) {
  dispatch_words(p.dtype, [&](auto type, auto word) {
    using T = typename decltype(type)::type;
    const auto call = [&](const TapConv& t, const T* from, T* to, void* rest) {
      run<T, typename decltype(word)::type>(t, from, static_cast<const T*>(w), static_cast<const T*>(bias),
                                            to, rest, threads);
    };
    const TapConv t = tap_conv(p, input_grad);
    const auto through = pays_inside(t) ? run_inside<T, decltype(call)> : run_as_it_is<T, decltype(call)>;
    through(t, static_cast<const T*>(source), static_cast<T*>(result), static_cast<Acc<T>*>(memory), threads,
            call);
  });
}

int64_t workspace_typed(const ConvParams& p, bool input_grad, int threads) {
  int64_t bytes = 0;
  dispatch_words(p.dtype, [&](auto type, auto word) {
    using T = typename decltype(type)::type;
    using W = typename decltype(word)::type;
    const TapConv t = tap_conv(p, input_grad);
    const Inside inside = channels_last_inside(t);
    const int64_t words = pays_inside(t) ? inside_elements<T>(inside) +
                                               workspace_words<T, W>(tap_conv(inside.p, input_grad), threads)
                                         : workspace_words<T, W>(t, threads);
    bytes = words * static_cast<int64_t>(sizeof(W));
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
