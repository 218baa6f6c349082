// Small kernels, each right, or with a bug that the emulation has to find.
#pragma once

namespace planted {

// y = what the kernel's comment says, of x, n floats; with the bug if `broken`.
using Launcher = void (*)(const float* x, float* y, int n, bool broken);

struct Kernel {
  const char* name;
  Launcher launcher;
};
extern const Kernel kKernels[12];

}  // namespace planted
