// fastseg::winograd_conv2d and fastseg::winograd_conv2d_weight on the CPU.

#include "cpu/conv/winograd_conv2d.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <optional>

#include "common/conv/conv2d_args.h"
#include "cpu/conv/folded_epilogue.h"
#include "cpu/conv/image_layout.h"
#include "cpu/memory/scratch.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

using Ints = std::vector<int64_t>;
using Optional = std::optional<Tensor>;

// All convolutions at once. Threads take the longest tasks first, so that none is left with a long
// one at the end.
void run(const std::vector<WinogradConv2d>& ops, int64_t images) {
  struct Work {
    const WinogradConv2d* op;
    WinogradTask task;
  };
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<Work> work;
  int64_t floats = 0;
  for (const WinogradConv2d& op : ops) {
    const int64_t panels = (op.out_channels + kPanel - 1) / kPanel;
    for (const WinogradTask& task : winograd_tasks(op.y_axis, op.x_axis, images, panels, threads)) {
      work.push_back({&op, task});
      floats = std::max(floats, winograd_task_memory(task, op.in_channels));
    }
  }
  std::stable_sort(work.begin(), work.end(), [](const Work& a, const Work& b) {
    return winograd_cost(a.task) > winograd_cost(b.task);
  });
  const auto kernel = FASTSEG_SIMD_DISPATCH(winograd_task);
  std::atomic<size_t> next{0};
  TorchTasks().run(std::min<int64_t>(threads, work.size()), [&](int64_t) {
    static thread_local Scratch scratch;
    float* const memory = scratch.get(floats);
    for (size_t i; (i = next.fetch_add(1)) < work.size();) {
      kernel(*work[i].op, work[i].task, memory);
    }
  });
}

void check_image(const char* op, const Tensor& x) {
  check_conv2d_image(op, "x", x);
  check_float32(x, op, "x");
}

// The convolution of x, dense in channels_last, to y, by a weight that is contiguous.
WinogradConv2d make_conv(const char* op, const Tensor& x, const Tensor& weight,
                         int64_t out_channels, const Ints& dilation, bool fast, float* y,
                         int64_t y_step) {
  const Conv2dArgs args(op, {3, 3}, {1}, dilation, dilation);
  const WinogradAxis y_axis(x.size(2), args.dilation[0], fast);
  const WinogradAxis x_axis(x.size(3), args.dilation[1], fast);
  const int64_t panels = (out_channels + kPanel - 1) / kPanel;
  const Ints packed{static_cast<int64_t>(y_axis.rows.size() * x_axis.rows.size()), panels,
                    x.size(1), kPanel};
  FASTSEG_CHECK(out_channels > 0 && has_shape(weight, packed), op,
                ": weight must be winograd_conv2d_weight's for this size, dilation and channels, ",
                to_string(packed), ", got ", to_string(weight.sizes()));
  check_alike(op, "weight", weight, "x", x);
  return {y_axis,
          x_axis,
          x.size(1),
          out_channels,
          static_cast<const float*>(x.const_data_ptr()),
          static_cast<const float*>(weight.const_data_ptr()),
          y,
          y_step,
          {}};
}

// An empty (N, channels, H, W) like x, channels_last.
Tensor empty_map(const Tensor& x, int64_t channels) {
  return empty_like_layout(x, {x.size(0), channels, x.size(2), x.size(3)}, ScalarType::Float, true);
}

Tensor winograd_conv2d(const Tensor& x, const Tensor& weight, int64_t out_channels, Optional bias,
                       Optional scale, Optional shift, Optional residual, Ints dilation, bool fast,
                       std::string activation) {
  constexpr const char* op = "fastseg::winograd_conv2d";
  check_image(op, x);
  const bool channels_last = is_channels_last(x);
  const Tensor in = in_layout(x, true), packed = dense(weight, false);
  WinogradConv2d conv =
      make_conv(op, in, packed, out_channels, dilation, fast, nullptr, out_channels);
  check_epilogue(op, x, bias, scale, shift, residual,
                 {x.size(0), out_channels, x.size(2), x.size(3)});
  if (residual) residual = in_layout(*residual, true);
  const FoldedEpilogue<float> epilogue(bias, scale, shift, residual,
                                       parse_activation(op, activation));
  const Tensor out = empty_map(x, out_channels);
  conv.y = static_cast<float*>(out.mutable_data_ptr());
  conv.epilogue = epilogue.get();
  run({conv}, x.size(0));
  return in_layout(out, channels_last);
}

Tensor winograd_branches(const Tensor& x, std::vector<Tensor> weights, Ints channels,
                         Optional scale, Optional shift, Ints dilations, bool fast,
                         std::string activation) {
  constexpr const char* op = "fastseg::winograd_branches";
  check_image(op, x);
  FASTSEG_CHECK(
      !weights.empty() && channels.size() == weights.size() && dilations.size() == weights.size(),
      op, ": weights, channels and dilations must be as many, at least one each, got ",
      weights.size(), ", ", channels.size(), " and ", dilations.size());
  int64_t total = 0;
  for (const int64_t count : channels) total += count;
  check_epilogue(op, x, {}, scale, shift, {}, {x.size(0), total, x.size(2), x.size(3)});
  const FoldedEpilogue<float> epilogue({}, scale, shift, {}, parse_activation(op, activation));
  const Tensor in = in_layout(x, true), out = empty_map(x, total);
  std::vector<WinogradConv2d> convs;
  int64_t first = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = dense(weights[i], false);
    float* y = static_cast<float*>(out.mutable_data_ptr()) + first;
    convs.push_back(make_conv(op, in, weights[i], channels[i], {dilations[i]}, fast, y, total));
    convs.back().epilogue = epilogue.get().channels_from(first);
    first += channels[i];
  }
  run(convs, x.size(0));
  return in_layout(out, is_channels_last(x));
}

Tensor winograd_conv2d_weight(const Tensor& weight, Ints size, Ints dilation, bool fast,
                              bool adjoint) {
  constexpr const char* op = "fastseg::winograd_conv2d_weight";
  FASTSEG_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 &&
                    weight.size(0) > 0 && weight.size(1) > 0,
                op, ": weight must have the shape (Co, Ci, 3, 3), got ", to_string(weight.sizes()));
  check_float32(weight, op, "weight");
  const Conv2dArgs args(op, {3, 3}, {1}, dilation, dilation);
  const auto plane = Conv2dArgs::pair(op, "size", size);
  FASTSEG_CHECK(plane[0] > 0 && plane[1] > 0, op, ": size must be positive, got ",
                to_string(plane));
  const WinogradAxis y_axis(plane[0], args.dilation[0], fast);
  const WinogradAxis x_axis(plane[1], args.dilation[1], fast);
  const int out_axis = adjoint ? 1 : 0;
  const int64_t out = weight.size(out_axis), in = weight.size(1 - out_axis);
  const int64_t panels = (out + kPanel - 1) / kPanel;
  const int64_t slots = static_cast<int64_t>(y_axis.rows.size() * x_axis.rows.size());
  Tensor packed = empty_like_layout(weight, {slots, panels, in, kPanel}, ScalarType::Float, false);
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
  m.impl("winograd_branches", TORCH_BOX(&fastseg::cpu::winograd_branches));
  m.impl("winograd_conv2d_weight", TORCH_BOX(&fastseg::cpu::winograd_conv2d_weight));
}
