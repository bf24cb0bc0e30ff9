#pragma once
// The exact Euclidean distance transform on CUDA.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/head/distance_transform.h"

namespace fastseg::cuda {

// The longest axis: shared memory holds a number for every 32 elements of a line.
inline constexpr int64_t kLongestAxis = int64_t{1} << 19;

// Everything is dense. Squared distances are int32_t or, if not op.in_integers, double.
struct DistanceTransformJob {
  DistanceTransform op;
  const void* mask;
  int mask_bytes;  // of an element, which is zero where all of `bits` are
  uint64_t bits;
  void* squares;       // as many squared distances as there are elements
  void* more_squares;  // as many more where op.sizes[1] > 1
  void* out;
  bool in_float64;
};

cudaError_t distance_transform(const DistanceTransformJob& job, cudaStream_t stream);

}  // namespace fastseg::cuda
