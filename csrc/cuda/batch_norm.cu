// Batch normalisation on the GPU: statistics and the affine map. See slabs.h for how tensors are cut.
//
// batch_norm_stats: every block leaves count, mean and squares about the mean; a warp for each channel
// combines them. batch_norm_apply: one elementwise pass. batch_norm: both; or, where the slab of a channel
// fits into the shared memory of a block and there are enough blocks, one kernel that reads x once.
#include "normalise.h"
#include "resident.h"

namespace fastops {
namespace cuda {
namespace {

// ---- statistics ------------------------------------------------------------------------------------

// Count, mean and squares about the mean of a set.
template <typename A>
struct Moments {
  A n = 0, mean = 0, squares = 0;
  __device__ void merge(const Moments& o) {
    if (o.n == 0) return;
    if (n == 0) {
      *this = o;
      return;
    }
    const A delta = o.mean - mean, share = o.n / (n + o.n);
    mean = multiply_add(delta, share, mean);
    squares += multiply_add(delta * (n * share), delta, o.squares);
    n += o.n;
  }
};

// A batch of a thread is summed up about its own mean. All is relative to the block's first element, which
// keeps digits where the mean is large, and makes a constant channel exact.
template <typename T>
struct Statistics {
  using A = Acc<T>;
  using Item = Moments<A>;
  using Coefficients = A;  // the shift
  static constexpr int inputs = 1, sums = 3, batch = 4;
  const T* in[1];

  __device__ A coefficients(int64_t, int64_t first) const { return to_acc(in[0][first]); }

  template <int items, int per>
  __device__ void accumulate(A shift, const A (&x)[1][items][per], int valid, int seen, Item& all) const {
    const A count = static_cast<A>(valid * per), together = static_cast<A>(seen + valid * per);
    A sum = 0, squares = 0;
#pragma unroll
    for (int b = 0; b < items; ++b)
      if (b < valid) {
#pragma unroll
        for (int e = 0; e < per; ++e) sum += x[0][b][e] - shift;
      }
    const A mean = sum / count;
#pragma unroll
    for (int b = 0; b < items; ++b)
      if (b < valid) {
#pragma unroll
        for (int e = 0; e < per; ++e) {
          const A d = (x[0][b][e] - shift) - mean;
          squares = multiply_add(d, d, squares);
        }
      }
    // Chan's update, with what all channels of the thread have in common.
    const A share = count / together, weight = static_cast<A>(seen) * share, delta = mean - all.mean;
    all.n = together;
    all.mean = multiply_add(delta, share, all.mean);
    all.squares += multiply_add(delta * weight, delta, squares);  // weight 0 at first: no infinite delta²
  }

  __device__ void partial(A shift, const Item& all, double* out) const {
    out[0] = static_cast<double>(all.n);
    out[1] = static_cast<double>(shift) + static_cast<double>(all.mean);
    out[2] = static_cast<double>(all.squares);
  }
};

// Where the statistics of a channel go.
template <typename T>
struct StatisticsOut {
  using A = Acc<T>;
  A* mean;
  A* invstd;
  MutableParameter<T> running_mean, running_var;
  double momentum, eps;

  StatisticsOut(const BatchNormParams& p, void* mean_, void* invstd_, void* running_mean_, void* running_var_)
      : mean(static_cast<A*>(mean_)),
        invstd(static_cast<A*>(invstd_)),
        running_mean(p, running_mean_),
        running_var(p, running_var_),
        momentum(p.momentum),
        eps(p.eps) {}

  __device__ void set(int64_t c, double mu, double variance) const {
    mean[c] = static_cast<A>(mu);
    invstd[c] = static_cast<A>(1 / sqrt(variance + eps));
  }
  __device__ void of_batch(int64_t c, double n, double mu, double squares) const {
    set(c, mu, squares / n);
    const auto update = [&](const MutableParameter<T>& running, double v) {
      running.set(c, (1 - momentum) * static_cast<double>(running.get(c, 0)) + momentum * v);
    };
    update(running_mean, mu);
    update(running_var, squares / (n - 1));
  }
  __device__ void of_running(int64_t c) const {
    set(c, static_cast<double>(running_mean.get(c, 0)), static_cast<double>(running_var.get(c, 1)));
  }
};

template <typename T>
struct FinishStatistics {
  static constexpr int sums = 3;
  StatisticsOut<T> out;

