// Convolution: chooses the family of kernels that serves a pass, by conv_plan.h; adds up the parts of
// weight gradients.
#include "conv_families.h"
#include "dispatch.h"
#include "launch.h"
#include "packs.h"
#include "primitives.cuh"

namespace fastops {
namespace cuda {
namespace {

// An element of dw, which is where it lies in the parts: (k, tap, channel); then of db. With few elements and
// many parts, `sharers` threads have every sharers-th part of an element each, or its sum would be one long
// wait for memory; they add up in order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_weight_grad_kernel(const Acc<T>* partials, T* dw, T* db, int64_t splits, int64_t k, int64_t taps,
                              int64_t channels, bool channels_last, int sharers) {
  using A = Acc<T>;
  FASTOPS_SHARED(sums, A[kThreads]);
  const int t = static_cast<int>(threadIdx.x), each = kThreads / sharers, share = t / each;
  const int64_t weights = k * taps * channels, all = weights + (db ? k : 0);
  const A* const bias = partials + splits * weights;
  const int64_t step = int64_t{gridDim.x} * each;
  for (int64_t first = int64_t{blockIdx.x} * each; first < all; first += step) {
    const int64_t i = first + t % each;
    const bool exists = i < all, is_weight = i < weights;
    const int64_t pitch = is_weight ? weights : k;
    A sum = 0;
    if (exists) {
      const A* const part = is_weight ? partials + i : bias + (i - weights);
#pragma unroll 4
      for (int64_t s = share; s < splits; s += sharers) sum += part[s * pitch];
    }
    if (sharers > 1) {
      __syncthreads();  // the sums of the elements before have been read
      sums[t] = sum;
      __syncthreads();
      if (share == 0)
        for (int j = 1; j < sharers; ++j) sum += sums[t + j * each];
    }
    if (!exists || share > 0) continue;
    if (!is_weight) {
      db[i - weights] = from_acc<T>(sum);
    } else if (channels_last) {
      dw[i] = from_acc<T>(sum);
    } else {
      const int64_t row = i / channels, channel = i - row * channels, of = row / taps, tap = row - of * taps;
      dw[(of * channels + channel) * taps + tap] = from_acc<T>(sum);
    }
  }
}

// The same where elements lie in dw as in the parts: four at a time, by one thread, all parts. A large w
// would else be one short wait for memory after the other.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_fours_kernel(const float* partials, T* dw, int64_t splits, int64_t weights) {
  for (int64_t i = 4 * first_item(); i < weights; i += 4 * item_stride()) {
    float sum[4] = {};
#pragma unroll 4
    for (int64_t s = 0; s < splits; ++s) {
      const auto part = *reinterpret_cast<const Pack<float, 4>*>(partials + s * weights + i);
#pragma unroll
      for (int u = 0; u < 4; ++u) sum[u] += part.v[u];
    }
    Pack<T, 4> four;
#pragma unroll
    for (int u = 0; u < 4; ++u) four.v[u] = from_acc<T>(sum[u]);
    *reinterpret_cast<Pack<T, 4>*>(dw + i) = four;
  }
}

ConvPlan plan(const ConvParams& p, ConvPass pass) { return conv_plan(p, pass, current_device()); }

// Whether the weight gradient of these kernels leaves the sums of dy too; if not, conv_bias_grad makes them.
bool sums_dy(ConvKernel kernel) { return kernel != ConvKernel::kHopper && kernel != ConvKernel::kToeplitz; }

int64_t workspace_of(const ConvParams& p, ConvPass pass) {
  const ConvPlan chosen = plan(p, pass);
  if (chosen.kernel == ConvKernel::kHopper) return hopper_workspace(p, pass, chosen.splits);
  if (pass == ConvPass::kWeightGrad)
    return sums_dy(chosen.kernel) ? WeightPartials(p, chosen.splits).total_bytes()
                                  : weight_grad_workspace(p, chosen.splits);
  if (chosen.kernel == ConvKernel::kGemm) return gemm_workspace(p, pass);
  return 0;
}

// Whether one kernel makes both gradients.
bool is_fused(const ConvParams& p) {
  return depthwise_fuses(p) && plan(p, ConvPass::kInputGrad).kernel == ConvKernel::kDepthwise &&
         plan(p, ConvPass::kWeightGrad).kernel == ConvKernel::kDepthwise;
}

[[noreturn]] void no_kernel() {
  throw std::logic_error("fastops: the plan names a kernel that is not there");
}

}  // namespace

void finish_weight_grad(const ConvParams& p, int64_t splits, const void* partials, void* dw, void* db,
                        void* stream) {
  const int64_t channels = p.c / p.groups, taps = conv_taps(p);
  dispatch_floating(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t weights = p.k * taps * channels, elements = weights + p.k;
    const int sharers = splits >= 8 && elements < int64_t{1} << 18 ? 8 : 1;
    // In the same order of adding, so that dw has the same bits with and without db.
    const bool in_order = p.weight_channels_last || taps == 1;
    if constexpr (sizeof(T) <= 4)
      if (!db && in_order && sharers == 1 && weights % 4 == 0 && address(dw) % 16 == 0)
        return launch("finish_weight_grad", finish_fours_kernel<T>, blocks_for(weights / 4), kThreads, 0,
                      stream, static_cast<const float*>(partials), static_cast<T*>(dw), splits, weights);
    launch("finish_weight_grad", finish_weight_grad_kernel<T>, blocks_for(elements * sharers), kThreads, 0,
           stream, static_cast<const Acc<T>*>(partials), static_cast<T*>(dw), static_cast<T*>(db), splits,
           p.k, taps, channels, p.weight_channels_last, sharers);
  });
}

