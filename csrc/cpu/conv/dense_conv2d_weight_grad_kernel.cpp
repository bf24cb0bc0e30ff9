// The kernels of the weight gradient of a dense convolution: packing, and a task of products.
//
// Operations: 2 Ci Co for each pixel of each tap that does not read padding; at stride 1 a tap at
// the distance (dy, dx) has (h - |dy|) (w - |dx|) of them. Bytes: x and grad once, to pack them,
// and the output once.

#include <algorithm>
#include <type_traits>

#include "cpu/conv/dense_conv2d_weight_grad.h"
#include "cpu/conv/gemm_tile.h"
#include "cpu/conv/transpose_block.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int L = kLanes<float>;

// to[j * to_step + i] = from[i * from_step + j] for i < rows, j < columns, and 0 for the other i <
// width.
void transpose(const float* from, int64_t from_step, int64_t rows, int64_t columns, float* to,
               int64_t to_step, int64_t width) {
  if (columns < L) {
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t i = 0; i < width; ++i) {
        to[j * to_step + i] = i < rows ? from[i * from_step + j] : 0;
      }
    }
    return;
  }
  alignas(64) float block[L * L], transposed[L * L];
  for (int64_t i = 0; i < width; i += L, from += L * from_step, to += L) {
    const int64_t count = std::clamp<int64_t>(rows - i, 0, L),
                  wide = std::min<int64_t>(L, width - i);
    if (count < L) std::fill(block, block + L * L, 0.0f);
    for (int64_t j = 0; j < columns; j += L) {
      const int64_t first = std::min(j, columns - L);  // the last block is moved back
      if (count == L) {
        transpose_block(from + first, from_step, to + first * to_step, to_step);
        continue;
      }
      for (int64_t k = 0; k < count; ++k) {
        Simd<float>::store(block + k * L, Simd<float>::load(from + k * from_step + first));
      }
      transpose_block(block, L, transposed, L);
      for (int k = 0; k < L; ++k) {
        for_blocks<L>(0, wide, [&](auto lanes, int64_t w) {
          using S = Simd<float, decltype(lanes)::value>;
          S::store(to + (first + k) * to_step + w, S::load(transposed + k * L + w));
        });
      }
    }
  }
}

// `count` pixels of `channels` channels to (pixel, kWidth), zeros behind the channels.
template <int kWidth>
void pack_pixels(const float* from, int64_t pixel_step, int64_t channel_step, int64_t channels,
                 int64_t count, float* to) {
  if (pixel_step == 1) return transpose(from, channel_step, channels, count, to, kWidth, kWidth);
  if (channel_step == 1) {
    // A number of channels that is known when this is compiled makes one or two copies of a pixel.
    const auto copy = [&](auto known) {
      for (int64_t p = 0; p < count; ++p) {
        for_blocks<L>(0, known, [&](auto lanes, int64_t c) {
          using S = Simd<float, decltype(lanes)::value>;
          S::store(to + p * kWidth + c, S::load(from + p * pixel_step + c));
        });
        for (int64_t c = known; c < kWidth; ++c) to[p * kWidth + c] = 0;
      }
    };
    if (channels == kWidth) return copy(std::integral_constant<int64_t, kWidth>{});
    if (channels == kWidth - 1) return copy(std::integral_constant<int64_t, kWidth - 1>{});
    return copy(channels);
  }
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t c = 0; c < kWidth; ++c) {
      to[p * kWidth + c] = c < channels ? from[p * pixel_step + c * channel_step] : 0;
    }
  }
}

// Channels [first, end) of one image to a panel.
template <int kWidth>
void pack_panel(const PackImage& op, int64_t image, int64_t panel, int64_t first, int64_t end) {
  int64_t rows = op.size[0], columns = op.size[1];
  const int64_t step = op.strides[3] * op.column_stride;
  if (op.column_stride == 1 && op.strides[2] == columns * op.strides[3]) {  // one long row
    columns *= rows;
    rows = 1;
  }
  const int64_t residues = std::min(op.column_stride, columns);
  const int64_t residue_columns = (columns + op.column_stride - 1) / op.column_stride;
  const int64_t packed_row = residues * residue_columns * kWidth;
  const float* from = op.data + image * op.strides[0] + first * op.strides[1];
  float* to = op.packed + (panel * op.batch + image) * rows * packed_row;
  for (int64_t y = 0; y < rows; ++y, from += op.strides[2], to += packed_row) {
    for (int64_t r = 0; r < residues; ++r) {
      const int64_t count = (columns - r + op.column_stride - 1) / op.column_stride;
      pack_pixels<kWidth>(from + r * op.strides[3], step, op.strides[1], end - first, count,
                          to + r * residue_columns * kWidth);
    }
  }
}

