// Outputs on the CPU: large ones in memory that is kept (cpu/memory/kept_memory.h), which torch's
// allocator would fault in anew for each.

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/torch_memory.h"
#include "cpu/memory/kept_memory.h"

namespace fastseg {
namespace {

int64_t element_size(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    default:
      return 4;
  }
}

}  // namespace

Tensor empty_strided_like(const Tensor& like, const std::vector<int64_t>& size,
                          const std::vector<int64_t>& strides, ScalarType dtype) {
  int64_t bytes = element_size(dtype);
  for (const int64_t n : size) bytes *= n;
  if (bytes < cpu::kLeastKept) return empty_from_torch(like, size, strides, dtype);
  return torch::stable::from_blob(cpu::take_memory(bytes), size, strides, like.device(), dtype,
                                  [bytes](void* memory) { cpu::give_memory(memory, bytes); });
}

}  // namespace fastseg
