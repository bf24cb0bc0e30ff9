#pragma once
// The element types of the CUDA launchers, which know nothing of torch.

namespace fastseg::cuda {

enum class Dtype { kFloat32, kFloat64, kFloat16, kBFloat16 };

constexpr int size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

}  // namespace fastseg::cuda
