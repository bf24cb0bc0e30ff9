// fastseg::upsample_argmax on CUDA.

#include "cuda/head/upsample_argmax.h"

#include <torch/csrc/stable/library.h>

#include "common/head/upsample_argmax_ops.h"
#include "cuda/binding.h"

namespace fastseg::cuda {
namespace {

void find_classes(const UpsampleArgmaxCall& call) {
  if (call.logits.size(0) == 0) return;
  check_count(call.op, "the number of pixels in a row of all images",
              call.logits.size(0) * call.height);
  check_count(call.op, "the width", call.width);
  const auto stride = call.logits.strides();
  const UpsampleArgmax job{
      dtype_of(call.logits),
      call.logits.const_data_ptr(),
      stride[0],
      stride[1],
      stride[2],
      stride[3],
      call.logits.size(0),
      call.logits.size(1),
      call.logits.size(2),
      call.logits.size(3),
      call.height,
      call.width,
      call.align_corners,
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
