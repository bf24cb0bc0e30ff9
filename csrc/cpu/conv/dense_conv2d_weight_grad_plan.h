#pragma once
// How the weight gradient of a dense convolution is cut: which pixels meet at a tap, and the tasks.
// Without torch, and by sizes alone, so that results do not depend on the number of threads.

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "cpu/conv/gemm_run.h"

namespace fastseg::cpu {

using PerAxis = std::array<int64_t, 2>;  // vertical, horizontal

struct WeightGradShape {
  int64_t batch, in_channels, out_channels;
  PerAxis size, output_size;  // of x and of grad
  PerAxis kernel_size, stride, padding, dilation;

  int64_t taps() const { return kernel_size[0] * kernel_size[1]; }

  // A packed row of x holds the columns of one residue modulo the stride after the other: those
  // that a tap reads are neighbours whatever the stride.
  int64_t residues() const { return std::min(stride[1], size[1]); }
  int64_t residue_columns() const { return (size[1] + stride[1] - 1) / stride[1]; }
  int64_t packed_columns() const { return residues() * residue_columns(); }

  int64_t x_pixels() const { return batch * size[0] * packed_columns(); }
  int64_t grad_pixels() const { return batch * output_size[0] * output_size[1]; }
};

// The pairs (pixel of grad, pixel of x) of each tap that do not fall into padding, as runs of
// pixels of packed grad (a) and packed x (b). Grad is taken in bands of rows, since all taps of a
// band read much the same pixels; the pairs of a tap and a band are cut into blocks, which a tile
// of the product sums before it adds them to what it has.
struct PixelPairs {
  explicit PixelPairs(const WeightGradShape& shape);

  int64_t bands, taps;
  std::vector<GemmRun> runs;
  std::vector<int64_t> first_run;    // of each block, and the end of the last one
  std::vector<int64_t> first_block;  // of each (band, tap), and the end of the last one

  // Calls body(first run, end of the runs) for each block.
  template <class Body>
  void for_each_block(int64_t band, int64_t tap, const Body& body) const {
    const int64_t at = band * taps + tap;
    for (int64_t block = first_block[at]; block < first_block[at + 1]; ++block) {
      body(runs.data() + first_run[block], runs.data() + first_run[block + 1]);
    }
  }
};

inline constexpr int64_t kWeightGradTaps = 9;  // of a task, at most

// The gradients of taps [first_tap, end_tap), of the output channels of panels [first_row, end_row)
// and the input channels of panels [first_panel, end_panel).
struct WeightGradTask {
  int64_t first_tap, end_tap, first_row, end_row, first_panel, end_panel;
};

// `panel_rows`: output channels of a panel at most.
std::vector<WeightGradTask> weight_grad_tasks(const WeightGradShape& shape, int64_t panel_rows);

}  // namespace fastseg::cpu
