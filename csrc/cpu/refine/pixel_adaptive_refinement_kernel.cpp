// masks_i <- sum_n w_in masks_n over a pixel's 8 neighbours at each dilation, and the weights w.
//
// Floor of an iteration for N neighbours, C masks, P pixels of float32. FLOPs: 2 N C P. Bytes: the
// weights once (4 N P) and the masks in and out (8 C P). For 48 x 21 x 512^2, 0.53 GFLOP and 94 MB:
// arithmetic decides as long as masks come from the caches.
//
// A vector holds neighbouring pixels of one mask. A block of 16 pixels of up to 8 masks is summed
// in registers: for each neighbour its weights are loaded once, then each mask's values, which lie
// anywhere in a line, are an operand of a multiply-add. A load that crosses a line takes two of the
// two loads of a cycle, so that these bound the speed: 1.75 loads for each multiply-add with the
// dilations (1, 2, 4, 8, 12, 24). More masks at once would push the rows of their neighbours out of
// the first-level cache.

#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "cpu/memory/buffer.h"
#include "cpu/refine/pixel_adaptive_refinement.h"
#include "cpu/simd/simd.h"
#include "cpu/simd/simd_exp.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int kMasks = 8;  // of a block at once

// Fill a margin of a row, whose pixel 0 is row[0].
template <class T>
void repeat_first(const RowGrid& grid, T* row) {
  std::fill(row - grid.margin, row, row[0]);
}
template <class T>
void repeat_last(const RowGrid& grid, T* row) {
  std::fill(row + grid.width, row + grid.stride - grid.margin, row[grid.width - 1]);
}

// From a pixel of plane 0 in row y to its neighbours'.
void offsets_of(const RowGrid& grid, const Neighbors& neighbors, int64_t planes, int64_t y,
                int64_t* offsets) {
  for (int64_t n = 0; n < neighbors.count; ++n) {
    const int64_t row = std::clamp<int64_t>(y + neighbors.rows[n], 0, grid.height - 1);
    offsets[n] = (row - y) * planes * grid.stride + neighbors.columns[n];
  }
}

template <class V>
V sqrt_lanes(V x) {
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) x[i] = std::sqrt(x[i]);
  return x;
}

// The sum over the channels of each neighbour's distance in the image, (neighbours, kPixels): of
// its square over 0.3 deviations for PAR, over 0.1 deviations for PAMR. `image` is the first of L
// pixels of channel 0; differences is memory for (neighbours, L).
template <class T>
void image_distances(const AffinityPass<T>& pass, const int64_t* offsets, const T* image,
                     T* differences, T* distances) {
  using S = Simd<T>;
  using V = typename S::Value;
  const int64_t count = pass.neighbors.count;
  const bool pamr = pass.affinity == Affinity::kPamr;
  const T copies = pamr ? count / kDirections : 0;  // of the pixel itself, in PAMR's windows
  const T samples = count + copies;
  for (int64_t channel = 0; channel < pass.channels; ++channel) {
    const T* plane = image + channel * pass.grid.stride;
    const V centre = S::load(plane);
    V sum = S::fill(0), squares = S::fill(0);
    for (int64_t n = 0; n < count; ++n) {
      const V difference = S::load(plane + offsets[n]) - centre;
      S::store(differences + n * kLanes<T>, difference);
      sum += difference;
    }
    const V mean = sum / samples;
    for (int64_t n = 0; n < count; ++n) {
      const V deviation = S::load(differences + n * kLanes<T>) - mean;
      squares += deviation * deviation;
    }
    squares += copies * mean * mean;
    const V deviation = sqrt_lanes(squares / (samples - 1));
    const V inverse = pamr ? 1 / (T(kDeviationFloor) + T(kPamrWidth) * deviation)
                           : 1 / ((deviation + T(kDeviationFloor)) * T(kParWidth));
    for (int64_t n = 0; n < count; ++n) {
      const V scaled = S::load(differences + n * kLanes<T>) * inverse;
      const V distance = pamr ? (scaled < 0 ? -scaled : scaled) : scaled * scaled;
      T* out = distances + n * kPixels;
      S::store(out, channel == 0 ? distance : S::load(out) + distance);
    }
  }
}

