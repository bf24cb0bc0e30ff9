#pragma once
// Logits that kernels upsample as they read them, as the launchers are told of them.

#include <cstdint>

#include "cuda/dtype.h"

namespace fastseg::cuda {

struct UpsampledLogits {
  Dtype dtype;
  const void* data;  // (N, C, h, w)
  int64_t stride_n, stride_c, stride_h, stride_w;
  int64_t batch, classes, in_height, in_width;
  int64_t height, width;  // of the pixels
  bool align_corners;
};

}  // namespace fastseg::cuda
