#pragma once
// Empty tensors from torch's allocator.

#include <vector>

#include "common/tensor_checks.h"

namespace fastseg {

// Through the C shim: torch::stable::empty goes through the dispatcher, boxed.
inline Tensor empty_from_torch(const Tensor& like, const std::vector<int64_t>& size,
                               const std::vector<int64_t>& strides, ScalarType dtype) {
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(size.size()), size.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      device_index, &handle));
  return Tensor(handle);
}

}  // namespace fastseg