  __device__ void operator()(const Parts<sums>& parts, int64_t c) const {
    const bool writes = threadIdx.x % 32 == 0;
    if (parts.splits == 0) {
      if (writes) out.of_running(c);
      return;
    }
    // About the mean of one of them, so that equal ones are exact.
    const double about = parts.any()[1];
    double n = 0, moment = 0, squares = 0;
    parts.for_each([&](const double* part) {
      n += part[0];
      moment += part[0] * (part[1] - about);
    });
    n = parts.over_warp(n);
    const double mean = about + parts.over_warp(moment) / n;
    parts.for_each([&](const double* part) {
      const double d = part[1] - mean;
      squares += part[2] + part[0] * d * d;
    });
    squares = parts.over_warp(squares);
    if (writes) out.of_batch(c, n, mean, squares);
  }
};

template <typename T>
void statistics(const BatchNormParams& p, const T* x, const StatisticsOut<T>& out, void* workspace,
                void* stream) {
  double* const partials = static_cast<double*>(workspace);
  Slabs s{};
  s.channels = p.c;  // of an empty batch nothing is learnt
  if (p.training && elements_of(p) > 0) {
    s = cut_to_reduce(p);
    reduce_channels<T, 16>("batch_norm_stats", s, Statistics<T>{{x}}, partials, stream);
  }
  finish_channels("batch_norm_stats", s, FinishStatistics<T>{out}, partials, stream);
}

// ---- the affine map --------------------------------------------------------------------------------

template <typename T>
struct Apply {
  using A = Acc<T>;
  using Coefficients = Affine<T>;
  static constexpr int inputs = 2, outputs = 1, batch = 2;
  const T* in[2];  // x, residual
  T* out[1];       // y
  AffineTables<T> tables;
  bool relu;

