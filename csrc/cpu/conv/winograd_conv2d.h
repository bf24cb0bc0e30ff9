#pragma once
// Dilated 3x3 convolution by Winograd's pieces: what its kernels take. Without torch.
//
// With P products a tile and T tiles a task: the inputs of the tiles are transformed, for a block
// of input channels, to P matrices (T, channels); each is multiplied by its matrix of weights
// (channels, output channels), and the P matrices of products are transformed to outputs. All of a
// task stays in its core's caches, so that large maps read x and write y once or nearly so.

#include <cstdint>
#include <vector>

#include "common/conv/conv2d_epilogue.h"
#include "cpu/conv/gemm_run.h"
#include "cpu/conv/winograd_plan.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

inline constexpr int64_t kWinogradDepth = 512;  // input channels of a block

// How far apart the rows of transformed inputs are: never a multiple of 4 KB, and close where there
// are few channels, since a core knows the places of only so many pages. The product's tiles are
// compiled for both.
inline constexpr int kWinogradRow = kWinogradDepth + 16, kWinogradShortRow = 64 + 16;
inline int64_t winograd_row(int64_t in_channels) {
  return in_channels <= 64 ? kWinogradShortRow : kWinogradRow;
}

struct WinogradConv2d {
  WinogradAxis y_axis, x_axis;
  int64_t in_channels, out_channels;
  const float* x;        // (N, H, W, in_channels)
  const float* weights;  // (rows of y_axis * rows of x_axis, panels, in_channels, 16)
  float* y;              // (N, H, W, out_channels), pixels y_step apart
  int64_t y_step;
  Conv2dEpilogue<float> epilogue;  // without a residual unless y is dense
};

// Floats of memory that a task takes, from an address of 64 bytes.
int64_t winograd_task_memory(const WinogradTask& task, int64_t in_channels);

#define FASTSEG_WINOGRAD_TASK \
  void winograd_task(const WinogradConv2d& op, const WinogradTask& task, float* memory)
FASTSEG_DECLARE_KERNEL(FASTSEG_WINOGRAD_TASK)
#undef FASTSEG_WINOGRAD_TASK

// The weights that winograd_task takes: of each pair of rows the combination of the taps of weight
// (out_channels, in_channels, 3, 3), which may have any strides.
struct WinogradWeight {
  const std::vector<int>& y_rows;
  const std::vector<int>& x_rows;
  int64_t in_channels, out_channels;
  bool adjoint;  // the taps in reverse order, as the gradient of x takes them
  const float* weight;
  int64_t strides[4];  // of out_channels, in_channels, height, width
  float* packed;       // (rows of y_axis * rows of x_axis, panels, in_channels, 16)
};

// The output channels of one panel; those that do not exist are 0.
#define FASTSEG_WINOGRAD_WEIGHT void winograd_weight_panel(const WinogradWeight& op, int64_t panel)
FASTSEG_DECLARE_KERNEL(FASTSEG_WINOGRAD_WEIGHT)
#undef FASTSEG_WINOGRAD_WEIGHT

}  // namespace fastseg::cpu
