#pragma once
// fastseg::confusion_matrix but for the kernel, which the CPU and the CUDA bindings bring.

#include <cstdint>
#include <optional>

#include "common/head/class_ids.h"
#include "common/tensor_checks.h"

namespace fastseg {

// Fills counts, int64 (C, C), or raises an error that says which ids were bad.
using ConfusionKernel = void (*)(const Tensor& prediction, const Tensor& target,
                                 const ClassIds& ids, const Tensor& counts);

namespace confusion_matrix_ops {

inline constexpr const char* kOp = "fastseg::confusion_matrix";

// Counts of more pairs would take more than 8 GiB.
inline constexpr int64_t kMostClasses = 32768;

inline IdType id_type(const Tensor& ids, const char* name, const char* op = kOp) {
  switch (ids.scalar_type()) {
    case ScalarType::Bool:  // a byte, 0 or 1
    case ScalarType::Byte:
      return IdType::kUint8;
    case ScalarType::Char:
      return IdType::kInt8;
    case ScalarType::Short:
      return IdType::kInt16;
    case ScalarType::Int:
      return IdType::kInt32;
    case ScalarType::Long:
      return IdType::kInt64;
    default:
      FASTSEG_CHECK(false, op, ": ", name,
                    " must hold integer class ids (uint8, int8, int16, int32, int64 or bool), got ",
                    ids.scalar_type());
  }
}

template <ConfusionKernel kernel>
Tensor confusion_matrix(const Tensor& prediction, const Tensor& target, int64_t num_classes,
                        std::optional<int64_t> ignore_index) {
  id_type(prediction, "prediction");
  id_type(target, "target");
  FASTSEG_CHECK(prediction.sizes().equals(target.sizes()), kOp,
                ": prediction and target must have one shape, got ", to_string(prediction.sizes()),
                " and ", to_string(target.sizes()));
  check_same_device(prediction, "prediction", target, "target", kOp);
  FASTSEG_CHECK(num_classes >= 1 && num_classes <= kMostClasses, kOp, ": num_classes must be 1 to ",
                kMostClasses, ", got ", num_classes);
  const Tensor counts =
      empty_like_layout(target, {num_classes, num_classes}, ScalarType::Long, false);
  kernel(prediction, target, {num_classes, ignore_index.has_value(), ignore_index.value_or(0)},
         counts);
  return counts;
}

}  // namespace confusion_matrix_ops
}  // namespace fastseg
