// Batch normalisation on the CPU: statistics, and the forward with what may be fused to it.
//
// Notation, per channel with m elements: μ mean, r = invstd. Squares are summed about the mean, never as
// differences of raw moments.
#include <cmath>

#include "batch_norm_common.h"
#include "dispatch.h"

namespace fastops {
namespace cpu {
namespace {

// ---- statistics --------------------------------------------------------------------------------

// Mean and sum of squared deviations of a set; merging two sets is Chan's update.
struct Moments {
  double n = 0, mean = 0, m2 = 0;
  void merge(const Moments& o) {
    if (o.n == 0) return;
    if (n == 0) {
      *this = o;
      return;
    }
    const double delta = o.mean - mean, share = o.n / (n + o.n);
    mean += delta * share;
    m2 += o.m2 + delta * delta * (n * share);
    n += o.n;
  }
};

// A block is read twice, the second time from the cache: first for its mean, then for the squares about
// it. Both are relative to the block's first element, which keeps digits where the mean is large, and
// makes a constant block exact.
template <typename T>
Moments plane_moments(const T* x, const PlaneBlock& b) {
  using A = Acc<T>;
  const A shift = to_acc(x[b.offset]);
  const double n = static_cast<double>(b.planes * b.count);
  Sums<A, 1, 4> sum;
  for (int64_t i = 0; i < b.planes; ++i)
    for_vectors<4, A>(b.count, [&, plane = x + b.offset + i * b.stride](int64_t j, auto way, auto part) {
      sum.v[way.value][0] += part.keep(part.load(plane + j) - shift);
    });
  const A mean = static_cast<A>(sum.total(0) / n);
  Sums<A, 1, 4> squares;
  for (int64_t i = 0; i < b.planes; ++i)
    for_vectors<4, A>(b.count, [&, plane = x + b.offset + i * b.stride](int64_t j, auto way, auto part) {
      const Vec<A> d = part.keep((part.load(plane + j) - shift) - mean);
      squares.v[way.value][0] += d * d;
    });
  return {n, static_cast<double>(shift) + static_cast<double>(mean), squares.total(0)};
}

// The same for a block of rows. Leaves three tables: the shift, the mean relative to it, the squares.
template <typename T>
void row_moments(const BatchNormSplit& s, const RowBlock& b, const T* x, Acc<T>* shift) {
  using A = Acc<T>;
  A *const mean = shift + s.stride, *const squares = shift + 2 * s.stride;
  for (int64_t j = 0; j < 3 * s.stride; ++j) shift[j] = 0;
  const bool only_short = b.begin + b.short_rows == b.end;
  for_row<A>(only_short ? b.rest : s.width,
             [&](int64_t j, auto part) { store(shift + j, part.load(x + b.begin * s.width + j)); });
  for_rows<A>(s, b, [&](int64_t offset, int64_t j, auto part) {
    store(mean + j, load(mean + j) + part.keep(part.load(x + offset) - load(shift + j)));
  });
  const A scale = A(1) / static_cast<A>(imax(b.count(0), 1));
  const A scale_rest = A(1) / static_cast<A>(imax(b.count(s.width), 1));
  for (int64_t j = 0; j < b.rest; ++j) mean[j] *= scale;
  for (int64_t j = b.rest; j < s.width; ++j) mean[j] *= scale_rest;
  for_rows<A>(s, b, [&](int64_t offset, int64_t j, auto part) {
    const Vec<A> d = part.keep((part.load(x + offset) - load(shift + j)) - load(mean + j));
    store(squares + j, load(squares + j) + d * d);
  });
}

// Merges the entries [begin, end) of a block of rows into the running (mean, m2) of `seen` elements.
template <typename A>
void merge_rows(const BatchNormSplit& s, const A* shift, double* mean, double* m2, int64_t begin, int64_t end,
                double seen, double count) {
  if (count == 0) return;
  const double share = count / (seen + count), weight = seen * share;
  const A *const relative = shift + s.stride, *const squares = shift + 2 * s.stride;
  if (seen == 0) {
    for (int64_t j = begin; j < end; ++j) {
      mean[j] = static_cast<double>(shift[j]) + static_cast<double>(relative[j]);
      m2[j] = static_cast<double>(squares[j]);
    }
    return;
  }
  for (int64_t j = begin; j < end; ++j) {
    const double delta = (static_cast<double>(shift[j]) + static_cast<double>(relative[j])) - mean[j];
    mean[j] += delta * share;
    m2[j] += static_cast<double>(squares[j]) + delta * delta * weight;
  }
}

// finish(c, moments) for every channel.
template <typename T, typename Finish>
void channel_moments(const BatchNormParams& p, const T* x, void* workspace, int threads, Finish finish) {
  using A = Acc<T>;
  const BatchNormSplit s = batch_norm_split(p);
  const Workspace<A> w(workspace, s, 3, 0);
  if (!p.channels_last) {
    double* const partial = static_cast<double*>(w.partials);  // (c, blocks, 3)
    parallel_for(threads, p.c * s.blocks, 2 * s.planes * s.piece, [&](int64_t task, int) {
      const Moments block = plane_moments(x, plane_block(p, s, task / s.blocks, task % s.blocks));
      partial[3 * task] = block.n;
      partial[3 * task + 1] = block.mean;
      partial[3 * task + 2] = block.m2;
    });
    for (int64_t c = 0; c < p.c; ++c) {
      Moments all;
      for (const double *b = partial + 3 * c * s.blocks, *end = b + 3 * s.blocks; b < end; b += 3)
        all.merge({b[0], b[1], b[2]});
      finish(c, all);
    }
    return;
  }
  A* const partial = static_cast<A*>(w.partials);  // (blocks, 3, stride)
  parallel_for(threads, s.blocks, 2 * s.rows * s.width, [&](int64_t task, int) {
    row_moments(s, row_block(p, s, task), x, partial + 3 * task * s.stride);
  });
  double *const mean = w.totals, *const m2 = mean + s.stride;
  constexpr int64_t chunk = 512;
  parallel_for(threads, ceil_div(s.width, chunk), chunk * s.blocks, [&](int64_t task, int) {
    const int64_t begin = task * chunk, end = imin(begin + chunk, s.width);
    for (int64_t i = 0; i < s.blocks; ++i) {
      const RowBlock b = row_block(p, s, i);
      const int64_t rest = imax(begin, imin(end, b.rest));
      const double seen = static_cast<double>(b.begin);
      const A* const table = partial + 3 * i * s.stride;
      merge_rows(s, table, mean, m2, begin, rest, seen, static_cast<double>(b.count(0)));
      merge_rows(s, table, mean, m2, rest, end, seen, static_cast<double>(b.count(s.width)));
    }
  });
  const RowBlock last = row_block(p, s, s.blocks - 1);
  for (int64_t c = 0; c < p.c; ++c) {
    Moments all;
    for (int64_t j = c; j < s.width; j += p.c)
      all.merge({static_cast<double>(last.begin + last.count(j)), mean[j], m2[j]});
    finish(c, all);
  }
}

// ---- forward -----------------------------------------------------------------------------------

template <typename T, bool relu, bool add>
void apply(const BatchNormParams& p, const BatchNormSplit& s, const Acc<T>* tables, const T* x,
           const T* residual, T* y, int threads) {
  using A = Acc<T>;
  map_channels<T, 3>(p, s, tables, threads, [=](int64_t i, const Vec<A>* k, auto part) {
    const Vec<A> z = pre_activation<T, add>(x, residual, i, k, part);
    part.store(y + i, relu ? through_relu<T>(z, z) : z);
  });
}

}  // namespace

// ---- launchers ---------------------------------------------------------------------------------

template <>
void batch_norm_stats<kIsa>(const BatchNormParams& p, const void* x, void* running_mean, void* running_var,
                            void* mean, void* invstd, void* workspace, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const DType dtype = p.param_dtype;
    const auto write = [&](int64_t c, double mu, double variance) {
      static_cast<A*>(mean)[c] = static_cast<A>(mu);
      static_cast<A*>(invstd)[c] = static_cast<A>(1 / std::sqrt(variance + p.eps));
    };
    if (!p.training || elements(p) == 0) {  // of an empty batch nothing is learnt
      for (int64_t c = 0; c < p.c; ++c)
        write(c, get(dtype, running_mean, c, 0), get(dtype, running_var, c, 1));
      return;
    }
    channel_moments(p, static_cast<const T*>(x), workspace, threads, [&](int64_t c, const Moments& all) {
      write(c, all.mean, all.m2 / all.n);
      const double keep = 1 - p.momentum, unbiased = all.m2 / (all.n - 1);
      set(dtype, running_mean, c, keep * get(dtype, running_mean, c, 0) + p.momentum * all.mean);
      set(dtype, running_var, c, keep * get(dtype, running_var, c, 0) + p.momentum * unbiased);
    });
  });
}

