#pragma once
// How the weight gradient of a dense convolution is cut: which pixels meet at a tap, and the tasks.
// Without torch, and by sizes alone, so that results do not depend on the number of threads.

#include <cstdint>
#include <vector>

#include "cpu/conv/conv2d_grad_shape.h"
#include "cpu/conv/gemm_run.h"

namespace fastseg::cpu {

// The pairs (pixel of grad, pixel of x) of each tap that do not fall into padding, as runs of
// pixels of packed grad (a) and packed x (b). Grad is taken in bands of rows, since all taps of a
// band read much the same pixels; the pairs of a tap and a band are cut into blocks, which a tile
// of the product sums before it adds them to what it has.
struct PixelPairs {
  explicit PixelPairs(const Conv2dGradShape& shape);

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
std::vector<WeightGradTask> weight_grad_tasks(const Conv2dGradShape& shape, int64_t panel_rows);

}  // namespace fastseg::cpu
