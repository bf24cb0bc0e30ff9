// fastseg::dense_conv2d_weight_grad on the CPU.

#include "cpu/conv/dense_conv2d_weight_grad.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/conv/conv2d_grad_args.h"
#include "cpu/memory/scratch.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

using Ints = std::vector<int64_t>;

constexpr const char* kOp = "fastseg::dense_conv2d_weight_grad";

Tensor allocate(const Tensor& like, const Ints& size, bool channels_last) {
  return empty_like_layout(like, size, ScalarType::Float, channels_last);
}

PackImage pack_image(const Tensor& image, int64_t column_stride, const Tensor& packed) {
  const auto stride = image.strides();
  return {static_cast<const float*>(image.const_data_ptr()),
          image.size(0),
          image.size(1),
          {image.size(2), image.size(3)},
          {stride[0], stride[1], stride[2], stride[3]},
          column_stride,
          static_cast<float*>(packed.mutable_data_ptr())};
}

using Pack = void (*)(const PackImage&, int64_t, int64_t, int64_t);

void run(Pack pack, const PackImage& image, int64_t panels) {
  constexpr int64_t kPanelsOfTask = 4;  // 256 neighbouring bytes of a channels_last pixel
  const int64_t parts = (panels + kPanelsOfTask - 1) / kPanelsOfTask;
  TorchTasks().run(image.batch * parts, [&](int64_t i) {
    const int64_t first = i % parts * kPanelsOfTask;
    pack(image, i / parts, first, std::min(panels, first + kPanelsOfTask));
  });
}

Tensor dense_conv2d_weight_grad(const Tensor& x, const Tensor& grad, Ints kernel_size, Ints stride,
                                Ints padding, Ints dilation) {
  const Conv2dArgs args(kOp, Conv2dArgs::pair(kOp, "kernel_size", kernel_size), stride, padding,
                        dilation);
  const Conv2dGradShape shape = check_weight_grad(kOp, x, grad, args, 1);
  const bool channels_last = is_channels_last(x);
  const Tensor out =
      allocate(x, {shape.out_channels, shape.in_channels, args.kernel_size[0], args.kernel_size[1]},
               channels_last);

  const int64_t panel_rows = FASTSEG_SIMD_DISPATCH(weight_grad_panel_rows)();
  const int64_t rows = (shape.out_channels + panel_rows - 1) / panel_rows;
  const int64_t panels = (shape.in_channels + 15) / 16;
  const Tensor packed_grad = allocate(x, {rows * shape.grad_pixels() * panel_rows}, false);
  const Tensor packed_x = allocate(x, {panels * shape.x_pixels() * 16}, false);
  run(FASTSEG_SIMD_DISPATCH(weight_grad_pack_grad), pack_image(grad, 1, packed_grad), rows);
  run(FASTSEG_SIMD_DISPATCH(weight_grad_pack_x), pack_image(x, args.stride[1], packed_x), panels);

  const PixelPairs pairs(shape);
  const WeightGrad op{shape,
                      pairs,
                      static_cast<const float*>(packed_grad.const_data_ptr()),
                      static_cast<const float*>(packed_x.const_data_ptr()),
                      static_cast<float*>(out.mutable_data_ptr()),
                      channels_last};
  const std::vector<WeightGradTask> tasks = weight_grad_tasks(shape, panel_rows);
  const auto kernel = FASTSEG_SIMD_DISPATCH(weight_grad_task);
  TorchTasks().run(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    static thread_local Scratch scratch;
    kernel(op, tasks[i], scratch.get(weight_grad_task_memory(tasks[i], panel_rows)));
  });
  return out;
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  m.impl("dense_conv2d_weight_grad", TORCH_BOX(&fastseg::cpu::dense_conv2d_weight_grad));
}
