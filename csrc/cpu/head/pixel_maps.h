#pragma once
// From a binding's tensors to the maps of pixels that kernels read.

#include <optional>

#include "common/tensor_checks.h"
#include "cpu/head/pixel_map.h"

namespace fastseg::cpu {

template <class F>
PixelMap<F> pixel_map(const std::optional<Tensor>& pixels) {
  if (!pixels) return {nullptr, 0, 0, 0};
  const auto stride = pixels->strides();
  return {static_cast<const F*>(pixels->const_data_ptr()), stride[0], stride[1], stride[2]};
}

inline TargetMap target_map(const Tensor& target, int64_t ignore_index, BadTarget* bad) {
  const auto dtype = target.scalar_type();
  const int bytes = dtype == ScalarType::Byte ? 1 : dtype == ScalarType::Int ? 4 : 8;
  return {target.const_data_ptr(), bytes, ignore_index, target.size(1), target.size(2), bad};
}

inline void check_targets(const char* op, const BadTarget& bad, int64_t classes,
                          int64_t ignore_index) {
  FASTSEG_CHECK(!bad.found, op, ": target must lie in [0, ", classes - 1,
                "] or be ignore_index = ", ignore_index, ", got ", bad.value.load());
}

}  // namespace fastseg::cpu
