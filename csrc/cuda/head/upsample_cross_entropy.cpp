// fastseg::upsample_cross_entropy and its gradient on CUDA.

#include "cuda/head/upsample_cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include "common/head/upsample_cross_entropy_ops.h"
#include "cuda/binding.h"
#include "cuda/head/gradient_binding.h"
#include "cuda/head/logits_binding.h"
#include "cuda/head/pixel_maps_binding.h"

namespace fastseg::cuda {
namespace {

CrossEntropy cross_entropy_of(const CrossEntropyCall& call) {
  return {upsampled_logits(call.op, call.logits, call.target.size(1), call.target.size(2),
                           call.align_corners),
          target_map(call.target, call.logits.size(1), call.ignore_index),
          call.weight ? call.weight->const_data_ptr() : nullptr, pixel_map(call.weight_map),
          call.label_smoothing};
}

void cross_entropy(const CrossEntropyCall& call, const CrossEntropyOutputs& outputs) {
  const CrossEntropy of = cross_entropy_of(call);
  const int64_t patches = patch_count(of.logits);
  check_count(call.op, "the number of patches", patches);
  const Tensor sums = torch::stable::new_empty(call.logits, {patches, 2}, ScalarType::Double);
  const bool reduced = outputs.loss.dim() == 0;
  void* const loss = outputs.loss.mutable_data_ptr();
  const CrossEntropyForward job{of,
                                outputs.normalizer.mutable_data_ptr(),
                                reduced ? nullptr : loss,
                                static_cast<double*>(sums.mutable_data_ptr()),
                                reduced ? loss : nullptr,
                                outputs.total_weight.mutable_data_ptr(),
                                outputs.mean};
  launch_beside(call.logits, call.op,
                [&](cudaStream_t stream) { return upsample_cross_entropy(job, stream); });
}

void cross_entropy_gradient(const CrossEntropyCall& call, const Tensor& grad,
                            const Tensor& normalizer, const Tensor& grad_logits) {
  const CrossEntropy of = cross_entropy_of(call);
  const Tensor parts = parts_of(call.op, of.logits, normalizer);
  const CrossEntropyBackward job{of,
                                 pixel_map(normalizer),
                                 pixel_map(grad),
                                 parts.mutable_data_ptr(),
                                 grad_logits.mutable_data_ptr(),
                                 !is_dense(grad_logits, false)};
  launch_beside(call.logits, call.op,
                [&](cudaStream_t stream) { return upsample_cross_entropy_backward(job, stream); });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::upsample_cross_entropy_ops;
  m.impl("upsample_cross_entropy",
         TORCH_BOX(&ops::upsample_cross_entropy<fastseg::cuda::cross_entropy>));
  m.impl("upsample_cross_entropy_backward",
         TORCH_BOX(&ops::upsample_cross_entropy_backward<fastseg::cuda::cross_entropy_gradient>));
}
