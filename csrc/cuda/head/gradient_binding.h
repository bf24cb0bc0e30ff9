#pragma once
// The memory between the two kernels of a gradient of upsampled logits.

#include "cuda/binding.h"
#include "cuda/head/upsampled_gradient.h"

namespace fastseg::cuda {

// `like` has the dtype in which the gradient is summed.
inline Tensor parts_of(const char* op, const UpsampledLogits& logits, const Tensor& like) {
  const int64_t patches = patch_count(logits);
  check_count(op, "the number of patches", patches);
  return torch::stable::new_empty(like, {patches, gradient_parts(logits)});
}

}  // namespace fastseg::cuda
