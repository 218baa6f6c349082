// Batch normalisation on the CPU: statistics, forward, backward, and the gradients of backward.
//
// Notation, per channel with m elements: μ mean, r = invstd, x̂ = (x − μ)·r, w weight, b bias.
// Sums over a channel are kept centred, Σ dy·(x − μ), never as differences of raw moments.
//
// backward, training.  y = w·x̂ + b, and ∂x̂ᵢ/∂xⱼ = r·(δᵢⱼ − 1/m − x̂ᵢ·x̂ⱼ/m), so with the symmetric operator
//   P z = z − Σz/m − x̂·Σ(z·x̂)/m
//   dx = w·r·P dy,  dw = D = Σ dy·x̂,  db = S = Σ dy.
// In evaluation μ and r are constants: dx = w·r·dy.
//
// double_backward.  L = ⟨g, dx⟩ + u·dw + v·db with g = ddx, u = ddw, v = ddb. With Q = ⟨g, P dy⟩
// = F − S·G/m − D·E/m, where F = Σ g·dy, G = Σ g, E = Σ g·x̂:  L = w·r·Q + u·D + v·S.
//   gdy = ∂L/∂dy = w·r·P g + u·x̂ + v            (P is symmetric)
//   gw  = ∂L/∂w  = r·Q
//   gx: L depends on x through x̂ and through r.
//     t = ∂L/∂x̂ = −(w·r/m)·(E·dy + D·g) + u·dy, which reaches x as r·P t
//     ∂L/∂r = w·Q, and ∂r/∂xᵢ = −r²·x̂ᵢ/m
//     gx = r·P t − (w·r²·Q/m)·x̂, where Σt = −(w·r/m)·(E·S + D·G) + u·S, Σ t·x̂ = −2·(w·r/m)·D·E + u·D
// In evaluation: gdy = w·r·g + u·x̂ + v, gw = r·F, gx = u·r·dy.
// So every output is a sum of dy, g, x − μ and 1 with coefficients that belong to the channel.
#include <cmath>
#include <stdexcept>

#include "channelwise.h"
#include "dispatch.h"

