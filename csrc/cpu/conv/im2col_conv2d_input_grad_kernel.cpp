// The kernels of the input gradient as a product whose elements are added to where columns were
// read.
//
// Operations: 2 Ci Co taps for each output pixel, those of taps in the padding too. A task reads
// all of grad for a block of input channels, a stretch of pixels at a time, whose product stays in
// the second-level cache until it is added.

#include <algorithm>

#include "cpu/conv/gemm_tile.h"
#include "cpu/conv/im2col_conv2d_grads.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int L = kLanes<float>;

template <int Rows, int Panels>
void multiply_tile(const float* weight, const float* grad, int64_t panel_step, float* columns,
                   int64_t columns_step, int64_t depth, bool accumulate) {
  gemm_tile<Rows, Panels, 1, kTileRows>(weight, grad, panel_step, columns, columns_step, depth,
                                        accumulate, weight + kTileRows * depth);
}

constexpr auto kMultiplyTiles =
    gemm_tiles([]<int Rows, int Panels> { return &multiply_tile<Rows, Panels>; });

// grad (Co, plane) from a pixel on to panels (Co, 16), zeros behind the last pixel.
void pack_pixels(const float* grad, int64_t plane, int64_t channels, int64_t count, float* to) {
  for (int64_t q = 0; q < count; q += kPanel) {
    const int64_t width = std::min<int64_t>(kPanel, count - q);
    for (int64_t c = 0; c < channels; ++c, to += kPanel) {
      const float* const from = grad + c * plane + q;
      if (width == kPanel) {
        FASTSEG_UNROLL
        for (int k = 0; k < kPanel; k += L) {
          Simd<float>::store(to + k, Simd<float>::load(from + k));
        }
      } else {
        std::copy(from, from + width, to);
        std::fill(to + width, to + kPanel, 0.0f);
      }
    }
  }
}

void add(const float* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + L <= count; i += L) {
    Simd<float>::store(to + i, Simd<float>::load(to + i) + Simd<float>::load(from + i));
  }
  for (; i < count; ++i) to[i] += from[i];
}

// Adds a column's gradients for the output pixels [begin, end) to one channel's plane.
void scatter_column(const Conv2dGradShape& s, const float* column, int64_t tap, int64_t begin,
                    int64_t end, float* plane) {
  const LiveOutputs vertical(s, 0, tap / s.kernel_size[1]), across(s, 1, tap % s.kernel_size[1]);
  if (across.begin >= across.end) return;
  const int64_t width = s.output_size[1];
  const int64_t first = s.packed_column(across.begin * s.stride[1] + across.offset) - across.begin;
  const int64_t last_row = std::min(vertical.end, (end - 1) / width + 1);
  for (int64_t i = std::max(vertical.begin, begin / width); i < last_row; ++i) {
    const int64_t row = i * width;
    const int64_t low = std::max(row + across.begin, begin);
    const int64_t high = std::min(row + across.end, end);
    const int64_t y = i * s.stride[0] + vertical.offset;
    if (low < high) {
      add(column + low - begin, high - low, plane + y * s.packed_columns() + first + low - row);
    }
  }
}

}  // namespace

int64_t im2col_tile_rows() { return kTileRows; }

void im2col_pack_columns(const Conv2dGradShape& s, const float* weight, int64_t group,
                         int64_t block, float* packed) {
  const int64_t channels = im2col_input_grad_channels(s), all = s.in_channels * s.taps();
  const int64_t first = block * channels * s.taps();
  const int64_t columns = std::min(channels * s.taps(), all - first);
  const float* const from = weight + group * s.out_channels * all + first;
  for (int64_t c = 0; c < columns; c += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, columns - c);
    for (int64_t o = 0; o < s.out_channels; ++o, packed += kTileRows) {
      std::copy(from + o * all + c, from + o * all + c + rows, packed);
    }
  }
}

void merge_rows(const SplitRows& op, int64_t plane) {
  const Conv2dGradShape& s = op.shape;
  for (int64_t y = plane * s.size[0]; y < (plane + 1) * s.size[0]; ++y) {
    const float* from = op.from + y * s.packed_columns();
    float* const to = op.to + y * s.size[1];
    int64_t done = 0;  // columns of each residue
    if (s.residues() == 2) {
      for (; 2 * (done + L) <= s.size[1]; done += L) {
        Simd<float>::store_interleaved(to + 2 * done, Simd<float>::load(from + done),
                                       Simd<float>::load(from + s.residue_columns() + done));
      }
    }
    for (int64_t r = 0; r < s.residues(); ++r, from += s.residue_columns()) {
      for (int64_t k = done, j = k * s.stride[1] + r; j < s.size[1]; ++k, j += s.stride[1]) {
        to[j] = from[k];
      }
    }
  }
}

void im2col_input_grad_task(const Im2colInputGrad& op, int64_t image, int64_t group, int64_t block,
                            float* memory) {
  constexpr int64_t kDepth = 256;  // output channels of a product
  const Conv2dGradShape& s = op.shape;
  const int64_t first = block * im2col_input_grad_channels(s), taps = s.taps();
  const int64_t channels = std::min(im2col_input_grad_channels(s), s.in_channels - first);
  const int64_t plane = s.output_plane(), columns = channels * taps, depth = s.out_channels;
  const float* const grad = op.grad + (image * s.groups + group) * depth * plane;
  const float* const weight =
      op.weight + (group * op.blocks() + block) * op.packed_block(kTileRows);
  float* const x = op.x + ((image * s.groups + group) * s.in_channels + first) * s.packed_plane();
  float* const panels = memory;
  float* const product = panels + op.stretch() * depth;
  std::fill(x, x + channels * s.packed_plane(), 0.0f);
  for (int64_t begin = 0; begin < plane; begin += op.stretch()) {
    const int64_t end = std::min(plane, begin + op.stretch());
    pack_pixels(grad + begin, plane, depth, end - begin, panels);
    constexpr int64_t kStep = kTilePanels * kPanel;
    const int64_t pixels = ceil_divide(end - begin, kPanel) * kPanel;
    for (int64_t q = 0; q < pixels; q += kStep) {
      const bool whole = pixels - q >= kStep;
      for (int64_t k = 0; k < depth; k += kDepth) {
        const float* const from = panels + q * depth + k * kPanel;
        for (int64_t c = 0; c < columns; c += kTileRows) {
          kMultiplyTiles[whole][std::min<int64_t>(kTileRows, columns - c)](
              weight + c * depth + k * kTileRows, from, depth * kPanel,
              product + c * op.stretch() + q, op.stretch(), std::min(kDepth, depth - k), k > 0);
        }
      }
    }
    for (int64_t c = 0; c < columns; ++c) {
      scatter_column(s, product + c * op.stretch(), c % taps, begin, end,
                     x + c / taps * s.packed_plane());
    }
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
