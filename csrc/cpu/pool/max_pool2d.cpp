// fastseg::max_pool2d and fastseg::batch_norm_relu_max_pool2d on the CPU.

#include "cpu/pool/max_pool2d.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <type_traits>

#include "common/pool/max_pool2d_ops.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {
namespace {

void pool(const MaxPool2dCall& call) {
  dispatch_float(call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using Scale = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const auto pointer = [](const std::optional<Tensor>& t) {
      return t ? static_cast<const Scale*>(t->const_data_ptr()) : nullptr;
    };
    // Contiguous rows are a quarter of the input's and short: to stream them gains nothing.
    const bool stream =
        call.channels_last && outgrows_cache(call.values.numel() * int64_t{sizeof(T)});
    const MaxPool2d<T, Scale> job{call.pool,
                                  call.channels,
                                  call.channels_last,
                                  stream,
                                  static_cast<const T*>(call.x.const_data_ptr()),
                                  pointer(call.scale),
                                  pointer(call.shift),
                                  static_cast<T*>(call.values.mutable_data_ptr()),
                                  static_cast<uint8_t*>(call.codes.mutable_data_ptr())};
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, max_pool2d_rows<T, Scale>);
    parallel_rows(call.planes() * call.pool.h.windows, call.pool.w.windows * call.lanes(),
                  [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::max_pool2d_ops;
  using fastseg::cpu::pool;
  m.impl("max_pool2d", TORCH_BOX(&ops::max_pool2d<pool>));
  m.impl("batch_norm_relu_max_pool2d", TORCH_BOX(&ops::batch_norm_relu_max_pool2d<pool>));
}
