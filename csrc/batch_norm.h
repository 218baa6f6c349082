// Batch normalisation: the contract between Python and the kernels, and how the work is split.
//
//   z = (x − mean) · invstd · w + b      per channel, mean and invstd of the batch or of running statistics
//   y = z, or max(z + residual, 0) and the like: a residual and a ReLU may be fused
#pragma once

#include <cstdint>

#include "geometry.h"
#include "isa.h"
#include "types.h"

namespace fastops {

// x, y, dx, dy: (n, c, in), dense in the same layout: contiguous (n, c, d, h, w) or channels_last
// (n, d, h, w, c). Per channel: mean and invstd in the accumulator's type of `dtype` (fp64 for fp64, else
// fp32); weight, bias, running statistics and their gradients in `param_dtype`.
struct BatchNormParams {
  DType dtype = DType::kF32;
  DType param_dtype = DType::kF32;  // dtype, or f32 beside a 16-bit dtype
  bool channels_last = false;       // also true where in is a single position: both layouts coincide
  int64_t n = 0;
  int64_t c = 0;
  Extent in;
  bool training = false;  // mean and invstd are functions of x; else constants
  double momentum = 0.0;  // stats only: weight of the batch in the running statistics
  double eps = 0.0;       // stats only
  bool relu = false;      // y = max(z + residual, 0), NaN stays; else z + residual; see batch_norm_apply
};

// How a call is cut into blocks: a pure function of the shape, so results depend on nothing else. Each
// block leaves one partial result per channel (or table entry), combined in the order of the blocks.
struct BatchNormSplit {
  // Entries of a table of per-channel coefficients. In channels_last, several short rows of channels are
  // folded into one of `width` (a multiple of c), so that it holds whole vectors even for c = 3: entry j
  // belongs to channel j % c.
  int64_t width;
  int64_t stride;    // entries between tables: width, padded to whole vectors of any instruction set
  int64_t blocks;    // per channel (contiguous), or in all (channels_last)
  int64_t planes;    // contiguous: planes in a block, where a plane is one piece
  int64_t pieces;    // contiguous: pieces that a plane is cut into
  int64_t piece;     // contiguous: elements of a piece (the last one may have fewer)
  int64_t rows;      // channels_last: rows of `width` in a block
  int64_t all_rows;  // channels_last: rows in all; the last one may be short
};

constexpr int64_t kBatchNormVector = 16;        // entries of the longest vector
constexpr int64_t kBatchNormPlaneBlock = 2048;  // elements; longer fp32 sums would lose digits
constexpr int64_t kBatchNormRowBlock = 8192;  // elements, likewise; a block is read twice, from the L2 cache
constexpr int64_t kBatchNormFoldBelow = 256;  // longer rows of channels are not folded

FASTOPS_INLINE BatchNormSplit batch_norm_split(const BatchNormParams& p) {
  BatchNormSplit s{};
  const int64_t plane = volume(p.in);
  s.width = p.c;
  if (p.channels_last) {
    if (p.c > 0 && p.c < kBatchNormFoldBelow) {
      while (s.width % kBatchNormVector != 0) s.width *= 2;  // at most × 16
      while (s.width < 4 * kBatchNormVector) s.width *= 2;
    }
    s.all_rows = p.c > 0 ? ceil_div(p.n * plane * p.c, s.width) : 0;
    s.rows = imax(p.c > 0 ? kBatchNormRowBlock / s.width / 8 * 8 : 0, 16);
    s.blocks = ceil_div(s.all_rows, s.rows);
  } else {
    s.pieces = imax(ceil_div(plane, kBatchNormPlaneBlock), 1);
    s.piece = ceil_div(ceil_div(plane, s.pieces), kBatchNormVector) * kBatchNormVector;
    s.pieces = imax(ceil_div(plane, imax(s.piece, 1)), 1);
    s.planes = s.pieces > 1 ? 1 : imax(kBatchNormPlaneBlock / imax(plane, 1), 1);
    s.blocks = s.pieces > 1 ? p.n * s.pieces : ceil_div(p.n, s.planes);
  }
  s.stride = ceil_div(s.width, kBatchNormVector) * kBatchNormVector;
  return s;
}

// Bytes of workspace for an op with `sums` partial results per block and `tables` of coefficients, all
// of them counted as fp64: tables, totals, partials, in this order.
FASTOPS_INLINE int64_t batch_norm_workspace(const BatchNormParams& p, int64_t sums, int64_t tables) {
  const BatchNormSplit s = batch_norm_split(p);
  const int64_t partials = p.channels_last ? s.blocks * s.stride : s.blocks * p.c;
  return 8 * (s.stride * (sums + tables) + partials * sums);
}
// Of each launcher below.
FASTOPS_INLINE int64_t batch_norm_stats_workspace(const BatchNormParams& p, int /*threads*/) {
  return batch_norm_workspace(p, p.training ? 3 : 0, 0);
}
FASTOPS_INLINE int64_t batch_norm_apply_workspace(const BatchNormParams& p, int /*threads*/) {
  return batch_norm_workspace(p, 0, 3);
}
FASTOPS_INLINE int64_t batch_norm_forward_workspace(const BatchNormParams& p, int threads) {
  return imax(batch_norm_stats_workspace(p, threads), batch_norm_apply_workspace(p, threads));
}
FASTOPS_INLINE int64_t batch_norm_backward_workspace(const BatchNormParams& p, int /*threads*/) {
  return batch_norm_workspace(p, 2, 5);
}
FASTOPS_INLINE int64_t batch_norm_double_backward_workspace(const BatchNormParams& p, int /*threads*/) {
  return batch_norm_workspace(p, 5, 8);
}

// What the launchers below do; a pointer "may be null" where it says so.
//
// batch_norm_stats: mean and invstd = 1 / sqrt(variance + eps). In training of x, and running_mean and
// running_var (null or both given) are moved towards the mean and the unbiased variance; in evaluation
// of the running ones, and x may be null.
// batch_norm_apply: z = (x − mean) · invstd · weight + bias, y = z + residual, rounded to the dtype once, at
// the end; with p.relu max(y, 0). weight, bias and residual (in x's layout) may be null.
// batch_norm: both, in one call.
// batch_norm_backward: gradients of apply ∘ stats wrt x, weight, bias and residual, those whose pointer is
// not null. x may be null where neither dw nor (in training) dx is asked for, nor p.relu set; weight null
// stands for ones. With p.relu, dy counts where not y <= 0: where y is NaN it passes, as torch has it. y,
// as rounded to the dtype, is computed again for that, from x, weight, bias, mean, invstd and residual, bit
// for bit as apply did; bias and residual are read for nothing else.
// batch_norm_double_backward, p.relu unset: gradients of ⟨ddx, dx⟩ + ⟨ddw, dw⟩ + ⟨ddb, db⟩, the outputs of
// backward, wrt its x, weight and dy; those whose pointer is not null. ddx, ddw, ddb may be null (zero); dy
// may be null where gx and gw are; x where ddw is and, in training, ddx. gdy alone is also the derivative of
// y along (ddx, ddw, ddb).

namespace cpu {
template <Isa>
void batch_norm_stats(const BatchNormParams& p, const void* x, void* running_mean, void* running_var,
                      void* mean, void* invstd, void* workspace, int threads);
template <Isa>
void batch_norm_apply(const BatchNormParams& p, const void* x, const void* weight, const void* bias,
                      const void* mean, const void* invstd, const void* residual, void* y, void* workspace,
                      int threads);
template <Isa>
void batch_norm(const BatchNormParams& p, const void* x, const void* weight, const void* bias,
                void* running_mean, void* running_var, const void* residual, void* mean, void* invstd,
                void* y, void* workspace, int threads);
template <Isa>
void batch_norm_backward(const BatchNormParams& p, const void* dy, const void* x, const void* weight,
                         const void* bias, const void* mean, const void* invstd, const void* residual,
                         void* dx, void* dw, void* db, void* dresidual, void* workspace, int threads);
template <Isa>
void batch_norm_double_backward(const BatchNormParams& p, const void* mean, const void* invstd,
                                const void* weight, const void* x, const void* dy, const void* ddx,
                                const void* ddw, const void* ddb, void* gx, void* gw, void* gdy,
                                void* workspace, int threads);
}  // namespace cpu

// On a CUDA stream (a cudaStream_t). batch_norm_apply needs no workspace.
namespace cuda {
void batch_norm_stats(const BatchNormParams& p, const void* x, void* running_mean, void* running_var,
                      void* mean, void* invstd, void* workspace, void* stream);
void batch_norm_apply(const BatchNormParams& p, const void* x, const void* weight, const void* bias,
                      const void* mean, const void* invstd, const void* residual, void* y, void* stream);
void batch_norm(const BatchNormParams& p, const void* x, const void* weight, const void* bias,
                void* running_mean, void* running_var, const void* residual, void* mean, void* invstd,
                void* y, void* workspace, void* stream);
void batch_norm_backward(const BatchNormParams& p, const void* dy, const void* x, const void* weight,
                         const void* bias, const void* mean, const void* invstd, const void* residual,
                         void* dx, void* dw, void* db, void* dresidual, void* workspace, void* stream);
void batch_norm_double_backward(const BatchNormParams& p, const void* mean, const void* invstd,
                                const void* weight, const void* x, const void* dy, const void* ddx,
                                const void* ddw, const void* ddb, void* gx, void* gw, void* gdy,
                                void* workspace, void* stream);
// Bytes of their workspaces.
int64_t batch_norm_stats_workspace(const BatchNormParams& p);
int64_t batch_norm_workspace(const BatchNormParams& p);
int64_t batch_norm_backward_workspace(const BatchNormParams& p);
int64_t batch_norm_double_backward_workspace(const BatchNormParams& p);
}  // namespace cuda

}  // namespace fastops
