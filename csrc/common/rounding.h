#pragma once
// Products and sums that are rounded by themselves where every bit counts: nvcc fuses none of them.
// A CPU source that needs this turns contraction off.

#include <type_traits>

#include "common/host_device.h"

namespace fastseg {

template <class V>
FASTSEG_HOST_DEVICE V times(V a, V b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<V, float>) {
    return __fmul_rn(a, b);
  } else {
    return __dmul_rn(a, b);
  }
#else
  return a * b;
#endif
}

template <class V>
FASTSEG_HOST_DEVICE V plus(V a, V b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<V, float>) {
    return __fadd_rn(a, b);
  } else {
    return __dadd_rn(a, b);
  }
#else
  return a + b;
#endif
}

}  // namespace fastseg
