#pragma once
// The confusion matrix of two label maps: counts[i][j] = the pixels of true class i that are
// predicted as j.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/head/class_ids.h"

namespace fastseg::cuda {

// Both maps are dense and in one order.
struct ConfusionMatrix {
  const void* prediction;
  IdType prediction_type;
  const void* target;
  IdType target_type;
  int64_t pixels;  // below 2^40
  ClassIds ids;
};

// Fills counts, ids.count x ids.count. An id of a counted pixel that is no class is a device-side
// assert.
cudaError_t confusion_matrix(const ConfusionMatrix& op, int64_t* counts, cudaStream_t stream);

}  // namespace fastseg::cuda
