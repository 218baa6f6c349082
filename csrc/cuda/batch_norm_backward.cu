// The backward pass of batch normalisation on the GPU, and the gradients of that. The formulas are derived
// in csrc/cpu/batch_norm.cpp; the notation is the same.
//
// Sums over channels first, each block leaving partial results; a warp for each channel combines them and
// makes the coefficients; then one elementwise pass. In training, where the slabs of a channel fit into the
// shared memory of a block and there are enough blocks, one kernel that reads everything once.
#include "normalise.h"

namespace fastops {
namespace cuda {
namespace {

// `count` sums.
template <typename A, int count>
struct Sums {
  A v[count] = {};
  __device__ void merge(const Sums& o) {
#pragma unroll
    for (int i = 0; i < count; ++i) v[i] += o.v[i];
  }
};

// Adds what op.add(k, x, v) adds to v for each element; first those of a batch to each other, so that no
// sum has very many terms.
template <typename Op, typename A, int count, int inputs, int items, int per>
__device__ inline void accumulate_terms(const Op& op, const typename Op::Coefficients& k,
                                        const A (&x)[inputs][items][per], int valid, Sums<A, count>& all) {
  Sums<A, count> some;
#pragma unroll
  for (int b = 0; b < items; ++b)
    if (b < valid) {
#pragma unroll
      for (int e = 0; e < per; ++e) {
        A element[inputs];
#pragma unroll
        for (int i = 0; i < inputs; ++i) element[i] = x[i][b][e];
        op.add(k, element, some.v);
      }
    }
  all.merge(some);
}

// ---- backward --------------------------------------------------------------------------------------

// The tensors of backward, and dy where it counts. Without `relu` the residual is not read.
template <typename T, bool relu>
struct Masked {
  using A = Acc<T>;
  static constexpr int inputs = relu ? 3 : 2, batch = 2;
  const T* in[inputs];  // dy, x, residual
  AffineTables<T> tables;

  __device__ A dy(const Affine<T>& k, const A (&x)[inputs]) const {
    return relu && cut_off(k(x[1], x[inputs - 1])) ? A(0) : x[0];
  }
};

// Σ dy, Σ dy·(x − μ)
template <typename T, bool relu>
struct BackwardSums : Masked<T, relu> {
  using A = Acc<T>;
  using Item = Sums<A, 2>;
  using Coefficients = Affine<T>;
  static constexpr int sums = 2;

  __device__ Affine<T> coefficients(int64_t c, int64_t) const { return this->tables.at(c); }
  __device__ void add(const Affine<T>& k, const A (&x)[Masked<T, relu>::inputs], A (&v)[2]) const {
    const A dy = this->dy(k, x);
    v[0] += dy;
    v[1] = multiply_add(dy, x[1] - k.mean, v[1]);
  }
  template <int inputs, int items, int per>
  __device__ void accumulate(const Affine<T>& k, const A (&x)[inputs][items][per], int valid, int,
                             Item& all) const {
    accumulate_terms(*this, k, x, valid, all);
  }
  __device__ void partial(const Affine<T>&, const Item& all, double* out) const {
    out[0] = static_cast<double>(all.v[0]);
    out[1] = static_cast<double>(all.v[1]);
  }
};

// What the sums become: dw, db, and in training the coefficients of x − μ and 1 in dx.
template <typename T>
struct BackwardOut {
  using A = Acc<T>;
  AffineTables<T> tables;
  MutableParameter<T> dw, db;
  double m;

  struct Slope {
    A slope, constant;
  };
  __device__ Slope of_sums(int64_t c, double sum, double sum_x) const {
    const double r = static_cast<double>(tables.invstd[c]), dot = sum_x * r;
    db.set(c, sum);
    dw.set(c, dot);
    const double scale = r * static_cast<double>(tables.weight.get(c, 1));
    return {static_cast<A>(-scale * r * (dot / m)), static_cast<A>(-scale * (sum / m))};
  }
};

template <typename T>
struct FinishBackward {
  static constexpr int sums = 2;
  BackwardOut<T> out;
  typename BackwardOut<T>::Slope* slopes;