// The output channels of the panels of grad.
struct RowPanels {
  int64_t channels, count;

  explicit RowPanels(int64_t channels)
      : channels(channels), count((channels + kTileRows - 1) / kTileRows) {}

  int64_t first(int64_t panel) const { return channels * panel / count; }
};

constexpr auto kMultiplyTiles =
    gemm_tiles([]<int Rows, int Panels> { return &gemm_tile_runs<Rows, Panels, kTileRows>; });

// Adds the products of one block of pixels to the sums of one tap.
void multiply(const WeightGrad& op, const WeightGradTask& task, const GemmRun* run,
              const GemmRun* end, float* sums, int64_t sums_step) {
  const RowPanels rows(op.shape.out_channels);
  const int64_t grad_step = op.shape.grad_pixels() * kTileRows;
  const int64_t x_step = op.shape.x_pixels() * kPanel;
  const int64_t first_row = rows.first(task.first_row);
  for (int64_t p = task.first_panel; p < task.end_panel; p += kTilePanels) {
    const auto& tile = kMultiplyTiles[task.end_panel - p >= kTilePanels];
    float* const columns = sums + (p - task.first_panel) * kPanel;
    for (int64_t r = task.first_row; r < task.end_row; ++r) {
      const int64_t row = rows.first(r);
      const int64_t next = r + 1 < task.end_row ? r + 1 : task.first_row;
      tile[rows.first(r + 1) - row](op.grad + r * grad_step, op.x + p * x_step, x_step,
                                    columns + (row - first_row) * sums_step, sums_step, run, end,
                                    (next - r) * grad_step);
    }
  }
}

// The sums (taps, rows, sums_step) of a task to the output.
void store(const WeightGrad& op, const WeightGradTask& task, const float* sums, int64_t first_row,
           int64_t rows, int64_t sums_step) {
  const int64_t all_taps = op.shape.taps(), all_channels = op.shape.in_channels;
  const int64_t first_channel = task.first_panel * kPanel, taps = task.end_tap - task.first_tap;
  const int64_t channels = std::min(sums_step, all_channels - first_channel);
  for (int64_t r = 0; r < rows; ++r, sums += sums_step) {
    float* const row = op.out + (first_row + r) * all_channels * all_taps;
    if (!op.channels_last && all_taps > 1) {
      transpose(sums, rows * sums_step, taps, channels,
                row + first_channel * all_taps + task.first_tap, all_taps, taps);
      continue;
    }
    for (int64_t t = 0; t < taps; ++t) {
      const float* const from = sums + t * rows * sums_step;
      std::copy(from, from + channels, row + (task.first_tap + t) * all_channels + first_channel);
    }
  }
}

}  // namespace

int64_t weight_grad_panel_rows() { return kTileRows; }

void weight_grad_pack_grad(const PackImage& grad, int64_t image, int64_t first_panel,
                           int64_t end_panel) {
  const RowPanels rows(grad.channels);
  for (int64_t panel = first_panel; panel < end_panel; ++panel) {
    pack_panel<kTileRows>(grad, image, panel, rows.first(panel), rows.first(panel + 1));
  }
}

void weight_grad_pack_x(const PackImage& x, int64_t image, int64_t first_panel, int64_t end_panel) {
  for (int64_t panel = first_panel; panel < end_panel; ++panel) {
    pack_panel<kPanel>(x, image, panel, panel * kPanel, std::min(x.channels, (panel + 1) * kPanel));
  }
}

void weight_grad_task(const WeightGrad& op, const WeightGradTask& task, float* memory) {
  const RowPanels panels(op.shape.out_channels);
  const int64_t first_row = panels.first(task.first_row);
  const int64_t rows = panels.first(task.end_row) - first_row;
  const int64_t step = (task.end_panel - task.first_panel) * kPanel;
  const int64_t taps = task.end_tap - task.first_tap;
  std::fill(memory, memory + taps * rows * step, 0.0f);
  for (int64_t band = 0; band < op.pairs.bands; ++band) {
    for (int64_t t = 0; t < taps; ++t) {
      op.pairs.for_each_block(band, task.first_tap + t,
                              [&](const GemmRun* run, const GemmRun* end) {
                                multiply(op, task, run, end, memory + t * rows * step, step);
                              });
    }
  }
  store(op, task, memory, first_row, rows, step);
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
