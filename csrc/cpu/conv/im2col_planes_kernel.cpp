// A task of a convolution of contiguous planes: copy a panel of pixels, multiply, finish.
//
// Operations: 2 * depth * Co a pixel. The planes lie as a matrix product wants them, so that
// nothing is transposed: a panel (depth, 64) is copied once for all filters, since rows of planes
// whose size is a power of two would meet in a few sets of the cache. Filters are read as they are.
// AVX-512: a tile of 10 filters by 32 pixels has 20 sums, and a step loads 2 vectors and 10 weights
// for 20 multiply-adds. AVX2: 6 by 16 in 16 registers.

#include <algorithm>
#include <vector>

#include "common/ceil_divide.h"
#include "cpu/conv/conv2d_epilogue.h"
#include "cpu/conv/copy_floats.h"
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

// A part of a panel: pixels of one row of outputs.
struct Piece {
  int64_t from, count;  // `from`: where the first one lies behind the first output
};

// The pixels [first, first + pixels) of an image.
struct Panel {
  int64_t image, first, pixels;
  std::vector<Piece> pieces;
};

void cut_into_pieces(const Im2colPlanes& planes, Panel& panel) {
  const int64_t width = planes.width == planes.pitch ? planes.pixels : planes.width;
  const int64_t end = panel.first + panel.pixels;
  panel.pieces.clear();
  for (int64_t p = panel.first; p < end; p += panel.pieces.back().count) {
    const int64_t row = p / width, column = p % width;
    panel.pieces.push_back({row * planes.pitch + column, std::min(width - column, end - p)});
  }
}

// What `depth` weights of a filter read, with zeros up to a multiple of kNarrow.
void copy_panel(const float* data, const int64_t* offsets, int64_t depth, const Panel& panel,
                float* to) {
  const Piece& first = panel.pieces.front();
  const int64_t end = ceil_divide(panel.pixels, kNarrow) * kNarrow;
  for (int64_t k = 0; k < depth; ++k, to += kIm2colPixels) {
    const float* const from = data + offsets[k];
    if (first.count == kIm2colPixels) {
      FASTSEG_UNROLL
      for (int64_t j = 0; j < kIm2colPixels; j += L) {
        Simd<float>::store(to + j, Simd<float>::load(from + first.from + j));
      }
      continue;
    }
    int64_t done = 0;
    for (const Piece& piece : panel.pieces) {
      copy_floats(from + piece.from, piece.count, to + done);
      done += piece.count;
    }
    for (; done < end; ++done) to[done] = 0;
  }
}

// Outputs of one filter, from the place `at` on.
template <bool smooth>
void finish_row(const Im2colConv2d& op, int64_t channel, int64_t at, int64_t pixels,
                const float* sums) {
  const Conv2dEpilogue<float> epilogue = op.epilogue;  // of its own: stores may not change it
  const auto terms = pixel_terms<float, L>(epilogue, channel);
  float* const y = op.y;
  for_blocks<L>(0, pixels, [&](auto lanes, int64_t j) {
    constexpr int kPart = decltype(lanes)::value;
    const auto sum = Simd<float, kPart>::load(sums + j);
    if constexpr (kPart == L) {
      Simd<float>::store(y + at + j, finish<float, L, smooth>(epilogue, terms, sum, at + j));
    } else {
      const auto few = pixel_terms<float, kPart>(epilogue, channel);
      Simd<float, kPart>::store(y + at + j,
                                finish<float, kPart, smooth>(epilogue, few, sum, at + j));
    }
  });
}

// The outputs of one filter among a panel's pixels.
template <bool smooth>
void finish_panel(const Im2colConv2d& op, const Im2colPlanes& planes, const Panel& panel,
                  int64_t channel, const float* sums) {
  const int64_t plane = (panel.image * op.out_channels + channel) * op.plane();
  const int64_t width = op.out_size[1], end = panel.first + panel.pixels;
  if (planes.width == width) {
    return finish_row<smooth>(op, channel, plane + panel.first, panel.pixels, sums);
  }
  for (int64_t row = panel.first / planes.width; row * planes.width < end; ++row) {
    const int64_t first = row * planes.width, low = std::max(first, panel.first);
    const int64_t high = std::min(first + width, end);
    if (low < high) {
      finish_row<smooth>(op, channel, plane + row * width + low - first, high - low,
                         sums + low - panel.first);
    }
  }
}

