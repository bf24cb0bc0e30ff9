// The kernels of the weight gradient as a product with columns.
//
// Operations: 2 Ci Co taps for each output pixel, those of taps in the padding too, as dot products
// along the pixels: neither operand is transposed. A stretch of eight columns lies in the
// first-level cache, that of grad in the second.

#include <algorithm>

#include "cpu/conv/copy_floats.h"
#include "cpu/conv/dot_tile.h"
#include "cpu/conv/im2col_conv2d_grads.h"
#include "cpu/conv/transpose_block.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int L = kLanes<float>;
static_assert(kStretchPixels % L == 0 && kStretchColumns % kDotColumns == 0);

// A stretch [begin, end) of one image's output pixels.
struct Stretch {
  int64_t image, begin, end;

  int64_t count() const { return end - begin; }
};

// What one tap reads of one channel's plane for a stretch of pixels.
void gather_column(const Conv2dGradShape& s, const float* plane, int64_t tap,
                   const Stretch& stretch, float* to) {
  const LiveOutputs vertical(s, 0, tap / s.kernel_size[1]), across(s, 1, tap % s.kernel_size[1]);
  const int64_t width = s.output_size[1];
  const bool reads = across.begin < across.end;
  // Where the tap reads for the first output of a row that it reads for.
  const int64_t first =
      reads ? s.packed_column(across.begin * s.stride[1] + across.offset) - across.begin : 0;
  for (int64_t q = stretch.begin; q < stretch.end;) {
    const int64_t i = q / width, row = i * width, end = std::min(stretch.end, row + width);
    const bool live = reads && i >= vertical.begin && i < vertical.end;
    const int64_t low = live ? std::clamp(row + across.begin, q, end) : end;
    const int64_t high = live ? std::clamp(row + across.end, low, end) : end;
    std::fill(to + q - stretch.begin, to + low - stretch.begin, 0.0f);
    if (low < high) {
      const int64_t y = i * s.stride[0] + vertical.offset;
      copy_floats(plane + y * s.packed_columns() + first + low - row, high - low,
                  to + low - stretch.begin);
    }
    std::fill(to + high - stretch.begin, to + end - stretch.begin, 0.0f);
    q = end;
  }
}

// Columns [first, first + 8) of a stretch, `width` pixels each, zeros behind the last.
void gather_columns(const Im2colWeightGrad& op, int64_t group, int64_t first,
                    const Stretch& stretch, int64_t width, float* to) {
  const Conv2dGradShape& s = op.shape;
  const int64_t plane = s.packed_plane(), taps = s.taps();
  const float* const image = op.x + (stretch.image * s.groups + group) * s.in_channels * plane;
  for (int64_t column = first; column < first + kStretchColumns; ++column, to += kStretchPixels) {
    const bool exists = column < op.columns();
    if (exists) {
      const int64_t channel = op.channels_last ? column % s.in_channels : column / taps;
      const int64_t tap = op.channels_last ? column / s.in_channels : column % taps;
      gather_column(s, image + channel * plane, tap, stretch, to);
    }
    std::fill(to + (exists ? stretch.count() : 0), to + width, 0.0f);
  }
}

// The output channels of a task for a stretch, `width` pixels each, zeros behind the last.
void gather_grad(const Im2colWeightGrad& op, const Im2colWeightGradTask& task,
                 const Stretch& stretch, int64_t width, float* to) {
  const Conv2dGradShape& s = op.shape;
  const int64_t all = s.groups * s.out_channels, plane = s.output_plane();
  const int64_t first = task.group * s.out_channels + task.first_row;
  const int64_t rows = task.end_row - task.first_row, count = stretch.count();
  if (!op.channels_last) {
    const float* from = op.grad + (stretch.image * all + first) * plane + stretch.begin;
    for (int64_t r = 0; r < rows; ++r, from += plane, to += kStretchPixels) {
      copy_floats(from, count, to);
      std::fill(to + count, to + width, 0.0f);
    }
    return;
  }
  const float* const from = op.grad + (stretch.image * plane + stretch.begin) * all + first;
  for (int64_t q = 0; q < count; q += L) {
    const int64_t pixels = std::min<int64_t>(L, count - q);
    for (int64_t r = 0; r < rows; r += L) {
      const int64_t channels = std::min<int64_t>(L, rows - r);
      float* const block = to + r * kStretchPixels + q;
      if (pixels == L && channels == L) {
        transpose_block(from + q * all + r, all, block, kStretchPixels);
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t k = 0; k < L; ++k) {
          block[c * kStretchPixels + k] = k < pixels ? from[(q + k) * all + r + c] : 0;
        }
      }
    }
  }
}

}  // namespace

