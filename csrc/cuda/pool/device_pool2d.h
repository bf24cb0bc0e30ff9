#pragma once
// The geometry of a pooling as the kernels take it: 32-bit counts and division by multiplication.

#include "common/pool/pool2d.h"
#include "cuda/fast_divisor.h"

namespace fastseg::cuda {

using DevicePoolAxis = PoolAxisOf<int, FastDivisor>;
using DevicePool2d = Pool2dOf<DevicePoolAxis>;

// All counts of the axes are below 2^30 (the bindings check it).
inline DevicePoolAxis device_axis(const PoolAxis& a) {
  return {static_cast<int>(a.size),
          static_cast<int>(a.windows),
          a.kernel,
          FastDivisor(a.stride),
          a.padding,
          FastDivisor(a.dilation)};
}

inline DevicePool2d device_pool(const Pool2d& pool) {
  return {device_axis(pool.h), device_axis(pool.w)};
}

}  // namespace fastseg::cuda
