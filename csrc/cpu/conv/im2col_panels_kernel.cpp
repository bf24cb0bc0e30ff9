// A task of convolution by a matrix product of many pixels: gather rows, multiply, finish.
//
// Operations: 2 * depth * Co a pixel, in the tiles of gemm_tile.h. A block of rows and two panels
// of weights, 7 KB and 16, lie in the first-level cache together.

#include <algorithm>
#include <cstring>

#include "cpu/conv/copy_floats.h"
#include "cpu/conv/gemm_tile.h"
#include "cpu/conv/im2col_conv2d.h"
#include "cpu/conv/im2col_tile.h"
#include "cpu/conv/transpose_block.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int L = kLanes<float>;

template <int Rows, int Panels>
void multiply_tile(const float* rows, const float* panel, int64_t panel_step, float* sums,
                   int64_t depth, bool accumulate) {
  gemm_tile<Rows, Panels, kIm2colBlockStep, 1>(rows, panel, panel_step, sums, kIm2colSums, depth,
                                               accumulate, panel + kIm2colBlock * kPanel);
}

constexpr auto kMultiplyTiles =
    gemm_tiles([]<int Rows, int Panels> { return &multiply_tile<Rows, Panels>; });

// The rows of a task's pixels, block by block of their depth.
void gather_blocks(const Im2colConv2d& op, const Im2colTask& task, float* blocks) {
  const int64_t depth = op.depth(), pixels = task.end - task.begin;
  float* const row = blocks + im2col_blocks(depth) * pixels * kIm2colBlockStep;
  for (int64_t i = 0; i < pixels; ++i) {
    const float* from = op.taps() == 1 ? TapsOfPixel(op, task.begin + i)[0] : nullptr;
    if (!from) {
      gather_row(op, task.begin + i, row);
      from = row;
    }
    for (int64_t k = 0; k < depth; k += kIm2colBlock) {
      float* const to = blocks + (k / kIm2colBlock * pixels + i) * kIm2colBlockStep;
      copy_floats(from + k, std::min(kIm2colBlock, depth - k), to);
    }
  }
}

}  // namespace

void im2col_pack(const Im2colConv2d& op, int64_t index, float* panel) {
  const int64_t depth = op.depth(), first = index * kPanel;
  const int64_t filters = std::min<int64_t>(kPanel, op.out_channels - first);
  const float* const from = op.weights + first * depth;
  if (filters < kPanel) std::memset(panel, 0, depth * kPanel * sizeof(float));
  int64_t whole = 0;
  if (depth >= L) {
    for (; whole + L <= filters; whole += L) {
      for (int64_t k = 0; k < depth; k += L) {  // the last block is moved back, so that it is whole
        const int64_t at = std::min(k, depth - L);
        transpose_block(from + whole * depth + at, depth, panel + at * kPanel + whole, kPanel);
      }
    }
  }
  for (int64_t f = whole; f < filters; ++f) {
    for (int64_t k = 0; k < depth; ++k) panel[k * kPanel + f] = from[f * depth + k];
  }
}

void im2col_panels_task(const Im2colConv2d& op, const Im2colTask& task, const float* panels,
                        float* memory) {
  const int64_t depth = op.depth(), pixels = task.end - task.begin;
  gather_blocks(op, task, memory);
  float* const sums = memory + im2col_rows_memory(op, pixels);
  const auto finish = is_smooth(op.epilogue.activation) ? &finish_tile<true> : &finish_tile<false>;
  for (int64_t c = task.first_channel; c < task.last_channel; c += kTilePanels * kPanel) {
    const int64_t channels = std::min<int64_t>(kTilePanels * kPanel, task.last_channel - c);
    const auto& tiles = kMultiplyTiles[channels > kPanel];
    for (int64_t k = 0; k < depth; k += kIm2colBlock) {
      const float* const rows = memory + k / kIm2colBlock * pixels * kIm2colBlockStep;
      for (int64_t i = 0; i < pixels; i += kTileRows) {
        tiles[std::min<int64_t>(kTileRows, pixels - i)](
            rows + i * kIm2colBlockStep, panels + c * depth + k * kPanel, depth * kPanel,
            sums + i * kIm2colSums, std::min(kIm2colBlock, depth - k), k > 0);
      }
    }
    finish(op, task.begin, pixels, c, channels, sums, kIm2colSums);
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
