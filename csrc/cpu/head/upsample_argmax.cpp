// fastseg::upsample_argmax on the CPU.

#include "cpu/head/upsample_argmax.h"

#include <torch/csrc/stable/library.h>

#include "common/head/upsample_argmax_ops.h"
#include "cpu/head/upsample_logits.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {
namespace {

void find_classes(const UpsampleArgmaxCall& call) {
  if (call.logits.size(0) == 0) return;
  const auto find = [&]<class T>(const UpsampledLogits<T>& logits, int64_t tasks, int64_t work) {
    using F = typename UpsampledLogits<T>::F;
    const UpsampleArgmax<T> job{
        logits,
        call.height,
        call.width,
        0,
        call.classes.mutable_data_ptr(),
        id_bytes(call.classes.scalar_type()),
        call.confidence ? static_cast<F*>(call.confidence->mutable_data_ptr()) : nullptr};
    parallel_rows(tasks, work, [&](int64_t begin, int64_t end) {
      FASTSEG_SIMD_DISPATCH_OF(T, upsample_argmax<T>)(job, begin, end);
    });
  };
  with_upsampled(call.logits, call.height, call.width, call.align_corners, find);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::upsample_argmax_ops;
  using fastseg::cpu::find_classes;
  m.impl("upsample_argmax", TORCH_BOX(&ops::upsample_argmax<find_classes>));
  m.impl("upsample_argmax_confidence", TORCH_BOX(&ops::upsample_argmax_confidence<find_classes>));
}
