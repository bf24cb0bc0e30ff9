#pragma once
// Checks of what losses know of the pixels, shared by the bindings.

#include <optional>

#include "common/head/logits_args.h"

namespace fastseg {

inline ScalarType loss_dtype(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A map (N, H, W) of the losses' dtype.
inline void check_pixels(const char* op, const char* name, const Tensor& pixels,
                         const Tensor& target, const Tensor& logits) {
  FASTSEG_CHECK(pixels.sizes().equals(target.sizes()), op, ": ", name,
                " must have the target's shape ", to_string(target.sizes()), ", got ",
                to_string(pixels.sizes()));
  FASTSEG_CHECK(pixels.scalar_type() == loss_dtype(logits), op, ": ", name, " must be ",
                loss_dtype(logits), " for logits of ", logits.scalar_type(), ", got ",
                pixels.scalar_type());
  check_same_device(logits, "logits", pixels, name, op);
}

inline void check_target(const char* op, const Tensor& logits, const Tensor& target) {
  check_logits(op, logits);
  const auto dtype = target.scalar_type();
  FASTSEG_CHECK(dtype == ScalarType::Long || dtype == ScalarType::Int || dtype == ScalarType::Byte,
                op, ": target must be int64, int32 or uint8, got ", dtype);
  const auto size = target.sizes();
  FASTSEG_CHECK(size.size() == 3 && size[0] == logits.size(0) && size[1] > 0 && size[2] > 0, op,
                ": target must have the shape (N, H, W) with N = ", logits.size(0),
                " and at least one pixel, got ", to_string(size));
  check_same_device(logits, "logits", target, "target", op);
}

inline void check_weight(const char* op, const Tensor& logits,
                         const std::optional<Tensor>& weight) {
  if (!weight) return;
  FASTSEG_CHECK(weight->dim() == 1 && weight->size(0) == logits.size(1), op,
                ": weight must have the shape (C,) = (", logits.size(1), ",), got ",
                to_string(weight->sizes()));
  FASTSEG_CHECK(weight->scalar_type() == loss_dtype(logits), op, ": weight must be ",
                loss_dtype(logits), " for logits of ", logits.scalar_type(), ", got ",
                weight->scalar_type());
  check_same_device(logits, "logits", *weight, "weight", op);
}

}  // namespace fastseg
