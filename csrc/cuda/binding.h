#pragma once
// What the CUDA bindings share: the caller's device and stream, errors, and the kernels' limits.

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/pool/pool2d.h"
#include "common/tensor_checks.h"
#include "cuda/dtype.h"

namespace fastseg::cuda {

// Runs launch(stream) on the tensor's device and torch's current stream there.
template <class Launch>
void launch_beside(const Tensor& tensor, const char* op, const Launch& launch) {
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const cudaError_t error = launch(static_cast<cudaStream_t>(stream));
  FASTSEG_CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

// Kernels count planes, sides, rows and taps in 32 bits, tensors in 64.
inline void check_count(const char* op, const char* what, int64_t count) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  FASTSEG_CHECK(count < kLimit, op, ": on CUDA, ", what, " must be below 2^30, got ", count);
}

inline void check_counts(const char* op, const Pool2d& pool, int64_t planes, int64_t lanes) {
  check_count(op, "the number of planes", planes);
  for (const PoolAxis* axis : {&pool.h, &pool.w}) {
    const int64_t reach = int64_t{axis->kernel - 1} * axis->dilation + axis->padding;
    check_count(op, "the height and the width with the windows' reach", axis->size + reach);
  }
  check_count(op, "the elements of a row", (pool.w.size + 1) * lanes);
}

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      return Dtype::kFloat32;  // check_float has refused all else
  }
}

}  // namespace fastseg::cuda
