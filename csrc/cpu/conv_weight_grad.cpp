// Weight and bias gradient of a convolution on the CPU.
//
//   dw[o][i][tap] = Σ_position dy[o][position] · x[i][position · stride + offset(tap)]
//
// A matrix product whose depth is the positions of all images, taken in blocks. One side is the result
// channels o; the other, "lines", are the pairs (tap, i), channel fastest: the im2col matrix, of which
// six rows or one panel at a time are packed. Per block and task dy is packed once.
//   NCHW: rows are lines (positions are contiguous, so rows of x copy), columns result channels.
//   channels_last: rows are result channels, columns lines (channels are contiguous).
// Small weights are also split over the positions; the partial sums are added in a fixed order.
#include "../conv.h"
#include "conv_depthwise.h"
#include "dispatch.h"
#include "gemm.h"
#include "parallel.h"
#include "tap_conv.h"

namespace fastops {
namespace cpu {
namespace {

// Positions of a block: as deep as a tile goes.
template <typename A>
constexpr int64_t kPositions = kTileDepth<A>;
// Rows of x (NCHW) are an odd number of cache lines apart.
template <typename A>
constexpr int64_t kRowStride = kPositions<A> + 64 / static_cast<int64_t>(sizeof(A));
// dy of one task and block: 128 channels × 256 positions × 4 bytes = 128 KiB, in L2.
constexpr int64_t kResultChannels = 128;
// Lines of one task. A packed element of dy (one step of work) is used by this many lines; at 8
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
};
template <typename A>
Division divide(const TapConv& t, const TapAxes& a) {
  const ConvParams& p = *t.p;
  const int64_t nr = kTileColumns<A>, lines = tap_count(a) * t.inner;
  Division d;
  d.rows = p.channels_last ? t.outer : lines;
  d.columns = p.channels_last ? lines : t.outer;
  d.row_chunk =
      imin(round_up(d.rows, kTileRows), round_up(p.channels_last ? kResultChannels : kLines, kTileRows));
  d.column_chunk = imin(round_up(d.columns, nr), round_up(p.channels_last ? kLines : kResultChannels, nr));
  d.row_chunks = ceil_div(d.rows, d.row_chunk);
  d.column_chunks = ceil_div(d.columns, d.column_chunk);
  d.padded = round_up(d.columns, nr);
  d.blocks = ceil_div(p.n * grid_size(a), kPositions<A>);
  const int64_t tasks = imax(1, p.groups * d.row_chunks * d.column_chunks);
  d.splits = imax(1, imin(d.blocks, ceil_div(kMinTasks, tasks)));
  d.blocks_per_split = ceil_div(d.blocks, d.splits);
  return d;
}

int64_t partial_elements(const TapConv& t, const Division& d) {
  return round_up(d.splits * t.p->groups * d.rows * d.padded, 16);
}
// Of one thread: packed dy, then packed x.
template <typename A>
int64_t scratch_elements(const Division& d, bool channels_last) {
  // Vector stores of dy may reach past its last element.
  const int64_t dy = kPositions<A> * (channels_last ? d.row_chunk : d.column_chunk) + kLanes<A>;
  const int64_t x = channels_last ? kPositions<A> * kTileColumns<A> : kTileRows * kRowStride<A>;
  return round_up(dy, 16) + round_up(x, 16);
}

template <typename T>
struct Call {
  const TapConv& t;
  const TapAxes& a;
  const T* dy;
  const T* x;
};

// dy of result channels [o0, o1) of group g, positions [begin, end):
// to[o / unit][position][o % unit], zeros past the last channel.
template <typename T>
void pack_dy(const Call<T>& call, int64_t g, int64_t o0, int64_t o1, int64_t begin, int64_t end, int64_t unit,
             Acc<T>* to) {
  const TapConv& t = call.t;
  const int64_t plane = volume(t.result), channels = t.outer * t.p->groups, depth = end - begin;
  for (int64_t o = o0; o < o1; o += unit) {
    Acc<T>* out = to + (o - o0) * depth;
    const int64_t count = imin(unit, o1 - o);
    if (t.p->channels_last) {
      // Whole vectors, each overwriting the surplus lanes of the one before; one by one where a vector
      // would reach past the tensor.
      const T* from = call.dy + begin * channels + g * t.outer + o;
      const T* past = call.dy + t.p->n * plane * channels;
      constexpr int64_t L = kLanes<Acc<T>>;
      const int64_t lanes = round_up(count, L);
      for (int64_t i = 0; i < depth; ++i, from += channels)
        if (past - from >= lanes)
          for (int64_t u = 0; u < lanes; u += L) store(out + i * unit + u, load(from + u));
        else
          for (int64_t u = 0; u < count; ++u) out[i * unit + u] = to_acc(from[u]);
    } else {
      for (int64_t u = 0; u < count; ++u)
        for (int64_t at = begin; at < end;) {
          const int64_t n = at / plane, first = at % plane, stretch = imin(plane - first, end - at);
          const T* from = call.dy + ((n * t.p->groups + g) * t.outer + o + u) * plane + first;
          for (int64_t i = 0; i < stretch; ++i) out[(at - begin + i) * unit + u] = to_acc(from[i]);
          at += stretch;
        }
    }
    for (int64_t i = 0; i < depth && count < unit; ++i) zero_row(out + i * unit + count, unit - count);
  }
}

// NCHW: to[line - line0][position] = x, for lines of one tap: channels [i0, i1).
template <typename T>
void pack_x_rows(const Call<T>& call, const Tap& tap, int64_t g, int64_t i0, int64_t i1, int64_t begin,
                 int64_t end, Acc<T>* to) {
  const TapConv& t = call.t;
  const TapAxes& a = call.a;
  const int64_t plane = volume(t.source);
  for_each_image_run(a, begin, end, [&](int64_t n, const Run& run) {
    const int64_t d = source_at(a.d, run.d, tap.d), h = source_at(a.h, run.h, tap.h);
    const bool in = inside(a.d, d) && inside(a.h, h);
    const Range r = in ? grid_inside(a.w, tap.w, run.w, run.w + run.count) : Range{run.w, run.w};
    const int64_t place = (d * t.source.h + h) * t.source.w + source_at(a.w, r.begin, tap.w);
    for (int64_t i = i0; i < i1; ++i) {
      Acc<T>* row = to + (i - i0) * kRowStride<Acc<T>> + run.column;
      zero_row(row, r.begin - run.w);
      copy_row(call.x + ((n * t.p->groups + g) * t.inner + i) * plane + place, a.w.step,
               row + (r.begin - run.w), r.end - r.begin);
      zero_row(row + (r.end - run.w), run.w + run.count - r.end);
    }
  });
}

// channels_last: to[position][line - line0] = x, for lines of one tap: channels [i0, i1).
template <typename T>
void pack_x_columns(const Call<T>& call, const Tap& tap, int64_t g, int64_t i0, int64_t i1, int64_t begin,
                    int64_t end, Acc<T>* to) {
  const TapConv& t = call.t;
  const TapAxes& a = call.a;
  const int64_t channels = t.inner * t.p->groups, nr = kTileColumns<Acc<T>>;
  for_each_image_run(a, begin, end, [&](int64_t n, const Run& run) {
    const int64_t d = source_at(a.d, run.d, tap.d), h = source_at(a.h, run.h, tap.h);
    const bool in = inside(a.d, d) && inside(a.h, h);
    const Range r = in ? grid_inside(a.w, tap.w, run.w, run.w + run.count) : Range{run.w, run.w};
    const T* from =
        call.x +
        (((n * t.source.d + d) * t.source.h + h) * t.source.w + source_at(a.w, r.begin, tap.w)) * channels +
        g * t.inner + i0;
    Acc<T>* out = to + run.column * nr;
    for (int64_t w = run.w; w < run.w + run.count; ++w, out += nr)
      if (w >= r.begin && w < r.end)
        copy_row(from + (w - r.begin) * a.w.step * channels, 1, out, i1 - i0);
      else
        zero_row(out, i1 - i0);
  });
}

// Six rows or one panel of lines [line0, line1): pieces of one tap each.
template <typename T>
void pack_x(const Call<T>& call, int64_t g, int64_t line0, int64_t line1, int64_t begin, int64_t end,
            Acc<T>* to) {
  const TapConv& t = call.t;
  for (int64_t line = line0; line < line1;) {
    const int64_t i0 = line % t.inner, i1 = imin(t.inner, i0 + line1 - line);
    const Tap tap = tap_at(t, call.a, line / t.inner);
    if (t.p->channels_last)
      pack_x_columns(call, tap, g, i0, i1, begin, end, to + (line - line0));
    else
      pack_x_rows(call, tap, g, i0, i1, begin, end, to + (line - line0) * kRowStride<Acc<T>>);
    line += i1 - i0;
  }
}

// partial[row][column] of one task over its blocks of positions.
template <typename T>
void run_task(const Call<T>& call, const Division& div, int64_t g, int64_t row0, int64_t column0,
              int64_t split, Acc<T>* partial, Acc<T>* scratch) {
  using A = Acc<T>;
  const TapConv& t = call.t;
  const bool last = t.p->channels_last;
  const int64_t nr = kTileColumns<A>, positions = t.p->n * grid_size(call.a);
  const int64_t row1 = imin(row0 + div.row_chunk, div.rows);
  const int64_t column1 = imin(column0 + div.column_chunk, div.columns);
  A* dy = scratch;
  A* x = scratch + round_up(kPositions<A> * (last ? div.row_chunk : div.column_chunk) + kLanes<A>, 16);

  for (int64_t block = split * div.blocks_per_split; block < (split + 1) * div.blocks_per_split; ++block) {
    const int64_t begin = block * kPositions<A>, end = imin(begin + kPositions<A>, positions);
    if (begin >= end) break;
    const int64_t depth = end - begin;
    const bool first = block == split * div.blocks_per_split;
    pack_dy(call, g, last ? row0 : column0, last ? row1 : column1, begin, end, last ? kTileRows : nr, dy);

    // One tile: rows[m][k · row_step] times the panel.
    const auto multiply = [&](int64_t row, int64_t column, const A* rows, int64_t row_stride,
                              int64_t row_step, const A* panel) {
      const int64_t vectors = ceil_div(imin(nr, column1 - column), kLanes<A>);
      const int64_t count = imin(kTileRows, row1 - row);
      const A* at[kTileRows];
      TileTask<A, A> task = {};
      for (int64_t m = 0; m < count; ++m) {
        at[m] = rows + m * row_stride;
        task.sums[m] = partial + (row + m) * div.padded + column;
      }
      task.rows = at, task.segments = 1, task.step = row_step, task.depth = depth;
      task.panel = panel, task.panel_stride = nr;
      task.first = first, task.sum_lanes = kLanes<A>;
      run_tile(count, vectors, task);
    };

    if (last) {
      for (int64_t column = column0; column < column1; column += nr) {
        const int64_t count = imin(nr, column1 - column);
        for (int64_t i = 0; i < depth && count < nr; ++i) zero_row(x + i * nr + count, nr - count);
        pack_x(call, g, column, column + count, begin, end, x);
        for (int64_t row = row0; row < row1; row += kTileRows)
          multiply(row, column, dy + (row - row0) * depth, 1, kTileRows, x);
      }
    } else {
      for (int64_t row = row0; row < row1; row += kTileRows) {
        pack_x(call, g, row, imin(row + kTileRows, row1), begin, end, x);
        for (int64_t column = column0; column < column1; column += nr)
          multiply(row, column, x, kRowStride<A>, 1, dy + (column - column0) * depth);
      }
    }
  }
}

template <typename T>
void run(const ConvParams& p, const T* dy, const T* x, T* dw, Acc<T>* memory, int threads) {
  using A = Acc<T>;
  const TapConv t = tap_conv(p, false);
  const TapAxes a = tap_axes(t, 0);
  const Division div = divide<A>(t, a);
  const int64_t taps = tap_count(a), group = div.rows * div.padded;
  A* partial = memory;  // [split][group][row][column]
  A* scratch = memory + partial_elements(t, div);
  const int64_t scratch_size = scratch_elements<A>(div, p.channels_last);
  const Call<T> call = {t, a, dy, x};

  const int64_t chunks = div.row_chunks * div.column_chunks;
  if (div.blocks > 0)
    parallel_for(threads, div.splits * p.groups * chunks,
                 div.blocks_per_split * kPositions<A> * div.row_chunk * div.column_chunk / 8,
                 [&](int64_t task, int slot) {
                   const int64_t chunk = task % chunks, g = task / chunks % p.groups,
                                 split = task / chunks / p.groups;
                   run_task(call, div, g, chunk / div.column_chunks * div.row_chunk,
                            chunk % div.column_chunks * div.column_chunk, split,
                            partial + (split * p.groups + g) * group, scratch + slot * scratch_size);
                 });

  // dw = Σ_split partial. A task writes one result channel (channels_last), or as many as a vector of
  // columns has (NCHW).
  const int64_t used = div.blocks == 0 ? 0 : ceil_div(div.blocks, div.blocks_per_split);
  constexpr int64_t L = kLanes<A>;
  const bool last = p.channels_last;
  const int64_t step = last ? 1 : L, tasks = ceil_div(t.outer, step);
  parallel_for(threads, p.groups * tasks, step * taps * t.inner * (used + 1), [&](int64_t task, int) {
    const int64_t g = task / tasks, o = task % tasks * step;
    const A* from = partial + g * group + (last ? o * div.padded : o);
    T* to = dw + weight_group(t, g) + o * t.w_outer;
    // One vector: lanes are channels of x (channels_last) or result channels (NCHW).
    const auto reduce = [&](int64_t tap, int64_t i) {
      const int64_t line = tap * t.inner + i;
      const int64_t count = last ? imin(L, t.inner - i) : imin(L, t.outer - o);
      Vec<A> sum{};
      for (int64_t s = 0; s < used; ++s)
        sum += load_first(from + s * p.groups * group + line * (last ? 1 : div.padded), count);
      T* out = to + i * t.w_inner + tap * t.w_tap;
      for (int64_t l = 0; l < count; ++l) out[l * (last ? t.w_inner : t.w_outer)] = from_acc<T>(sum[l]);
    };
    const int64_t i_step = last ? L : 1;
    if (t.w_tap < t.w_inner)
      for (int64_t i = 0; i < t.inner; i += i_step)
        for (int64_t tap = 0; tap < taps; ++tap) reduce(tap, i);
    else
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t i = 0; i < t.inner; i += i_step) reduce(tap, i);
  });
}

// Sums in vectors of short runs; the runs are added up in fp64, so that terms which cancel across runs,
// images and lanes cost no digits.
constexpr int64_t kBiasRun = 16;

template <typename A>
using WideSum = typename VectorOf<double, kLanes<A>>::type;

template <typename T>
void run_bias_grad(const ConvParams& p, const T* dy, T* db, int threads) {
  using A = Acc<T>;
  constexpr int64_t L = kLanes<A>;
  const int64_t plane = volume(p.out), positions = p.n * plane;
  if (p.channels_last) {  // one vector of channels a task
    parallel_for(threads, ceil_div(p.k, L), positions, [&](int64_t block, int) {
      const int64_t k = block * L, count = imin(L, p.k - k);
      WideSum<A> total{};
      for (int64_t i0 = 0; i0 < positions; i0 += kBiasRun) {
        Vec<A> sum{};
        const int64_t i1 = imin(i0 + kBiasRun, positions);
        if (count == L)
          for (int64_t i = i0; i < i1; ++i) sum += load(dy + i * p.k + k);
        else
          for (int64_t i = i0; i < i1; ++i) sum += load_first(dy + i * p.k + k, count);
        total += __builtin_convertvector(sum, WideSum<A>);
      }
      for (int64_t l = 0; l < count; ++l) db[k + l] = from_acc<T>(static_cast<A>(total[l]));
    });
    return;
  }
  parallel_for(threads, p.k, positions / L, [&](int64_t k, int) {
    WideSum<A> lanes{};
    double total = 0;
    for (int64_t n = 0; n < p.n; ++n) {
      const T* from = dy + (n * p.k + k) * plane;
      int64_t i = 0;
      while (i + L <= plane) {
        Vec<A> s0{}, s1{};
        const int64_t end = imin(plane, i + 2 * L * kBiasRun);
        for (; i + 2 * L <= end; i += 2 * L) s0 += load(from + i), s1 += load(from + i + L);
        for (; i + L <= end; i += L) s0 += load(from + i);
        lanes += __builtin_convertvector(s0 + s1, WideSum<A>);
        if (end == plane) break;
      }
      for (; i < plane; ++i) total += static_cast<double>(to_acc(from[i]));
    }
    for (int64_t l = 0; l < L; ++l) total += lanes[l];
    db[k] = from_acc<T>(static_cast<A>(total));
  });
}

}  // namespace

