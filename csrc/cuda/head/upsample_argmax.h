#pragma once
// The launcher of fastseg::upsample_argmax.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/head/logits.h"

namespace fastseg::cuda {

struct UpsampleArgmax {
  UpsampledLogits logits;
  void* ids;         // (N, H, W)
  int bytes;         // of an id: 1, 2, 4 or 8
  void* confidence;  // (N, H, W): double for double, float for all else; null for none
};

cudaError_t upsample_argmax(const UpsampleArgmax& job, cudaStream_t stream);

}  // namespace fastseg::cuda
