// fastseg::im2col_conv2d_input_grad on the CPU.

#include <torch/csrc/stable/library.h>

#include "cpu/conv/conv2d_grad_args.h"
#include "cpu/conv/im2col_conv2d_grads.h"
#include "cpu/memory/scratch.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

using Ints = std::vector<int64_t>;

constexpr const char* kOp = "fastseg::im2col_conv2d_input_grad";

Conv2dGradShape check(const Tensor& grad, const Tensor& weight, const PerAxis& size,
                      const Conv2dArgs& args, int64_t groups) {
  check_conv2d_image(kOp, "grad", grad);
  check_float32(grad, kOp, "grad");
  check_alike(kOp, "weight", weight, "grad", grad);
  FASTSEG_CHECK(weight.dim() == 4 && weight.size(0) == grad.size(1) && weight.size(1) > 0, kOp,
                ": weight must have the shape (Co, Ci / groups, kh, kw) with the ", grad.size(1),
                " channels of grad, got ", to_string(weight.sizes()));
  check_groups(kOp, groups, "grad", grad.size(1), "weight", weight.size(0));
  const auto plane = args.output_size(kOp, "input_size", size[0], size[1]);
  const Ints output{grad.size(0), grad.size(1), plane[0], plane[1]};
  FASTSEG_CHECK(has_shape(grad, output), kOp, ": grad must have the output's shape ",
                to_string(output), ", got ", to_string(grad.sizes()));
  return grad_shape(grad, weight.size(1) * groups, size, args, groups);
}

Tensor im2col_conv2d_input_grad(const Tensor& grad, const Tensor& weight, Ints input_size,
                                Ints stride, Ints padding, Ints dilation, int64_t groups) {
  FASTSEG_CHECK(weight.dim() == 4, kOp,
                ": weight must have the shape (Co, Ci / groups, kh, kw), got ",
                to_string(weight.sizes()));
  const Conv2dArgs args(kOp, {weight.size(2), weight.size(3)}, stride, padding, dilation);
  const PerAxis size = Conv2dArgs::pair(kOp, "input_size", input_size);
  const Conv2dGradShape shape = check(grad, weight, size, args, groups);
  const int64_t channels = shape.in_channels * groups;
  const auto allocate = [&](const Ints& sizes) {
    return empty_like_layout(grad, sizes, ScalarType::Float, false);
  };
  const Tensor split = allocate({grad.size(0), channels, size[0], shape.packed_columns()});
  const Tensor grads = in_layout(grad, false), filters = dense(weight, false);
  Im2colInputGrad op{shape, static_cast<const float*>(grads.const_data_ptr()), nullptr,
                     static_cast<float*>(split.mutable_data_ptr())};
  const int64_t rows = FASTSEG_SIMD_DISPATCH(im2col_tile_rows)();
  const int64_t blocks = op.blocks(), packed_block = op.packed_block(rows);
  const Tensor packed = allocate({groups * blocks * packed_block});
  float* const to = static_cast<float*>(packed.mutable_data_ptr());
  op.weight = to;
  const auto* from = static_cast<const float*>(filters.const_data_ptr());
  const auto pack = FASTSEG_SIMD_DISPATCH(im2col_pack_columns);
  TorchTasks().run(groups * blocks, [&](int64_t i) {
    pack(shape, from, i / blocks, i % blocks, to + i * packed_block);
  });
  const auto kernel = FASTSEG_SIMD_DISPATCH(im2col_input_grad_task);
  TorchTasks().run(grad.size(0) * groups * blocks, [&](int64_t i) {
    static thread_local Scratch scratch;
    kernel(op, i / blocks / groups, i / blocks % groups, i % blocks,
           scratch.get(im2col_input_grad_memory(op)));
  });
  const bool channels_last = is_channels_last(grad);
  if (shape.residues() == 1) return in_layout(split, channels_last);
  const Tensor out = allocate({grad.size(0), channels, size[0], size[1]});
  const SplitRows merge{shape, op.x, static_cast<float*>(out.mutable_data_ptr())};
  const auto merge_kernel = FASTSEG_SIMD_DISPATCH(merge_rows);
  TorchTasks().run(grad.size(0) * channels, [&](int64_t plane) { merge_kernel(merge, plane); });
  return in_layout(out, channels_last);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  m.impl("im2col_conv2d_input_grad", TORCH_BOX(&fastseg::cpu::im2col_conv2d_input_grad));
}
