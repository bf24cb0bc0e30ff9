#pragma once
// Gradients of convolutions as products with columns, for those with groups, with few channels or
// with a stride. What their kernels take. Without torch.
//
//     columns[(c, tap), pixel] = what the tap reads of channel c for the output pixel, 0 in padding
//
// The weight's gradient is grad (Co, pixels) x columns^T. That of the input is weight^T x grad, a
// product like the columns, whose elements are added to what they were read from. Tasks are cut by
// sizes alone, and sums have one order: results do not depend on the number of threads.

#include <cstdint>

#include "cpu/conv/conv2d_grad_shape.h"
#include "cpu/conv/gemm_run.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

inline constexpr int64_t kStretchPixels = 512;  // of a product: eight columns stay in the cache
inline constexpr int64_t kStretchColumns = 8;

// Planes (N, C, H, W), contiguous, whose rows are split by the residues of columns modulo the
// stride, or such rows put together again.
struct SplitRows {
  const Conv2dGradShape& shape;
  const float* from;
  float* to;
};

struct Im2colWeightGrad {
  const Conv2dGradShape& shape;
  bool channels_last;  // the layout of grad and of the output
  const float* x;      // (N, G * Ci, H, packed columns)
  const float* grad;   // (N, G * Co, h, w)
  int64_t parts;       // of the pixels of a group
  float* sums;         // (G * Co, parts, row)
  float* out;          // (G * Co, columns), a column's tap before its channel in channels_last

  int64_t columns() const { return shape.in_channels * shape.taps(); }
  int64_t row() const { return ceil_divide(columns(), kStretchColumns) * kStretchColumns; }
  int64_t stretches_of_image() const { return ceil_divide(shape.output_plane(), kStretchPixels); }
  int64_t stretches() const { return shape.batch * stretches_of_image(); }
};

// The output channels [first_row, end_row) of a group, and one part of its pixels.
struct Im2colWeightGradTask {
  int64_t group, first_row, end_row, part;
};

// Floats of memory that a task takes, from an address of 64 bytes.
inline int64_t im2col_weight_grad_memory(const Im2colWeightGradTask& task) {
  return kStretchPixels * (task.end_row - task.first_row + kStretchColumns);
}

// Input channels of a task: their product with a stretch stays in the second-level cache. Fewer
// where there would be few tasks.
inline int64_t im2col_input_grad_channels(const Conv2dGradShape& shape) {
  constexpr int64_t kColumns = 200, kColumnsOfFew = 64, kFewTasks = 6;
  const auto channels = [&](int64_t columns) {
    return std::clamp<int64_t>(columns / shape.taps(), 1, shape.in_channels);
  };
  const int64_t blocks = ceil_divide(shape.in_channels, channels(kColumns));
  const bool few = shape.batch * shape.groups * blocks < kFewTasks;
  return channels(few ? kColumnsOfFew : kColumns);
}

struct Im2colInputGrad {
  const Conv2dGradShape& shape;
  const float* grad;    // (N, G * Co, h, w)
  const float* weight;  // packed by im2col_pack_columns
  float* x;             // (N, G * Ci, H, packed columns)

  int64_t blocks() const {
    return ceil_divide(shape.in_channels, im2col_input_grad_channels(shape));
  }
  int64_t block_columns() const { return im2col_input_grad_channels(shape) * shape.taps(); }
  // Floats of the packed weight of one block.
  int64_t packed_block(int64_t tile_rows) const {
    return ceil_divide(block_columns(), tile_rows) * tile_rows * shape.out_channels;
  }
  // Pixels of a product: grad's panels of all output channels stay in the cache, too.
  int64_t stretch() const {
    constexpr int64_t kFloats = 1 << 15, kLeast = 64, kMost = 256;
    const int64_t pixels = kFloats / shape.out_channels / kLeast * kLeast;
    return std::clamp(pixels, kLeast, kMost);
  }
};

inline int64_t im2col_input_grad_memory(const Im2colInputGrad& op) {
  return op.stretch() * (op.shape.out_channels + op.block_columns());
}

// The sums of the parts are added up by im2col_add_parts, for each output channel. A task of the
// input's gradient is of one image, one group and one block of its channels.
#define FASTSEG_IM2COL_GRADS_KERNELS                                                         \
  int64_t im2col_tile_rows();                                                                \
  void split_rows(const SplitRows& op, int64_t plane);                                       \
  void merge_rows(const SplitRows& op, int64_t plane);                                       \
  void im2col_weight_grad_task(const Im2colWeightGrad& op, const Im2colWeightGradTask& task, \
                               float* memory);                                               \
  void im2col_add_parts(const Im2colWeightGrad& op, int64_t channel);                        \
  void im2col_pack_columns(const Conv2dGradShape& shape, const float* weight, int64_t group, \
                           int64_t block, float* packed);                                    \
  void im2col_input_grad_task(const Im2colInputGrad& op, int64_t image, int64_t group,       \
                              int64_t block, float* memory)
FASTSEG_DECLARE_KERNEL(FASTSEG_IM2COL_GRADS_KERNELS)
#undef FASTSEG_IM2COL_GRADS_KERNELS

}  // namespace fastseg::cpu
