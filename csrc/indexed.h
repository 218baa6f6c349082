// Reading and writing planes at positions: the linear part of max pooling, and max unpooling.
#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"
#include "types.h"

namespace fastops {

// x: (n, c, in); indices: (n, c, in), int64, flat in out's d·h·w; y: (n, c, out). All dense, in the same
// layout: contiguous, or channels_last.
struct UnpoolParams {
  DType dtype = DType::kF32;
  bool channels_last = false;
  int64_t n = 0;
  int64_t c = 0;
  Extent in;
  Extent out;
};

// Bytes of workspace that max_unpool_adjoint wants: one bit per element of y, rows of bits padded to
// whole words.
FASTOPS_INLINE int64_t max_unpool_adjoint_workspace(const UnpoolParams& p, int /*threads*/) {
  return p.channels_last && p.c > 1 ? p.n * volume(p.out) * ((p.c + 7) / 8)
                                    : p.n * p.c * ((volume(p.out) + 63) / 64) * 8;
}

// What is said of an index outside [0, volume(out)).
constexpr char kInvalidIndex[] =
    "max_unpool2d: found an invalid max index: every index must be at least 0 and less than the output's "
    "height times width";

namespace cpu {
// The derivative of max pooling at fixed positions, as max_pool found them for p.
// y[n, c, o] = x[n, c, positions[n, c, o]]; a position outside the plane, as -1 is, reads 0.
template <Isa>
void gather(const PoolParams& p, const void* x, const void* positions, void* y, int threads);
// The transpose of gather: dx[n, c, i] = Σ dy[n, c, o] over the o with positions[n, c, o] = i, in a fixed
// order. Every element of dx is written.
template <Isa>
void scatter_add(const PoolParams& p, const void* dy, const void* positions, void* dx, int threads);

// y[n, c, indices[n, c, i]] = x[n, c, i], zero elsewhere; of several i with one index the last in raster
// order wins. An index outside [0, volume(out)) is skipped, and std::runtime_error thrown at the end.
template <Isa>
void max_unpool(const UnpoolParams& p, const void* x, const void* indices, void* y, int threads);
// The transpose of max_unpool: dx[n, c, i] = dy[n, c, indices[n, c, i]] where i won, zero where it lost.
template <Isa>
void max_unpool_adjoint(const UnpoolParams& p, const void* dy, const void* indices, void* dx, void* workspace,
                        int threads);
}  // namespace cpu

// Kernels on a CUDA stream (a cudaStream_t).
namespace cuda {
void gather(const PoolParams& p, const void* x, const void* positions, void* y, void* stream);
void scatter_add(const PoolParams& p, const void* dy, const void* positions, void* dx, void* stream);
// An index outside [0, volume(out)) is skipped, and *report, which the host can read, set to 1.
void max_unpool(const UnpoolParams& p, const void* x, const void* indices, void* y, void* workspace,
                int32_t* report, void* stream);
// There it is skipped; max_unpool has reported it.
void max_unpool_adjoint(const UnpoolParams& p, const void* dy, const void* indices, void* dx, void* workspace,
                        void* stream);
// Bytes of workspace that both want.
int64_t max_unpool_workspace(const UnpoolParams& p);
}  // namespace cuda

}  // namespace fastops
