// Weight gradient of a convolution on the CPU.
//
//   dw[o][i][tap] = Σ_position dy[o][position] · x[i][position · stride + offset(tap)]
//
// A matrix product whose depth is the positions of all images, taken in blocks: rows are result channels,
// columns "lines", the pairs (tap, i) in the order in which dw has them, of which x makes the im2col matrix.
// One panel of it at a time is packed, in words (words.h) of one or two positions; per block and task dy
// is, once. What is contiguous differs:
//   NCHW: positions. Rows of dy are copied; those of x as well, and then transposed.
//   channels_last: channels. Both are packed position by position.
// Small weights are also split over the positions; the partial sums are added in a fixed order.
#include <atomic>

#include "../conv.h"
#include "conv_depthwise.h"
#include "conv_weight_grad_lines.h"
#include "conv_weights.h"
#include "conv_winograd_weight_grad.h"
#include "parallel.h"

namespace fastops {
namespace cpu {
namespace {

// Positions of a block: as deep as a tile goes.
template <typename W>
constexpr int64_t kPositions = kBlockDepth<W>;
// Words from one copied row to the next: an odd number of cache lines.
template <typename W>
constexpr int64_t kRowStride = kTileDepth<Acc<W>> + 64 / static_cast<int64_t>(sizeof(W));
// dy of one task and block: 256 channels × 256 words × 4 bytes = 256 KiB, in L2; where there are fewer
// positions, more channels.
constexpr int64_t kResultChannels = 256;
// Lines of one task. A packed word of dy (one step of work) is used by this many lines; at 8
// multiplications a step, 384 make packing about 2 % of the work.
constexpr int64_t kLines = 384;
// Enough tasks for the threads of a desktop: fewer are split over the positions.
constexpr int64_t kMinTasks = 16;

// How a call is divided; a pure function of the params.
struct Division {
  int64_t rows, columns;            // of the product, per group
  int64_t row_chunk, column_chunk;  // of one task
  int64_t row_chunks, column_chunks;
  int64_t padded;  // columns, to full panels
  int64_t blocks;  // of positions
  int64_t splits;  // of blocks
  int64_t blocks_per_split;
  bool writes;  // tasks write dw themselves: there is one split, and the lines are in dw's order
};
template <typename W>
Division divide(const TapConv& t, const TapAxes& a) {
  const ConvParams& p = *t.p;
  constexpr int64_t nr = kTileColumns<Acc<W>>;
  const int64_t positions = p.n * grid_size(a);
  const int64_t words = imax(1, imin(ceil_div(positions, kPerWord<W>), kTileDepth<Acc<W>>));
  Division d;
  d.rows = t.outer;
  d.columns = tap_count(a) * t.inner;
  d.row_chunk =
      imin(round_up(d.rows, kTileRows), round_up(kResultChannels * kTileDepth<Acc<W>> / words, kTileRows));
  d.column_chunk = imin(round_up(d.columns, nr), round_up(kLines, nr));
  d.row_chunks = ceil_div(d.rows, d.row_chunk);
  d.column_chunks = ceil_div(d.columns, d.column_chunk);
  d.padded = round_up(d.columns, nr);
  d.blocks = ceil_div(positions, kPositions<W>);
  const int64_t tasks = imax(1, p.groups * d.row_chunks * d.column_chunks);
  d.splits = imax(1, imin(d.blocks, ceil_div(kMinTasks, tasks)));
  d.blocks_per_split = ceil_div(d.blocks, d.splits);
  d.writes = d.splits == 1 && d.blocks > 0 && (!p.channels_last || p.weight_channels_last);
  return d;
}

int64_t partial_words(const TapConv& t, const Division& d) {
  const bool none = d.writes && d.blocks == 1;
  return none ? 0 : round_up(d.splits * t.p->groups * d.rows * d.padded, 16);
}
// Of one thread: packed dy, then a panel of x, then rows of either before they are rearranged.
template <typename W>
struct Scratch {
  W* dy;
  W* panel;
  Element<W>* rows;
};
template <typename W>
int64_t dy_words(const Division& d) {
  // Vector stores of dy may reach past its last word.
  return round_up(kRowStride<W> * d.row_chunk + kLanes<Acc<W>>, 16);
}
template <typename W>
int64_t scratch_words(const Division& d) {
  constexpr int64_t nr = kTileColumns<Acc<W>>;
  return dy_words<W>(d) + kTileDepth<Acc<W>> * nr + kRowStride<W> * nr;
}

template <typename T, typename W>
struct Call {
  const TapConv& t;
  const TapAxes& a;
  const Order order;  // of lines
  const T* dy;
  const T* x;
  T* dw;
};

// channels_last: to[word][column] = words of the rows of consecutive positions, from(position), of which a
// word has one or two, for `count` columns and zeros in the surplus of the last vector; rows have whole
// vectors of elements.
template <typename T, typename W, typename From>
__attribute__((always_inline)) inline void pack_positions(int64_t depth, int64_t count, W* to, int64_t stride,
                                                          From from) {
  constexpr int64_t L = kLanes<Acc<W>>, P = kPerWord<W>;
  alignas(64) static constexpr T zeros[kTileColumns<Acc<W>>] = {};
  for (int64_t i = 0; i < depth; i += P, to += stride) {
    const T* first = from(i);
    if constexpr (P == 1) {
      for (int64_t u = 0; u < count; u += L) store(to + u, load(first + u));
    } else {
      const T* second = i + 1 < depth ? from(i + 1) : zeros;
      for (int64_t u = 0; u < count; u += L) pair_rows(first + u, second + u, to + u);
    }
  }
}

// dy of result channels [o0, o1) of group g, positions [begin, end). NCHW: to[o][word of positions], rows
// kRowStride apart. channels_last: to[o / 6][word of positions][o % 6].
template <typename T, typename W>
void pack_dy(const Call<T, W>& call, int64_t g, int64_t o0, int64_t o1, int64_t begin, int64_t end, W* to) {
  using E = Element<W>;
  constexpr int64_t P = kPerWord<W>, L = kLanes<Acc<W>>;
  const TapConv& t = call.t;
  const int64_t plane = volume(t.result), channels = t.outer * t.p->groups;
  const int64_t depth = end - begin, words = ceil_div(depth, P);
  if (!t.p->channels_last) {
    for (int64_t o = o0; o < o1; ++o) {
      E* row = reinterpret_cast<E*>(to + (o - o0) * kRowStride<W>);
      for (int64_t at = begin; at < end;) {
        const int64_t n = at / plane, first = at % plane, stretch = imin(plane - first, end - at);
        copy_row(call.dy + ((n * t.p->groups + g) * t.outer + o) * plane + first, 1, row + (at - begin),
                 stretch);
        at += stretch;
      }
      zero_row(row + depth, words * P - depth);
    }
    return;
  }
  for (int64_t o = o0; o < o1; o += kTileRows) {
    // Whole vectors, each overwriting the surplus lanes of the one before. Those that would reach past the
    // tensor are read from copies.
    constexpr int64_t lanes = (kTileRows + L - 1) / L * L;
    const T* from = call.dy + begin * channels + g * t.outer + o;
    const int64_t left = t.p->n * plane * channels - (from - call.dy);
    const int64_t safe = left < lanes ? 0 : imin(depth, (left - lanes) / channels + 1);
    T copies[lanes][lanes];
    for (int64_t i = safe; i < depth; ++i)
      copy_elements(from + i * channels, copies[i - safe], imin(kTileRows, o1 - o));
    pack_positions<T>(depth, kTileRows, to + (o - o0) * words, kTileRows,
                      [&](int64_t i) { return i < safe ? from + i * channels : copies[i - safe]; });
  }
}

// A line as a place in x: that of the first position, and its tap.
struct Line {
  Tap tap;
  int64_t channel;
};
template <typename T, typename W>
Line line_at(const Call<T, W>& call, int64_t line) {
  const bool by_tap = call.order.channel == 1;
  const int64_t unit = by_tap ? call.t.inner : tap_count(call.a);
  return {tap_at(call.t, call.a, by_tap ? line / unit : line % unit), by_tap ? line % unit : line / unit};
}

// NCHW: the panel to[word of positions][line − line0].
template <typename T, typename W>
void pack_x_planes(const Call<T, W>& call, int64_t g, int64_t line0, int64_t line1, int64_t begin,
                   int64_t end, W* to, Element<W>* rows) {
  constexpr int64_t P = kPerWord<W>, nr = kTileColumns<Acc<W>>, stride = kRowStride<W> * P;
  const TapConv& t = call.t;
  const TapAxes& a = call.a;
  const int64_t plane = volume(t.source), words = ceil_div(end - begin, P);
  Line lines[nr];
  for (int64_t l = 0; l < line1 - line0; ++l) lines[l] = line_at(call, line0 + l);
  for_each_image_run(a, begin, end, [&](int64_t n, const Run& run) {
    const T* image = call.x + (n * t.p->groups + g) * t.inner * plane;
    for (int64_t l = 0; l < line1 - line0; ++l) {
      const Tap& tap = lines[l].tap;
      const int64_t d = source_at(a.d, run.d, tap.d), h = source_at(a.h, run.h, tap.h);
      const bool in = inside(a.d, d) && inside(a.h, h);
      const Range r = in ? grid_inside(a.w, tap.w, run.w, run.w + run.count) : Range{run.w, run.w};
      const T* from = image + lines[l].channel * plane + (d * t.source.h + h) * t.source.w +
                      source_at(a.w, r.begin, tap.w);
      Element<W>* row = rows + l * stride + run.column;
      zero_row(row, r.begin - run.w);
      copy_row(from, a.w.step, row + (r.begin - run.w), r.end - r.begin);
      zero_row(row + (r.end - run.w), run.w + run.count - r.end);
    }
  });
  for (int64_t l = 0; l < line1 - line0; ++l)
    zero_row(rows + l * stride + end - begin, words * P - (end - begin));
  transpose_words(rows, stride, line1 - line0, words, to, nr);
}

// channels_last: the same panel. Lines of one tap, or, where taps next to each other along W are next to
// each other in memory, of one row of the kernel are contiguous.
template <typename T, typename W>
void pack_x_rows(const Call<T, W>& call, int64_t g, int64_t line0, int64_t line1, int64_t begin, int64_t end,
                 W* to, Element<W>* rows) {
  constexpr int64_t L = kLanes<Acc<W>>, nr = kTileColumns<Acc<W>>;
  alignas(64) static constexpr T zeros[nr] = {};
  const TapConv& t = call.t;
  const TapAxes& a = call.a;
  const int64_t channels = t.inner * t.p->groups;
  const bool vectors = t.inner % L == 0;  // then pieces have whole vectors, and are read where they lie
  const bool together = !vectors && t.p->groups == 1 && a.w.off_step == 1;
  constexpr bool words = std::is_same_v<T, W>;  // then copies are the panel
  T* copies = reinterpret_cast<T*>(words ? static_cast<void*>(to) : rows);
  for (int64_t line = line0; line < line1;) {
    const Line at = line_at(call, line);
    const int64_t tap = at.tap.w, taps = together ? a.w.taps - tap : 1;  // at most
    const int64_t count = imin(line1 - line, taps * t.inner - at.channel);
    const T* from[kPositions<W>];
    for_each_image_run(a, begin, end, [&](int64_t n, const Run& run) {
      const int64_t d = source_at(a.d, run.d, at.tap.d), h = source_at(a.h, run.h, at.tap.h);
      const bool in = inside(a.d, d) && inside(a.h, h);
      const T* row =
          call.x + ((n * t.source.d + d) * t.source.h + h) * t.source.w * channels + g * t.inner + at.channel;
      for (int64_t i = 0; i < run.count; ++i) {
        const int64_t w = source_at(a.w, run.w + i, tap);
        const T* here = row + w * channels;
        if (vectors) {
          from[run.column + i] = in && inside(a.w, w) ? here : zeros;
          continue;
        }
        T* copy = copies + (run.column + i) * nr + (line - line0);
        // Of its elements those of taps inside.
        const int64_t before = -w * t.inner - at.channel, after = before + a.w.source * t.inner;
        if (in && before <= 0 && after >= count) {
          copy_elements(here, copy, count);
          continue;
        }
        const int64_t first = imin(count, imax(0, before)), last = in ? imin(count, after) : 0;
        if (first >= last) {
          zero_row(copy, count);
          continue;
        }
        zero_row(copy, first);
        copy_elements(here + first, copy + first, last - first);
        zero_row(copy + last, count - last);
      }
    });
    if (vectors)
      pack_positions<T>(end - begin, count, to + (line - line0), nr, [&](int64_t i) { return from[i]; });
    line += count;
  }
  if (vectors) return;
  const int64_t used = line1 - line0;
  for (int64_t i = 0; i < end - begin && used % L != 0; ++i)
    zero_row(copies + i * nr + used, round_up(used, L) - used);
  if (!words) pack_positions<T>(end - begin, used, to, nr, [&](int64_t i) { return copies + i * nr; });
}

// dw, or partial[row][column], of one task over its blocks of positions.
template <typename T, typename W>
void run_task(const Call<T, W>& call, const Division& div, int64_t g, int64_t row0, int64_t column0,
              int64_t split, Acc<W>* partial, const Scratch<W>& scratch) {
  using A = Acc<W>;
  constexpr int64_t nr = kTileColumns<A>;
  const TapConv& t = call.t;
  const bool last = t.p->channels_last;
  const int64_t positions = t.p->n * grid_size(call.a);
  const int64_t row1 = imin(row0 + div.row_chunk, div.rows);
  const int64_t column1 = imin(column0 + div.column_chunk, div.columns);
  const int64_t block0 = split * div.blocks_per_split,
                block1 = imin(block0 + div.blocks_per_split, div.blocks);
  T* dw = call.dw + weight_group(t, g);
  for (int64_t block = block0; block < block1; ++block) {
    const int64_t begin = block * kPositions<W>, end = imin(begin + kPositions<W>, positions);
    const int64_t words = ceil_div(end - begin, kPerWord<W>);
    pack_dy(call, g, row0, row1, begin, end, scratch.dy);
    for (int64_t column = column0; column < column1; column += nr) {
      const int64_t count = imin(nr, column1 - column), vectors = ceil_div(count, kLanes<A>);
      if (last)
        pack_x_rows(call, g, column, column + count, begin, end, scratch.panel, scratch.rows);
      else
        pack_x_planes(call, g, column, column + count, begin, end, scratch.panel, scratch.rows);
      const W* row[kTileRows];
      TileTask<T, W> task = {};
      task.rows = row, task.segments = 1, task.step = last ? kTileRows : 1, task.depth = words;
      task.panel = scratch.panel, task.panel_stride = nr;
      task.first = block == block0, task.last = div.writes && block + 1 == block1;
      task.sum_lanes = kLanes<A>, task.out_lanes = count - (vectors - 1) * kLanes<A>;
      for (int64_t o = row0; o < row1; o += kTileRows) {
        const int64_t rows = imin(kTileRows, row1 - o);
        for (int64_t m = 0; m < rows; ++m) {
          row[m] = scratch.dy + (last ? (o - row0) * words + m : (o - row0 + m) * kRowStride<W>);
          task.sums[m] = partial + (o + m) * div.padded + column;
          task.out[m] = dw + (o + m) * t.w_outer + column;
        }
        run_tile(rows, vectors, task);
      }
    }
  }
}

// dw = Σ_split partial. A task writes one result channel.
template <typename T, typename W>
void reduce(const Call<T, W>& call, const Division& div, const Acc<W>* partial, int threads) {
  using A = Acc<W>;
  constexpr int64_t L = kLanes<A>;
  const TapConv& t = call.t;
  const int64_t used = div.blocks == 0 ? 0 : ceil_div(div.blocks, div.blocks_per_split);
  const int64_t group = div.rows * div.padded, groups = t.p->groups;
  const bool in_order = !t.p->channels_last || t.p->weight_channels_last;
  parallel_for(threads, groups * t.outer, div.columns * (used + 1), [&](int64_t task, int) {
    const int64_t g = task / t.outer, o = task % t.outer;
    T* to = call.dw + weight_group(t, g) + o * t.w_outer;
    for (int64_t line = 0; line < div.columns; line += L) {
      const int64_t count = imin(L, div.columns - line);
      Vec<A> sum{};
      for (int64_t s = 0; s < used; ++s)
        sum += load(partial + (s * groups + g) * group + o * div.padded + line);
      if (in_order && count == L)
        store(to + line, sum);
      else if (in_order)
        store_first(to + line, sum, count);
      else
        for (int64_t l = 0; l < count; ++l)
          to[(line + l) % t.inner * t.w_inner + (line + l) / t.inner * t.w_tap] = from_acc<T>(sum[l]);
    }
  });
}

template <typename T, typename W>
void run(const ConvParams& p, const T* dy, const T* x, T* dw, void* memory, int threads) {
  using A = Acc<T>;
  static_assert(sizeof(A) == sizeof(W), "the workspace counts both");
  const TapConv t = tap_conv(p, false);
  const TapAxes a = merge_rows(tap_axes(t, 0));
  const Division div = divide<W>(t, a);
  A* partial = static_cast<A*>(memory);  // [split][group][row][column]
  W* scratch = static_cast<W*>(memory) + partial_words(t, div);
  const Call<T, W> call = {t, a, order_of<A>(t, a), dy, x, dw};

  const int64_t chunks = div.row_chunks * div.column_chunks;
  const int64_t depth = imin(div.blocks_per_split * kPositions<W>, p.n * grid_size(a));
  const int64_t work = depth * imin(div.row_chunk, div.rows) * imin(div.column_chunk, div.columns) / 8;
  if (div.blocks > 0)
    parallel_for(threads, div.splits * p.groups * chunks, work, [&](int64_t task, int slot) {
      const int64_t chunk = task % chunks, g = task / chunks % p.groups, split = task / chunks / p.groups;
      W* mine = scratch + slot * scratch_words<W>(div);
      W* panel = mine + dy_words<W>(div);
      W* rows = panel + kTileDepth<A> * kTileColumns<A>;
      run_task(call, div, g, chunk / div.column_chunks * div.row_chunk,
               chunk % div.column_chunks * div.column_chunk, split,
               partial + (split * p.groups + g) * div.rows * div.padded,
               Scratch<W>{mine, panel, reinterpret_cast<Element<W>*>(rows)});
    });
  if (!div.writes) reduce(call, div, partial, threads);
}

}  // namespace

template <>
int64_t conv_weight_grad_workspace<kIsa>(const ConvParams& p, int threads) {
  if (weight_grad_of_few_channels(p)) return depthwise_weight_grad_workspace<kIsa>(p, threads);
  int64_t bytes = 0;
  dispatch_words(p.dtype, [&](auto type, auto word) {
    using W = typename decltype(word)::type;
    const TapConv t = tap_conv(p, false);
    const Division d = divide<W>(t, merge_rows(tap_axes(t, 0)));
    int64_t words = partial_words(t, d) + threads * scratch_words<W>(d);
    if (sums_lines<typename decltype(type)::type, W>(p)) words = imax(words, line_words<Acc<W>>(p, threads));
    if (winograd_weight_grad_serves<W>(p))
      words = imax(words, winograd_weight_grad_words<typename decltype(type)::type>(p, threads));
    bytes = words * static_cast<int64_t>(sizeof(W));
  });
  return bytes;
}

template <>
void conv_weight_grad<kIsa>(const ConvParams& p, const void* dy, const void* x, void* dw, void* db,
                            void* workspace, int threads) {
  if (db != nullptr) conv_bias_grad<kIsa>(p, dy, db, threads);
  if (weight_grad_of_few_channels(p)) return depthwise_weight_grad<kIsa>(p, dy, x, dw, workspace, threads);
  dispatch_words(p.dtype, [&](auto type, auto word) {
    using T = typename decltype(type)::type;
    using W = typename decltype(word)::type;
    const T *from_dy = static_cast<const T*>(dy), *from_x = static_cast<const T*>(x);
    T* to = static_cast<T*>(dw);
    if constexpr (std::is_same_v<T, W>)
      if (sums_lines<T, W>(p)) return run_lines(p, from_dy, from_x, to, workspace, threads);
    if constexpr (std::is_same_v<W, float>)
      if (winograd_weight_grad_serves<W>(p) &&
          run_winograd_weight_grad(p, from_dy, from_x, to, workspace, threads))
        return;
    run<T, W>(p, from_dy, from_x, to, workspace, threads);
  });
}

template <>
int64_t conv_backward_workspace<kIsa>(const ConvParams& p, int threads) {
  return imax(conv_input_grad_workspace<kIsa>(p, threads), conv_weight_grad_workspace<kIsa>(p, threads));
}

template <>
void conv_backward<kIsa>(const ConvParams& p, const void* dy, const void* x, const void* w, void* dx,
                         void* dw, void* db, void* workspace, int threads) {
  conv_input_grad<kIsa>(p, dy, w, nullptr, dx, workspace, threads);
  conv_weight_grad<kIsa>(p, dy, x, dw, db, workspace, threads);
}

}  // namespace cpu
}  // namespace fastops
