#pragma once
// From a binding's tensor to the logits that a kernel upsamples.

#include "common/tensor_checks.h"
#include "cpu/head/upsample.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// Lanes of the current SIMD level's vectors in the compute type F.
template <class F>
int simd_lanes() {
  return (16 << static_cast<int>(simd_level())) / static_cast<int>(sizeof(F));
}

template <class T, class F>
UpsampledLogits<T> upsampled_logits(const Tensor& logits, const BilinearCells<F>& cells,
                                    const BilinearRows<F>& rows) {
  const auto stride = logits.strides();
  return {static_cast<const T*>(logits.const_data_ptr()),
          stride[0],
          stride[1],
          stride[2],
          stride[3],
          logits.size(1),
          logits.size(3),
          &cells,
          &rows};
}

}  // namespace fastseg::cpu