  __device__ void operator()(const Parts<sums>& parts, int64_t c) const {
    double sum = 0, sum_x = 0;
    parts.for_each([&](const double* part) {
      sum += part[0];
      sum_x += part[1];
    });
    sum = parts.over_warp(sum);
    sum_x = parts.over_warp(sum_x);
    if (threadIdx.x % 32 == 0) slopes[c] = out.of_sums(c, sum, sum_x);
  }
};

template <typename T>
struct BackwardCoefficients {
  Affine<T> affine;
  typename BackwardOut<T>::Slope of_x;
};

// dx = w·r·dy (+ slope·(x − μ) + constant in training); and the gradient of the residual.
template <typename T, bool relu>
struct BackwardMap : Masked<T, relu> {
  using A = Acc<T>;
  using Coefficients = BackwardCoefficients<T>;
  static constexpr int outputs = 2, batch = relu ? 1 : 2;
  T* out[2];                                     // dx, dresidual
  const typename BackwardOut<T>::Slope* slopes;  // null in evaluation

  __device__ Coefficients coefficients(int64_t c) const {
    Coefficients k{this->tables.at(c), {}};
    if (slopes != nullptr) k.of_x = slopes[c];
    return k;
  }
  __device__ void map(const Coefficients& k, const A (&x)[Masked<T, relu>::inputs], T (&y)[2]) const {
    const A dy = this->dy(k.affine, x);
    // In evaluation nothing of x may come in, which may be infinite.
    const A of_x =
        slopes == nullptr ? A(-0.0f) : multiply_add(x[1] - k.affine.mean, k.of_x.slope, k.of_x.constant);
    y[0] = from_acc<T>(multiply_add(dy, k.affine.scale, of_x));
    y[1] = from_acc<T>(dy);
  }
};

// ---- backward, with everything read once -------------------------------------------------------------

template <typename T, int width, bool rows, bool relu>
__global__ void __launch_bounds__(kResidentThreads, relu && rows && width > 4 ? 1 : 2)
    batch_norm_backward_resident_kernel(Slabs s, int64_t tensor_bytes, BackwardMap<T, relu> op,
                                        BackwardOut<T> out) {
  using A = Acc<T>;
  using P = Pack<T, width>;
  using Coefficients = BackwardCoefficients<T>;
  constexpr int each = rows ? width : 1, inputs = BackwardMap<T, relu>::inputs;
  constexpr int batch = kBatch<BackwardMap<T, relu>, width, rows>;
  const int t = threadIdx.x, threads = blockDim.x;
  unsigned char* const memory = dynamic_shared<unsigned char>();
  P* const slab_dy = reinterpret_cast<P*>(memory);
  P* const slab_x = reinterpret_cast<P*>(memory + tensor_bytes);
  auto* const sums = reinterpret_cast<Sums<A, 2>*>(memory + 2 * tensor_bytes);
  auto* const channels = reinterpret_cast<Coefficients*>(sums + each * threads);

  const Place me = place_of_all<rows>(s);
  const bool active = me.group < s.groups;
  const int64_t first = (me.group - me.lane) * each;
  if (active) {
    fetch<rows>(s, me, op.in[0], slab_dy);
    fetch<rows>(s, me, op.in[1], slab_x);
  }
  for (int i = t; i < s.lanes * each && first + i < s.channels; i += threads)
    channels[i].affine = op.tables.at(first + i);
  wait_for_copies<0>();
  __syncthreads();

  Sums<A, 2> mine[each];
  if (active) {
    Affine<T> k[each];
#pragma unroll
    for (int u = 0; u < each; ++u) k[u] = channels[me.lane * each + u].affine;
    for_items<rows, batch>(s, me, [&](const int64_t (&at)[batch], int round, int valid) {
      P residual[batch];
      if (relu) load(op.in[inputs - 1], at, valid, s.aligned, residual);
#pragma unroll
      for (int b = 0; b < batch; ++b)
        if (b < valid) {
          const int place_in_slab = (round + b) * threads + t;
          P dy = slab_dy[place_in_slab];
          const P x = slab_x[place_in_slab];
#pragma unroll
          for (int u = 0; u < width; ++u) {
            A element[inputs];
            element[0] = to_acc(dy.v[u]);
            element[1] = to_acc(x.v[u]);
            if (relu) element[inputs - 1] = to_acc(residual[b].v[u]);
            const A masked = op.dy(k[rows ? u : 0], element);
            Sums<A, 2>& sum = mine[rows ? u : 0];
            sum.v[0] += masked;
            sum.v[1] = multiply_add(masked, element[1] - k[rows ? u : 0].mean, sum.v[1]);
            dy.v[u] = from_acc<T>(masked);
          }
          if (relu) slab_dy[place_in_slab] = dy;
          store(op.out[1], at[b], s.aligned, dy);
        }
    });
  }
  combine(sums, mine, s, me);
  __syncthreads();
  for (int i = t; i < s.lanes * each && first + i < s.channels; i += threads) {
    const int lane = i / each, u = i - lane * each;
    const Sums<A, 2>& sum = sums[u * threads + (rows ? lane : lane * s.slices)];
    channels[i].of_x = out.of_sums(first + i, static_cast<double>(sum.v[0]), static_cast<double>(sum.v[1]));
  }
  __syncthreads();
  if (!active) return;
  Coefficients k[each];
#pragma unroll
  for (int u = 0; u < each; ++u) k[u] = channels[me.lane * each + u];
  for_items<rows, batch>(s, me, [&](const int64_t (&at)[batch], int round, int valid) {
#pragma unroll
    for (int b = 0; b < batch; ++b)
      if (b < valid) {
        const P dy = slab_dy[(round + b) * threads + t], x = slab_x[(round + b) * threads + t];
        P dx;
#pragma unroll
        for (int u = 0; u < width; ++u) {
          const Coefficients& c = k[rows ? u : 0];
          const A of_x = multiply_add(to_acc(x.v[u]) - c.affine.mean, c.of_x.slope, c.of_x.constant);
          dx.v[u] = from_acc<T>(multiply_add(to_acc(dy.v[u]), c.affine.scale, of_x));
        }
        store(op.out[0], at[b], s.aligned, dx);
      }
  });
}

ResidentPlan resident_backward(const BatchNormParams& p) {
  const int64_t bytes = p.dtype == DType::kF64 ? 8 : 4;
  return resident_plan(p, 2, 2 * bytes, 5 * bytes);
}

// ---- gradients of backward ---------------------------------------------------------------------------

template <typename T>
struct DoubleTensors {
  static constexpr int inputs = 3, batch = 2;
  const T* in[3];  // dy, ddx, x
};

// Σ dy, Σ g, Σ dy·(x − μ), Σ g·(x − μ), Σ g·dy, with g = ddx
template <typename T>
struct DoubleSums : DoubleTensors<T> {
  using A = Acc<T>;
  using Item = Sums<A, 5>;
  using Coefficients = A;
  static constexpr int sums = 5;
  const A* mean;

