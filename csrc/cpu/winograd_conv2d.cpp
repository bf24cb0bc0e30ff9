// fastseg::winograd_conv2d and fastseg::winograd_conv2d_weight on the CPU.

#include "cpu/winograd_conv2d.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <optional>

#include "common/conv2d_args.h"
#include "cpu/folded_epilogue.h"
#include "cpu/image_layout.h"
#include "cpu/large_pages.h"
#include "cpu/torch_tasks.h"

namespace fastseg::cpu {
namespace {

using Ints = std::vector<int64_t>;
using Optional = std::optional<Tensor>;

// A thread's memory for tasks, kept from call to call: to fault it in anew costs as much as a small
// convolution.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }

  float* get(int64_t floats) {
    if (floats > size_) {
      std::free(memory_);
      size_ = 0;
      constexpr size_t kLargePage = size_t{2} << 20;
      const size_t bytes = (floats * sizeof(float) + kLargePage - 1) / kLargePage * kLargePage;
      memory_ = static_cast<float*>(std::aligned_alloc(kLargePage, bytes));
      if (!memory_) throw std::bad_alloc();
      advise_large_pages(memory_, bytes);
      size_ = bytes / sizeof(float);
    }
    return memory_;
  }

 private:
  float* memory_ = nullptr;
  int64_t size_ = 0;
};

// Threads take the longest tasks first, so that none is left with a long one at the end.
void run(const WinogradConv2d& op, const std::vector<WinogradTask>& tasks) {
  int64_t floats = 0;
  for (const WinogradTask& task : tasks)
    floats = std::max(floats, winograd_task_memory(task, op.in_channels));
  const auto kernel = FASTSEG_SIMD_DISPATCH(winograd_task);
  std::atomic<size_t> next{0};
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), static_cast<int64_t>(tasks.size()));
  TorchTasks().run(threads, [&](int64_t) {
    static thread_local Scratch scratch;
    float* const memory = scratch.get(floats);
    for (size_t i; (i = next.fetch_add(1)) < tasks.size();) kernel(op, tasks[i], memory);
  });
}

void check_float32(const char* op, const char* name, const Tensor& t) {
  FASTSEG_CHECK(t.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32, got ",
                t.scalar_type());
}

Tensor winograd_conv2d(const Tensor& x, const Tensor& weight, int64_t out_channels, Optional bias,
                       Optional scale, Optional shift, Optional residual, Ints dilation, bool fast,
                       std::string activation) {
  constexpr const char* op = "fastseg::winograd_conv2d";
  check_conv2d_image(op, "x", x);
  check_float32(op, "x", x);
  const int64_t n = x.size(0), channels = x.size(1), h = x.size(2), w = x.size(3);
  const Conv2dArgs args(op, {3, 3}, {1}, dilation, dilation);
  const WinogradAxis y_axis(h, args.dilation[0], fast), x_axis(w, args.dilation[1], fast);
  const int64_t panels = (out_channels + kWinogradPanel - 1) / kWinogradPanel;
  const Ints packed{static_cast<int64_t>(y_axis.rows.size() * x_axis.rows.size()), panels, channels,
                    kWinogradPanel};
  FASTSEG_CHECK(out_channels > 0 && has_shape(weight, packed) && weight.is_contiguous(), op,
                ": weight must be winograd_conv2d_weight's for this size, dilation and channels, ",
                to_string(packed), ", got ", to_string(weight.sizes()));
  check_alike(op, "weight", weight, "x", x);
  const Ints size{n, out_channels, h, w};
  check_epilogue(op, x, bias, scale, shift, residual, size);
  const bool channels_last = is_channels_last(x);
  if (residual) {
    check_float32(op, "residual", *residual);
    residual = in_layout(*residual, true);
  }
  const Tensor in = in_layout(x, true);
  const FoldedEpilogue<float> epilogue(bias, scale, shift, residual,
                                       parse_activation(op, activation));
  Tensor out = empty_like_layout(x, size, ScalarType::Float, true);
  advise_large_pages(out.mutable_data_ptr(), out.numel() * sizeof(float));
  run({y_axis, x_axis, channels, out_channels, static_cast<const float*>(in.const_data_ptr()),
       static_cast<const float*>(weight.const_data_ptr()),
       static_cast<float*>(out.mutable_data_ptr()), epilogue.get()},
      winograd_tasks(y_axis, x_axis, n, panels, torch::stable::get_num_threads()));
  return in_layout(out, channels_last);
}

Tensor winograd_conv2d_weight(const Tensor& weight, Ints size, Ints dilation, bool fast,
                              bool adjoint) {
  constexpr const char* op = "fastseg::winograd_conv2d_weight";
  FASTSEG_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 &&
                    weight.size(0) > 0 && weight.size(1) > 0,
                op, ": weight must have the shape (Co, Ci, 3, 3), got ", to_string(weight.sizes()));
  check_float32(op, "weight", weight);
  const Conv2dArgs args(op, {3, 3}, {1}, dilation, dilation);
  const auto plane = Conv2dArgs::pair(op, "size", size);
  FASTSEG_CHECK(plane[0] > 0 && plane[1] > 0, op, ": size must be positive, got ",
                to_string(plane));
  const WinogradAxis y_axis(plane[0], args.dilation[0], fast);
  const WinogradAxis x_axis(plane[1], args.dilation[1], fast);
  const int out_axis = adjoint ? 1 : 0;
  const int64_t out = weight.size(out_axis), in = weight.size(1 - out_axis);
  const int64_t panels = (out + kWinogradPanel - 1) / kWinogradPanel;
  const int64_t slots = static_cast<int64_t>(y_axis.rows.size() * x_axis.rows.size());
  Tensor packed =
      empty_like_layout(weight, {slots, panels, in, kWinogradPanel}, ScalarType::Float, false);
  advise_large_pages(packed.mutable_data_ptr(), packed.numel() * sizeof(float));
  const auto stride = weight.strides();
  const WinogradWeight job{y_axis.rows,
                           x_axis.rows,
                           in,
                           out,
                           adjoint,
                           static_cast<const float*>(weight.const_data_ptr()),
                           {stride[out_axis], stride[1 - out_axis], stride[2], stride[3]},
                           static_cast<float*>(packed.mutable_data_ptr())};
  const auto kernel = FASTSEG_SIMD_DISPATCH(winograd_weight_panel);
  TorchTasks().run(panels, [&](int64_t panel) { kernel(job, panel); });
  return packed;
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  m.impl("winograd_conv2d", TORCH_BOX(&fastseg::cpu::winograd_conv2d));
  m.impl("winograd_conv2d_weight", TORCH_BOX(&fastseg::cpu::winograd_conv2d_weight));
}
