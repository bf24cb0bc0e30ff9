// How the product of a weight gradient is cut into tasks and its operands into panels.

#include "cpu/conv/dense_conv2d_weight_grad_plan.h"

namespace fastseg::cpu {
namespace {

// Pixels of a block: 32 KB of 32 input channels, which stay in the first-level cache for all output
// channels of a task. Longer blocks would round more.
constexpr int64_t kBlockPixels = 256;

// Pixels of a band, and the channels of a task: what its taps read of them, 0.6 MB, and the sums of
// 9 taps, 0.3 MB, stay in a second-level cache of 1 MB.
constexpr int64_t kBandPixels = 512;
constexpr int64_t kTaskRows = 272;  // 256 output channels and a rest
constexpr int64_t kTaskPanels = 2;

// Fewer tasks than these are cut further, by taps, which then share less.
constexpr int64_t kFewTasks = 16;
constexpr int64_t kTapsOfFew = 3;

// The runs of one tap in rows [row, end_row) of grad, counted over the images.
void find_runs(const Conv2dGradShape& s, int64_t tap, int64_t row, int64_t end_row,
               std::vector<GemmRun>& runs) {
  runs.clear();
  const LiveOutputs vertical(s, 0, tap / s.kernel_size[1]),
      horizontal(s, 1, tap % s.kernel_size[1]);
  const int64_t count = horizontal.end - horizontal.begin;
  if (count <= 0) return;
  const int64_t column = horizontal.begin * s.stride[1] + horizontal.offset;
  const int64_t packed = s.packed_column(column);
  for (; row < end_row; ++row) {
    const int64_t image = row / s.output_size[0], i = row % s.output_size[0];
    if (i < vertical.begin || i >= vertical.end) continue;
    const int64_t y = image * s.size[0] + i * s.stride[0] + vertical.offset;
    const GemmRun run{row * s.output_size[1] + horizontal.begin, y * s.packed_columns() + packed,
                      count};
    const bool continues = !runs.empty() && runs.back().a + runs.back().count == run.a &&
                           runs.back().b + runs.back().count == run.b;
    if (continues) {
      runs.back().count += count;
    } else {
      runs.push_back(run);
    }
  }
}

// Appends runs, cut into blocks of about equally many pixels.
void add_blocks(const std::vector<GemmRun>& runs, PixelPairs& pairs) {
  int64_t total = 0;
  for (const GemmRun& run : runs) total += run.count;
  const int64_t blocks = ceil_divide(total, kBlockPixels);
  int64_t block = 0, done = 0, end_of_block = 0;
  for (GemmRun run : runs) {
    while (run.count > 0) {
      if (done == end_of_block) {
        pairs.first_run.push_back(static_cast<int64_t>(pairs.runs.size()));
        end_of_block = total * ++block / blocks;
      }
      const int64_t count = std::min(run.count, end_of_block - done);
      pairs.runs.push_back({run.a, run.b, count});
      run = {run.a + count, run.b + count, run.count - count};
      done += count;
    }
  }
}

}  // namespace

PixelPairs::PixelPairs(const Conv2dGradShape& shape) : taps(shape.taps()) {
  const int64_t rows = shape.batch * shape.output_size[0];
  bands = ceil_divide(rows, std::max<int64_t>(1, kBandPixels / shape.output_size[1]));
  std::vector<GemmRun> of_tap;
  for (int64_t band = 0; band < bands; ++band) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      first_block.push_back(static_cast<int64_t>(first_run.size()));
      find_runs(shape, tap, rows * band / bands, rows * (band + 1) / bands, of_tap);
      add_blocks(of_tap, *this);
    }
  }
  first_block.push_back(static_cast<int64_t>(first_run.size()));
  first_run.push_back(static_cast<int64_t>(runs.size()));
}

std::vector<WeightGradTask> weight_grad_tasks(const Conv2dGradShape& s, int64_t panel_rows) {
  const int64_t rows = ceil_divide(s.out_channels, panel_rows);
  const int64_t panels = ceil_divide(s.in_channels, 16), taps = s.taps();
  const int64_t row_parts = ceil_divide(rows * panel_rows, kTaskRows);
  const int64_t panel_parts = ceil_divide(panels, kTaskPanels);
  int64_t tap_parts = ceil_divide(taps, kWeightGradTaps);
  if (row_parts * panel_parts * tap_parts < kFewTasks) tap_parts = ceil_divide(taps, kTapsOfFew);
  std::vector<WeightGradTask> tasks;
  for (int64_t r = 0; r < row_parts; ++r) {
    for (int64_t p = 0; p < panel_parts; ++p) {
      for (int64_t t = 0; t < tap_parts; ++t) {
        tasks.push_back({taps * t / tap_parts, taps * (t + 1) / tap_parts, rows * r / row_parts,
                         rows * (r + 1) / row_parts, p * kTaskPanels,
                         std::min(panels, (p + 1) * kTaskPanels)});
      }
    }
  }
  return tasks;
}

}  // namespace fastseg::cpu
