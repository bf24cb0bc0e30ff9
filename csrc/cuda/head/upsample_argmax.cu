// The class map of bilinearly upsampled logits.
//
// A thread makes a column of pixels in a band of rows between two source rows, kRows at a time: for
// each class it reads four logits, which its neighbours read, too, interpolates along the row
// twice, and keeps the best value and id of each row in registers. Instructions for a pixel and a
// class: interpolation 2, comparison 2, choice 2, and 1 / kRows of 4 loads and 4 more. Floor: the
// logits once and the ids, in bytes.

#include <cstdint>

#include "cuda/arithmetic.h"
#include "cuda/head/bilinear_band.h"
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

template <class T, int kRows, bool kConfidence>
__global__ void __launch_bounds__(kThreads)
    class_argmax(UpsampleArgmax job, Grid<Compute<T>> grid) {
  using F = Compute<T>;
  const int64_t block = blockIdx.x;
  const int64_t n = block / grid.tiles / grid.bands, band = block / grid.tiles % grid.bands;
  const int64_t x = block % grid.tiles * kThreads + threadIdx.x;
  if (x >= job.width) return;
  const Band pixels = band_of(grid.rows, band);
  const BilinearTap<F> column = grid.columns.tap(x);
  const T* logits = static_cast<const T*>(job.logits) + n * job.stride_n;
  const int64_t right = (column.next - column.at) * job.stride_w;
  const auto between = [&](const T* p) {
    return column.w0 * to_compute(p[0]) + column.w1 * to_compute(p[right]);
  };
  for (int64_t y = pixels.begin; y < pixels.end; y += kRows) {
    F w0[kRows], w1[kRows], best[kRows], sum[kRows];
    int id[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const BilinearTap<F> row = grid.rows.tap(y + r < pixels.end ? y + r : pixels.end - 1);
      w0[r] = row.w0, w1[r] = row.w1, sum[r] = F(0);
    }
    const BilinearTap<F> row = grid.rows.tap(y);
    const T* above = logits + row.at * job.stride_h + column.at * job.stride_w;
    const T* below = logits + row.next * job.stride_h + column.at * job.stride_w;
    for (int k = 0; k < job.classes; ++k) {
      const F a = between(above + k * job.stride_c), b = between(below + k * job.stride_c);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const F v = w0[r] * a + w1[r] * b;
        // The first of equal ones; an undefined one before all others.
        if (k == 0 || (!(v <= best[r]) && best[r] == best[r])) best[r] = v, id[r] = k;
      }
    }
    if constexpr (kConfidence) {
      for (int k = 0; k < job.classes; ++k) {
        const F a = between(above + k * job.stride_c), b = between(below + k * job.stride_c);
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r] += exp(w0[r] * a + w1[r] * b - best[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (y + r >= pixels.end) break;
      const int64_t pixel = (n * job.height + y + r) * job.width + x;
      store_id(job, pixel, id[r]);
      if constexpr (kConfidence) static_cast<F*>(job.confidence)[pixel] = F(1) / sum[r];
    }
  }
}

template <class T, int kRows>
void launch(const UpsampleArgmax& job, cudaStream_t stream) {
  using F = Compute<T>;
  Grid<F> grid{{job.in_height, job.height, job.align_corners},
               {job.in_width, job.width, job.align_corners},
               0,
               (job.width + kThreads - 1) / kThreads};
  grid.bands = band_count(grid.rows);
  const auto blocks = static_cast<unsigned>(job.batch * grid.bands * grid.tiles);
  if (job.confidence) {
    FASTSEG_LAUNCH((class_argmax<T, kRows, true>), blocks, kThreads, 0, stream, job, grid);
  } else {
    FASTSEG_LAUNCH((class_argmax<T, kRows, false>), blocks, kThreads, 0, stream, job, grid);
  }
}

}  // namespace

cudaError_t upsample_argmax(const UpsampleArgmax& job, cudaStream_t stream) {
  dispatch(job.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch<T, sizeof(T) == 8 ? 4 : 8>(job, stream);
  });
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
