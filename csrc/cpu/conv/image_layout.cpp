// fastseg::image_layout on the CPU.

#include "cpu/conv/image_layout.h"

#include <torch/csrc/stable/library.h>

#include "common/conv/conv2d_args.h"

namespace {

using fastseg::Tensor;

Tensor image_layout(const Tensor& x, bool channels_last) {
  constexpr const char* op = "fastseg::image_layout";
  FASTSEG_CHECK(x.dim() == 4, op, ": x must have the shape (N, C, H, W), got ",
                fastseg::to_string(x.sizes()));
  fastseg::check_float32(x, op, "x");
  const Tensor out = fastseg::cpu::in_layout(x, channels_last);
  return out.data_ptr() == x.data_ptr() ? torch::stable::clone(x) : out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) { m.impl("image_layout", TORCH_BOX(&image_layout)); }
