#pragma once
// How the CPU walks an upsampled image that is never stored: by cells and phases.
//
// A cell is a run of at most kMostPhases neighbouring pixels of a row that lie between the same two
// source columns, and a pixel's phase is its place in the cell. Lanes are cells: for phase p, lane
// c is w0[p][c] * a[c] + w1[p][c] * b[c] with a and b the source's values on both sides of the
// cell. Nothing is shuffled for a pixel, a and b serve all phases of all rows between two source
// rows, and a gradient sums its pixels lane by lane. With a scale factor of r, r phases of all
// cells are full.
//
// A band is a run of at most kMostRows rows between the same two source rows: a task.

#include <cstdint>
#include <vector>

#include "common/head/bilinear.h"

namespace fastseg::cpu {

inline constexpr int kMostPhases = 16;
inline constexpr int64_t kMostRows = 16;

// The columns. Tables of phases are in blocks of `lanes` cells: [block][phase][lane]; a lane
// without a pixel has weights of 0 and repeats the last cell's columns.
template <class F>
struct BilinearCells {
  BilinearCells(const BilinearAxis<F>& axis, int lanes);

  int lanes;
  int phases;                     // the most pixels of a cell, or one more: never 3, 7, 11 or 15
  int64_t cells;                  // that have pixels
  int64_t blocks;                 // of `lanes` cells
  std::vector<int32_t> at, next;  // source columns of a cell: [block][lane]
  std::vector<int32_t> first, count;  // the pixels of a cell, in ascending order
  std::vector<F> w0, w1;              // [block][phase][lane]
  std::vector<int32_t> slots;         // of each pixel in such a table

  int64_t block_slots() const { return int64_t{phases} * lanes; }
};

struct BilinearBand {
  int64_t at, next;    // source rows
  int64_t begin, end;  // rows
};

// The rows: their bands, in ascending order, and their weights.
template <class F>
struct BilinearRows {
  explicit BilinearRows(const BilinearAxis<F>& axis);

  std::vector<BilinearBand> bands;
  std::vector<F> w0, w1;  // of source rows `at` and `next`
};

}  // namespace fastseg::cpu
