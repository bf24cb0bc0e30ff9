#pragma once
// Weight gradient of a dense convolution: what its kernels take. Without torch.
//
//     out[o, c, tap] = sum over pixels of grad[pixel, o] * x[what the tap reads at pixel, c]
//
// is for each tap a product (Co, pixels) x (pixels, Ci) over the pixels where it does not read
// padding. Grad and x are packed once, in panels of all pixels by a few channels: a tap only
// chooses which pixels of the one meet which of the other.

#include <cstdint>

#include "cpu/conv/dense_conv2d_weight_grad_plan.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// Packs panels of one image into (panels, images, pixels, channels of a panel).
struct PackImage {
  const float* data;
  int64_t batch, channels;
  PerAxis size;
  int64_t strides[4];     // of data by (N, C, H, W)
  int64_t column_stride;  // columns are packed by their residues modulo it
  float* packed;
};

struct WeightGrad {
  const Conv2dGradShape& shape;
  const PixelPairs& pairs;
  const float* grad;  // (panels of output channels, pixels, weight_grad_panel_rows())
  const float* x;     // (panels of input channels, pixels in packed columns, 16)
  float* out;         // (Co, Ci, kh, kw), contiguous or channels_last
  bool channels_last;
};

// Floats of memory that a task takes, from an address of 64 bytes.
inline int64_t weight_grad_task_memory(const WeightGradTask& task, int64_t panel_rows) {
  return (task.end_tap - task.first_tap) * (task.end_row - task.first_row) * panel_rows *
         (task.end_panel - task.first_panel) * 16;
}

// A panel of grad has at most as many channels as a tile of the product has rows; channels are
// dealt to panels evenly. A panel of x has 16.
#define FASTSEG_WEIGHT_GRAD_KERNELS                                                     \
  int64_t weight_grad_panel_rows();                                                     \
  void weight_grad_pack_grad(const PackImage& grad, int64_t image, int64_t first_panel, \
                             int64_t end_panel);                                        \
  void weight_grad_pack_x(const PackImage& x, int64_t image, int64_t first_panel,       \
                          int64_t end_panel);                                           \
  void weight_grad_task(const WeightGrad& op, const WeightGradTask& task, float* memory)
FASTSEG_DECLARE_KERNEL(FASTSEG_WEIGHT_GRAD_KERNELS)
#undef FASTSEG_WEIGHT_GRAD_KERNELS

}  // namespace fastseg::cpu
