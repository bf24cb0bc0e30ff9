#pragma once
// Convolution as one matrix product: what its kernel takes. Without torch.
//
// A pixel's row of the matrix is what its taps read, in the order of a filter's weights, zeros
// where there is padding. Rows are gathered for a task's pixels into memory that stays in the
// core's second-level cache. Of few pixels the weights are read as they are: an output is the dot
// product of a row and a filter, both of which lie in one piece, or, where a register's sum costs
// more than that, rows are transposed for a product with filters. Of many pixels the filters are
// brought into panels first, anew in each call. So nothing is prepared from them that would have to
// be checked for changes.
// Of contiguous planes it is the product of the filters and the planes: as they lie if the kernel
// is 1x1, else padded first and cut into the phases of the stride, in which the outputs of a row
// read neighbours for each tap, and those of the next row a pitch behind. Bytes: x times the taps a
// pixel, y once, and the weights once for kIm2colFloats of rows, or in panels once more for these.

#include <algorithm>
#include <cstdint>

#include "common/conv/conv2d_epilogue.h"
#include "cpu/conv/tap_phases.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

inline constexpr int64_t kIm2colDepth = 1024;      // of a sum that starts from zero, for accuracy
inline constexpr int64_t kIm2colFloats = 1 << 16;  // of a task's rows, about: 256 KB
inline constexpr int64_t kIm2colChannels = 16;     // of outputs that a task computes at a time
inline constexpr int64_t kIm2colBlock = 128;       // depth of rows or pixels that lie together
inline constexpr int kIm2colBlockStep = 144;       // between two of these rows
inline constexpr int64_t kIm2colSums = 32;         // of a pixel at a time, by panels
inline constexpr int64_t kIm2colPixels = 64;       // of a plane at a time

// How far apart rows are: whole registers, and no multiple of 4 KB.
inline int64_t im2col_row(int64_t depth) { return (depth + 15) / 16 * 16 + 16; }

struct Im2colConv2d {
  int64_t groups, in_channels, out_channels;  // in_channels: of one group; rows are of one alone
  int64_t size[2], out_size[2], kernel_size[2], stride[2], padding[2], dilation[2];
  bool taps_last;        // filters are (in_channels, taps), else (taps, in_channels)
  const float* x;        // (N, H, W, in_channels)
  const float* weights;  // (out_channels, depth)
  float* y;              // (N, h, w, out_channels)
  Conv2dEpilogue<float> epilogue;

  int64_t taps() const { return kernel_size[0] * kernel_size[1]; }
  int64_t depth() const { return taps() * in_channels; }
  int64_t plane() const { return out_size[0] * out_size[1]; }
  // Whether an output reads one pixel, that of its own place.
  bool is_point() const {
    return taps() == 1 && stride[0] == 1 && stride[1] == 1 && padding[0] == 0 && padding[1] == 0;
  }
};

// Output pixels, counted through the batch, and output channels.
struct Im2colTask {
  int64_t begin, end, first_channel, last_channel;
};

// Of a task of few pixels: their rows, a block of them as columns, and the sums of its channels.
inline int64_t im2col_task_memory(const Im2colConv2d& op, const Im2colTask& task) {
  const auto whole = [](int64_t count) { return (count + 15) / 16 * 16; };
  return whole(task.end - task.begin) * im2col_row(op.depth()) +
         (kIm2colBlock + whole(task.last_channel - task.first_channel)) * 16;
}

inline int64_t im2col_blocks(int64_t depth) { return (depth + kIm2colBlock - 1) / kIm2colBlock; }

// Of the rows of a task by panels, and one row in one piece.
inline int64_t im2col_rows_memory(const Im2colConv2d& op, int64_t pixels) {
  return im2col_blocks(op.depth()) * pixels * kIm2colBlockStep + im2col_row(op.depth());
}

inline int64_t im2col_panels_memory(const Im2colConv2d& op, int64_t pixels) {
  return im2col_rows_memory(op, pixels) + pixels * kIm2colSums;
}

// The planes that a product reads. Output (i, j) does so i * pitch + j behind the first one. If the
// product is of `width` = pitch columns a row, it is of those between two rows of outputs, too:
// that costs less than to cut what few filters read into rows.
struct Im2colPlanes {
  const float* data;       // (N, groups, group)
  int64_t group;           // numbers of a group of channels
  const int64_t* offsets;  // (depth): where the first output reads, for each weight of a filter
  int64_t pitch, width;
  int64_t pixels;  // of an image
};

// Of a task of planes: the pixels, and the sums of its channels.
inline int64_t im2col_planes_memory(int64_t channels) {
  return (kIm2colBlock + channels) * kIm2colPixels;
}

#define FASTSEG_IM2COL_TASK \
  void im2col_task(const Im2colConv2d& op, const Im2colTask& task, float* memory)
FASTSEG_DECLARE_KERNEL(FASTSEG_IM2COL_TASK)
#undef FASTSEG_IM2COL_TASK

// The filters of a panel: (depth, 16), zeros for those beyond the last.
#define FASTSEG_IM2COL_PACK void im2col_pack(const Im2colConv2d& op, int64_t index, float* panel)
FASTSEG_DECLARE_KERNEL(FASTSEG_IM2COL_PACK)
#undef FASTSEG_IM2COL_PACK

// The same task with all filters in panels.
#define FASTSEG_IM2COL_PANELS_TASK                                                             \
  void im2col_panels_task(const Im2colConv2d& op, const Im2colTask& task, const float* panels, \
                          float* memory)
FASTSEG_DECLARE_KERNEL(FASTSEG_IM2COL_PANELS_TASK)
#undef FASTSEG_IM2COL_PANELS_TASK

// Plane `index` of x (N, channels, H, W) to its phases (vertical, horizontal, rows, columns).
#define FASTSEG_IM2COL_PHASES                                                                 \
  void im2col_phases(const Im2colConv2d& op, const TapPhases& rows, const TapPhases& columns, \
                     int64_t index, float* phases)
FASTSEG_DECLARE_KERNEL(FASTSEG_IM2COL_PHASES)
#undef FASTSEG_IM2COL_PHASES

// A task of contiguous planes, y (N, out_channels, plane): panels of kIm2colPixels, the last one of
// an image with fewer, counted through the batch, and channels.
#define FASTSEG_IM2COL_PLANES_TASK                                            \
  void im2col_planes_task(const Im2colConv2d& op, const Im2colPlanes& planes, \
                          const Im2colTask& task, float* memory)
FASTSEG_DECLARE_KERNEL(FASTSEG_IM2COL_PLANES_TASK)
#undef FASTSEG_IM2COL_PLANES_TASK

}  // namespace fastseg::cpu
