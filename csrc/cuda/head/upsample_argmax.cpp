// fastseg::upsample_argmax on CUDA.

#include "cuda/head/upsample_argmax.h"

#include <torch/csrc/stable/library.h>

#include "common/head/upsample_argmax_ops.h"
#include "cuda/binding.h"
#include "cuda/head/logits_binding.h"

namespace fastseg::cuda {
namespace {

void find_classes(const UpsampleArgmaxCall& call) {
  if (call.logits.size(0) == 0) return;
  const UpsampleArgmax job{
      upsampled_logits(call.op, call.logits, call.height, call.width, call.align_corners),
      call.classes.mutable_data_ptr(),
      id_bytes(call.classes.scalar_type()),
      call.confidence ? call.confidence->mutable_data_ptr() : nullptr,
  };
  launch_beside(call.logits, call.op,
                [&](cudaStream_t stream) { return upsample_argmax(job, stream); });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::upsample_argmax_ops;
  using fastseg::cuda::find_classes;
  m.impl("upsample_argmax", TORCH_BOX(&ops::upsample_argmax<find_classes>));
  m.impl("upsample_argmax_confidence", TORCH_BOX(&ops::upsample_argmax_confidence<find_classes>));
}