// Distances to weights, in place: the softmax of their negatives, divided by the channels, and what
// is added to it.
template <class T>
void softmax(const AffinityPass<T>& pass, T* weights) {
  using S = Simd<T>;
  using V = typename S::Value;
  const int64_t count = pass.neighbors.count;
  V least = S::load(weights), sum = S::fill(0);
  for (int64_t n = 1; n < count; ++n) {
    const V distance = S::load(weights + n * kPixels);
    least = distance < least ? distance : least;
  }
  const T scale = T(2) / pass.channels;
  for (int64_t n = 0; n < count; ++n) {
    const V x = (S::load(weights + n * kPixels) - least) * scale;
    const V e = exp_of_minus_half<V, T>(x);
    const V weight = x == x ? e : x;  // NaN stays NaN
    S::store(weights + n * kPixels, weight);
    sum += weight;
  }
  const V inverse = 1 / sum;
  for (int64_t n = 0; n < count; ++n) {
    T* weight = weights + n * kPixels;
    S::store(weight, S::load(weight) * inverse + pass.positions[n]);
  }
}

// One block of G masks, whose rows are `stride` apart; out rows are out_stride apart.
template <class T, int G>
void refine_block(int64_t neighbors, const int64_t* offsets, const T* weights, const T* in,
                  int64_t stride, T* out, int64_t out_stride) {
  using S = Simd<T>;
  using V = typename S::Value;
  for (int64_t i = 0; i < kPixels; i += kLanes<T>) {
    V sums[G] = {};
    for (int64_t n = 0; n < neighbors; ++n) {
      const V weight = S::load(weights + n * kPixels + i);
      const T* neighbor = in + offsets[n] + i;
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) sums[g] += weight * S::load(neighbor + g * stride);
    }
    for (int g = 0; g < G; ++g) S::store(out + g * out_stride + i, sums[g]);
  }
}

template <class T, int... G>
constexpr auto refine_blocks(std::integer_sequence<int, G...>) {
  return std::array{&refine_block<T, G + 1>...};
}

// Calls body(first, count) for groups of up to kMasks planes, as many in each as can be.
template <class Body>
void for_groups(int64_t planes, const Body& body) {
  const int64_t groups = (planes + kMasks - 1) / kMasks;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = planes * group / groups;
    body(first, planes * (group + 1) / groups - first);
  }
}

// Into the second-level cache: the processor's own prefetchers stop at the end of a page.
template <class T>
void prefetch_lines(const T* p, int64_t elements) {
  for (int64_t i = 0; i < elements; i += 64 / sizeof(T)) __builtin_prefetch(p + i, 0, 2);
}

// Row after row, group after group: target(first, y) is the memory for the group's rows, which are
// target_stride apart, and finish(first, planes, y) is called when they are there.
template <class T, class Target, class Finish>
void refine(const RefinementPass<T>& pass, const RefinementTile& tile, const Target& target,
            int64_t target_stride, const Finish& finish) {
  static constexpr auto kBlocks = refine_blocks<T>(std::make_integer_sequence<int, kMasks>{});
  const RowGrid& grid = pass.grid;
  const int64_t count = pass.neighbors.count;
  std::vector<int64_t> offsets(count);
  for (int64_t y = tile.top; y < tile.bottom; ++y) {
    offsets_of(grid, pass.neighbors, pass.planes, y, offsets.data());
    const T* weights = pass.weights + y * weights_of_row(grid, pass.neighbors) + tile.left * count;
    const int64_t below = y + 1 < tile.bottom ? weights_of_row(grid, pass.neighbors) : 0;
    for_groups(pass.planes, [&](int64_t first, int64_t planes) {
      const T* in = pass.in + grid.row(y, pass.planes) + first * grid.stride + tile.left;
      T* out = target(first, y);
      for (int64_t x = 0; x < tile.right - tile.left; x += kPixels) {
        if (first == 0) prefetch_lines(weights + below + x * count, count * kPixels);
        kBlocks[planes - 1](count, offsets.data(), weights + x * count, in + x, grid.stride,
                            out + x, target_stride);
      }
      finish(first, planes, y);
    });
  }
}

}  // namespace

