#pragma once
// From a binding's tensor to the logits that a kernel upsamples.

#include "common/tensor_checks.h"
#include "cpu/head/upsample.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// Lanes of the vectors in the compute type F of the kernels that run.
template <class F>
int simd_lanes() {
  return (16 << static_cast<int>(simd_level_of<F>())) / static_cast<int>(sizeof(F));
}

inline LogitsType logits_type(ScalarType dtype) {
  return dtype == ScalarType::Half       ? LogitsType::half
         : dtype == ScalarType::BFloat16 ? LogitsType::bfloat16
                                         : LogitsType::compute;
}

// Calls body(upsampled, tasks, work) with logits (N, C, h, w) as kernels read them. There is a task
// for each band of rows of each image; its work is its pixels times the classes.
template <class Body>
void with_upsampled(const Tensor& logits, int64_t height, int64_t width, bool align_corners,
                    const Body& body) {
  const auto run = [&](auto zero) {
    using F = decltype(zero);
    const BilinearRows<F> rows({logits.size(2), height, align_corners});
    const BilinearAxis<F> columns(logits.size(3), width, align_corners);
    const BilinearCells<F> cells(columns, simd_lanes<F>());
    const auto stride = logits.strides();
    const UpsampledLogits<F> upsampled{logits.const_data_ptr(),
                                       logits_type(logits.scalar_type()),
                                       stride[0],
                                       stride[1],
                                       stride[2],
                                       stride[3],
                                       logits.size(1),
                                       logits.size(3),
                                       &cells,
                                       &rows};
    const auto bands = static_cast<int64_t>(rows.bands.size());
    const int64_t work = logits.size(1) * width * (height + bands - 1) / bands;
    body(upsampled, logits.size(0) * bands, work);
  };
  logits.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace fastseg::cpu
