// A libcuda.so.1 that launches nothing: with it Triton's own launch path runs on a machine without a GPU,
// from Python to cuLaunchKernelEx. It has a GPU of each kind that the kernels are compiled for, and refuses
// what a GPU would refuse: too much shared memory, an empty grid or one too large, a tensor map against the
// rules.
#include <stdint.h>
#include <string.h>

#include "cuda.h"

#define API __attribute__((visibility("default")))

static int context;

API CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = "the stub driver refuses this";
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetCurrent(CUcontext* c) {
  *c = (CUcontext)&context;
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext c) { return CUDA_SUCCESS; }
API CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice device) { return cuCtxGetCurrent(c); }
API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute what, CUdevice device) {
  switch (what) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = device == 0 ? 166912 : 232448;  // sm_80; sm_90 and sm_100
      break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = 108;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
      *value = 65536;
      break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      *value = 32;
      break;
    default:
      *value = 0;
  }
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  *module = (CUmodule)&context;
  return CUDA_SUCCESS;
}
API CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
API CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  *function = (CUfunction)&context;
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute what, CUfunction function) {
  *value = what == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute what, int value) {
  return value > 232448 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
API CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
API CUresult cuOccupancyMaxActiveClusters(int* count, CUfunction function, const CUlaunchConfig* config) {
  *count = 1;
  return CUDA_SUCCESS;
}
API CUresult cuPointerGetAttribute(void* value, CUpointer_attribute what, CUdeviceptr pointer) {
  *(CUdeviceptr*)value = pointer;
  return CUDA_SUCCESS;
}
API CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                                    const cuuint64_t* size, const cuuint64_t* stride, const cuuint32_t* box,
                                    const cuuint32_t* step, CUtensorMapInterleave interleave,
                                    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                    CUtensorMapFloatOOBfill fill) {
  memset(map, 0, sizeof *map);
  if (rank < 1 || rank > 5 || (uintptr_t)base % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (size[i] < 1 || size[i] > (cuuint64_t)1 << 32 || box[i] < 1 || box[i] > 256)
      return CUDA_ERROR_INVALID_VALUE;
    if (i + 1 < rank && (stride[i] % 16 != 0 || stride[i] >> 40 != 0)) return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}
API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** arguments,
                              void** extra) {
  const int fits = config->sharedMemBytes <= 232448 && config->gridDimX > 0 &&
                   config->gridDimX <= 0x7fffffff && config->gridDimY == 1 && config->gridDimZ == 1 &&
                   config->blockDimX <= 1024;
  return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