// The outputs [begin, end) of a panel's filters, which are of one group.
void multiply_panel(const Im2colConv2d& op, const Im2colPlanes& planes, const Panel& panel,
                    int64_t begin, int64_t end, float* memory) {
  const int64_t depth = op.depth(), blocks = im2col_blocks(depth), filters = end - begin;
  const int64_t tiles = ceil_divide(filters, kFilters);
  const int64_t group = panel.image * op.groups + begin / (op.out_channels / op.groups);
  const auto finish =
      is_smooth(op.epilogue.activation) ? &finish_panel<true> : &finish_panel<false>;
  const bool dense = planes.width == op.out_size[1];  // no outputs between two rows
  const float* const y = op.y + (panel.image * op.out_channels + begin) * op.plane() + panel.first;
  float *const columns = memory, *const sums = memory + kIm2colBlock * kIm2colPixels;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t k = depth * b / blocks, block = depth * (b + 1) / blocks - k;
    copy_panel(planes.data + group * planes.group, planes.offsets + k, block, panel, columns);
    // A tile's columns stay in the first-level cache for all filters.
    for (int64_t j = 0; j < panel.pixels;) {
      const bool wide = panel.pixels - j > kNarrow;
      const auto& multiply = wide ? kWideTiles : kNarrowTiles;
      for (int64_t t = 0; t < tiles; ++t) {  // of about as many filters each
        const int64_t c = filters * t / tiles, count = filters * (t + 1) / tiles - c;
        if (b + 1 == blocks && dense) {  // planes are more streams than the prefetchers follow
          for (int64_t f = c; f < c + count; ++f) __builtin_prefetch(y + f * op.plane() + j, 1);
        }
        multiply[count](op.weights + (begin + c) * depth + k, depth, columns + j, block,
                        sums + c * kIm2colPixels + j, b > 0);
      }
      j += wide ? kWide : kNarrow;
    }
  }
  for (int64_t f = 0; f < filters; ++f) {
    finish(op, planes, panel, begin + f, sums + f * kIm2colPixels);
  }
}

// Every stride-th number of x (count) from `first` on, which may lie before x, with zeros around.
void copy_phase(const float* x, int64_t count, int64_t first, int64_t stride, int64_t size,
                float* to) {
  const int64_t low = std::clamp<int64_t>(ceil_divide(-first, stride), 0, size);
  const int64_t high = std::clamp<int64_t>(ceil_divide(count - first, stride), low, size);
  std::fill(to, to + low, 0.0f);
  std::fill(to + high, to + size, 0.0f);
  const float* const from = x + first;
  if (stride == 1) return copy_floats(from + low, high - low, to + low);
  int64_t j = low;
  if (stride == 2) {
    for (; j + L <= high; j += L) Simd<float>::store(to + j, Simd<float>::load_even(from + 2 * j));
  }
  for (; j < high; ++j) to[j] = from[j * stride];
}

}  // namespace

void im2col_phases(const Im2colConv2d& op, const TapPhases& rows, const TapPhases& columns,
                   int64_t index, float* phases) {
  const float* const x = op.x + index * op.size[0] * op.size[1];
  float* to = phases + index * rows.count() * columns.count() * rows.size * columns.size;
  for (int64_t v = 0; v < rows.count(); ++v) {
    for (int64_t h = 0; h < columns.count(); ++h) {
      for (int64_t i = 0; i < rows.size; ++i, to += columns.size) {
        const int64_t y = rows.begin(v) + i * rows.stride;
        if (y < 0 || y >= op.size[0]) {
          std::fill(to, to + columns.size, 0.0f);
        } else {
          copy_phase(x + y * op.size[1], op.size[1], columns.begin(h), columns.stride, columns.size,
                     to);
        }
      }
    }
  }
}

void im2col_planes_task(const Im2colConv2d& op, const Im2colPlanes& planes, const Im2colTask& task,
                        float* memory) {
  const int64_t of_image = ceil_divide(planes.pixels, kIm2colPixels);
  const int64_t of_group = op.out_channels / op.groups;
  for (int64_t i = task.begin; i < task.end; ++i) {
    Panel panel{i / of_image, i % of_image * kIm2colPixels, 0, {}};
    panel.pixels = std::min(kIm2colPixels, planes.pixels - panel.first);
    cut_into_pieces(planes, panel);
    for (int64_t c = task.first_channel; c < task.last_channel;) {
      const int64_t end = std::min((c / of_group + 1) * of_group, task.last_channel);
      multiply_panel(op, planes, panel, c, end, memory);
      c = end;
    }
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
