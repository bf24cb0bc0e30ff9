#pragma once
// How the kernels of losses cut the pixels of upsampled logits. A block makes a patch: a tile of
// columns in a band of rows that all lie between the same two source rows.
//
// The pixels of a column that share their source column and the next one are a cell; a patch has a
// row of cells. Cells without a pixel are among them where the logits are larger than the map.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cuda/head/bilinear_band.h"
#include "cuda/head/logits.h"

namespace fastseg::cuda {

inline constexpr int kPatchThreads = 128;

// Blocks of a multiprocessor, at 128 registers a thread in double and 96 else.
template <class F>
inline constexpr int kPatchBlocks = sizeof(F) == 8 ? 4 : 5;
// Rows of pixels that a block knows at once.
template <class F>
inline constexpr int kPatchRows = sizeof(F) == 8 ? 2 : 8;

// Bands have about as many rows, so that few logits under large maps make enough blocks.
inline constexpr int kBandRows = 16;

// Source columns of a tile, of which shared memory holds some classes.
inline constexpr int kMostSpan = kPatchThreads + 8;

template <class F>
struct PatchGrid {
  BilinearAxis<F> rows, columns;
  int parts = 1;  // bands of a source row
  int band_rows;  // most rows of a band
  int tile;       // columns of a tile, at most kPatchThreads
  int tiles;
  int span;  // most source columns of a tile

  explicit PatchGrid(const UpsampledLogits& z)
      : rows(z.in_height, z.height, z.align_corners),
        columns(z.in_width, z.width, z.align_corners) {
    // Without aligned corners one and a half times as many lie before the first source row.
    const double gap = rows.scale > 0 ? 1 / static_cast<double>(rows.scale) : double(rows.out);
    const double most = std::min<double>(rows.out, std::ceil(1.5 * gap) + 2);
    parts = std::max(1, static_cast<int>(std::min<double>(rows.out, gap) / kBandRows + 0.5));
    band_rows = static_cast<int>(std::ceil(most / parts));

    const double step = columns.in == columns.out ? 1 : static_cast<double>(columns.scale);
    tile = static_cast<int>(std::min<int64_t>(kPatchThreads, columns.out));
    if (step > 1) tile = std::min(tile, std::max(1, static_cast<int>((kMostSpan - 4) / step)));
    tiles = static_cast<int>((columns.out + tile - 1) / tile);
    span = static_cast<int>(std::min<double>(columns.in, std::floor(step * (tile - 1)) + 4));
  }

  FASTSEG_HOST_DEVICE int bands() const { return static_cast<int>(rows.in) * parts; }

  // Of a grid of the images' patches.
  int64_t blocks(int64_t batch) const { return batch * rows.in * parts * tiles; }
};

struct Patch {
  int n, band, tile;
  int y, rows;     // of pixels; no rows where the band is empty
  int x, columns;  // of pixels
  int at, next;    // source rows
  int left;        // the first source column
  int cells;       // source columns from `left` on before which no pixel's `at` ends
  int slots;       // source columns from `left` on
};

// The first row of a band and the first row behind it.
template <class F>
__device__ inline Band band_of(const PatchGrid<F>& grid, int band) {
  const int at = band / grid.parts, part = band % grid.parts;
  const int64_t end = first_pixel(grid.rows, at + 1);
  const int64_t begin = first_pixel(grid.rows, at) + int64_t{part} * grid.band_rows;
  if (begin >= end) return {end, end};
  return {begin, begin + grid.band_rows < end ? begin + grid.band_rows : end};
}

template <class F>
__device__ inline Patch patch_of(const PatchGrid<F>& grid, int64_t block) {
  Patch p;
  p.tile = static_cast<int>(block % grid.tiles);
  p.band = static_cast<int>(block / grid.tiles % grid.bands());
  p.n = static_cast<int>(block / grid.tiles / grid.bands());
  const Band band = band_of(grid, p.band);
  p.y = static_cast<int>(band.begin), p.rows = static_cast<int>(band.end - band.begin);
  p.at = p.band / grid.parts, p.next = static_cast<int>(grid.rows.next(p.at));
  p.x = p.tile * grid.tile;
  const int left = static_cast<int>(grid.columns.out) - p.x;
  p.columns = left < grid.tile ? left : grid.tile;
  const BilinearTap<F> last = grid.columns.tap(p.x + p.columns - 1);
  p.left = static_cast<int>(grid.columns.tap(p.x).at);
  p.cells = static_cast<int>(last.at) - p.left + 1;
  p.slots = static_cast<int>(last.next) - p.left + 1;
  return p;
}

// Two neighbours' shares in a pixel.
template <class F>
struct alignas(2 * sizeof(F)) Shares {
  F w0, w1;
};

// Takes arrays one after another out of a block's shared memory; on the host, counts its bytes.
class SharedSpace {
 public:
  FASTSEG_HOST_DEVICE explicit SharedSpace(unsigned char* begin) : begin_(begin) {}

  template <class U>
  FASTSEG_HOST_DEVICE U* take(int count) {
    constexpr int alignment = alignof(U);
    used_ = (used_ + alignment - 1) / alignment * alignment;
    U* const array = reinterpret_cast<U*>(begin_ + used_);
    used_ += count * static_cast<int>(sizeof(U));
    return array;
  }
  FASTSEG_HOST_DEVICE int used() const { return used_; }

 private:
  unsigned char* begin_;
  int used_ = 0;
};

}  // namespace fastseg::cuda
