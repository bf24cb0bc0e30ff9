// A task of convolution by a matrix product: gather rows, multiply, finish.
//
// Operations: 2 * depth * Co a pixel; the gathering moves depth floats, 16 / Co of the product's
// instructions.

#include <algorithm>
#include <array>
#include <utility>

#include "cpu/conv2d_epilogue.h"
#include "cpu/gemm_tile.h"
#include "cpu/im2col_conv2d.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

// Writes one row, element k at (k / kIm2colDepth) * block_step + k % kIm2colDepth. Rows are short:
// a call of memcpy would take longer than its copy.
class RowOfTaps {
 public:
  RowOfTaps(float* to, int64_t block_step) : to_(to), block_step_(block_step) {}

  // From `from`, or zeros where that is null.
  void append(const float* from, int64_t count) {
    while (count > 0) {
      const int64_t n = std::min(count, kIm2colDepth - at_);
      for_blocks<kLanes<float>>(0, n, [&](auto lanes, int64_t i) {
        using S = Simd<float, decltype(lanes)::value>;
        S::store(to_ + at_ + i, from ? S::load(from + i) : S::fill(0));
      });
      if (from) from += n;
      count -= n;
      at_ += n;
      if (at_ == kIm2colDepth) {
        at_ = 0;
        to_ += block_step_;
      }
    }
  }

 private:
  float* to_;
  const int64_t block_step_;
  int64_t at_ = 0;
};

void gather(const Im2colConv2d& op, const Im2colTask& task, int64_t row_step, float* rows) {
  const int64_t plane = op.out_size[0] * op.out_size[1];
  const int64_t block_step = (task.end - task.begin) * row_step;
  int64_t image = task.begin / plane, row = task.begin % plane / op.out_size[1];
  int64_t column = task.begin % op.out_size[1];
  for (int64_t pixel = task.begin; pixel < task.end; ++pixel, rows += row_step) {
    const float* const plane_of_x = op.x + image * op.size[0] * op.size[1] * op.in_channels;
    const int64_t top = row * op.stride[0] - op.padding[0];
    const int64_t left = column * op.stride[1] - op.padding[1];
    RowOfTaps taps(rows, block_step);
    for (int64_t i = 0; i < op.kernel_size[0]; ++i) {
      const int64_t y = top + i * op.dilation[0];
      for (int64_t j = 0; j < op.kernel_size[1]; ++j) {
        const int64_t x = left + j * op.dilation[1];
        const bool live = y >= 0 && y < op.size[0] && x >= 0 && x < op.size[1];
        taps.append(live ? plane_of_x + (y * op.size[1] + x) * op.in_channels : nullptr,
                    op.in_channels);
      }
    }
    if (++column == op.out_size[1]) {
      column = 0;
      if (++row == op.out_size[0]) row = 0, ++image;
    }
  }
}

// Outputs of `rows` pixels from `first`, `channels` of them from `channel`, of sums (rows, step).
template <bool smooth>
void finish_tile(const Im2colConv2d& op, int64_t first, int64_t rows, int64_t channel,
                 int64_t channels, const float* sums, int64_t step) {
  for_blocks<kLanes<float>>(0, channels, [&](auto lanes, int64_t c) {
    constexpr int L = decltype(lanes)::value;
    const auto terms = channel_terms<float, L>(op.epilogue, channel + c);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (first + i) * op.out_channels + channel + c;
      const auto sum = Simd<float, L>::load(sums + i * step + c);
      Simd<float, L>::store(op.y + at, finish<float, L, smooth>(op.epilogue, terms, sum, at));
    }
  });
}

using GemmTile = decltype(&gemm_tile<1, 1, kIm2colRow, 1>);
using GemmTiles = std::array<GemmTile, kTileRows + 1>;  // by rows

template <int Panels, int RowStep, int... R>
constexpr GemmTiles gemm_tiles(std::integer_sequence<int, R...>) {
  return {nullptr, &gemm_tile<R + 1, Panels, RowStep, 1>...};
}

// For one panel and for kTilePanels at a time.
template <int RowStep>
constexpr std::array<GemmTiles, 2> kGemmTiles = {
    gemm_tiles<1, RowStep>(std::make_integer_sequence<int, kTileRows>{}),
    gemm_tiles<kTilePanels, RowStep>(std::make_integer_sequence<int, kTileRows>{})};

}  // namespace

void im2col_task(const Im2colConv2d& op, const Im2colTask& task, float* memory) {
  const int64_t depth = op.depth(), row_step = im2col_row(depth);
  gather(op, task, row_step, memory);
  const auto& tiles =
      row_step == kIm2colShortRow ? kGemmTiles<kIm2colShortRow> : kGemmTiles<kIm2colRow>;
  const auto finish = is_smooth(op.epilogue.activation) ? &finish_tile<true> : &finish_tile<false>;
  const int64_t rows = task.end - task.begin, panel_step = depth * kPanel;
  const int64_t blocks = (rows + kTileRows - 1) / kTileRows;
  for (int64_t p = task.first_panel, count; p < task.last_panel; p += count) {
    const bool full = task.last_panel - p >= kTilePanels;
    count = full ? kTilePanels : 1;
    const int64_t width = count * kPanel;
    const int64_t channels = std::min(width, op.out_channels - p * kPanel);
    const float* const panel = op.weights + p * panel_step;
    const float* const next = p + count < task.last_panel ? panel + count * panel_step : op.weights;
    for (int64_t i = 0; i < blocks; ++i) {
      alignas(64) float sums[kTileRows * kTilePanels * kPanel];
      const int64_t first = rows * i / blocks, height = rows * (i + 1) / blocks - first;
      const float* from = memory + first * row_step;
      for (int64_t k = 0; k < depth; k += kIm2colDepth, from += rows * row_step) {
        tiles[full][height](from, panel + k * kPanel, panel_step, sums, width,
                            std::min(kIm2colDepth, depth - k), k > 0, next + k * kPanel);
      }
      finish(op, task.begin + first, height, p * kPanel, channels, sums, width);
    }
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
