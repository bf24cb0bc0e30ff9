#pragma once
// From a binding's logits to those that kernels upsample.

#include "cuda/binding.h"
#include "cuda/head/logits.h"

namespace fastseg::cuda {

inline UpsampledLogits upsampled_logits(const char* op, const Tensor& logits, int64_t height,
                                        int64_t width, bool align_corners) {
  check_count(op, "the number of classes", logits.size(1));
  check_count(op, "the number of rows of all logits", logits.size(0) * logits.size(2));
  check_count(op, "the width of the logits", logits.size(3));
  check_count(op, "the number of pixels in a row of all images", logits.size(0) * height);
  check_count(op, "the width", width);
  const auto stride = logits.strides();
  return {dtype_of(logits), logits.const_data_ptr(),
          stride[0],        stride[1],
          stride[2],        stride[3],
          logits.size(0),   logits.size(1),
          logits.size(2),   logits.size(3),
          height,           width,
          align_corners};
}

}  // namespace fastseg::cuda
