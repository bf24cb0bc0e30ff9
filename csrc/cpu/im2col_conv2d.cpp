// fastseg::im2col_conv2d on the CPU.

#include "cpu/im2col_conv2d.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/conv2d_args.h"
#include "cpu/folded_epilogue.h"
#include "cpu/image_layout.h"
#include "cpu/large_pages.h"
#include "cpu/scratch.h"
#include "cpu/torch_tasks.h"

namespace fastseg::cpu {
namespace {

using Ints = std::vector<int64_t>;
using Optional = std::optional<Tensor>;

constexpr const char* kOp = "fastseg::im2col_conv2d";

// Stretches of pixels whose rows stay in the cache; where those are fewer than the threads, of
// panels, too. Sums do not depend on it.
void run(const Im2colConv2d& op, int64_t pixels) {
  constexpr int64_t kLeastProducts = 1 << 20;              // of a thread: some ten microseconds
  constexpr int64_t kLeastPixels = 28, kMostPixels = 168;  // of a stretch: the tiles are full
  const int64_t products = pixels * op.depth() * op.panels() * kPanel;
  const int64_t threads =
      std::clamp<int64_t>(products / kLeastProducts, 1, torch::stable::get_num_threads());
  const auto stretches_of = [&](int64_t most) { return (pixels + most - 1) / most; };
  const int64_t most = std::clamp(kIm2colFloats / op.depth(), kLeastPixels, kMostPixels);
  const int64_t stretches =
      std::max(stretches_of(most), std::min(threads, stretches_of(kLeastPixels)));
  const int64_t panels = op.panels();
  const int64_t parts = std::min((threads + stretches - 1) / stretches, panels);
  const auto kernel = FASTSEG_SIMD_DISPATCH(im2col_task);
  const auto body = [&](int64_t i) {
    static thread_local Scratch scratch;
    const int64_t stretch = i / parts, part = i % parts;
    const Im2colTask task{pixels * stretch / stretches, pixels * (stretch + 1) / stretches,
                          panels * part / parts, panels * (part + 1) / parts};
    kernel(op, task, scratch.get(im2col_task_memory(op, task.end - task.begin)));
  };
  const int64_t tasks = stretches * parts;
  if (threads == 1) {
    InlineTasks().run(tasks, body);
  } else {
    TorchTasks().run(tasks, body);
  }
}

Tensor im2col_conv2d(const Tensor& x, const Tensor& weight, int64_t out_channels, Ints kernel_size,
                     Optional bias, Optional scale, Optional shift, Optional residual, Ints stride,
                     Ints padding, Ints dilation, std::string activation) {
  check_conv2d_image(kOp, "x", x);
  check_float32(x, kOp, "x");
  const Conv2dArgs args(kOp, Conv2dArgs::pair(kOp, "kernel_size", kernel_size), stride, padding,
                        dilation);
  const auto plane = args.output_size(kOp, "x", x.size(2), x.size(3));
  Im2colConv2d op{x.size(1),
                  out_channels,
                  {x.size(2), x.size(3)},
                  {plane[0], plane[1]},
                  {args.kernel_size[0], args.kernel_size[1]},
                  {args.stride[0], args.stride[1]},
                  {args.padding[0], args.padding[1]},
                  {args.dilation[0], args.dilation[1]},
                  nullptr,
                  nullptr,
                  nullptr,
                  {}};
  const Ints packed{op.panels(), op.depth(), kPanel};
  FASTSEG_CHECK(out_channels > 0 && has_shape(weight, packed), kOp,
                ": weight must be packed for these channels and this kernel_size, ",
                to_string(packed), ", got ", to_string(weight.sizes()));
  check_alike(kOp, "weight", weight, "x", x);
  const Ints size{x.size(0), out_channels, plane[0], plane[1]};
  check_epilogue(kOp, x, bias, scale, shift, residual, size);
  if (residual) residual = in_layout(*residual, true);
  const FoldedEpilogue<float> epilogue(bias, scale, shift, residual,
                                       parse_activation(kOp, activation));
  const Tensor in = in_layout(x, true), panels = dense(weight, false);
  const Tensor out = empty_like_layout(x, size, ScalarType::Float, true);
  advise_large_pages(out.mutable_data_ptr(), out.numel() * sizeof(float));
  op.x = static_cast<const float*>(in.const_data_ptr());
  op.weights = static_cast<const float*>(panels.const_data_ptr());
  op.y = static_cast<float*>(out.mutable_data_ptr());
  op.epilogue = epilogue.get();
  if (x.size(0) > 0) run(op, x.size(0) * plane[0] * plane[1]);
  return in_layout(out, is_channels_last(x));
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  m.impl("im2col_conv2d", TORCH_BOX(&fastseg::cpu::im2col_conv2d));
}
