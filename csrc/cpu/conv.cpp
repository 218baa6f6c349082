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
#include <algorithm>

#include "../conv.h"
#include "conv_depthwise.h"
#include "conv_inside.h"
#include "conv_weights.h"
#include "conv_winograd.h"
#include "dispatch.h"
#include "gemm.h"
#include "parallel.h"
#include "tap_conv.h"

namespace fastops {
namespace cpu {
namespace {

// Positions of one tile. NCHW: a block of B is 256 × 208 floats = 208 KiB, in L2; its rows are 13 cache
// lines apart, an odd number, so that a column panel spreads over all sets of L1.
constexpr int64_t kPlanePositions = 192;
template <typename A>
constexpr int64_t kPlaneStride = kPlanePositions + 64 / static_cast<int64_t>(sizeof(A));
// channels_last: 96 × 256 floats of A = 96 KiB, in L2.
constexpr int64_t kRowPositions = 96;
template <typename A>
constexpr int64_t kRowStride = kTileDepth<A> + 64 / static_cast<int64_t>(sizeof(A));
// Result channels whose sums a tile holds in scratch memory, where they cannot go to the result itself.
constexpr int64_t kScratchChannels = 128;
// Below this many source channels, rows are gathered: a stretch of k per tap would be too short.
constexpr int64_t kMinDirectChannels = 16;
// Taps whose row pointers are prepared at once.
constexpr int64_t kMaxTapsPerBlock = 16;
// Fewer tiles than this are split along the result channels as well.
constexpr int64_t kMinTasks = 8;

// NCHW: sums may go straight to the result, of whose type they are; a tile's positions are contiguous.
template <typename T>
bool sums_in_result(const TapAxes& a) {
  return !kNarrow<T> && a.w.out_step == 1 && a.h.out_step == 1 && a.d.out_step == 1;
}

// How a call is divided. A pure function of the params: results must not depend on the threads.
struct Division {
  int64_t tile;      // positions
  int64_t channels;  // result channels of one task
  int64_t parts;     // tasks along the result channels of a group
};
template <typename T>
Division divide(const TapConv& t, const TapAxes& a) {
  using A = Acc<T>;
  const bool last = t.p->channels_last;
  const int64_t unit = last ? kTileColumns<A> : kTileRows;
  const int64_t tiles = last ? ceil_div(t.p->n * grid_size(a), kRowPositions)
                             : t.p->n * ceil_div(grid_size(a), kPlanePositions);
  const int64_t most = round_up(t.outer, unit);
  int64_t channels = most;
  if (tiles * t.p->groups < kMinTasks)
    channels = round_up(ceil_div(t.outer, ceil_div(kMinTasks, imax(1, tiles * t.p->groups))), unit);
  const bool direct = last ? !kNarrow<T> : sums_in_result<T>(a);
  if (!direct) channels = imin(channels, round_up(kScratchChannels, unit));
  channels = imax(unit, imin(channels, most));
  return {last ? kRowPositions : kPlanePositions, channels, ceil_div(t.outer, channels)};
}

// ---- scratch memory ------------------------------------------------------------------------------

// Elements (of the accumulation type) of each part of the workspace.
struct Workspace {
  int64_t bias;     // all groups, each padded to full vectors
  int64_t weights;  // all groups and phases
  int64_t scratch;  // of one thread: gathered block, then sums
  int64_t sums;     // where the sums begin in it
};
template <typename T>
Workspace workspace(const TapConv& t) {
  using A = Acc<T>;
  const int64_t padded = round_up(t.outer, kTileColumns<A>), depth = t.inner * volume(t.p->kernel);
  Workspace w;
  w.bias = t.p->groups * padded;
  w.weights = t.p->groups * depth * (t.p->channels_last ? padded : t.outer);
  w.sums = t.p->channels_last ? kRowPositions * kRowStride<A> : kTileDepth<A> * kPlaneStride<A>;
  w.scratch = w.sums + (kScratchChannels + kTileColumns<A>)*kPlaneStride<A>;
  return w;
}

template <typename T>
int64_t direct_elements(const TapConv& t, int threads) {
  const Workspace w = workspace<T>(t);
  return round_up(w.bias, 16) + round_up(w.weights, 16) + threads * round_up(w.scratch, 16);
}
// What Winograd wants beside it: U, a mark for each tile row, scratch memory of each thread.
inline int64_t winograd_elements(const TapConv& t, const WinogradShape& s, int threads) {
  return t.p->groups * s.weights + round_up(t.p->n * s.tile_rows, 64) / 4 + threads * round_up(s.scratch, 16);
}

template <typename T>
int64_t workspace_bytes(const TapConv& t, int threads) {
  int64_t elements = direct_elements<T>(t, threads);
  if (winograd_serves<T>(t)) elements += winograd_elements(t, winograd_shape(t, tap_axes(t, 0)), threads);
  return elements * static_cast<int64_t>(sizeof(Acc<T>));
}

// ---- one call ------------------------------------------------------------------------------------

template <typename T>
struct Call {
  using A = Acc<T>;
  const TapConv& t;
  const T* source;
  T* result;
  const A* bias;            // [group][padded channel]
  int64_t channels_stride;  // of bias
};

// ---- NCHW ----------------------------------------------------------------------------------------

// B[k][column] for k in [k0, k1) and the positions [begin, end) of image n. What depends on the run of
// positions and on the tap alone is worked out once for all channels.
template <typename T>
void gather_plane_block(const Call<T>& call, const TapAxes& a, int64_t n, int64_t g, int64_t begin,
                        int64_t end, int64_t k0, int64_t k1, Acc<T>* b) {
  using A = Acc<T>;
  const TapConv& t = call.t;
  const int64_t taps = tap_count(a), plane = volume(t.source);
  const T* image = call.source + (n * t.p->groups + g) * t.inner * plane;
  const int64_t k_channel = tap_fastest(t) ? taps : 1, k_tap = tap_fastest(t) ? 1 : t.inner;
  for_each_run(a, begin, end, [&](const Run& run) {
    for (int64_t j = 0; j < taps; ++j) {
      // The channels i for which k = i · k_channel + j · k_tap is in the block.
      const int64_t i0 = imax(0, ceil_div(k0 - j * k_tap, k_channel));
      const int64_t i1 = imin(t.inner, ceil_div(k1 - j * k_tap, k_channel));
      if (i0 >= i1) continue;
      const Tap tap = tap_at(t, a, j);
      const int64_t d = source_at(a.d, run.d, tap.d), h = source_at(a.h, run.h, tap.h);
      const bool in = inside(a.d, d) && inside(a.h, h);
      const Range r = in ? grid_inside(a.w, tap.w, run.w, run.w + run.count) : Range{run.w, run.w};
      const T* from = image + (d * t.source.h + h) * t.source.w + source_at(a.w, r.begin, tap.w);
      for (int64_t i = i0; i < i1; ++i) {
        A* to = b + (i * k_channel + j * k_tap - k0) * kPlaneStride<A> + run.column;
        zero_row(to, r.begin - run.w);
        copy_row(from + i * plane, a.w.step, to + (r.begin - run.w), r.end - r.begin);
        zero_row(to + (r.end - run.w), run.w + run.count - r.end);
      }
    }
  });
  const int64_t used = end - begin, width = round_up(used, kTileColumns<A>);
  for (int64_t k = 0; k < k1 - k0 && used < width; ++k)
    zero_row(b + k * kPlaneStride<A> + used, width - used);
}

// Result channels [o0, o1) of group g, image n, positions [begin, end) of the grid.
template <typename T>
void plane_tile(const Call<T>& call, const TapAxes& a, const Acc<T>* weights, int64_t n, int64_t g,
                int64_t begin, int64_t end, int64_t o0, int64_t o1, Acc<T>* scratch, Acc<T>* sums) {
  using A = Acc<T>;
  const TapConv& t = call.t;
  const int64_t depth = tap_count(a) * t.inner, columns = end - begin, plane = volume(t.result);
  T* result = call.result + ((n * t.p->groups + g) * t.outer + o0) * plane;
  const bool direct = sums_in_result<T>(a);
  A* c = direct ? reinterpret_cast<A*>(result) + begin : sums;
  const int64_t c_stride = direct ? plane : kPlaneStride<A>;

  for (int64_t k0 = 0; k0 < imax(depth, 1); k0 += kTileDepth<A>) {
    const int64_t k1 = imin(k0 + kTileDepth<A>, depth);
    gather_plane_block(call, a, n, g, begin, end, k0, k1, scratch);
    for (int64_t j = 0; j < columns; j += kTileColumns<A>) {
      const int64_t width = imin(kTileColumns<A>, columns - j), vectors = ceil_div(width, kLanes<A>);
      for (int64_t o = o0; o < o1; o += kTileRows) {
        with_tile(imin(kTileRows, o1 - o), vectors, [&](auto rows, auto vecs) {
          constexpr int R = decltype(rows)::value, V = decltype(vecs)::value;
          Tile<R, V, A> tile;
          RowSet<A> a_rows;
          A* to[R];
          for (int m = 0; m < R; ++m) {
            a_rows.rows[m] = weights + (o + m) * depth + k0;
            to[m] = c + (o - o0 + m) * c_stride + j;
          }
          tile.multiply(a_rows, 1, scratch + j, kPlaneStride<A>, k1 - k0);
          const A* bias = call.bias + g * call.channels_stride + o;
          tile.add_to(to, k0 == 0, direct ? width - (V - 1) * kLanes<A> : kLanes<A>,
                      [&](int m, int) { return broadcast(bias[m]); });
        });
      }
    }
  }
  if (direct) return;
  for (int64_t o = o0; o < o1; ++o)
    for_each_run(a, begin, end, [&](const Run& run) {
      T* to = result + (o - o0) * plane +
              (result_at(a.d, run.d) * t.result.h + result_at(a.h, run.h)) * t.result.w +
              result_at(a.w, run.w);
      write_row<T>(sums + (o - o0) * kPlaneStride<A> + run.column, to, a.w.out_step, run.count);
    });
}

// ---- channels_last -------------------------------------------------------------------------------

// Where padding points to: channels of a position outside the source.
template <typename A>
alignas(64) const A kZeros[kTileDepth<A>] = {};

// Positions [begin, end) of the grid, counted over all images; result channels [o0, o1) of group g.
template <typename T>
void row_tile(const Call<T>& call, const TapAxes& a, const Acc<T>* weights, int64_t g, int64_t begin,
              int64_t end, int64_t o0, int64_t o1, Acc<T>* scratch, Acc<T>* sums) {
  using A = Acc<T>;
  const TapConv& t = call.t;
  const int64_t taps = tap_count(a), depth = taps * t.inner, count = end - begin;
  const int64_t source_channels = t.p->groups * t.inner, result_channels = t.p->groups * t.outer;
  const bool gathered = kNarrow<T> || t.inner < kMinDirectChannels;

  // The tile's positions.
  int64_t image[kRowPositions], gd[kRowPositions], gh[kRowPositions], gw[kRowPositions];
  T* to[kRowPositions];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = (begin + i) % grid_size(a);
    image[i] = (begin + i) / grid_size(a);
    gw[i] = at % a.w.grid, gh[i] = at / a.w.grid % a.h.grid, gd[i] = at / a.w.grid / a.h.grid;
    to[i] =
        call.result +
        (((image[i] * t.result.d + result_at(a.d, gd[i])) * t.result.h + result_at(a.h, gh[i])) * t.result.w +
         result_at(a.w, gw[i])) *
            result_channels +
        g * t.outer;
  }

