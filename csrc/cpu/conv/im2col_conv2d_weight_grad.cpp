// fastseg::im2col_conv2d_weight_grad on the CPU.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/conv/conv2d_grad_args.h"
#include "cpu/conv/im2col_conv2d_grads.h"
#include "cpu/memory/scratch.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

using Ints = std::vector<int64_t>;

constexpr const char* kOp = "fastseg::im2col_conv2d_weight_grad";

// The planes of x with their rows split, or x itself where a row has one part.
Tensor split_planes(const Tensor& x, const Conv2dGradShape& shape) {
  const Tensor planes = in_layout(x, false);
  if (shape.residues() == 1) return planes;
  const Ints size{x.size(0), x.size(1), x.size(2), shape.packed_columns()};
  const Tensor split = empty_like_layout(x, size, ScalarType::Float, false);
  const SplitRows op{shape, static_cast<const float*>(planes.const_data_ptr()),
                     static_cast<float*>(split.mutable_data_ptr())};
  const auto kernel = FASTSEG_SIMD_DISPATCH(split_rows);
  TorchTasks().run(x.size(0) * x.size(1), [&](int64_t plane) { kernel(op, plane); });
  return split;
}

Tensor im2col_conv2d_weight_grad(const Tensor& x, const Tensor& grad, Ints kernel_size, Ints stride,
                                 Ints padding, Ints dilation, int64_t groups) {
  constexpr int64_t kRows = 64;   // of a task: a stretch of grad stays in the second-level cache
  constexpr int64_t kTasks = 32;  // at least, where there are enough pixels
  const Conv2dArgs args(kOp, Conv2dArgs::pair(kOp, "kernel_size", kernel_size), stride, padding,
                        dilation);
  const Conv2dGradShape shape = check_weight_grad(kOp, x, grad, args, groups);
  const bool channels_last = is_channels_last(x);
  const Tensor out = empty_like_layout(
      x, {grad.size(1), shape.in_channels, args.kernel_size[0], args.kernel_size[1]},
      ScalarType::Float, channels_last);
  const Tensor split = split_planes(x, shape), grads = in_layout(grad, channels_last);
  Im2colWeightGrad op{shape,
                      channels_last,
                      static_cast<const float*>(split.const_data_ptr()),
                      static_cast<const float*>(grads.const_data_ptr()),
                      1,
                      nullptr,
                      static_cast<float*>(out.mutable_data_ptr())};
  const int64_t blocks = ceil_divide(shape.out_channels, kRows), tasks = groups * blocks;
  op.parts = std::clamp<int64_t>(op.stretches(), 1, ceil_divide(kTasks, tasks));
  const Tensor sums =
      empty_like_layout(x, {grad.size(1) * op.parts * op.row()}, ScalarType::Float, false);
  op.sums = static_cast<float*>(sums.mutable_data_ptr());
  const auto kernel = FASTSEG_SIMD_DISPATCH(im2col_weight_grad_task);
  TorchTasks().run(tasks * op.parts, [&](int64_t i) {
    static thread_local Scratch scratch;
    const int64_t block = i / op.parts % blocks;
    const Im2colWeightGradTask task{i / op.parts / blocks, shape.out_channels * block / blocks,
                                    shape.out_channels * (block + 1) / blocks, i % op.parts};
    kernel(op, task, scratch.get(im2col_weight_grad_memory(task)));
  });
  const auto add = FASTSEG_SIMD_DISPATCH(im2col_add_parts);
  TorchTasks().run(grad.size(1), [&](int64_t channel) { add(op, channel); });
  return out;
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  m.impl("im2col_conv2d_weight_grad", TORCH_BOX(&fastseg::cpu::im2col_conv2d_weight_grad));
}
