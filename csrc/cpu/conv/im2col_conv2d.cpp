// fastseg::im2col_conv2d on the CPU.

#include "cpu/conv/im2col_conv2d.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "common/ceil_divide.h"
#include "common/conv/conv2d_args.h"
#include "cpu/conv/folded_epilogue.h"
#include "cpu/conv/gemm_run.h"
#include "cpu/conv/image_layout.h"
#include "cpu/memory/scratch.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

using Ints = std::vector<int64_t>;
using Optional = std::optional<Tensor>;

constexpr const char* kOp = "fastseg::im2col_conv2d";

// Whether filters are brought into panels first, which pays where many pixels read them. A dot
// product ends in a sum over the lanes of a register, so that shallow ones are the first to lose:
// measured on an Intel Emerald Rapids, on maps of 6 x 6 to 65 x 65.
bool by_panels(const Im2colConv2d& op, int64_t pixels) {
  constexpr int64_t kShallow = 200, kFewPixels = 32, kManyPixels = 100;
  return pixels >= (op.depth() <= kShallow ? kFewPixels : kManyPixels);
}

// Runs a body for each task, on the calling thread alone where there is work for one.
void run_tasks(int64_t threads, int64_t tasks, const std::function<void(int64_t)>& body) {
  if (threads == 1) {
    InlineTasks().run(tasks, body);
  } else {
    TorchTasks().run(tasks, body);
  }
}

// A thread's least work: some ten microseconds.
int64_t threads_for(const Im2colConv2d& op, int64_t pixels) {
  constexpr int64_t kLeastProducts = 1 << 20;
  const int64_t products = pixels * op.depth() * op.out_channels;
  return std::clamp<int64_t>(products / kLeastProducts, 1, torch::stable::get_num_threads());
}

// A convolution of contiguous planes, panel by panel; where those are fewer than the threads, by
// stretches of channels, too.
void multiply_planes(const Im2colConv2d& op, const Im2colPlanes& planes, int64_t images) {
  constexpr int64_t kTasks = 4;       // of a thread, so that none waits long for another
  constexpr int64_t kGroup = 4 * 30;  // channels: whole tiles at every SIMD level
  const int64_t panels = images * ceil_divide(planes.pixels, kIm2colPixels);
  const int64_t threads = threads_for(op, images * planes.pixels);
  const int64_t stretches = threads == 1 ? 1 : std::min(panels, threads * kTasks);
  const int64_t groups = ceil_divide(op.out_channels, kGroup);
  const int64_t parts = std::min(ceil_divide(threads, stretches), groups);
  const auto kernel = FASTSEG_SIMD_DISPATCH(im2col_planes_task);
  static thread_local Scratch memory;
  run_tasks(threads, stretches * parts, [&](int64_t i) {
    const int64_t stretch = i / parts, part = i % parts;
    const Im2colTask task{panels * stretch / stretches, panels * (stretch + 1) / stretches,
                          groups * part / parts * kGroup,
                          std::min(groups * (part + 1) / parts * kGroup, op.out_channels)};
    kernel(op, planes, task,
           memory.get(im2col_planes_memory(task.last_channel - task.first_channel)));
  });
}

// Where the first output reads for each weight of a filter, in planes of `rows` by `columns`.
Ints plane_offsets(const Im2colConv2d& op, const TapPhases& rows, const TapPhases& columns) {
  const int64_t plane = rows.size * columns.size, of_channel = rows.count() * columns.count();
  Ints offsets(op.depth());
  for (int64_t t = 0; t < op.taps(); ++t) {
    const int64_t i = t / op.kernel_size[1], j = t % op.kernel_size[1];
    const int64_t phase = rows.phase(i) * columns.count() + columns.phase(j);
    const int64_t first = rows.first(i) * columns.size + columns.first(j);
    for (int64_t c = 0; c < op.in_channels; ++c) {
      const int64_t k = op.taps_last ? c * op.taps() + t : t * op.in_channels + c;
      offsets[k] = (c * of_channel + phase) * plane + first;
    }
  }
  return offsets;
}

