#pragma once
// How much shared memory a block may ask for, and rows in it.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/host_device.h"

namespace fastseg::cuda {

inline constexpr int64_t kDefaultSharedBytes = 48 << 10;
inline constexpr int64_t kMaxSharedBytes = 96 << 10;  // what every GPU since 2020 can give

// To be called before a launch of that many bytes, at most kMaxSharedBytes.
template <class Kernel>
cudaError_t allow_shared(Kernel* kernel, int64_t bytes) {
  if (bytes <= kDefaultSharedBytes) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxSharedBytes);
}

// Rows of this many packs of 16 bytes lie in different banks for eight neighbours.
FASTSEG_HOST_DEVICE int odd(int packs) { return packs | 1; }

}  // namespace fastseg::cuda
