// The backward pass of batch normalisation on the GPU. The formulas are derived in csrc/cpu/batch_norm.cpp;
// the notation is the same.
//
// Sums over channels first, each block leaving partial results; a warp for each channel combines them and
// makes the coefficients; then one elementwise pass. In training, where the slabs of a channel fit into the
// shared memory of a block and there are enough blocks, one kernel that reads everything once.
#include "normalise.h"
#include "resident.h"

namespace fastops {
namespace cuda {
namespace {

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

constexpr int64_t kSlopes = 2;  // for each channel, of the accumulator's size

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

}  // namespace cuda
}  // namespace fastops
