// A GPU, as far as plans depend on it.
#pragma once

#include <cstdint>

namespace fastops {

// What of a GPU decides; the defaults are an H200's.
struct Device {
  int64_t capability = 90;  // compute capability, major · 10 + minor
  int64_t multiprocessors = 132;
  int64_t shared_bytes = 232448;  // that a block may have
  int64_t l2_bytes = 50 << 20;
  double clock_hz = 1.785e9;
  double bandwidth = 4.3e12;    // bytes per second, read and written, of a device copy
  bool hopper_kernels = false;  // whether kernels for sm_90a are chosen where they serve
};

}  // namespace fastops
