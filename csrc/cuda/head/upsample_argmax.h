#pragma once
// The launcher of fastseg::upsample_argmax.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/dtype.h"

namespace fastseg::cuda {

struct UpsampleArgmax {
  Dtype dtype;
  const void* logits;  // (N, C, h, w)
  int64_t stride_n, stride_c, stride_h, stride_w;
  int64_t batch, classes, in_height, in_width;
  int64_t height, width;
  bool align_corners;
  void* ids;         // (N, H, W)
  int bytes;         // of an id: 1, 2, 4 or 8
  void* confidence;  // (N, H, W): double for double, float for all else; null for none
};

cudaError_t upsample_argmax(const UpsampleArgmax& job, cudaStream_t stream);

}  // namespace fastseg::cuda
