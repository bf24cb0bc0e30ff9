#pragma once
// fastseg::upsample_confusion_matrix but for the kernel.

#include <cstdint>
#include <optional>

#include "common/head/confusion_matrix_ops.h"
#include "common/head/logits_args.h"

namespace fastseg {

struct UpsampleConfusionCall {
  Tensor logits;  // (N, C, h, w)
  Tensor target;  // (N, H, W)
  bool align_corners;
  ClassIds ids;
  Tensor counts;  // int64 (C, C)
};

using UpsampleConfusionKernel = void (*)(const UpsampleConfusionCall&);

namespace upsample_confusion_matrix_ops {

inline constexpr const char* kOp = "fastseg::upsample_confusion_matrix";

template <UpsampleConfusionKernel kernel>
Tensor upsample_confusion_matrix(const Tensor& logits, const Tensor& target, bool align_corners,
                                 std::optional<int64_t> ignore_index) {
  check_logits(kOp, logits);
  confusion_matrix_ops::id_type(target, "target", kOp);
  FASTSEG_CHECK(target.dim() == 3 && target.size(0) == logits.size(0), kOp,
                ": target must have the shape (N, H, W) with N = ", logits.size(0), ", got ",
                to_string(target.sizes()));
  check_same_device(logits, "logits", target, "target", kOp);
  const int64_t classes = logits.size(1);
  FASTSEG_CHECK(classes <= confusion_matrix_ops::kMostClasses, kOp, ": logits must have at most ",
                confusion_matrix_ops::kMostClasses, " classes, got ", classes);
  const UpsampleConfusionCall call{
      logits,
      target,
      align_corners,
      {classes, ignore_index.has_value(), ignore_index.value_or(0)},
      empty_like_layout(target, {classes, classes}, ScalarType::Long, false)};
  kernel(call);
  return call.counts;
}

}  // namespace upsample_confusion_matrix_ops
}  // namespace fastseg