  __device__ A coefficients(int64_t c, int64_t) const { return this->in[2] ? mean[c] : A(0); }
  __device__ void add(A mu, const A (&x)[3], A (&v)[5]) const {
    const A centred = x[2] - mu;
    v[0] += x[0];
    v[1] += x[1];
    v[2] = multiply_add(x[0], centred, v[2]);
    v[3] = multiply_add(x[1], centred, v[3]);
    v[4] = multiply_add(x[0], x[1], v[4]);
  }
  template <int items, int per>
  __device__ void accumulate(A mu, const A (&x)[3][items][per], int valid, int, Item& all) const {
    accumulate_terms(*this, mu, x, valid, all);
  }
  __device__ void partial(A, const Item& all, double* out) const {
#pragma unroll
    for (int i = 0; i < 5; ++i) out[i] = static_cast<double>(all.v[i]);
  }
};

// gx = dy·x[0] + g·x[1] + (x − μ)·x[2] + x[3];  gdy = g·dy[0] + (x − μ)·dy[1] + dy[2]
template <typename A>
struct DoubleCoefficients {
  A mean, x[4], dy[3];
};

template <typename T>
struct FinishDouble {
  using A = Acc<T>;
  static constexpr int sums = 5;
  const A* mean;
  const A* invstd;
  Parameter<T> weight, ddw, ddb;
  MutableParameter<T> gw;
  DoubleCoefficients<A>* coefficients;
  double m;
  bool training, has_x;

