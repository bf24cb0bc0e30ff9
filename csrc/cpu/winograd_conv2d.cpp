// fastseg::winograd_conv2d and fastseg::winograd_conv2d_weight on the CPU.

#include "cpu/winograd_conv2d.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>

#include "common/tensor_checks.h"
#include "cpu/large_pages.h"
#include "cpu/torch_tasks.h"

namespace fastseg::cpu {
namespace {

using Ints = std::vector<int64_t>;

struct Free {
  void operator()(float* p) const { std::free(p); }
};

std::unique_ptr<float, Free> allocate(int64_t floats) {
  const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes);
  advise_large_pages(memory, bytes);
  return std::unique_ptr<float, Free>(static_cast<float*>(memory));
}

void run(const WinogradConv2d& op, const std::vector<WinogradTask>& tasks) {
  int64_t floats = 0;
  for (const WinogradTask& task : tasks) floats = std::max(floats, winograd_task_memory(task));
  const auto kernel = FASTSEG_SIMD_DISPATCH(winograd_task);
  std::atomic<size_t> next{0};
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), static_cast<int64_t>(tasks.size()));
  TorchTasks().run(threads, [&](int64_t) {
    const auto memory = allocate(floats);
    for (size_t i; (i = next.fetch_add(1)) < tasks.size();) kernel(op, tasks[i], memory.get());
  });
}

Tensor winograd_conv2d(const Tensor& x, const Tensor& weight, int64_t out_channels,
                       const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                       const std::optional<Tensor>& residual, Ints dilation, bool fast,
                       std::string activation) {
  const int64_t n = x.size(0), channels = x.size(1), h = x.size(2), w = x.size(3);
  const bool channels_last = is_channels_last(x);
  const Tensor in = dense(x, true);
  Tensor out = empty_like_layout(x, {n, out_channels, h, w}, ScalarType::Float, true);
  advise_large_pages(out.mutable_data_ptr(), out.numel() * 4);
  const WinogradAxis y_axis(h, dilation[0], fast), x_axis(w, dilation[1], fast);
  Conv2dEpilogue<float> epilogue;
  if (scale) epilogue.scale = static_cast<const float*>(scale->const_data_ptr());
  if (shift) epilogue.shift = static_cast<const float*>(shift->const_data_ptr());
  std::optional<Tensor> dense_residual;
  if (residual) {
    dense_residual = dense(*residual, true);
    epilogue.residual = dense_residual->const_data_ptr();
  }
  if (activation == "relu") epilogue.activation = Activation::relu;
  const WinogradConv2d op{y_axis,
                          x_axis,
                          channels,
                          out_channels,
                          static_cast<const float*>(in.const_data_ptr()),
                          static_cast<const float*>(weight.const_data_ptr()),
                          static_cast<float*>(out.mutable_data_ptr()),
                          epilogue};
  run(op, winograd_tasks(y_axis, x_axis, n, (out_channels + 15) / 16));
  return dense(out, channels_last);
}

Tensor winograd_conv2d_weight(const Tensor& weight, Ints size, Ints dilation, bool fast) {
  const WinogradAxis y_axis(size[0], dilation[0], fast), x_axis(size[1], dilation[1], fast);
  const int64_t out = weight.size(0), in = weight.size(1), panels = (out + 15) / 16;
  const int64_t slots = static_cast<int64_t>(y_axis.rows.size() * x_axis.rows.size());
  Tensor packed = empty_like_layout(weight, {slots, panels, in, 16}, ScalarType::Float, false);
  const auto stride = weight.strides();
  const WinogradWeight op{y_axis.rows,
                          x_axis.rows,
                          in,
                          out,
                          static_cast<const float*>(weight.const_data_ptr()),
                          {stride[0], stride[1], stride[2], stride[3]},
                          static_cast<float*>(packed.mutable_data_ptr())};
  TorchTasks().run(panels, [&](int64_t panel) { winograd_pack_panel(op, panel); });
  return packed;
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  m.impl("winograd_conv2d", TORCH_BOX(&fastseg::cpu::winograd_conv2d));
  m.impl("winograd_conv2d_weight", TORCH_BOX(&fastseg::cpu::winograd_conv2d_weight));
}
