#pragma once
// Images of floats between layouts, several times as fast as torch's copy does it.

#include "common/tensor_checks.h"
#include "cpu/conv/transpose.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {

// x (N, C, H, W), float32, in the layout asked for: x itself where it has it.
inline Tensor in_layout(const Tensor& x, bool channels_last) {
  if (is_dense(x, channels_last)) return x;
  if (!is_dense(x, !channels_last)) return dense(x, channels_last);
  const std::vector<int64_t> size(x.sizes().begin(), x.sizes().end());
  Tensor out = empty_like_layout(x, size, ScalarType::Float, channels_last);
  const int64_t plane = size[2] * size[3];
  const Transpose op{static_cast<const float*>(x.const_data_ptr()),
                     static_cast<float*>(out.mutable_data_ptr()), size[0],
                     channels_last ? size[1] : plane, channels_last ? plane : size[1]};
  const auto kernel = FASTSEG_SIMD_DISPATCH(transpose_strip);
  const int64_t strips = op.strips();
  TorchTasks().run(op.count * strips, [&](int64_t i) { kernel(op, i / strips, i % strips); });
  return out;
}

}  // namespace fastseg::cpu
