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
  dispatch_float(call.logits.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using F = typename UpsampledLogits<T>::F;
    const BilinearRows<F> rows({call.logits.size(2), call.height, call.align_corners});
    const BilinearAxis<F> columns(call.logits.size(3), call.width, call.align_corners);
    const BilinearCells<F> cells(columns, simd_lanes<F>());
    const UpsampleArgmax<T> job{
        upsampled_logits<T>(call.logits, cells, rows),
        call.height,
        call.width,
        0,
        call.classes.mutable_data_ptr(),
        id_bytes(call.classes.scalar_type()),
        call.confidence ? static_cast<F*>(call.confidence->mutable_data_ptr()) : nullptr};
    const auto count = static_cast<int64_t>(rows.bands.size());
    const int64_t work = call.logits.size(1) * call.width * (call.height + count - 1) / count;
    parallel_rows(call.logits.size(0) * count, work, [&](int64_t begin, int64_t end) {
      FASTSEG_SIMD_DISPATCH(upsample_argmax<T>)(job, begin, end);
    });
  });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::upsample_argmax_ops;
  using fastseg::cpu::find_classes;
  m.impl("upsample_argmax", TORCH_BOX(&ops::upsample_argmax<find_classes>));
  m.impl("upsample_argmax_confidence", TORCH_BOX(&ops::upsample_argmax_confidence<find_classes>));
}
