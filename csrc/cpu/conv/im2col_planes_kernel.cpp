// A task of a 1x1 convolution of contiguous planes: copy a panel of pixels, multiply, finish.
//
// Operations: 2 * Ci * Co a pixel. The planes lie as a matrix product wants them, so that nothing
// is transposed: a panel (Ci, 32) is copied once for all filters, since rows of planes whose size
// is a power of two would meet in a few sets of the cache. Filters are read as they are. AVX-512: a
// tile of 10 filters by 32 pixels has 20 sums, and a step loads 2 vectors and 10 weights for 20
// multiply-adds. AVX2: 6 by 16 in 16 registers.

#include <algorithm>

#include "cpu/conv/conv2d_epilogue.h"
#include "cpu/conv/im2col_columns.h"
#include "cpu/conv/im2col_conv2d.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int L = kLanes<float>;
#if defined(__AVX512F__)
constexpr int kFilters = 10, kWide = 32;  // of a tile
#elif defined(__AVX2__)
constexpr int kFilters = 6, kWide = 16;
#else
constexpr int kFilters = 2, kWide = 16;
#endif
constexpr int kNarrow = 16;

// By filters: for tiles of kNarrow and of kWide pixels.
constexpr auto& kNarrowTiles = kMultiplyColumns<kIm2colPixels, kNarrow, kFilters>;
constexpr auto& kWideTiles = kMultiplyColumns<kIm2colPixels, kWide, kFilters>;

// Copies `pixels` columns of `depth` planes, and zeros up to a multiple of kNarrow.
void copy_panel(const Im2colConv2d& op, const float* x, int64_t depth, int64_t pixels,
                float* panel) {
  const int64_t end = (pixels + kNarrow - 1) / kNarrow * kNarrow;
  for (int64_t k = 0; k < depth; ++k) {
    const float* const from = x + k * op.plane();
    float* const to = panel + k * kIm2colPixels;
    for_blocks<L>(0, pixels, [&](auto lanes, int64_t j) {
      using Part = Simd<float, decltype(lanes)::value>;
      Part::store(to + j, Part::load(from + j));
    });
    std::fill(to + pixels, to + end, 0.0f);
  }
}

// Outputs of one filter, from the place `at` on.
template <bool smooth>
void finish_row(const Im2colConv2d& op, int64_t channel, int64_t at, int64_t pixels,
                const float* sums) {
  for_blocks<L>(0, pixels, [&](auto lanes, int64_t j) {
    constexpr int kPart = decltype(lanes)::value;
    const auto terms = pixel_terms<float, kPart>(op.epilogue, channel);
    const auto sum = Simd<float, kPart>::load(sums + j);
    Simd<float, kPart>::store(op.y + at + j,
                              finish<float, kPart, smooth>(op.epilogue, terms, sum, at + j));
  });
}

}  // namespace

void im2col_planes_task(const Im2colConv2d& op, const Im2colTask& task, float* memory) {
  const int64_t plane = op.plane(), of_image = (plane + kIm2colPixels - 1) / kIm2colPixels;
  float *const panel = memory, *const all_sums = memory + kIm2colBlock * kIm2colPixels;
  const auto finish = is_smooth(op.epilogue.activation) ? &finish_row<true> : &finish_row<false>;
  for (int64_t i = task.begin; i < task.end; ++i) {
    const int64_t image = i / of_image, first = i % of_image * kIm2colPixels;
    const int64_t pixels = std::min(kIm2colPixels, plane - first);
    for (int64_t k = 0; k < op.in_channels; k += kIm2colBlock) {
      const int64_t depth = std::min(kIm2colBlock, op.in_channels - k);
      copy_panel(op, op.x + (image * op.in_channels + k) * plane + first, depth, pixels, panel);
      for (int64_t c = task.first_channel; c < task.last_channel; c += kFilters) {
        const int64_t filters = std::min<int64_t>(kFilters, task.last_channel - c);
        float* const sums = all_sums + (c - task.first_channel) * kIm2colPixels;
        for (int64_t j = 0; j < pixels;) {
          const bool wide = pixels - j > kNarrow;
          (wide ? kWideTiles : kNarrowTiles)[filters](op.weights + c * op.in_channels + k,
                                                      op.in_channels, panel + j, depth, sums + j,
                                                      k > 0);
          j += wide ? kWide : kNarrow;
        }
        if (k + depth < op.in_channels) continue;
        for (int64_t f = 0; f < filters; ++f) {
          const int64_t at = (image * op.out_channels + c + f) * plane + first;
          finish(op, c + f, at, pixels, sums + f * kIm2colPixels);
        }
      }
    }
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
