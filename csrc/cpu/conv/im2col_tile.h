#pragma once
// What the kernels of convolution by a matrix product have in common: a pixel's row, and what
// becomes of sums.

#include <algorithm>

#include "cpu/conv/conv2d_epilogue.h"
#include "cpu/conv/copy_floats.h"
#include "cpu/conv/im2col_conv2d.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// What the taps of an output pixel read.
class TapsOfPixel {
 public:
  TapsOfPixel(const Im2colConv2d& op, int64_t pixel) : op_(op) {
    const int64_t plane = op.out_size[0] * op.out_size[1], in_plane = pixel % plane;
    image_ = op.x + pixel / plane * op.size[0] * op.size[1] * op.in_channels;
    top_ = in_plane / op.out_size[1] * op.stride[0] - op.padding[0];
    left_ = in_plane % op.out_size[1] * op.stride[1] - op.padding[1];
  }

  // Where the input of a tap begins; null in the padding.
  const float* operator[](int64_t tap) const {
    const int64_t y = top_ + tap / op_.kernel_size[1] * op_.dilation[0];
    const int64_t x = left_ + tap % op_.kernel_size[1] * op_.dilation[1];
    const bool live = y >= 0 && y < op_.size[0] && x >= 0 && x < op_.size[1];
    return live ? image_ + (y * op_.size[1] + x) * op_.in_channels : nullptr;
  }

  // Copies the input of row i of a kernel whose taps are neighbours, zeros for the padding.
  void copy_kernel_row(int64_t i, float* to) const {
    const int64_t channels = op_.in_channels, width = op_.kernel_size[1];
    const int64_t y = top_ + i * op_.dilation[0];
    const bool live = y >= 0 && y < op_.size[0];
    const int64_t low = live ? std::clamp<int64_t>(-left_, 0, width) : width;
    const int64_t high = live ? std::clamp<int64_t>(op_.size[1] - left_, low, width) : width;
    std::fill(to, to + low * channels, 0.0f);
    std::fill(to + high * channels, to + width * channels, 0.0f);
    copy_floats(image_ + (y * op_.size[1] + left_ + low) * channels, (high - low) * channels,
                to + low * channels);
  }

 private:
  const Im2colConv2d& op_;
  const float* image_;
  int64_t top_, left_;
};

inline void gather_row(const Im2colConv2d& op, int64_t pixel, float* row) {
  const TapsOfPixel taps(op, pixel);
  const int64_t count = op.taps(), channels = op.in_channels;
  if (!op.taps_last && op.dilation[1] == 1) {
    const int64_t step = op.kernel_size[1] * channels;
    for (int64_t i = 0; i < op.kernel_size[0]; ++i) taps.copy_kernel_row(i, row + i * step);
  } else {
    for (int64_t t = 0; t < count; ++t) {
      const float* const from = taps[t];
      if (op.taps_last && count > 1) {
        float* const to = row + t;
        for (int64_t c = 0; c < channels; ++c) to[c * count] = from ? from[c] : 0;
      } else if (from) {
        copy_floats(from, channels, row + t * channels);
      } else {
        std::fill_n(row + t * channels, channels, 0.0f);
      }
    }
  }
  const int64_t depth = op.depth();
  std::fill(row + depth, row + im2col_row(depth), 0.0f);
}

// Outputs of `pixels` from `first`, `channels` of them from `channel`. Their sums are `sums_step`
// apart.
template <bool smooth>
void finish_tile(const Im2colConv2d& op, int64_t first, int64_t pixels, int64_t channel,
                 int64_t channels, const float* sums, int64_t sums_step) {
  for_blocks<kLanes<float>>(0, channels, [&](auto lanes, int64_t c) {
    constexpr int kPart = decltype(lanes)::value;
    const auto terms = channel_terms<float, kPart>(op.epilogue, channel + c);
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t at = (first + i) * op.out_channels + channel + c;
      const auto sum = Simd<float, kPart>::load(sums + i * sums_step + c);
      Simd<float, kPart>::store(op.y + at,
                                finish<float, kPart, smooth>(op.epilogue, terms, sum, at));
    }
  });
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