Device device() { return current_device(); }

int64_t conv_workspace(const ConvParams& p) { return workspace_of(p, ConvPass::kForward); }
int64_t conv_input_grad_workspace(const ConvParams& p) { return workspace_of(p, ConvPass::kInputGrad); }
int64_t conv_weight_grad_workspace(const ConvParams& p) { return workspace_of(p, ConvPass::kWeightGrad); }
int64_t conv_backward_workspace(const ConvParams& p) {
  if (is_fused(p)) return WeightPartials(p, depthwise_backward_splits(p, current_device())).total_bytes();
  return imax(conv_input_grad_workspace(p), conv_weight_grad_workspace(p));
}

void conv(const ConvParams& p, const void* x, const void* w, const void* bias, void* y, void* workspace,
          void* stream) {
  const ConvPlan chosen = plan(p, ConvPass::kForward);
  if (p.n == 0) return;
  switch (chosen.kernel) {
    case ConvKernel::kDirect:
      return direct_conv(p, chosen, x, w, bias, y, stream);
    case ConvKernel::kDepthwise:
      return depthwise_conv(p, chosen, x, w, bias, y, stream);
    case ConvKernel::kStem:
      return stem_conv(p, chosen, x, w, bias, y, stream);
    case ConvKernel::kGemm:
      return gemm_conv(p, chosen, x, w, bias, y, workspace, stream);
    case ConvKernel::kHopper:
      return hopper_conv(p, chosen, x, w, bias, y, workspace, stream);
    case ConvKernel::kToeplitz:
      return toeplitz_conv(p, chosen, x, w, bias, y, stream);
    default:
      no_kernel();
  }
}

void conv_input_grad(const ConvParams& p, const void* dy, const void* w, const void* bias, void* dx,
                     void* workspace, void* stream) {
  const ConvPlan chosen = plan(p, ConvPass::kInputGrad);
  if (p.n == 0) return;
  switch (chosen.kernel) {
    case ConvKernel::kDirect:
      return direct_input_grad(p, chosen, dy, w, bias, dx, stream);
    case ConvKernel::kDepthwise:
      return depthwise_input_grad(p, chosen, dy, w, bias, dx, stream);
    case ConvKernel::kGemm:
      return gemm_input_grad(p, chosen, dy, w, bias, dx, workspace, stream);
    case ConvKernel::kHopper:
      return hopper_input_grad(p, chosen, dy, w, bias, dx, workspace, stream);
    case ConvKernel::kToeplitz:
      return toeplitz_input_grad(p, chosen, dy, w, bias, dx, stream);
    default:
      no_kernel();
  }
}

void conv_weight_grad(const ConvParams& p, const void* dy, const void* x, void* dw, void* db, void* workspace,
                      void* stream) {
  const ConvPlan chosen = plan(p, ConvPass::kWeightGrad);
  if (p.n == 0) return finish_weight_grad(p, 0, workspace, dw, db, stream);  // of no parts: zeros
  switch (chosen.kernel) {
    case ConvKernel::kDirect:
      direct_weight_grad(p, chosen, dy, x, workspace, db != nullptr, stream);
      break;
    case ConvKernel::kDepthwise:
      depthwise_weight_grad(p, chosen, dy, x, workspace, db != nullptr, stream);
      break;
    case ConvKernel::kStem:
      stem_weight_grad(p, chosen, dy, x, workspace, db != nullptr, stream);
      break;
    case ConvKernel::kGemm:
      gemm_weight_grad(p, chosen, dy, x, workspace, db != nullptr, stream);
      break;
    case ConvKernel::kHopper:
      hopper_weight_grad(p, chosen, dy, x, workspace, stream);
      break;
    case ConvKernel::kToeplitz:
      toeplitz_weight_grad(p, chosen, dy, x, workspace, stream);
      break;
    default:
      no_kernel();
  }
  const bool on_its_own = db && !sums_dy(chosen.kernel);
  finish_weight_grad(p, chosen.splits, workspace, dw, on_its_own ? nullptr : db, stream);
  // The parts have been read: their place is free.
  if (on_its_own) conv_bias_grad(p, dy, db, workspace, stream);
}

void conv_backward(const ConvParams& p, const void* dy, const void* x, const void* w, void* dx, void* dw,
                   void* db, void* workspace, void* stream) {
  if (is_fused(p)) {
    ConvPlan chosen = plan(p, ConvPass::kWeightGrad);
    chosen.splits = depthwise_backward_splits(p, current_device());
    depthwise_backward(p, chosen, dy, x, w, dx, workspace, db != nullptr, stream);
    return finish_weight_grad(p, chosen.splits, workspace, dw, db, stream);
  }
  conv_input_grad(p, dy, w, nullptr, dx, workspace, stream);
  conv_weight_grad(p, dy, x, dw, db, workspace, stream);
}

}  // namespace cuda
}  // namespace fastops
