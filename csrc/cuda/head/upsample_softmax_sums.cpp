// fastseg::upsample_softmax_sums and its gradient on CUDA.

#include "cuda/head/upsample_softmax_sums.h"

#include <torch/csrc/stable/library.h>

#include "common/head/upsample_softmax_sums_ops.h"
#include "cuda/binding.h"
#include "cuda/head/gradient_binding.h"
#include "cuda/head/logits_binding.h"
#include "cuda/head/pixel_maps_binding.h"

namespace fastseg::cuda {
namespace {

SoftmaxSums softmax_sums_of(const SoftmaxSumsCall& call) {
  return {upsampled_logits(call.op, call.logits, call.target.size(1), call.target.size(2),
                           call.align_corners),
          target_map(call.target, call.logits.size(1), call.ignore_index), call.squared};
}

void softmax_sums(const SoftmaxSumsCall& call, const SoftmaxSumsOutputs& outputs) {
  const SoftmaxSums of = softmax_sums_of(call);
  const int64_t patches = patch_count(of.logits);
  check_count(call.op, "the number of patches", patches);
  const Tensor sums =
      torch::stable::new_empty(outputs.normalizer, {patches, 3 * of.logits.classes});
  const SoftmaxSumsForward job{of,
                               outputs.normalizer.mutable_data_ptr(),
                               sums.mutable_data_ptr(),
                               outputs.intersection.mutable_data_ptr(),
                               outputs.probability.mutable_data_ptr(),
                               outputs.count.mutable_data_ptr()};
  launch_beside(call.logits, call.op,
                [&](cudaStream_t stream) { return upsample_softmax_sums(job, stream); });
}

void softmax_sums_gradient(const SoftmaxSumsCall& call, const SoftmaxSumsGrads& grads,
                           const Tensor& normalizer, const Tensor& grad_logits) {
  const SoftmaxSums of = softmax_sums_of(call);
  const Tensor parts = parts_of(call.op, of.logits, normalizer);
  const SoftmaxSumsBackward job{of,
                                pixel_map(normalizer),
                                grads.intersection.const_data_ptr(),
                                grads.probability.const_data_ptr(),
                                parts.mutable_data_ptr(),
                                grad_logits.mutable_data_ptr(),
                                !is_dense(grad_logits, false)};
  launch_beside(call.logits, call.op,
                [&](cudaStream_t stream) { return upsample_softmax_sums_backward(job, stream); });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::upsample_softmax_sums_ops;
  m.impl("upsample_softmax_sums",
         TORCH_BOX(&ops::upsample_softmax_sums<fastseg::cuda::softmax_sums>));
  m.impl("upsample_softmax_sums_backward",
         TORCH_BOX(&ops::upsample_softmax_sums_backward<fastseg::cuda::softmax_sums_gradient>));
}