template <class T>
void pad_row(const RowGrid& grid, const T* row, bool edges, RefinementFloat<T>* padded) {
  for_blocks<kLanes<T>>(0, grid.width, [&](auto lanes, int64_t x) {
    Simd<RefinementFloat<T>, lanes>::store(padded + x, Simd<T, lanes>::load(row + x));
  });
  if (!edges) return;
  repeat_first(grid, padded);
  repeat_last(grid, padded);
}

template <class T>
void affinity_rows(const AffinityPass<T>& pass, int64_t begin, int64_t end, T* weights) {
  const int64_t count = pass.neighbors.count, blocks = pass.grid.blocks();
  std::vector<int64_t> offsets(count);
  const Buffer<T> differences(count * kLanes<T>);
  for (int64_t y = begin; y < end; ++y) {
    offsets_of(pass.grid, pass.neighbors, pass.channels, y, offsets.data());
    const T* row = pass.image + pass.grid.row(y, pass.channels);
    for (int64_t block = 0; block < blocks; ++block, weights += count * kPixels) {
      for (int64_t i = 0; i < kPixels; i += kLanes<T>) {
        image_distances(pass, offsets.data(), row + block * kPixels + i, differences.get(),
                        weights + i);
        softmax(pass, weights + i);
      }
    }
  }
}

template <class T>
void refine_tile(const RefinementPass<T>& pass, const RefinementTile& tile, bool edges) {
  const RowGrid& grid = pass.grid;
  const auto row = [&](int64_t mask, int64_t y) {
    return pass.out + grid.row(y, pass.planes) + mask * grid.stride;
  };
  refine(
      pass, tile, [&](int64_t first, int64_t y) { return row(first, y) + tile.left; }, grid.stride,
      [&](int64_t first, int64_t planes, int64_t y) {
        for (int64_t mask = first; edges && mask < first + planes; ++mask) {
          if (tile.left == 0) repeat_first(grid, row(mask, y));
          if (tile.right >= grid.width) repeat_last(grid, row(mask, y));
        }
      });
}

template <class T>
void refine_last_tile(const RefinementPass<RefinementFloat<T>>& pass, const RefinementTile& tile,
                      T* masks) {
  using F = RefinementFloat<T>;
  const RowGrid& grid = pass.grid;
  const int64_t columns = tile.right - tile.left;
  const int64_t width = std::min(tile.right, grid.width) - tile.left;
  const Buffer<F> rows(kMasks * columns);
  refine(
      pass, tile, [&](int64_t, int64_t) { return rows.get(); }, columns,
      [&](int64_t first, int64_t planes, int64_t y) {
        for (int64_t mask = 0; mask < planes; ++mask) {
          T* out = masks + ((first + mask) * grid.height + y) * grid.width + tile.left;
          for_blocks<kLanes<T>>(0, width, [&](auto lanes, int64_t x) {
            Simd<T, lanes>::store(out + x, Simd<F, lanes>::load(rows.get() + mask * columns + x));
          });
        }
      });
}

#define FASTSEG_INSTANTIATE_COMPUTE(T)                                          \
  template void affinity_rows<T>(const AffinityPass<T>&, int64_t, int64_t, T*); \
  template void refine_tile<T>(const RefinementPass<T>&, const RefinementTile&, bool);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE_COMPUTE)
#undef FASTSEG_INSTANTIATE_COMPUTE

#define FASTSEG_INSTANTIATE(T)                                                   \
  template void pad_row<T>(const RowGrid&, const T*, bool, RefinementFloat<T>*); \
  template void refine_last_tile<T>(const RefinementPass<RefinementFloat<T>>&,   \
                                    const RefinementTile&, T*);
FASTSEG_FOR_FLOATS(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
