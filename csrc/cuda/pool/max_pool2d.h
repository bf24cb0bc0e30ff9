#pragma once
// max_pool2d, optionally behind relu(x * scale + shift) per channel.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/pool/pool2d.h"
#include "cuda/dtype.h"

namespace fastseg::cuda {

// All pointers are dense, in the same layout: `planes` of (H, W) or, with lanes = C > 1, of
// (H, W, C). Every count is below 2^30.
struct MaxPool2d {
  Dtype dtype;
  Pool2d pool;
  int64_t planes;
  int64_t lanes;
  int64_t channels;
  const void* x;
  const void* scale;  // (C,) of the compute type, or null for plain pooling
  const void* shift;
  void* values;
  uint8_t* codes;
};

cudaError_t max_pool2d(const MaxPool2d& op, cudaStream_t stream);

}  // namespace fastseg::cuda
