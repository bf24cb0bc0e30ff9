#pragma once
// From a binding's tensors to the maps of pixels that kernels read.

#include <optional>

#include "cuda/binding.h"
#include "cuda/head/pixel_maps.h"

namespace fastseg::cuda {

inline PixelMap pixel_map(const std::optional<Tensor>& pixels) {
  if (!pixels) return {nullptr, 0, 0, 0};
  const auto stride = pixels->strides();
  return {pixels->const_data_ptr(), stride[0], stride[1], stride[2]};
}

// check_target has refused other dtypes.
inline TargetMap target_map(const Tensor& target, int64_t classes, int64_t ignore_index) {
  const auto dtype = target.scalar_type();
  const IdType type = dtype == ScalarType::Byte  ? IdType::kUint8
                      : dtype == ScalarType::Int ? IdType::kInt32
                                                 : IdType::kInt64;
  return {target.const_data_ptr(), type, {classes, true, ignore_index}};
}

}  // namespace fastseg::cuda
