#pragma once
// How the elementwise kernels map to the machine: the rows of a dense tensor are cut into tiles of
// equal width, and one thread makes one tile. Tiles are numbered along the rows, so that
// neighbouring threads touch neighbouring memory and short rows leave no thread idle. Indices are
// 32 bits wide; a tensor of more tiles takes several launches. Offsets of elements are 64 bits
// wide.

#include <algorithm>
#include <cstdint>

#include "cuda/fast_divisor.h"
#include "cuda/launch.h"

// Tests lower it to reach the launches beyond the first.
#ifndef FASTSEG_TILES_PER_LAUNCH
#define FASTSEG_TILES_PER_LAUNCH (int64_t{1} << 30)
#endif

namespace fastseg::cuda {

inline constexpr int kThreads = 256;

struct Tile {
  int plane;
  int row;     // of the plane
  int column;  // tiles from the start of the row
};

// The tiles of one launch.
struct RowTiles {
  FastDivisor tiles_per_row;
  FastDivisor rows_per_plane;
  int first_plane;
  int first_row;
  int count;

  FASTSEG_HOST_DEVICE Tile operator[](int index) const {
    const int q = index / tiles_per_row, row = first_row + q;
    const int p = row / rows_per_plane;
    return {first_plane + p, row - p * rows_per_plane, index - q * tiles_per_row};
  }
};

// Calls launch(tiles, blocks of kThreads) until all tiles of planes * rows_per_plane rows are made.
// planes, rows_per_plane and tiles_per_row are below 2^30.
template <class Launch>
void launch_row_tiles(int64_t planes, int64_t rows_per_plane, int64_t tiles_per_row,
                      const Launch& launch) {
  const int64_t rows = planes * rows_per_plane;
  if (rows == 0 || tiles_per_row == 0) return;
  const int64_t rows_per_launch = std::max<int64_t>(1, FASTSEG_TILES_PER_LAUNCH / tiles_per_row);
  for (int64_t first = 0; first < rows; first += rows_per_launch) {
    const int64_t count = std::min(rows_per_launch, rows - first) * tiles_per_row;
    const RowTiles tiles{FastDivisor(tiles_per_row), FastDivisor(rows_per_plane),
                         static_cast<int>(first / rows_per_plane),
                         static_cast<int>(first % rows_per_plane), static_cast<int>(count)};
    launch(tiles, static_cast<unsigned>((count + kThreads - 1) / kThreads));
  }
}

}  // namespace fastseg::cuda
