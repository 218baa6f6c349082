// The driver's functions that encode tensor maps, with what they refuse; and what a copy by a map moves.
#include "tensor_maps.h"

#include <cuda_runtime.h>

#include <cstring>

namespace simt {

std::vector<Piece> pieces_of(const Map& map, char* to, const int* first, const uint16_t* more) {
  std::vector<Piece> pieces;
  int64_t at[5] = {};
  for (int i = 0; i < map.rank; ++i) at[i] = first[i];
  const auto row = [&](const int64_t* place, size_t index) {
    const char* from = map.address;
    bool inside = true;
    for (int i = 1; i < map.rank; ++i) {
      inside &= place[i] >= 0 && place[i] < static_cast<int64_t>(map.size[i]);
      from += place[i] * static_cast<int64_t>(map.stride[i]);
    }
    for (size_t b = 0; b < 128; b += 16) {
      const int64_t element = place[0] + static_cast<int64_t>(b / 2);
      const bool here = inside && element >= 0 && element < static_cast<int64_t>(map.size[0]);
      pieces.push_back({to + index * 128 + b, here ? from + 2 * element : nullptr});
    }
  };
  if (map.im2col) {
    for (size_t pixel = 0; pixel < map.box[1]; ++pixel) {
      const int64_t place[5] = {at[0], at[1] + more[0], at[2] + more[1], at[3]};
      row(place, pixel);
      for (int axis = 0; axis < 2; ++axis) {
        at[1 + axis] += map.each[1 + axis];
        if (at[1 + axis] <= static_cast<int64_t>(map.size[1 + axis]) - 1 + map.upper[axis]) break;
        at[1 + axis] = map.lower[axis];
        if (axis == 1) ++at[3];
      }
    }
    return pieces;
  }
  size_t rows = 1;
  for (int i = 1; i < map.rank; ++i) rows *= map.box[i];
  for (size_t r = 0; r < rows; ++r) {
    int64_t place[5] = {at[0]};
    size_t rest = r;
    for (int i = 1; i < map.rank; ++i) {
      place[i] = at[i] + static_cast<int64_t>(rest % map.box[i]);
      rest /= map.box[i];
    }
    row(place, r);
  }
  return pieces;
}

namespace {

CUresult encode(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* address,
                const cuuint64_t* size, const cuuint64_t* stride, const cuuint32_t* each, uint32_t inner,
                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, Map& map) {
  if (type != CU_TENSOR_MAP_DATA_TYPE_FLOAT16 && type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16)
    return CUDA_ERROR_NOT_SUPPORTED;
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle != CU_TENSOR_MAP_SWIZZLE_128B || inner != 64 ||
      rank < 2 || rank > 5)
    return CUDA_ERROR_NOT_SUPPORTED;  // by the emulation
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0 || reinterpret_cast<uintptr_t>(to) % 64 != 0)
    return CUDA_ERROR_INVALID_VALUE;
  map.magic = kMapMagic;
  map.rank = static_cast<uint8_t>(rank);
  map.address = static_cast<const char*>(address);
  map.stride[0] = 2;
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (size[i] == 0 || size[i] > uint64_t{1} << 32 || each[i] == 0 || each[i] > 8)
      return CUDA_ERROR_INVALID_VALUE;
    map.size[i] = size[i];
    map.each[i] = static_cast<uint8_t>(each[i]);
    if (i == 0) continue;
    if (stride[i - 1] % 16 != 0 || stride[i - 1] >= uint64_t{1} << 40) return CUDA_ERROR_INVALID_VALUE;
    map.stride[i] = stride[i - 1];
  }
  return CUDA_SUCCESS;
}

CUresult encode_tiled(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      const cuuint64_t* size, const cuuint64_t* stride, const cuuint32_t* box,
                      const cuuint32_t* each, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  Map map{};
  const CUresult result =
      encode(to, type, rank, address, size, stride, each, box[0], interleave, swizzle, map);
  if (result != CUDA_SUCCESS) return result;
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (box[i] == 0 || box[i] > 256 || each[i] != 1) return CUDA_ERROR_INVALID_VALUE;
    map.box[i] = static_cast<uint16_t>(box[i]);
  }
  std::memcpy(static_cast<void*>(to), &map, sizeof map);
  return CUDA_SUCCESS;
}

CUresult encode_im2col(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* address,
                       const cuuint64_t* size, const cuuint64_t* stride, const int* lower, const int* upper,
                       cuuint32_t channels, cuuint32_t pixels, const cuuint32_t* each,
                       CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                       CUtensorMapFloatOOBfill) {
  Map map{};
  if (rank != 4) return CUDA_ERROR_NOT_SUPPORTED;
  const CUresult result =
      encode(to, type, rank, address, size, stride, each, channels, interleave, swizzle, map);
  if (result != CUDA_SUCCESS) return result;
  if (pixels == 0 || pixels > 1024) return CUDA_ERROR_INVALID_VALUE;
  map.im2col = 1;
  map.box[0] = static_cast<uint16_t>(channels);
  map.box[1] = static_cast<uint16_t>(pixels);
  for (int i = 0; i < 2; ++i) {
    if (lower[i] < -128 || lower[i] > 127 || upper[i] < -128 || upper[i] > 127)
      return CUDA_ERROR_INVALID_VALUE;
    if (lower[i] > static_cast<int64_t>(size[1 + i]) - 1 + upper[i]) return CUDA_ERROR_INVALID_VALUE;
    map.lower[i] = static_cast<int8_t>(lower[i]);
    map.upper[i] = static_cast<int8_t>(upper[i]);
  }
  std::memcpy(static_cast<void*>(to), &map, sizeof map);
  return CUDA_SUCCESS;
}

cudaError_t entry_point(const char* name, void** function, cudaDriverEntryPointQueryResult* result) {
  *function = nullptr;
  if (std::strcmp(name, "cuTensorMapEncodeTiled") == 0)
    *function = reinterpret_cast<void*>(encode_tiled);
  else if (std::strcmp(name, "cuTensorMapEncodeIm2col") == 0)
    *function = reinterpret_cast<void*>(encode_im2col);
  *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

}  // namespace
}  // namespace simt

extern "C" {
#if CUDART_VERSION >= 12050
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  return simt::entry_point(name, function, result);
}
#else
cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* result) {
  return simt::entry_point(name, function, result);
}
#endif
}
