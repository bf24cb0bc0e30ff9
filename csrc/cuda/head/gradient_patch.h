#pragma once
// The gradient of logits from that of their softmax at the pixels: a gather, without atomics.
//
// A thread takes a cell and a class (cell_patch.h), and sums the gradient at the four corners in
// registers. The sums of neighbouring cells meet in shared memory, those of neighbouring patches in
// memory, from where a second kernel collects them in a fixed order (upsampled_gradient.h).
//
// Instructions for a pixel and a class: interpolation 2, power 2, loads 2, sums 2, what Op needs
// for the gradient, and the loop. Floor: the logits twice, and what is known of pixels, in bytes.

#include "cuda/head/cell_patch.h"
#include "cuda/head/gradient_parts.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {

template <class F>
struct GradientShared {
  CellShared<F> cells;
  F* sums;  // [source row][left, right][cell][class]

  FASTSEG_HOST_DEVICE GradientShared(SharedSpace& space, int tile, int span, int pitch)
      : cells(space, tile, span, pitch), sums(space.take<F>(4 * span * pitch)) {}
};

// Op has
//   Class of(n, k): what the gradient needs of an image's class,
//   F gradient(class, k, p, pixel): of a class's logit at a pixel,
//   load(softmax, first, rows, cells): brings `rows` rows of pixels to shared memory.
template <class T, class Op>
__global__ void __launch_bounds__(kPatchThreads, kPatchBlocks<Compute<T>>)
    upsampled_gradient_corners(UpsampledLogits z, PatchGrid<Compute<T>> grid, ClassChunks chunks,
                               Op op, GradientParts parts) {
  using F = Compute<T>;
  FASTSEG_DYNAMIC_SHARED(unsigned char, bytes);
  SharedSpace space(bytes);
  const GradientShared<F> shared(space, grid.tile, grid.span, chunks.pitch);
  const CellShared<F>& cells = shared.cells;
  const Patch patch = patch_of(grid, blockIdx.x);
  if (patch.rows == 0) return;
  SoftmaxPatch<T> softmax(z, grid, patch, chunks, cells.softmax);
  softmax.find_bounds();
  load_cells(grid, patch, cells);
  const auto sum_of = [&](int row, int side, int cell, int k) -> F& {
    return shared.sums[((row * 2 + side) * grid.span + cell) * chunks.pitch + k];
  };
  int loaded = -1;  // the first of the rows whose pixels are in shared memory
  for (int first_class = 0; first_class < z.classes; first_class += chunks.chunk) {
    int count = 0;
    for (int first = 0; first < patch.rows; first += kPatchRows<F>) {
      const int rows = patch.rows - first < kPatchRows<F> ? patch.rows - first : kPatchRows<F>;
      if (loaded != first) {
        softmax.load_rows(first);
        op.load(softmax, first, rows, cells);
        __syncthreads();
        loaded = first;
      }
      count = softmax.load_classes(first_class);
      for (int i = threadIdx.x; i < patch.cells * count; i += kPatchThreads) {
        const int cell = i / count, k = i % count;
        const auto of_class = op.of(patch.n, first_class + k);
        const CellCorners<F> corners = cell_corners(softmax, cell, k);
        F above_left = 0, above_right = 0, below_left = 0, below_right = 0;
        for (int r = 0; r < rows; ++r) {
          const Shares<F> row = cells.softmax.rows[r];
          F left = 0, right = 0;
          for_cell_pixels(cells, grid.tile, cell, r, row, corners,
                          [&](F p, const PixelSoftmax<F>& pixel, const Shares<F>& column) {
                            const F g = op.gradient(of_class, first_class + k, p, pixel);
                            left += column.w0 * g, right += column.w1 * g;
                          });
          above_left += row.w0 * left, above_right += row.w0 * right;
          below_left += row.w1 * left, below_right += row.w1 * right;
        }
        if (softmax.next_slot(cell) == cell) {
          above_left += above_right, below_left += below_right;
          above_right = below_right = 0;
        }
        if (first > 0) {
          above_left += sum_of(0, 0, cell, k), above_right += sum_of(0, 1, cell, k);
          below_left += sum_of(1, 0, cell, k), below_right += sum_of(1, 1, cell, k);
        }
        sum_of(0, 0, cell, k) = above_left, sum_of(0, 1, cell, k) = above_right;
        sum_of(1, 0, cell, k) = below_left, sum_of(1, 1, cell, k) = below_right;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * patch.slots * count; i += kPatchThreads) {
      const int inner = parts.channels_last ? count : patch.slots;
      const int outer = parts.channels_last ? patch.slots : count;
      const int at = i % inner, beyond = i / inner % outer, row = i / inner / outer;
      const int k = parts.channels_last ? at : beyond, slot = parts.channels_last ? beyond : at;
      F sum = slot < patch.cells ? sum_of(row, 0, slot, k) : F(0);
      if (slot > 0) sum += sum_of(row, 1, slot - 1, k);
      static_cast<F*>(
          parts.data)[part_index(grid, parts, z.classes, blockIdx.x, row, slot, first_class + k)] =
          sum;
    }
  }
}

// `op_of(zero of T)` makes the Op.
template <class OpOf>
cudaError_t upsampled_gradient(const UpsampledLogits& z, const GradientParts& parts,
                               void* grad_logits, const OpOf& op_of, cudaStream_t stream) {
  if (z.batch == 0) return cudaSuccess;
  cudaError_t error = cudaSuccess;
  dispatch(z.dtype, [&](auto zero) {
    using T = decltype(zero);
    using F = Compute<T>;
    const auto op = op_of(zero);
    using Op = std::remove_const_t<decltype(op)>;
    const PatchGrid<F> grid(z);
    const ClassChunks chunks(z.classes, grid.span, 6, sizeof(F));
    SharedSpace space(nullptr);
    GradientShared<F>(space, grid.tile, grid.span, chunks.pitch);
    error = allow_shared(upsampled_gradient_corners<T, Op>, space.used());
    if (error != cudaSuccess) return;
    FASTSEG_LAUNCH((upsampled_gradient_corners<T, Op>), static_cast<unsigned>(grid.blocks(z.batch)),
                   kPatchThreads, space.used(), stream, z, grid, chunks, op, parts);
    error = cudaGetLastError();
  });
  return error != cudaSuccess ? error : collect_gradient(z, parts, grad_logits, stream);
}

}  // namespace fastseg::cuda
