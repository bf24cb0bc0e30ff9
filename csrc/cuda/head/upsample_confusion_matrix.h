#pragma once
// The launcher of fastseg::upsample_confusion_matrix.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/head/logits.h"
#include "cuda/head/pixel_maps.h"

namespace fastseg::cuda {

struct UpsampleConfusion {
  UpsampledLogits logits;
  TargetMap target;
};

// Fills counts, classes x classes: counts[i][j] = the pixels of true class i whose largest logit is
// that of class j. An id of a counted pixel that is no class is a device-side assert.
cudaError_t upsample_confusion_matrix(const UpsampleConfusion& job, int64_t* counts,
                                      cudaStream_t stream);

}  // namespace fastseg::cuda
