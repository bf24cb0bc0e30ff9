// The confusion matrix of the classes of upsampled logits, of which no map is stored.
//
// A warp takes 32 columns of pixels in a band of rows (pixel_classes.h) and counts their classes
// beside the target's in the table of its block (pair_counts.h), which takes every gridDim.x-th
// part of the image. Floor: the logits and the target once, in bytes.

#include <algorithm>

#include "cuda/head/pair_counts.h"
#include "cuda/head/pixel_classes.h"
#include "cuda/head/pixel_targets.h"
#include "cuda/head/row_count.h"
#include "cuda/head/upsample_confusion_matrix.h"
#include "cuda/launch.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {
namespace {

constexpr int kBlockThreads = 256, kWarps = kBlockThreads / 32;
constexpr int kBlocks = 2;                  // of a multiprocessor, at 128 registers a thread
constexpr int kMostBlocks = kBlocks * 132;  // on an H100, where two of the largest tables fit

template <class F>
struct Grid {
  BilinearAxis<F> rows, columns;
  int64_t bands, tiles, parts;  // tiles of 32 columns; parts for all warps
};

template <class T, bool kShared>
__global__ void __launch_bounds__(kBlockThreads, kBlocks)
    class_counts(UpsampleConfusion job, Grid<Compute<T>> grid, PairCount* counts) {
  using F = Compute<T>;
  FASTSEG_DYNAMIC_SHARED(unsigned, table);
  const UpsampledLogits& z = job.logits;
  const int classes = static_cast<int>(z.classes), cells = classes * classes;
  if constexpr (kShared) clear_table<kBlockThreads>(table, cells);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t step = int64_t{gridDim.x} * kWarps;
  for (int64_t part = int64_t{blockIdx.x} * kWarps + warp; part < grid.parts; part += step) {
    const int64_t n = part / grid.tiles / grid.bands, band = part / grid.tiles % grid.bands;
    const int64_t x = part % grid.tiles * 32 + lane;
    const bool inside = x < z.width;
    const Band pixels = band_of(grid.rows, band);
    const BilinearTap<F> column = grid.columns.tap(inside ? x : z.width - 1);
    for (int64_t y = pixels.begin; y < pixels.end; y += kClassRows<T>) {
      with_rows<kClassRows<T>, 4>(pixels.end - y, [&](auto count) {
        constexpr int kRows = decltype(count)::value;
        PixelClasses<T, kRows> found(z, grid.rows, column, n, y, pixels.end);
        found.find();
        int pairs[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          pairs[r] = kNoPair;
          if (!inside || y + r >= pixels.end) continue;
          const int target =
              target_at(job.target, (n * z.height + y + r) * z.width + x,
                        "fastseg::upsample_confusion_matrix: target must hold ids 0 to C - 1");
          if (target != kIgnored) pairs[r] = target * classes + found.id(r);
        }
        if constexpr (kShared) {
          add_pairs(pairs, table);
        } else {
          add_pairs(pairs, counts);
        }
      });
    }
  }
  if constexpr (kShared) add_table<kBlockThreads>(table, cells, counts);
}

template <class T, bool kShared>
cudaError_t launch(const UpsampleConfusion& job, int64_t shared_bytes, PairCount* counts,
                   cudaStream_t stream) {
  using F = Compute<T>;
  const UpsampledLogits& z = job.logits;
  Grid<F> grid{{z.in_height, z.height, z.align_corners},
               {z.in_width, z.width, z.align_corners},
               0,
               (z.width + 31) / 32,
               0};
  grid.bands = band_count(grid.rows);
  grid.parts = z.batch * grid.bands * grid.tiles;
  const cudaError_t error = allow_shared(class_counts<T, kShared>, shared_bytes);
  if (error != cudaSuccess) return error;
  const int64_t blocks = std::min<int64_t>((grid.parts + kWarps - 1) / kWarps, kMostBlocks);
  FASTSEG_LAUNCH((class_counts<T, kShared>), static_cast<unsigned>(blocks), kBlockThreads,
                 shared_bytes, stream, job, grid, counts);
  return cudaGetLastError();
}

}  // namespace

cudaError_t upsample_confusion_matrix(const UpsampleConfusion& job, int64_t* counts,
                                      cudaStream_t stream) {
  const UpsampledLogits& z = job.logits;
  const int64_t cells = z.classes * z.classes;
  cudaError_t error = cudaMemsetAsync(counts, 0, cells * sizeof(int64_t), stream);
  if (error != cudaSuccess || z.batch * z.height * z.width == 0) return error;
  const int64_t bytes = cells * int64_t{sizeof(unsigned)};
  auto* const out = reinterpret_cast<PairCount*>(counts);
  dispatch(z.dtype, [&](auto zero) {
    using T = decltype(zero);
    error = bytes <= kMaxSharedBytes ? launch<T, true>(job, bytes, out, stream)
                                     : launch<T, false>(job, 0, out, stream);
  });
  return error;
}

}  // namespace fastseg::cuda
