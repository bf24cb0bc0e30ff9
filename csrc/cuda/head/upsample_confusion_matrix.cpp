// fastseg::upsample_confusion_matrix on CUDA.

#include "cuda/head/upsample_confusion_matrix.h"

#include <torch/csrc/stable/library.h>

#include "common/head/upsample_confusion_matrix_ops.h"
#include "cuda/binding.h"
#include "cuda/head/logits_binding.h"

namespace fastseg::cuda {
namespace {

void count_upsampled(const UpsampleConfusionCall& call) {
  constexpr const char* op = upsample_confusion_matrix_ops::kOp;
  const Tensor target = dense(call.target, false);
  const UpsampleConfusion job{
      upsampled_logits(op, call.logits, target.size(1), target.size(2), call.align_corners),
      {target.const_data_ptr(), confusion_matrix_ops::id_type(target, "target", op), call.ids}};
  FASTSEG_CHECK(target.numel() < int64_t{1} << 40, op, ": on CUDA, target must have fewer than",
                " 2^40 pixels, got ", target.numel());
  launch_beside(call.logits, op, [&](cudaStream_t stream) {
    return upsample_confusion_matrix(job, static_cast<int64_t*>(call.counts.mutable_data_ptr()),
                                     stream);
  });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::upsample_confusion_matrix_ops;
  m.impl("upsample_confusion_matrix",
         TORCH_BOX(&ops::upsample_confusion_matrix<fastseg::cuda::count_upsampled>));
}
