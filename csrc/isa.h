// Instruction sets that the CPU kernels are compiled for. Every file in csrc/cpu/ is compiled once per
// set, with FASTOPS_ISA naming it, and defines the launchers' specialisations for that set; Python
// picks the best one that the processor has (fastops/backends/native.py).
#pragma once

namespace fastops {
namespace cpu {

enum class Isa : int {
  kBaseline,  // what the compiler targets by default: SSE2 on x86-64, NEON on arm64
  kAvx2,      // with FMA and F16C
  kAvx512,    // F, BW, DQ, VL
};

#if defined(FASTOPS_ISA)
constexpr Isa kIsa = Isa::FASTOPS_ISA;
#endif

}  // namespace cpu
}  // namespace fastops
