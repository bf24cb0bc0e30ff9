#pragma once
// The launchers of fastseg::upsample_softmax_sums and its gradient. F is double for double and
// float for all other logits.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/head/logits.h"
#include "cuda/head/pixel_maps.h"

namespace fastseg::cuda {

struct SoftmaxSums {
  UpsampledLogits logits;
  TargetMap target;
  bool squared;
};

struct SoftmaxSumsForward {
  SoftmaxSums of;
  void* normalizer;  // F (N, H, W): s of common/head/log2_softmax.h; 0 where a pixel is ignored
  void* sums;        // F, three for each class of each patch (patch_count)
  void *intersection, *probability, *count;  // F (N, C)
};

struct SoftmaxSumsBackward {
  SoftmaxSums of;
  PixelMap normalizer;
  const void *intersection, *probability;  // F (N, C), dense: the gradients of these sums
  void* parts;                             // F, gradient_parts(logits) for each patch
  void* grad_logits;                       // (N, C, h, w) of the logits' dtype, dense
  bool channels_last;                      // or contiguous
};

cudaError_t upsample_softmax_sums(const SoftmaxSumsForward& job, cudaStream_t stream);
cudaError_t upsample_softmax_sums_backward(const SoftmaxSumsBackward& job, cudaStream_t stream);

}  // namespace fastseg::cuda
