// fastseg::max_pool2d and fastseg::batch_norm_relu_max_pool2d on CUDA.

#include "cuda/pool/max_pool2d.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/pool/max_pool2d_ops.h"
#include "cuda/binding.h"

namespace fastseg::cuda {
namespace {

void pool(const MaxPool2dCall& call) {
  check_counts(call.op, call.pool, call.planes(), call.lanes());
  const auto pointer = [](const std::optional<Tensor>& t) {
    return t ? t->const_data_ptr() : nullptr;
  };
  const MaxPool2d job{dtype_of(call.x),
                      call.pool,
                      call.planes(),
                      call.lanes(),
                      call.channels,
                      call.x.const_data_ptr(),
                      pointer(call.scale),
                      pointer(call.shift),
                      call.values.mutable_data_ptr(),
                      static_cast<uint8_t*>(call.codes.mutable_data_ptr())};
  launch_beside(call.x, call.op, [&](cudaStream_t stream) { return max_pool2d(job, stream); });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::max_pool2d_ops;
  using fastseg::cuda::pool;
  m.impl("max_pool2d", TORCH_BOX(&ops::max_pool2d<pool>));
  m.impl("batch_norm_relu_max_pool2d", TORCH_BOX(&ops::batch_norm_relu_max_pool2d<pool>));
}