void run_planes(const Im2colConv2d& op, const Tensor& x, const TapPhases& rows,
                const TapPhases& columns) {
  constexpr int64_t kFewOutputs = 32;  // between two rows: as much work as to cut a row off
  const int64_t images = x.size(0), count = images * x.size(1);
  const int64_t of_channel = rows.count() * columns.count() * rows.size * columns.size;
  const int64_t width = op.out_size[1], gap = columns.size - width;
  const Ints offsets = plane_offsets(op, rows, columns);
  Im2colPlanes planes{op.x, op.in_channels * of_channel, offsets.data(), columns.size, width, 0};
  if (gap * op.out_channels / op.groups < kFewOutputs) planes.width = planes.pitch;
  planes.pixels = (op.out_size[0] - 1) * planes.width + width;
  if (op.is_point()) return multiply_planes(op, planes, images);
  const Tensor phases = empty_like_layout(x, {count * of_channel}, ScalarType::Float, false);
  float* const packed = static_cast<float*>(phases.mutable_data_ptr());
  const auto pack = FASTSEG_SIMD_DISPATCH(im2col_phases);
  run_tasks(threads_for(op, images * op.plane()), count,
            [&](int64_t i) { pack(op, rows, columns, i, packed); });
  planes.data = packed;
  multiply_planes(op, planes, images);
}

// Stretches of pixels whose rows stay in the cache; where those are fewer than the threads, of
// channels, too. Sums do not depend on it.
void run(const Im2colConv2d& op, int64_t pixels) {
  constexpr int64_t kLeastPixels = 24, kMostPixels = 168;  // of a stretch: the tiles are full
  const int64_t threads = threads_for(op, pixels);
  const auto stretches_of = [&](int64_t most) { return (pixels + most - 1) / most; };
  const int64_t most = std::clamp(kIm2colFloats / op.depth(), kLeastPixels, kMostPixels);
  const int64_t stretches =
      std::max(stretches_of(most), std::min(threads, stretches_of(kLeastPixels)));
  const bool panels = by_panels(op, pixels);
  const int64_t width = panels ? kIm2colSums : kIm2colChannels;
  const int64_t groups = (op.out_channels + width - 1) / width;
  const int64_t parts = std::min((threads + stretches - 1) / stretches, groups);
  const auto task_of = [&](int64_t i) {
    const int64_t stretch = i / parts, part = i % parts;
    return Im2colTask{pixels * stretch / stretches, pixels * (stretch + 1) / stretches,
                      groups * part / parts * width,
                      std::min(groups * (part + 1) / parts * width, op.out_channels)};
  };
  const int64_t tasks = stretches * parts;
  static thread_local Scratch memory;
  if (!panels) {
    const auto kernel = FASTSEG_SIMD_DISPATCH(im2col_task);
    run_tasks(threads, tasks, [&](int64_t i) {
      const Im2colTask task = task_of(i);
      kernel(op, task, memory.get(im2col_task_memory(op, task)));
    });
    return;
  }
  static thread_local Scratch packed;
  const int64_t count = (op.out_channels + kPanel - 1) / kPanel, panel = op.depth() * kPanel;
  float* const filters = packed.get(count * panel);
  const auto pack = FASTSEG_SIMD_DISPATCH(im2col_pack);
  run_tasks(threads, count, [&](int64_t i) { pack(op, i, filters + i * panel); });
  const auto kernel = FASTSEG_SIMD_DISPATCH(im2col_panels_task);
  run_tasks(threads, tasks, [&](int64_t i) {
    const Im2colTask task = task_of(i);
    kernel(op, task, filters, memory.get(im2col_panels_memory(op, task.end - task.begin)));
  });
}

constexpr int64_t kLeastPixels = 6;

// Whether contiguous planes of `size` are multiplied in that layout. Few pixels leave a tile's
// lanes idle, and are soon in the other; planes that are mostly padding would be copied for
// nothing.
bool suits_planes(const Conv2dArgs::Pair& size, const Conv2dArgs::Pair& out_size,
                  const TapPhases& rows, const TapPhases& columns) {
  constexpr int64_t kMostPadding = 4;
  const auto numbers = [](const TapPhases& axis) { return double(axis.count()) * axis.size; };
  return out_size[0] * out_size[1] >= kLeastPixels &&
         numbers(rows) * numbers(columns) <= double(kMostPadding * size[0] * size[1]);
}

