#pragma once
// max_unpool2d by codes, max_pool2d_backward, and max_unpool2d_backward by codes.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/pool/pool2d.h"
#include "cuda/dtype.h"
#include "cuda/pool/codes.h"

namespace fastseg::cuda {

// All pointers are dense, in the same layout: `planes` of (H, W) or, with lanes = C > 1, of
// (H, W, C). Every count is below 2^30.
struct MaxUnpool2d {
  Dtype dtype;
  Pool2d pool;
  int64_t planes;
  int64_t lanes;
  bool accumulate;  // windows that meet in an element: add (max_pool2d_backward), or the last wins
  const void* values;
  Codes codes;
  void* out;
};

// Every element of out is written. A bad code fails the stream.
cudaError_t max_unpool2d(const MaxUnpool2d& op, cudaStream_t stream);

struct MaxUnpool2dBackward {
  Dtype dtype;
  Pool2d pool;
  int64_t planes;
  int64_t lanes;
  const void* grad;  // of max_unpool2d's output, (H, W) planes
  Codes codes;
  void* out;  // (h, w) planes
};

cudaError_t max_unpool2d_backward(const MaxUnpool2dBackward& op, cudaStream_t stream);

}  // namespace fastseg::cuda