  __device__ Affine<T> coefficients(int64_t c) const { return tables.at(c); }
  __device__ void map(const Affine<T>& k, const A (&x)[2], T (&y)[1]) const {
    const T v = k(x[0], x[1]);
    y[0] = relu && cut_off(v) ? from_acc<T>(0) : v;
  }
};

template <typename T>
Apply<T> apply_op(const BatchNormParams& p, const void* x, const void* weight, const void* bias,
                  const void* mean, const void* invstd, const void* residual, void* y) {
  using A = Acc<T>;
  return {{static_cast<const T*>(x), static_cast<const T*>(residual)},
          {static_cast<T*>(y)},
          {static_cast<const A*>(mean), static_cast<const A*>(invstd), Parameter<T>(p, weight),
           Parameter<T>(p, bias)},
          p.relu};
}

// ---- both, with x read once ------------------------------------------------------------------------

template <typename A>
struct Sum {
  A v = 0;
  __device__ void merge(const Sum& o) { v += o.v; }
};

// Of a channel, in shared memory.
template <typename T>
struct ResidentChannel {
  Acc<T> shift, mean, squares;  // mean relative to the shift
  Affine<T> affine;
};

template <typename T, int width, bool rows>
__global__ void __launch_bounds__(kResidentThreads, 2)
    batch_norm_resident_kernel(Slabs s, int64_t tensor_bytes, Apply<T> op, StatisticsOut<T> out) {
  using A = Acc<T>;
  using P = Pack<T, width>;
  constexpr int each = rows ? width : 1, per = width / each;
  const int t = threadIdx.x, threads = blockDim.x;
  unsigned char* const memory = dynamic_shared<unsigned char>();
  P* const slab = reinterpret_cast<P*>(memory);
  auto* const sums = reinterpret_cast<Sum<A>*>(memory + tensor_bytes);
  auto* const channels = reinterpret_cast<ResidentChannel<T>*>(sums + each * threads);

  const Place me = place_of_all<rows>(s);
  const bool active = me.group < s.groups;
  const int items = static_cast<int>(s.items);
  const A count = static_cast<A>(items) * per;
  A shift[each] = {};
  Sum<A> mine[each];
  if (active) {
    fetch<rows>(s, me, op.in[0], slab);
#pragma unroll
    for (int u = 0; u < each; ++u) shift[u] = to_acc(op.in[0][me.group * s.run * width + u]);
    wait_for_copies<0>();
    for (int j = me.slice, at = t; j < items; j += s.slices, at += threads) {
      const P v = slab[at];
#pragma unroll
      for (int u = 0; u < width; ++u) mine[rows ? u : 0].v += to_acc(v.v[u]) - shift[rows ? u : 0];
    }
  }
  combine(sums, mine, s, me);
  __syncthreads();
  A mean[each];
#pragma unroll
  for (int u = 0; u < each; ++u) {
    mean[u] = sums[u * threads + me.first].v / count;
    mine[u].v = 0;
  }
  __syncthreads();  // the squares overwrite the sums
  if (active)
    for (int j = me.slice, at = t; j < items; j += s.slices, at += threads) {
      const P v = slab[at];
#pragma unroll
      for (int u = 0; u < width; ++u) {
        const A d = (to_acc(v.v[u]) - shift[rows ? u : 0]) - mean[rows ? u : 0];
        mine[rows ? u : 0].v = multiply_add(d, d, mine[rows ? u : 0].v);
      }
    }
  combine(sums, mine, s, me);
  if (me.slice == 0) {
#pragma unroll
    for (int u = 0; u < each; ++u) {
      ResidentChannel<T>& channel = channels[me.lane * each + u];
      channel.shift = shift[u];
      channel.mean = mean[u];
      channel.squares = mine[u].v;
    }
  }
  __syncthreads();
  // One thread for each channel, where the doubles are slow.
  const int64_t first = (me.group - me.lane) * each;
  for (int i = t; i < s.lanes * each && first + i < s.channels; i += threads) {
    ResidentChannel<T>& channel = channels[i];
    out.of_batch(first + i, static_cast<double>(count),
                 static_cast<double>(channel.shift) + static_cast<double>(channel.mean),
                 static_cast<double>(channel.squares));
    channel.affine = op.coefficients(first + i);  // reads what this thread has just written
  }
  __syncthreads();
  if (!active) return;
  Affine<T> k[each];
#pragma unroll
  for (int u = 0; u < each; ++u) k[u] = channels[me.lane * each + u].affine;
  constexpr int batch = kBatch<Apply<T>, width, rows>;
  for_items<rows, batch>(s, me, [&](const int64_t (&at)[batch], int round, int valid) {
    P residual[batch];
    load(op.in[1], at, valid, s.aligned, residual);
#pragma unroll
    for (int b = 0; b < batch; ++b)
      if (b < valid) {
        const P v = slab[(round + b) * threads + t];
        P result;
#pragma unroll
        for (int u = 0; u < width; ++u) {
          const A x[2] = {to_acc(v.v[u]), to_acc(residual[b].v[u])};
          T y[1];
          op.map(k[rows ? u : 0], x, y);
          result.v[u] = y[0];
        }
        store(op.out[0], at[b], s.aligned, result);
      }
  });
}

ResidentPlan resident_forward(const BatchNormParams& p) {
  const int64_t bytes = p.dtype == DType::kF64 ? 8 : 4;
  return resident_plan(p, 1, bytes, 6 * bytes);
}

}  // namespace

// ---- launchers -------------------------------------------------------------------------------------

int64_t batch_norm_stats_workspace(const BatchNormParams& p) {
  if (!p.training || p.c * p.n * volume(p.in) == 0) return 0;
  const Slabs s = cut_to_reduce(p);
  return 8 * 3 * s.entries() * s.splits;
}
int64_t batch_norm_workspace(const BatchNormParams& p) {
  return p.training && p.c * p.n * volume(p.in) > 0 && resident_forward(p).shared_bytes > 0
             ? 0
             : batch_norm_stats_workspace(p);
}

void batch_norm_stats(const BatchNormParams& p, const void* x, void* running_mean, void* running_var,
                      void* mean, void* invstd, void* workspace, void* stream) {
  if (p.c == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    statistics(p, static_cast<const T*>(x), StatisticsOut<T>(p, mean, invstd, running_mean, running_var),
               workspace, stream);
  });
}

void batch_norm_apply(const BatchNormParams& p, const void* x, const void* weight, const void* bias,
                      const void* mean, const void* invstd, const void* residual, void* y, void* stream) {
  if (p.c * p.n * volume(p.in) == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    map_channels<T, 16>("batch_norm_apply", cut_to_map(p),
                        apply_op<T>(p, x, weight, bias, mean, invstd, residual, y), stream);
  });
}

void batch_norm(const BatchNormParams& p, const void* x, const void* weight, const void* bias,
                void* running_mean, void* running_var, const void* residual, void* mean, void* invstd,
                void* y, void* workspace, void* stream) {
  const bool empty = p.c * p.n * volume(p.in) == 0;
  const ResidentPlan r = p.training && !empty ? resident_forward(p) : ResidentPlan{};
  if (r.shared_bytes == 0) {
    batch_norm_stats(p, x, running_mean, running_var, mean, invstd, workspace, stream);
    batch_norm_apply(p, x, weight, bias, mean, invstd, residual, y, stream);
    return;
  }
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto op = apply_op<T>(p, x, weight, bias, mean, invstd, residual, y);
    Slabs s = r.s;
    s.aligned = packs_fit<T>(s, addresses_of(op.in) | addresses_of(op.out));
    dispatch_slabs<T, 16>(s, [&](auto width, auto rows) {
      launch("batch_norm", batch_norm_resident_kernel<T, decltype(width)::value, decltype(rows)::value>,
             grid_of(s.blocks()), s.threads(), static_cast<size_t>(r.shared_bytes), stream, s, r.tensor_bytes,
             op, StatisticsOut<T>(p, mean, invstd, running_mean, running_var));
    });
  });
}

}  // namespace cuda
}  // namespace fastops