template <>
int64_t conv_weight_grad_workspace<kIsa>(const ConvParams& p, int threads) {
  if (is_depthwise(p) && short_spans(p)) return depthwise_weight_grad_workspace<kIsa>(p, threads);
  int64_t bytes = 0;
  dispatch_floating(p.dtype, [&](auto type) {
    using A = Acc<typename decltype(type)::type>;
    const TapConv t = tap_conv(p, false);
    const TapAxes a = tap_axes(t, 0);
    const Division d = divide<A>(t, a);
    bytes = (partial_elements(t, d) + threads * scratch_elements<A>(d, p.channels_last)) *
            static_cast<int64_t>(sizeof(A));
  });
  return bytes;
}

template <>
void conv_bias_grad<kIsa>(const ConvParams& p, const void* dy, void* db, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run_bias_grad(p, static_cast<const T*>(dy), static_cast<T*>(db), threads);
  });
}

template <>
void conv_weight_grad<kIsa>(const ConvParams& p, const void* dy, const void* x, void* dw, void* db,
                            void* workspace, int threads) {
  if (db != nullptr) conv_bias_grad<kIsa>(p, dy, db, threads);
  if (is_depthwise(p) && short_spans(p)) return depthwise_weight_grad<kIsa>(p, dy, x, dw, workspace, threads);
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    run(p, static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dw),
        static_cast<Acc<T>*>(workspace), threads);
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
