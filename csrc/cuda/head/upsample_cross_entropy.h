#pragma once
// The launchers of fastseg::upsample_cross_entropy and its gradient. F is double for double and
// float for all other logits.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/head/logits.h"
#include "cuda/head/pixel_maps.h"

namespace fastseg::cuda {

struct CrossEntropy {
  UpsampledLogits logits;
  TargetMap target;
  const void* weight;   // F, of a class; null for 1
  PixelMap weight_map;  // of a pixel; none for 1
  double label_smoothing;
};

struct CrossEntropyForward {
  CrossEntropy of;
  void* normalizer;    // F (N, H, W): s of common/head/log2_softmax.h; 0 where a pixel is ignored
  void* pixel_loss;    // F (N, H, W); null for none
  double* sums;        // two for each patch (patch_count)
  void* loss;          // F, one number; null for none
  void* total_weight;  // F, one number
  bool mean;
};

struct CrossEntropyBackward {
  CrossEntropy of;
  PixelMap normalizer;
  PixelMap grad;       // of the pixels' losses
  void* parts;         // F, gradient_parts(logits) for each patch
  void* grad_logits;   // (N, C, h, w) of the logits' dtype, dense
  bool channels_last;  // or contiguous
};

cudaError_t upsample_cross_entropy(const CrossEntropyForward& job, cudaStream_t stream);
cudaError_t upsample_cross_entropy_backward(const CrossEntropyBackward& job, cudaStream_t stream);

}  // namespace fastseg::cuda
