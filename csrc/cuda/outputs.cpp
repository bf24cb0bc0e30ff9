// Outputs on the GPU: from torch's allocator, which keeps what is freed.

#include "common/torch_memory.h"

namespace fastseg {

Tensor empty_strided_like(const Tensor& like, const std::vector<int64_t>& size,
                          const std::vector<int64_t>& strides, ScalarType dtype) {
  return empty_from_torch(like, size, strides, dtype);
}

}  // namespace fastseg