  // k in blocks: several taps with all channels, or one tap with some of them.
  const int64_t channels_per_block = imin(t.inner, kTileDepth<A>);
  const int64_t taps_per_block =
      channels_per_block < t.inner
          ? 1
          : imin(imax(kTileDepth<A> / imax(t.inner, 1), 1), gathered ? kTileDepth<A> : kMaxTapsPerBlock);
  for (int64_t tap0 = 0; tap0 < imax(taps, 1); tap0 += taps_per_block)
    for (int64_t i0 = 0; i0 < imax(t.inner, 1); i0 += channels_per_block) {
      const int64_t tap1 = imin(tap0 + taps_per_block, taps), i1 = imin(i0 + channels_per_block, t.inner);
      const int64_t channels = i1 - i0, k0 = tap0 * t.inner + i0;
      const bool first = tap0 == 0 && i0 == 0;

      const A* row[kMaxTapsPerBlock][kRowPositions];
      for (int64_t tap = tap0, next; tap < tap1; tap = next) {
        // Taps next to each other along W are next to each other in memory, where nothing lies between
        // their channels: they are gathered together.
        const Tap at = tap_at(t, a, tap);
        const bool together = gathered && a.w.off_step == 1 && channels == source_channels;
        next = together ? imin(tap1, tap + a.w.taps - at.w) : tap + 1;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t d = source_at(a.d, gd[i], at.d), h = source_at(a.h, gh[i], at.h),
                        w = source_at(a.w, gw[i], at.w);
          const bool in = inside(a.d, d) && inside(a.h, h);
          // Taps [from, to) of these lie inside.
          const int64_t first_in = in ? imin(imax(0, -w), next - tap) : 0;
          const int64_t end_in = in ? imax(first_in, imin(next - tap, a.w.source - w)) : 0;
          const T* from =
              call.source +
              (((image[i] * t.source.d + d) * t.source.h + h) * t.source.w + w + first_in) * source_channels +
              g * t.inner + i0;
          if (!gathered) {
            row[tap - tap0][i] = first_in < end_in ? reinterpret_cast<const A*>(from) : kZeros<A>;
          } else {
            A* gather = scratch + i * kRowStride<A> + (tap - tap0) * channels;
            zero_row(gather, first_in * channels);
            copy_row(from, 1, gather + first_in * channels, (end_in - first_in) * channels);
            zero_row(gather + end_in * channels, (next - tap - end_in) * channels);
          }
        }
      }