  __device__ void operator()(const Parts<sums>& parts, int64_t c) const {
    double sum[5] = {};
    parts.for_each([&](const double* part) {
#pragma unroll
      for (int i = 0; i < 5; ++i) sum[i] += part[i];
    });
#pragma unroll
    for (int i = 0; i < 5; ++i) sum[i] = parts.over_warp(sum[i]);
    if (threadIdx.x % 32 != 0) return;
    const double r = static_cast<double>(invstd[c]);
    const double wr = static_cast<double>(weight.get(c, 1)) * r;
    const double u = static_cast<double>(ddw.get(c, 0)), v = static_cast<double>(ddb.get(c, 0));
    double x[4] = {u * r, 0, 0, 0}, dy[3] = {wr, u * r, v}, q = sum[4];
    if (training && m > 0) {
      const double s = sum[0], g = sum[1], d = sum[2] * r, e = sum[3] * r;
      q -= s * g / m + d * e / m;
      x[0] = r * (u - wr * e / m);
      x[1] = -r * wr * d / m;
      x[2] = -r * r * ((u * d - 2 * wr * d * e / m) / m) - wr * r * r * q / m;
      x[3] = -r * (u * s - wr * (e * s + d * g) / m) / m;
      dy[1] = u * r - wr * r * e / m;
      dy[2] = v - wr * g / m;
    }
    gw.set(c, r * q);
    DoubleCoefficients<A> k;
    k.mean = has_x ? mean[c] : A(0);
    for (int i = 0; i < 4; ++i) k.x[i] = static_cast<A>(x[i]);
    for (int i = 0; i < 3; ++i) k.dy[i] = static_cast<A>(dy[i]);
    coefficients[c] = k;
  }
};

template <typename T>
struct DoubleMap : DoubleTensors<T> {
  using A = Acc<T>;
  using Coefficients = DoubleCoefficients<A>;
  static constexpr int outputs = 2, batch = 1;
  T* out[2];  // gx, gdy
  const Coefficients* table;

