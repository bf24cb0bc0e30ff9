#pragma once
// From the sums of patches to the gradient of the logits that were upsampled.
//
// A patch (patch.h) leaves a sum for each class, each of its two source rows and each of its source
// columns: parts[image][band][tile][row][class][slot], or [slot][class] for logits in
// channels_last.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/head/logits.h"

namespace fastseg::cuda {

struct GradientParts {
  void* data;  // F: double for double, float for all other logits
  bool channels_last;
};

// The number of patches, and of the parts of each.
int64_t patch_count(const UpsampledLogits& logits);
int64_t gradient_parts(const UpsampledLogits& logits);

// Adds the parts of each logit in the order of its bands and tiles. grad_logits is (N, C, h, w) of
// the logits' dtype, dense and in the parts' layout.
cudaError_t collect_gradient(const UpsampledLogits& logits, const GradientParts& parts,
                             void* grad_logits, cudaStream_t stream);

}  // namespace fastseg::cuda
