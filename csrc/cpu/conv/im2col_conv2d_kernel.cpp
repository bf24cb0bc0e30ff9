// A task of convolution by a matrix product of few pixels: gather rows, multiply, finish.
//
// Operations: 2 * depth * Co a pixel, in tiles of dot products. A pixel alone is bound by the loads
// of its weights.
//
// The sum over the lanes of a register, with which a dot product ends, is what eight products take
// with AVX2. There pixels, where they fill a register, are transposed into columns instead: a tile
// of 6 filters by 16 pixels, or of 12 by 8, takes 2 loads or 1 and as many weights for 12
// multiply-adds.

#include <algorithm>

#include "cpu/conv/dot_tile.h"
#include "cpu/conv/im2col_columns.h"
#include "cpu/conv/im2col_conv2d.h"
#include "cpu/conv/im2col_tile.h"
#include "cpu/conv/transpose_block.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int L = kLanes<float>;
constexpr int kFilters = kDotColumns, kPixels = kDotRows;  // of a tile
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kByColumns = true;
#else
constexpr bool kByColumns = false;
#endif
constexpr int64_t kLeastColumns = 6;  // pixels; a task has fewer if the whole call has
constexpr int kColumns = 16, kFullFilters = 6, kHalfFilters = 12;
constexpr auto& kTiles = kMultiplyColumns<kColumns, kColumns, kFullFilters>;
constexpr auto& kHalfTiles = kMultiplyColumns<kColumns, L, kHalfFilters>;

// Outputs of pixels as columns, block by block of their depth.
[[maybe_unused]] void multiply_pixels(const Im2colConv2d& op, const Im2colTask& task,
                                      const float* rows, float* memory) {
  const int64_t depth = op.depth(), row_step = im2col_row(depth), pixels = task.end - task.begin;
  float *const panel = memory, *const all_sums = panel + kIm2colBlock * kColumns;
  const auto finish = is_smooth(op.epilogue.activation) ? &finish_tile<true> : &finish_tile<false>;
  for (int64_t i = 0; i < pixels; i += kColumns) {
    const int64_t width = std::min<int64_t>(kColumns, pixels - i);
    const bool half = width <= L;
    const auto* const tiles = half ? kHalfTiles.data() : kTiles.data();
    const int64_t filters = half ? kHalfFilters : kFullFilters;
    for (int64_t k = 0; k < depth; k += kIm2colBlock) {
      const int64_t block = std::min(kIm2colBlock, depth - k);
      for (int64_t j = 0; j < width; j += L) {
        for (int64_t at = 0; at < block; at += L) {
          transpose_block(rows + (i + j) * row_step + k + at, row_step, panel + at * kColumns + j,
                          kColumns);
        }
      }
      for (int64_t c = task.first_channel; c < task.last_channel; c += filters) {
        tiles[std::min(filters, task.last_channel - c)](
            op.weights + c * depth + k, depth, panel, block,
            all_sums + (c - task.first_channel) * kColumns, k > 0);
      }
    }
    for (int64_t c = task.first_channel; c < task.last_channel; c += kIm2colChannels) {
      float sums[kColumns * kIm2colChannels];
      for (int64_t f = 0; f < kIm2colChannels; f += L) {
        for (int64_t j = 0; j < width; j += L) {
          transpose_block(all_sums + (c - task.first_channel + f) * kColumns + j, kColumns,
                          sums + j * kIm2colChannels + f, kIm2colChannels);
        }
      }
      finish(op, task.begin + i, width, c, std::min(kIm2colChannels, task.last_channel - c), sums,
             kIm2colChannels);
    }
  }
}

// Outputs as dot products.
void multiply_rows(const Im2colConv2d& op, const Im2colTask& task, const float* rows) {
  const int64_t depth = op.depth(), row_step = im2col_row(depth), pixels = task.end - task.begin;
  const auto finish = is_smooth(op.epilogue.activation) ? &finish_tile<true> : &finish_tile<false>;
  for (int64_t c = task.first_channel; c < task.last_channel; c += kIm2colChannels) {
    const int64_t channels = std::min(kIm2colChannels, task.last_channel - c);
    for (int64_t i = 0; i < pixels; i += kPixels) {
      const int64_t width = std::min<int64_t>(kPixels, pixels - i);
      float sums[kPixels * kIm2colChannels];
      // Block by block, so that the pixels' rows stay in the first-level cache for all filters.
      for (int64_t k = 0; k < depth; k += kIm2colDepth) {
        for (int64_t f = 0; f < channels; f += kFilters) {
          const float* filters[kFilters];
          for (int j = 0; j < kFilters; ++j) {  // some once more, where there are not as many
            filters[j] = op.weights + (c + std::min(f + j, channels - 1)) * depth + k;
          }
          kDotTiles[width](filters, rows + i * row_step + k, row_step,
                           std::min(kIm2colDepth, depth - k), sums + f, kIm2colChannels, k > 0);
        }
      }
      finish(op, task.begin + i, width, c, channels, sums, kIm2colChannels);
    }
  }
}

}  // namespace

void im2col_task(const Im2colConv2d& op, const Im2colTask& task, float* memory) {
  const int64_t row_step = im2col_row(op.depth()), pixels = task.end - task.begin;
  for (int64_t i = 0; i < pixels; ++i) gather_row(op, task.begin + i, memory + i * row_step);
  if constexpr (kByColumns) {
    if (pixels >= kLeastColumns) {
      float* const end = memory + (pixels + L - 1) / L * L * row_step;
      std::fill(memory + pixels * row_step, end, 0.0f);  // whole registers of pixels
      multiply_pixels(op, task, memory, end);
      return;
    }
  }
  multiply_rows(op, task, memory);
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
