#pragma once
// Pixel-adaptive refinement: what its kernels take, and their declarations.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/refine/refinement.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// What planes of T are computed in.
template <class T>
using RefinementFloat = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline constexpr int64_t kPixels = 16;  // of a block: a vector of the widest registers

// Planes (height, planes, stride): the rows of all planes at one height lie side by side. A row has
// a margin on both sides, so that a neighbour's columns are never outside.
struct RowGrid {
  int64_t height, width, margin, stride;

  RowGrid(int64_t height, int64_t width, int64_t reach)
      : height(height), width(width), margin(blocks_of(reach) * kPixels) {
    // An odd number of blocks: the rows of several planes then lie in different sets of a cache.
    stride = (blocks_of(2 * margin + blocks() * kPixels) | 1) * kPixels;
  }

  static int64_t blocks_of(int64_t pixels) { return (pixels + kPixels - 1) / kPixels; }
  int64_t blocks() const { return blocks_of(width); }
  // The first pixel of a row of plane 0.
  int64_t row(int64_t y, int64_t planes) const { return y * planes * stride + margin; }
  int64_t elements(int64_t planes) const { return height * planes * stride; }
};

// Distances from a pixel to its neighbours, within the image's height and width.
struct Neighbors {
  int64_t count;
  const int64_t* rows;
  const int64_t* columns;
};

// The weights of all neighbours, (height, blocks, neighbours, kPixels). Those of a block's pixels
// beyond the end of a row are of the edge's repetitions.
inline int64_t weights_of_row(const RowGrid& grid, const Neighbors& neighbors) {
  return grid.blocks() * neighbors.count * kPixels;
}

template <class T>
struct AffinityPass {
  Affinity affinity;
  RowGrid grid;
  int64_t channels;
  Neighbors neighbors;
  const T* positions;  // (neighbours): what is added to the softmax
  const T* image;      // (height, channels, stride), edges repeated in the margins
};

// masks_i <- sum_n w_in masks_n, once. Rows above and below are the edge's.
template <class T>
struct RefinementPass {
  RowGrid grid;
  int64_t planes;
  Neighbors neighbors;
  const T* weights;
  const T* in;  // (height, planes, stride)
  T* out;
};

// A part of a pass: rows [top, bottom), and columns from `left` to `right`, multiples of kPixels.
struct RefinementTile {
  int64_t top, bottom, left, right;
};

// One row of a plane to a grid's, in the compute type. `edges`: the margins repeat its ends.
#define FASTSEG_PAD_ROW(T) \
  void pad_row(const RowGrid& grid, const T* row, bool edges, RefinementFloat<T>* padded)
// The weights of rows [begin, end), of which `weights` is the first.
#define FASTSEG_AFFINITY_ROWS(T) \
  void affinity_rows(const AffinityPass<T>& pass, int64_t begin, int64_t end, T* weights)
// `edges`: the margins of `out` repeat the ends of its rows.
#define FASTSEG_REFINE_TILE(T) \
  void refine_tile(const RefinementPass<T>& pass, const RefinementTile& tile, bool edges)
// The last pass, into planes (planes, height, width) of T.
#define FASTSEG_REFINE_LAST_TILE(T)                                     \
  void refine_last_tile(const RefinementPass<RefinementFloat<T>>& pass, \
                        const RefinementTile& tile, T* masks)

FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_PAD_ROW(T))
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_AFFINITY_ROWS(T))
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_REFINE_TILE(T))
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_REFINE_LAST_TILE(T))
#undef FASTSEG_PAD_ROW
#undef FASTSEG_AFFINITY_ROWS
#undef FASTSEG_REFINE_TILE
#undef FASTSEG_REFINE_LAST_TILE

}  // namespace fastseg::cpu