Tensor im2col_conv2d(const Tensor& x, const Tensor& weight, Optional bias, Optional scale,
                     Optional shift, Optional residual, Ints stride, Ints padding, Ints dilation,
                     int64_t groups, std::string activation) {
  check_conv2d_image(kOp, "x", x);
  check_float32(x, kOp, "x");
  FASTSEG_CHECK(weight.dim() == 4 && weight.size(0) > 0, kOp,
                ": weight must have the shape (Co, Ci / groups, kh, kw), got ",
                to_string(weight.sizes()));
  check_groups(kOp, groups, "x", x.size(1), "weight", weight.size(0));
  FASTSEG_CHECK(weight.size(1) * groups == x.size(1), kOp,
                ": weight must have the shape (Co, Ci / groups, kh, kw) with x's ", x.size(1),
                " channels in ", groups, " groups, got ", to_string(weight.sizes()));
  check_alike(kOp, "weight", weight, "x", x);
  const Conv2dArgs args(kOp, {weight.size(2), weight.size(3)}, stride, padding, dilation);
  const auto plane = args.output_size(kOp, "x", x.size(2), x.size(3));
  const Ints size{x.size(0), weight.size(0), plane[0], plane[1]};
  check_epilogue(kOp, x, bias, scale, shift, residual, size);
  const auto phases = [&](int axis) {
    return TapPhases(args.kernel_size[axis], args.stride[axis], args.padding[axis],
                     args.dilation[axis], plane[axis]);
  };
  const TapPhases rows = phases(0), columns = phases(1);
  const bool suits = suits_planes({x.size(2), x.size(3)}, plane, rows, columns);
  FASTSEG_CHECK(groups == 1 || suits, kOp, ": groups must be 1 where outputs are fewer than ",
                kLeastPixels, " or mostly of padding, got ", groups);
  const bool planes = x.size(0) > 0 && (groups > 1 || (suits && !is_channels_last(x)));
  if (residual) residual = in_layout(*residual, !planes);
  const FoldedEpilogue<float> epilogue(bias, scale, shift, residual,
                                       parse_activation(kOp, activation));
  const Tensor in = in_layout(x, !planes);
  // Neighbouring taps of few channels are one piece of x; their weights are soon in that order.
  constexpr int64_t kFewChannels = 16;
  const bool taps_last = !is_dense(weight, true) && x.size(1) >= kFewChannels;
  const Tensor filters = dense(weight, !taps_last);
  const Tensor out = empty_like_layout(x, size, ScalarType::Float, !planes);
  const Im2colConv2d op{groups,
                        weight.size(1),
                        weight.size(0),
                        {x.size(2), x.size(3)},
                        {plane[0], plane[1]},
                        {args.kernel_size[0], args.kernel_size[1]},
                        {args.stride[0], args.stride[1]},
                        {args.padding[0], args.padding[1]},
                        {args.dilation[0], args.dilation[1]},
                        taps_last,
                        static_cast<const float*>(in.const_data_ptr()),
                        static_cast<const float*>(filters.const_data_ptr()),
                        static_cast<float*>(out.mutable_data_ptr()),
                        epilogue.get()};
  if (planes) {
    run_planes(op, x, rows, columns);
  } else if (x.size(0) > 0) {
    run(op, x.size(0) * plane[0] * plane[1]);
  }
  return in_layout(out, is_channels_last(x));
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  m.impl("im2col_conv2d", TORCH_BOX(&fastseg::cpu::im2col_conv2d));
}

// For the choice of a kernel in Python. Each axis has six numbers: the sizes of x, of the output
// and of the kernel, stride, padding and dilation.
extern "C" __attribute__((visibility("default"))) bool fastseg_im2col_suits_planes(
    const int64_t* vertical, const int64_t* horizontal) {
  const auto phases = [](const int64_t* a) {
    return fastseg::cpu::TapPhases(a[2], a[3], a[4], a[5], a[1]);
  };
  return fastseg::cpu::suits_planes({vertical[0], horizontal[0]}, {vertical[1], horizontal[1]},
                                    phases(vertical), phases(horizontal));
}