      for (int64_t o = o0; o < o1; o += kTileColumns<A>) {
        const int64_t width = imin(kTileColumns<A>, o1 - o), vectors = ceil_div(width, kLanes<A>);
        const A* panel = weights + o / kTileColumns<A> * depth * kTileColumns<A> + k0 * kTileColumns<A>;
        for (int64_t m0 = 0; m0 < count; m0 += kTileRows) {
          with_tile(imin(kTileRows, count - m0), vectors, [&](auto rows, auto vecs) {
            constexpr int R = decltype(rows)::value, V = decltype(vecs)::value;
            Tile<R, V, A> tile;
            RowSet<A> a_rows;
            if (gathered) {
              for (int m = 0; m < R; ++m) a_rows.rows[m] = scratch + (m0 + m) * kRowStride<A>;
              tile.multiply(a_rows, 1, panel, kTileColumns<A>, (tap1 - tap0) * channels);
            } else {
              for (int64_t tap = tap0; tap < tap1; ++tap) {
                for (int m = 0; m < R; ++m) a_rows.rows[m] = row[tap - tap0][m0 + m];
                tile.multiply(a_rows, 1, panel + (tap - tap0) * channels * kTileColumns<A>, kTileColumns<A>,
                              channels);
              }
            }
            A* c[R];
            for (int m = 0; m < R; ++m)
              c[m] = kNarrow<T> ? sums + (m0 + m) * kPlaneStride<A> + (o - o0)
                                : reinterpret_cast<A*>(to[m0 + m] + o);
            const A* bias = call.bias + g * call.channels_stride + o;
            tile.add_to(c, first, kNarrow<T> ? kLanes<A> : width - (V - 1) * kLanes<A>,
                        [&](int, int v) { return load(bias + v * kLanes<A>); });
          });
        }
      }
    }
  if (kNarrow<T>)
    for (int64_t i = 0; i < count; ++i) write_row<T>(sums + i * kPlaneStride<A>, to[i] + o0, 1, o1 - o0);
}

// ---- both ----------------------------------------------------------------------------------------

// marks: null, or of each image's pairs of result rows which ones are wanted.
template <typename T>
void run_direct(const Call<T>& call, const T* w, Acc<T>* memory, const uint8_t* marks, int threads) {
  using A = Acc<T>;
  const TapConv& t = call.t;
  const Workspace sizes = workspace<T>(t);
  A* packed = memory + round_up(sizes.bias, 16);
  A* scratch = packed + round_up(sizes.weights, 16);
  const bool last = t.p->channels_last;

  int64_t weights_before = 0;
  for (int64_t phase = 0; phase < phases(t); ++phase) {
    const TapAxes a = tap_axes(t, phase);
    const int64_t depth = tap_count(a) * t.inner, positions = grid_size(a);
    const int64_t group_size = depth * (last ? call.channels_stride : t.outer);
    const bool as_they_are = weights_as_they_are<T>(t);
    const A* weights = as_they_are ? reinterpret_cast<const A*>(w) : packed + weights_before;
    if (positions == 0) continue;
    if (!as_they_are) {
      const int64_t block = kTileColumns<A>, blocks = ceil_div(t.outer, block);
      parallel_for(threads, t.p->groups * blocks, depth * block, [&](int64_t task, int) {
        const int64_t g = task / blocks, o = task % blocks * block;
        pack_weights(t, a, w + weight_group(t, g), packed + weights_before + g * group_size, o,
                     imin(o + block, t.outer));
      });
    }
    const Division div = divide<T>(t, a);
    // Positions [begin, end) of image n (channels_last: counted over all images).
    const auto compute = [&](int64_t n, int64_t g, int64_t begin, int64_t end, int64_t part, int slot) {
      const int64_t o0 = part * div.channels, o1 = imin(o0 + div.channels, t.outer);
      A* mine = scratch + slot * round_up(sizes.scratch, 16);
      if (last)
        row_tile(call, a, weights + g * group_size, g, begin, end, o0, o1, mine, mine + sizes.sums);
      else
        plane_tile(call, a, weights + g * group_size, n, g, begin, end, o0, o1, mine, mine + sizes.sums);
    };
    const int64_t work = div.channels * imax(depth, 1) / 8;
    if (marks != nullptr) {
      const int64_t pair = 2 * a.w.grid, pairs = ceil_div(positions, pair);
      parallel_for(threads, t.p->n * pairs, pair * work, [&](int64_t task, int slot) {
        if (marks[task] == 0) return;
        const int64_t n = task / pairs, image = last ? n * positions : 0;
        const int64_t end = imin((task % pairs + 1) * pair, positions);
        for (int64_t at = task % pairs * pair; at < end; at += div.tile)
          for (int64_t g = 0; g < t.p->groups; ++g)
            for (int64_t part = 0; part < div.parts; ++part)
              compute(n, g, image + at, image + imin(at + div.tile, end), part, slot);
      });
      continue;
    }
    const int64_t range = last ? t.p->n * positions : positions, images = last ? 1 : t.p->n;
    const int64_t tiles = ceil_div(range, div.tile), tasks = images * t.p->groups * tiles * div.parts;
    parallel_for(threads, tasks, div.tile * work, [&](int64_t task, int slot) {
      const int64_t part = task % div.parts, tile = task / div.parts % tiles,
                    g = task / div.parts / tiles % t.p->groups, n = task / div.parts / tiles / t.p->groups;
      compute(n, g, tile * div.tile, imin((tile + 1) * div.tile, range), part, slot);
    });
    weights_before += t.p->groups * group_size;
  }
}

template <typename T>
void run_winograd(const Call<T>& call, const T* w, float* direct, float* memory, int threads) {
  const TapConv& t = call.t;
  const TapAxes a = tap_axes(t, 0);
  const WinogradShape s = winograd_shape(t, a);
  const int64_t rows = t.p->n * s.tile_rows;
  float* u = memory;
  uint8_t* marks = reinterpret_cast<uint8_t*>(u + t.p->groups * s.weights);
  float* scratch = u + t.p->groups * s.weights + round_up(rows, 64) / 4;

  // Whole panels: what is beyond the last channel is zero.
  const int64_t block = kLanes<float>, blocks = round_up(t.outer, kTileColumns<float>) / block;
  parallel_for(threads, t.p->groups * blocks, block * t.inner * 16, [&](int64_t task, int) {
    const int64_t g = task / blocks;
    winograd_weights(t, a, s, w + weight_group(t, g), task % blocks * block, u + g * s.weights);
  });
  std::fill(marks, marks + rows, uint8_t{0});
  const Winograd<T> winograd = {t, a, s, call.source, call.result, call.bias, call.channels_stride, marks};
  const int64_t tiles = rows * s.tile_columns, tasks = t.p->groups * s.blocks * s.parts;
  parallel_for(threads, tasks, s.tiles * s.outer * t.inner * 2, [&](int64_t task, int slot) {
    const int64_t part = task % s.parts, tile = task / s.parts % s.blocks, g = task / s.parts / s.blocks;
    winograd.block(g, tile * s.tiles, imin((tile + 1) * s.tiles, tiles), part * s.outer,
                   imin((part + 1) * s.outer, t.outer), u + g * s.weights,
                   scratch + slot * round_up(s.scratch, 16));
  });
  if (std::any_of(marks, marks + rows, [](uint8_t mark) { return mark != 0; }))
    run_direct(call, w, direct, marks, threads);
}

template <typename T>
void run(const TapConv& t, const T* source, const T* w, const T* bias, T* result, Acc<T>* memory,
         int threads) {
  using A = Acc<T>;
  const int64_t padded = round_up(t.outer, kTileColumns<A>);
  for (int64_t i = 0; i < t.p->groups * padded; ++i)
    memory[i] =
        bias != nullptr && i % padded < t.outer ? to_acc(bias[i / padded * t.outer + i % padded]) : A(0);
  const Call<T> call = {t, source, result, memory, padded};
  if constexpr (std::is_same<A, float>::value)
    if (winograd_serves<T>(t))
      return run_winograd(call, w, memory, memory + direct_elements<T>(t, threads), threads);
  run_direct(call, w, memory, nullptr, threads);
}

void run_typed(const ConvParams& p, bool input_grad, const void* source, const void* w, const void* bias,
               void* result, void* memory, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const TapConv t = tap_conv(p, input_grad);
    const auto call = [&](const TapConv& images, const T* from, T* to, Acc<T>* rest) {
      run(images, from, static_cast<const T*>(w), static_cast<const T*>(bias), to, rest, threads);
    };
    const auto through = pays_inside(t) ? run_inside<T, decltype(call)> : run_as_it_is<T, decltype(call)>;
    through(t, static_cast<const T*>(source), static_cast<T*>(result), static_cast<Acc<T>*>(memory), threads,
            call);
  });
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

int64_t workspace_typed(const ConvParams& p, bool input_grad, int threads) {
  int64_t bytes = 0;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const TapConv t = tap_conv(p, input_grad);
    if (!pays_inside(t)) {
      bytes = workspace_bytes<T>(t, threads);
      return;
    }
    const Inside inside = channels_last_inside(t);
    bytes = inside_elements<T>(inside) * static_cast<int64_t>(sizeof(Acc<T>)) +
            workspace_bytes<T>(tap_conv(inside.p, input_grad), threads);
  });
  return bytes;
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