  __device__ Coefficients coefficients(int64_t c) const { return table[c]; }
  __device__ void map(const Coefficients& k, const A (&x)[3], T (&y)[2]) const {
    const A centred = x[2] - k.mean;
    const A rest = multiply_add(centred, k.x[2], k.x[3]);
    y[0] = from_acc<T>(multiply_add(x[0], k.x[0], multiply_add(x[1], k.x[1], rest)));
    y[1] = from_acc<T>(multiply_add(x[1], k.dy[0], multiply_add(centred, k.dy[1], k.dy[2])));
  }
};
// Packs of 8 bytes: the eight coefficients of each channel of a pack are in registers.
constexpr int kDoubleBytes = 8;

// Coefficients of every channel, then partial results.
constexpr int64_t kSlopes = 2, kDoubleCoefficients = 8;  // for each channel, of the accumulator's size
int64_t coefficient_bytes(const BatchNormParams& p, int64_t count) {
  return round_up(count * p.c * (p.dtype == DType::kF64 ? 8 : 4), 8);
}
int64_t workspace_bytes(const BatchNormParams& p, const Slabs& s, int64_t sums, int64_t coefficients) {
  return coefficient_bytes(p, coefficients) + 8 * sums * s.entries() * s.splits;
}
double* partials_in(void* workspace, const BatchNormParams& p, int64_t coefficients) {
  return reinterpret_cast<double*>(static_cast<unsigned char*>(workspace) +
                                   coefficient_bytes(p, coefficients));
}

template <typename T, bool relu>
void backward(const BatchNormParams& p, const Masked<T, relu>& tensors, const BackwardOut<T>& out, T* dx,
              T* dresidual, void* workspace, void* stream) {
  using Slope = typename BackwardOut<T>::Slope;
  const bool statistics = p.training && dx != nullptr, empty = out.m == 0;
  BackwardMap<T, relu> map{tensors, {dx, dresidual}, nullptr};
  const ResidentPlan r = statistics && !empty ? resident_backward(p) : ResidentPlan{};
  if (r.shared_bytes > 0) {
    Slabs s = r.s;
    s.aligned = packs_fit<T>(s, addresses_of(map.in) | addresses_of(map.out));
    dispatch_slabs<T, 16>(s, [&](auto width, auto rows) {
      launch("batch_norm_backward",
             batch_norm_backward_resident_kernel<T, decltype(width)::value, decltype(rows)::value, relu>,
             grid_of(s.blocks()), s.threads(), static_cast<size_t>(r.shared_bytes), stream, s, r.tensor_bytes,
             map, out);
    });
    return;
  }
  if (statistics || out.dw.values != nullptr || out.db.values != nullptr) {
    auto* const slopes = static_cast<Slope*>(workspace);
    double* const partials = partials_in(workspace, p, kSlopes);
    Slabs s{};
    s.channels = p.c;
    if (!empty) {
      s = cut_to_reduce(p);
      reduce_channels<T, 16>("batch_norm_backward", s, BackwardSums<T, relu>{tensors}, partials, stream);
    }
    finish_channels("batch_norm_backward", s, FinishBackward<T>{out, slopes}, partials, stream);
    if (p.training) map.slopes = slopes;
  }
  if (!empty && (dx != nullptr || dresidual != nullptr))
    map_channels<T, 16>("batch_norm_backward", cut_to_map(p), map, stream);
}

}  // namespace

// ---- launchers -------------------------------------------------------------------------------------

int64_t batch_norm_backward_workspace(const BatchNormParams& p) {
  if (p.c * p.n * volume(p.in) == 0) return coefficient_bytes(p, kSlopes);
  return workspace_bytes(p, cut_to_reduce(p), 2, kSlopes);
}
int64_t batch_norm_double_backward_workspace(const BatchNormParams& p) {
  if (p.c * p.n * volume(p.in) == 0) return coefficient_bytes(p, kDoubleCoefficients);
  return workspace_bytes(p, cut_to_reduce(p, kDoubleBytes), 5, kDoubleCoefficients);
}

void batch_norm_backward(const BatchNormParams& p, const void* dy_, const void* x_, const void* weight,
                         const void* bias, const void* mean, const void* invstd, const void* residual_,
                         void* dx, void* dw, void* db, void* dresidual, void* workspace, void* stream) {
  if (p.c == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const T *const dy = static_cast<const T*>(dy_), *const x = static_cast<const T*>(x_);
    const T* const residual = static_cast<const T*>(residual_);
    const AffineTables<T> tables{static_cast<const A*>(mean), static_cast<const A*>(invstd),
                                 Parameter<T>(p, weight), Parameter<T>(p, bias)};
    const BackwardOut<T> out{tables, MutableParameter<T>(p, dw), MutableParameter<T>(p, db), elements_of(p)};
    const auto run = [&](const auto& tensors) {
      backward(p, tensors, out, static_cast<T*>(dx), static_cast<T*>(dresidual), workspace, stream);
    };
    if (p.relu)
      run(Masked<T, true>{{dy, x, residual}, tables});
    else
      run(Masked<T, false>{{dy, x}, tables});
  });
}

void batch_norm_double_backward(const BatchNormParams& p, const void* mean_, const void* invstd_,
                                const void* weight, const void* x, const void* dy, const void* ddx,
                                const void* ddw, const void* ddb, void* gx, void* gw, void* gdy,
                                void* workspace, void* stream) {
  if (p.c == 0) return;
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const A *const mean = static_cast<const A*>(mean_), *const invstd = static_cast<const A*>(invstd_);
    const DoubleTensors<T> tensors{
        {static_cast<const T*>(dy), static_cast<const T*>(ddx), static_cast<const T*>(x)}};
    auto* const coefficients = static_cast<DoubleCoefficients<A>*>(workspace);
    double* const partials = partials_in(workspace, p, kDoubleCoefficients);
    const double m = elements_of(p);
    Slabs s{};
    s.channels = p.c;
    if (m > 0 && (p.training || gw != nullptr)) {
      s = cut_to_reduce(p, kDoubleBytes);
      reduce_channels<T, kDoubleBytes>("batch_norm_double_backward", s, DoubleSums<T>{tensors, mean},
                                       partials, stream);
    }
    const FinishDouble<T> finish{mean,
                                 invstd,
                                 Parameter<T>(p, weight),
                                 Parameter<T>(p, ddw),
                                 Parameter<T>(p, ddb),
                                 MutableParameter<T>(p, gw),
                                 coefficients,
                                 m,
                                 p.training,
                                 x != nullptr};
    finish_channels("batch_norm_double_backward", s, finish, partials, stream);
    if (m > 0 && (gx != nullptr || gdy != nullptr))
      map_channels<T, kDoubleBytes>(
          "batch_norm_double_backward", cut_to_map(p, kDoubleBytes),
          DoubleMap<T>{tensors, {static_cast<T*>(gx), static_cast<T*>(gdy)}, coefficients}, stream);
  });
}

}  // namespace cuda
}  // namespace fastops