template <>
void batch_norm_apply<kIsa>(const BatchNormParams& p, const void* x, const void* weight, const void* bias,
                            const void* mean, const void* invstd, const void* residual, void* y,
                            void* workspace, int threads) {
  if (elements(p) == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const BatchNormSplit s = batch_norm_split(p);
    const Workspace<Acc<T>> w(workspace, s, 0, 3);
    pre_activation_tables(p, s, weight, bias, mean, invstd, w.tables);
    dispatch_flag(p.relu, [&](auto relu) {
      dispatch_flag(residual != nullptr, [&](auto add) {
        apply<T, relu.value, add.value>(p, s, w.tables, static_cast<const T*>(x),
                                        static_cast<const T*>(residual), static_cast<T*>(y), threads);
      });
    });
  });
}

template <>
void batch_norm<kIsa>(const BatchNormParams& p, const void* x, const void* weight, const void* bias,
                      void* running_mean, void* running_var, const void* residual, void* mean, void* invstd,
                      void* y, void* workspace, int threads) {
  batch_norm_stats<kIsa>(p, x, running_mean, running_var, mean, invstd, workspace, threads);
  batch_norm_apply<kIsa>(p, x, weight, bias, mean, invstd, residual, y, workspace, threads);
}

}  // namespace cpu
}  // namespace fastops