void split_rows(const SplitRows& op, int64_t plane) {
  const Conv2dGradShape& s = op.shape;
  for (int64_t y = plane * s.size[0]; y < (plane + 1) * s.size[0]; ++y) {
    const float* const from = op.from + y * s.size[1];
    float* to = op.to + y * s.packed_columns();
    int64_t done = 0;  // columns of each residue
    if (s.residues() == 2) {
      for (; 2 * (done + L) <= s.size[1]; done += L) {
        const auto [even, odd] = Simd<float>::load_even_odd(from + 2 * done);
        Simd<float>::store(to + done, even);
        Simd<float>::store(to + s.residue_columns() + done, odd);
      }
    }
    for (int64_t r = 0; r < s.residues(); ++r, to += s.residue_columns()) {
      for (int64_t k = done, j = k * s.stride[1] + r; j < s.size[1]; ++k, j += s.stride[1]) {
        to[k] = from[j];
      }
    }
  }
}

void im2col_weight_grad_task(const Im2colWeightGrad& op, const Im2colWeightGradTask& task,
                             float* memory) {
  const Conv2dGradShape& s = op.shape;
  const int64_t plane = s.output_plane(), row = op.row(), of_image = op.stretches_of_image();
  const int64_t channel = task.group * s.out_channels + task.first_row;
  const int64_t rows = task.end_row - task.first_row, sums_step = op.parts * row;
  float* const sums = op.sums + channel * sums_step + task.part * row;
  float *const columns = memory, *const grad = columns + kStretchColumns * kStretchPixels;
  for (int64_t r = 0; r < rows; ++r) std::fill_n(sums + r * sums_step, row, 0.0f);
  const int64_t end = op.stretches() * (task.part + 1) / op.parts;
  for (int64_t i = op.stretches() * task.part / op.parts; i < end; ++i) {
    const int64_t image = i / of_image, number = i % of_image;
    const Stretch stretch{image, plane * number / of_image, plane * (number + 1) / of_image};
    const int64_t width = ceil_divide(stretch.count(), L) * L;
    gather_grad(op, task, stretch, width, grad);
    for (int64_t c = 0; c < row; c += kStretchColumns) {
      gather_columns(op, task.group, c, stretch, width, columns);
      const int64_t of_stretch = std::min(kStretchColumns, op.columns() - c);
      for (int64_t r = 0; r < rows; r += kDotRows) {
        const DotTile tile = kDotTiles[std::min<int64_t>(kDotRows, rows - r)];
        for (int64_t k = 0; k < of_stretch; k += kDotColumns) {
          const float* of_tile[kDotColumns];
          for (int j = 0; j < kDotColumns; ++j) of_tile[j] = columns + (k + j) * kStretchPixels;
          tile(of_tile, grad + r * kStretchPixels, kStretchPixels, width,
               sums + r * sums_step + c + k, sums_step, true);
        }
      }
    }
  }
}

void im2col_add_parts(const Im2colWeightGrad& op, int64_t channel) {
  const int64_t row = op.row();
  const float* const sums = op.sums + channel * op.parts * row;
  for_blocks<L>(0, op.columns(), [&](auto lanes, int64_t c) {
    using S = Simd<float, decltype(lanes)::value>;
    auto sum = S::load(sums + c);
    for (int64_t p = 1; p < op.parts; ++p) sum += S::load(sums + p * row + c);
    S::store(op.out + channel * op.columns() + c, sum);
  });
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
