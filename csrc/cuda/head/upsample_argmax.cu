// The class map of bilinearly upsampled logits: a thread makes a column of pixels
// (pixel_classes.h). Floor: the logits once and the ids, in bytes.

#include <cstdint>

#include "cuda/head/pixel_classes.h"
#include "cuda/head/row_count.h"
#include "cuda/head/upsample_argmax.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 128;

template <class F>
struct Grid {
  BilinearAxis<F> rows, columns;
  int64_t bands, tiles;  // tiles of kThreads columns
};

__device__ inline void store_id(const UpsampleArgmax& job, int64_t pixel, int id) {
  switch (job.bytes) {
    case 1:
      static_cast<uint8_t*>(job.ids)[pixel] = static_cast<uint8_t>(id);
      break;
    case 2:
      static_cast<int16_t*>(job.ids)[pixel] = static_cast<int16_t>(id);
      break;
    case 4:
      static_cast<int32_t*>(job.ids)[pixel] = id;
      break;
    default:
      static_cast<int64_t*>(job.ids)[pixel] = id;
  }
}

template <class T, bool kConfidence>
__global__ void __launch_bounds__(kThreads)
    class_argmax(UpsampleArgmax job, Grid<Compute<T>> grid) {
  using F = Compute<T>;
  const UpsampledLogits& z = job.logits;
  const int64_t block = blockIdx.x;
  const int64_t n = block / grid.tiles / grid.bands, band = block / grid.tiles % grid.bands;
  const int64_t x = block % grid.tiles * kThreads + threadIdx.x;
  if (x >= z.width) return;
  const Band pixels = band_of(grid.rows, band);
  const BilinearTap<F> column = grid.columns.tap(x);
  for (int64_t y = pixels.begin; y < pixels.end; y += kClassRows<T>) {
    with_rows<kClassRows<T>, 4>(pixels.end - y, [&](auto count) {
      constexpr int kRows = decltype(count)::value;
      PixelClasses<T, kRows> classes(z, grid.rows, column, n, y, pixels.end);
      classes.find();
      [[maybe_unused]] F sum[kRows];
      if constexpr (kConfidence) classes.add_up(sum);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (y + r >= pixels.end) break;
        const int64_t pixel = (n * z.height + y + r) * z.width + x;
        store_id(job, pixel, classes.id(r));
        if constexpr (kConfidence) static_cast<F*>(job.confidence)[pixel] = F(1) / sum[r];
      }
    });
  }
}

template <class T>
void launch(const UpsampleArgmax& job, cudaStream_t stream) {
  using F = Compute<T>;
  const UpsampledLogits& z = job.logits;
  Grid<F> grid{{z.in_height, z.height, z.align_corners},
               {z.in_width, z.width, z.align_corners},
               0,
               (z.width + kThreads - 1) / kThreads};
  grid.bands = band_count(grid.rows);
  const auto blocks = static_cast<unsigned>(z.batch * grid.bands * grid.tiles);
  if (job.confidence) {
    FASTSEG_LAUNCH((class_argmax<T, true>), blocks, kThreads, 0, stream, job, grid);
  } else {
    FASTSEG_LAUNCH((class_argmax<T, false>), blocks, kThreads, 0, stream, job, grid);
  }
}

}  // namespace

cudaError_t upsample_argmax(const UpsampleArgmax& job, cudaStream_t stream) {
  dispatch(job.logits.dtype, [&](auto zero) { launch<decltype(zero)>(job, stream); });
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
