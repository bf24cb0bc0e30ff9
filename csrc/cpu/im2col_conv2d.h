#pragma once
// Convolution as one matrix product: what its kernel takes. Without torch.
//
// A pixel's row of the matrix is what its taps read, (taps, in_channels), zeros where there is
// padding; it is gathered for a task's pixels into memory that stays in the core's second-level
// cache and multiplied by the weights, panel by panel, the epilogue following each tile of sums.
// Bytes: x times the taps a pixel, y once, the weights once for kIm2colFloats of rows. For small
// convolutions, where a general library's search for its kernel takes longer than the product.

#include <algorithm>
#include <cstdint>

#include "common/conv2d_epilogue.h"
#include "cpu/gemm_run.h"
#include "cpu/simd_level.h"

namespace fastseg::cpu {

inline constexpr int64_t kIm2colDepth = 256;       // of a sum that starts from zero, for accuracy
inline constexpr int64_t kIm2colFloats = 1 << 16;  // of a task's rows, about: 256 KB

// How far apart rows are, never a multiple of 4 KB; close where they are short.
inline constexpr int kIm2colRow = kIm2colDepth + 16, kIm2colShortRow = 64 + 16;
inline int64_t im2col_row(int64_t depth) { return depth <= 64 ? kIm2colShortRow : kIm2colRow; }

struct Im2colConv2d {
  int64_t in_channels, out_channels;
  int64_t size[2], out_size[2], kernel_size[2], stride[2], padding[2], dilation[2];
  const float* x;        // (N, H, W, in_channels)
  const float* weights;  // (panels, depth, 16)
  float* y;              // (N, h, w, out_channels)
  Conv2dEpilogue<float> epilogue;

  int64_t depth() const { return kernel_size[0] * kernel_size[1] * in_channels; }
  int64_t panels() const { return (out_channels + kPanel - 1) / kPanel; }
};

// Output pixels, counted through the batch, and panels of output channels.
struct Im2colTask {
  int64_t begin, end, first_panel, last_panel;
};

inline int64_t im2col_task_memory(const Im2colConv2d& op, int64_t pixels) {
  const int64_t blocks = (op.depth() + kIm2colDepth - 1) / kIm2colDepth;
  return blocks * pixels * im2col_row(op.depth());
}

#define FASTSEG_IM2COL_TASK \
  void im2col_task(const Im2colConv2d& op, const Im2colTask& task, float* memory)
FASTSEG_DECLARE_KERNEL(FASTSEG_IM2COL_TASK)
#undef FASTSEG_IM2COL_TASK

}  // namespace fastseg::cpu