namespace fastops {
namespace cpu {
namespace {

// ---- per-channel values ------------------------------------------------------------------------

// Parameters, running statistics and their gradients, in a dtype of their own.
double get(DType dtype, const void* values, int64_t c, double if_null) {
  if (values == nullptr) return if_null;
  switch (dtype) {
    case DType::kF64:
      return static_cast<const double*>(values)[c];
    case DType::kF32:
      return static_cast<double>(static_cast<const float*>(values)[c]);
    case DType::kF16:
      return static_cast<double>(to_acc(static_cast<const Half*>(values)[c]));
    default:
      return static_cast<double>(to_acc(static_cast<const BFloat16*>(values)[c]));
  }
}

void set(DType dtype, void* values, int64_t c, double v) {
  if (values == nullptr) return;
  switch (dtype) {
    case DType::kF64:
      static_cast<double*>(values)[c] = v;
      return;
    case DType::kF32:
      static_cast<float*>(values)[c] = static_cast<float>(v);
      return;
    case DType::kF16:
      static_cast<Half*>(values)[c] = from_acc<Half>(static_cast<float>(v));
      return;
    default:
      static_cast<BFloat16*>(values)[c] = from_acc<BFloat16>(static_cast<float>(v));
  }
}

// The parts of a workspace, as batch_norm_workspace() counts them.
template <typename A>
struct Workspace {
  A* tables;       // `tables` coefficients of each entry
  double* totals;  // `sums` totals of each channel
  void* partials;
  Workspace(void* memory, const BatchNormSplit& s, int sums, int tables_) {
    double* const base = static_cast<double*>(memory);
    tables = reinterpret_cast<A*>(base);
    totals = base + tables_ * s.stride;
    partials = totals + sums * s.stride;
  }
};

// Coefficients of channel c are in place; repeats them for the entries that stand for the same channel.
template <typename A>
void fold(const BatchNormParams& p, const BatchNormSplit& s, A* tables, int count) {
  for (int k = 0; k < count; ++k)
    for (int64_t j = p.c; j < s.width; ++j) tables[k * s.stride + j] = tables[k * s.stride + j - p.c];
}

double elements(const BatchNormParams& p) { return static_cast<double>(p.n * volume(p.in)); }

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
  for_rows<A, kRowsAtOnce>(s, b, [&](int64_t offset, int64_t j, auto part, auto rows) {
    const Vec<A> about = load(shift + j);
    Vec<A> v{};
    for (int row = 0; row < rows.value; ++row) v += part.keep(part.load(x + offset + row * s.width) - about);
    store(mean + j, load(mean + j) + v);
  });
  const A scale = A(1) / static_cast<A>(imax(b.count(0), 1));
  const A scale_rest = A(1) / static_cast<A>(imax(b.count(s.width), 1));
  for (int64_t j = 0; j < b.rest; ++j) mean[j] *= scale;
  for (int64_t j = b.rest; j < s.width; ++j) mean[j] *= scale_rest;
  for_rows<A, kRowsAtOnce>(s, b, [&](int64_t offset, int64_t j, auto part, auto rows) {
    const Vec<A> about = load(shift + j), relative = load(mean + j);
    Vec<A> v{};
    for (int row = 0; row < rows.value; ++row) {
      const Vec<A> d = part.keep((part.load(x + offset + row * s.width) - about) - relative);
      v += d * d;
    }
    store(squares + j, load(squares + j) + v);
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
  if (p.relu || residual != nullptr) throw std::invalid_argument("fastops: not fused yet");
  if (elements(p) == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const BatchNormSplit s = batch_norm_split(p);
    const Workspace<A> w(workspace, s, 0, 3);
    for (int64_t c = 0; c < p.c; ++c) {
      const double r = static_cast<double>(static_cast<const A*>(invstd)[c]);
      w.tables[c] = static_cast<const A*>(mean)[c];
      w.tables[s.stride + c] = static_cast<A>(r * get(p.param_dtype, weight, c, 1));
      w.tables[2 * s.stride + c] = static_cast<A>(get(p.param_dtype, bias, c, 0));
    }
    fold(p, s, w.tables, 3);
    const T* const in = static_cast<const T*>(x);
    T* const out = static_cast<T*>(y);
    map_channels<T, 3>(p, s, w.tables, threads, [=](int64_t i, const Vec<A>* k, auto part) {
      part.store(out + i, (part.load(in + i) - k[0]) * k[1] + k[2]);
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

template <>
void batch_norm_backward<kIsa>(const BatchNormParams& p, const void* dy_, const void* x_, const void* weight,
                               const void* /*bias*/, const void* mean, const void* invstd,
                               const void* residual, void* dx_, void* dw, void* db, void* dresidual,
                               void* workspace, int threads) {
  if (p.relu || residual != nullptr || dresidual != nullptr)
    throw std::invalid_argument("fastops: not fused yet");
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const BatchNormSplit s = batch_norm_split(p);
    const Workspace<A> ws(workspace, s, 2, 4);
    const T *const dy = static_cast<const T*>(dy_), *const x = static_cast<const T*>(x_);
    T* const dx = static_cast<T*>(dx_);
    const double m = elements(p);
    for (int64_t j = 0; j < 2 * s.stride; ++j) ws.totals[j] = 0;
    for (int64_t c = 0; c < p.c; ++c) ws.tables[c] = static_cast<const A*>(mean)[c];
    fold(p, s, ws.tables, 1);
    if (m > 0 && ((p.training && dx) || dw))
      sum_channels<T, 2>(p, s, ws.tables, ws.totals, ws.partials, threads,
                         [=](int64_t i, Vec<A> mu, auto part, Vec<A>* v) {
                           const Vec<A> d = part.keep(part.load(dy + i));
                           v[0] += d;
                           v[1] += d * (part.load(x + i) - mu);
                         });
    else if (m > 0 && db)
      sum_channels<T, 1>(
          p, s, ws.tables, ws.totals, ws.partials, threads,
          [=](int64_t i, Vec<A>, auto part, Vec<A>* v) { v[0] += part.keep(part.load(dy + i)); });
    for (int64_t c = 0; c < p.c; ++c) {
      const double r = static_cast<double>(static_cast<const A*>(invstd)[c]);
      const double sum = ws.totals[c], dot = ws.totals[s.stride + c] * r;
      set(p.param_dtype, db, c, sum);
      set(p.param_dtype, dw, c, dot);
      const double scale = r * get(p.param_dtype, weight, c, 1);
      ws.tables[s.stride + c] = static_cast<A>(scale);
      ws.tables[2 * s.stride + c] = static_cast<A>(-scale * r * (dot / m));
      ws.tables[3 * s.stride + c] = static_cast<A>(-scale * (sum / m));
    }
    if (m == 0 || dx == nullptr) return;
    fold(p, s, ws.tables, 4);
    if (p.training)
      map_channels<T, 4>(p, s, ws.tables, threads, [=](int64_t i, const Vec<A>* k, auto part) {
        part.store(dx + i, part.load(dy + i) * k[1] + ((part.load(x + i) - k[0]) * k[2] + k[3]));
      });
    else
      map_channels<T, 1>(p, s, ws.tables + s.stride, threads, [=](int64_t i, const Vec<A>* k, auto part) {
        part.store(dx + i, part.load(dy + i) * k[0]);
      });
  });
}

template <>
void batch_norm_double_backward<kIsa>(const BatchNormParams& p, const void* mean, const void* invstd,
                                      const void* weight, const void* x_, const void* dy_, const void* ddx,
                                      const void* ddw, const void* ddb, void* gx_, void* gw, void* gdy_,
                                      void* workspace, int threads) {
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const BatchNormSplit s = batch_norm_split(p);
    const Workspace<A> ws(workspace, s, 5, 8);
    const T *const x = static_cast<const T*>(x_), *const dy = static_cast<const T*>(dy_);
    const T* const g = static_cast<const T*>(ddx);
    T *const gx = static_cast<T*>(gx_), *const gdy = static_cast<T*>(gdy_);
    const double m = elements(p);
    for (int64_t j = 0; j < 5 * s.stride; ++j) ws.totals[j] = 0;
    for (int64_t c = 0; c < p.c; ++c) ws.tables[c] = static_cast<const A*>(mean)[c];
    fold(p, s, ws.tables, 1);
    if (m > 0 && (p.training || gw))
      sum_channels<T, 5>(p, s, ws.tables, ws.totals, ws.partials, threads,
                         [=](int64_t i, Vec<A> mu, auto part, Vec<A>* v) {
                           const Vec<A> d = dy ? part.keep(part.load(dy + i)) : Vec<A>{};
                           const Vec<A> h = g ? part.keep(part.load(g + i)) : Vec<A>{};
                           const Vec<A> centred = x ? part.load(x + i) - mu : Vec<A>{};
                           v[0] += d;
                           v[1] += h;
                           v[2] += d * centred;
                           v[3] += h * centred;
                           v[4] += h * d;
                         });
    for (int64_t c = 0; c < p.c; ++c) {
      const double r = static_cast<double>(static_cast<const A*>(invstd)[c]);
      const double w = get(p.param_dtype, weight, c, 1), wr = w * r;
      const double u = get(p.param_dtype, ddw, c, 0), v = get(p.param_dtype, ddb, c, 0);
      double k[7] = {u * r, 0, 0, 0, wr, u * r, v};  // of dy, g, x − μ, 1 in gx; of g, x − μ, 1 in gdy
      double Q = ws.totals[4 * s.stride + c];
      if (p.training && m > 0) {
        const double S = ws.totals[c], G = ws.totals[s.stride + c];
        const double D = ws.totals[2 * s.stride + c] * r, E = ws.totals[3 * s.stride + c] * r;
        Q -= S * G / m + D * E / m;
        k[0] = r * (u - wr * E / m);
        k[1] = -r * wr * D / m;
        k[2] = -r * r * ((u * D - 2 * wr * D * E / m) / m) - wr * r * r * Q / m;
        k[3] = -r * (u * S - wr * (E * S + D * G) / m) / m;
        k[5] = u * r - wr * r * E / m;
        k[6] = v - wr * G / m;
      }
      set(p.param_dtype, gw, c, r * Q);
      for (int i = 0; i < 7; ++i) ws.tables[(i + 1) * s.stride + c] = static_cast<A>(k[i]);
    }
    if (m == 0 || (!gx && !gdy)) return;
    fold(p, s, ws.tables, 8);
    map_channels<T, 8>(p, s, ws.tables, threads, [=](int64_t i, const Vec<A>* k, auto part) {
      const Vec<A> d = dy ? part.load(dy + i) : Vec<A>{}, h = g ? part.load(g + i) : Vec<A>{};
      const Vec<A> centred = x ? part.load(x + i) - k[0] : Vec<A>{};
      if (gx) part.store(gx + i, d * k[1] + (h * k[2] + (centred * k[3] + k[4])));
      if (gdy) part.store(gdy + i, h * k[5] + (centred * k[6] + k[7]));
    });
  });
}

}  // namespace cpu
}  // namespace fastops
