#pragma once
// The pixels of a patch (patch.h) by cells, of which a thread takes one and one class: it keeps the
// corners in registers and goes over the cell's pixels, of which shared memory tells all classes
// the same. Sums over pixels go across no thread.

#include "cuda/head/pixel_targets.h"
#include "cuda/head/softmax_patch.h"

namespace fastseg::cuda {

// What all classes need of a pixel. Of an ignored one s is kNoPixel and code kIgnored.
template <class F>
struct alignas(16) PixelSoftmax {
  F s;
  F u, v;    // Op's
  int code;  // the target
};

template <class F>
struct CellShared {
  PixelSoftmax<F>* pixels;  // [row][column]
  Shares<F>* columns;
  SoftmaxShared<F> softmax;
  int* first;  // the column of each cell's first pixel; cells + 1

  FASTSEG_HOST_DEVICE CellShared(SharedSpace& space, int tile, int span, int pitch)
      : pixels(space.take<PixelSoftmax<F>>(kPatchRows<F> * tile)),
        columns(space.take<Shares<F>>(tile)),
        softmax(space, span, pitch),
        first(space.take<int>(span + 1)) {}
};

// All threads meet here.
template <class F>
__device__ inline void load_cells(const PatchGrid<F>& grid, const Patch& patch,
                                  const CellShared<F>& shared) {
  const int t = threadIdx.x;
  if (t < patch.columns) {
    const BilinearTap<F> tap = grid.columns.tap(patch.x + t);
    shared.columns[t] = {tap.w0, tap.w1};
    const int cell = static_cast<int>(tap.at) - patch.left;
    int before = -1;
    if (t > 0) before = static_cast<int>(grid.columns.tap(patch.x + t - 1).at) - patch.left;
    while (before < cell) shared.first[++before] = t;
  }
  if (t == 0) shared.first[patch.cells] = patch.columns;
  __syncthreads();
}

// x of a class at a cell's corners.
template <class F>
struct CellCorners {
  F above_left, above_right, below_left, below_right;
};

template <class T>
__device__ inline CellCorners<Compute<T>> cell_corners(const SoftmaxPatch<T>& softmax, int cell,
                                                       int k) {
  using F = Compute<T>;
  const int next = softmax.next_slot(cell);
  const F bound = softmax.bound(cell, next);
  const auto x = [&](int row, int slot) {
    return (bound - softmax.corner(row, slot, k)) * kLog2e<F>;
  };
  return {x(0, cell), x(0, next), x(1, cell), x(1, next)};
}

// Calls body(p, pixel, shares of its column) for the pixels of a cell in a row, with the class's
// probability: 0 where it is undefined, so that a pixel's numbers decide whether that matters.
template <class F, class Body>
__device__ inline void for_cell_pixels(const CellShared<F>& shared, int tile, int cell, int row,
                                       const Shares<F>& shares, const CellCorners<F>& corners,
                                       const Body& body) {
  const F left = shares.w0 * corners.above_left + shares.w1 * corners.below_left;
  const F right = shares.w0 * corners.above_right + shares.w1 * corners.below_right;
  const int end = shared.first[cell + 1];
  constexpr int kUnroll = sizeof(F) == 8 ? 1 : 2;  // powers in double take many registers
#pragma unroll kUnroll
  for (int i = shared.first[cell]; i < end; ++i) {
    const Shares<F> column = shared.columns[i];
    const PixelSoftmax<F> pixel = shared.pixels[row * tile + i];
    const F x = column.w0 * left + (column.w1 * right + pixel.s);
    body(exp2_or_zero(-x), pixel, column);
  }
}

}  // namespace fastseg::cuda
