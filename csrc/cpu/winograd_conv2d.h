#pragma once
// Dilated 3x3 convolution by Winograd's pieces: what its kernels take. Without torch.
//
// With P products a tile and T tiles a task: the inputs of the tiles are transformed, for a block
// of input channels, to P matrices (T, channels); each is multiplied by its matrix of weights
// (channels, output channels), and the P matrices of products are transformed to outputs. All of a
// task stays in its core's caches, so that large maps read x and write y once or nearly so.

#include <cstdint>
#include <vector>

#include "common/conv2d_epilogue.h"
#include "cpu/simd_level.h"
#include "cpu/winograd_plan.h"

namespace fastseg::cpu {

inline constexpr int64_t kWinogradDepth = 256;  // input channels of a block

struct WinogradConv2d {
  const WinogradAxis& y_axis;
  const WinogradAxis& x_axis;
  int64_t in_channels, out_channels;
  const float* x;        // (N, H, W, in_channels)
  const float* weights;  // (rows of y_axis * rows of x_axis, panels, in_channels, 16)
  float* y;              // (N, H, W, out_channels)
  Conv2dEpilogue<float> epilogue;
};

// Floats of memory that a task takes, from an address of 64 bytes.
int64_t winograd_task_memory(const WinogradTask& task);

// The offsets in a task's memory: the transformed inputs come first.
inline constexpr int64_t kWinogradRow = kWinogradDepth + 16;  // rows do not lie 4 KB apart

#define FASTSEG_WINOGRAD_TASK \
  void winograd_task(const WinogradConv2d& op, const WinogradTask& task, float* memory)
FASTSEG_DECLARE_KERNEL(FASTSEG_WINOGRAD_TASK)
#undef FASTSEG_WINOGRAD_TASK

// Packs weight (out_channels, in_channels, 3, 3), of any strides, for the channels of one panel:
// (rows of y_axis * rows of x_axis, panels, in_channels, 16); channels that do not exist are 0.
struct WinogradWeight {
  const std::vector<int>& y_rows;
  const std::vector<int>& x_rows;
  int64_t in_channels, out_channels;
  const float* weight;
  int64_t strides[4];
  float* packed;
};
void winograd_pack_panel(const WinogradWeight& op, int64_t panel);

}  // namespace fastseg::cpu
