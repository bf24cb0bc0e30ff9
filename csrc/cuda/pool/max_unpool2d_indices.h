#pragma once
// max_unpool2d and its backward by torch's int64 indices, flat in the H x W plane: any index may go
// anywhere.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/dtype.h"

namespace fastseg::cuda {

// All pointers are dense, in the same layout: `planes` of (H, W) or, with lanes = C > 1, of
// (H, W, C). Every count and the elements of a plane's channel are below 2^30.
struct MaxUnpool2dIndices {
  Dtype dtype;
  int64_t planes;
  int64_t lanes;
  int64_t height, width;
  int64_t pooled_height, pooled_width;
  const void* values;  // backward: the gradient of the output
  const int64_t* indices;
  void* out;
};

// `winners`: scratch of 4 bytes for each element of out.
cudaError_t max_unpool2d_indices(const MaxUnpool2dIndices& op, int* winners, cudaStream_t stream);

cudaError_t max_unpool2d_indices_backward(const MaxUnpool2dIndices& op, cudaStream_t stream);

}  // namespace fastseg::cuda
