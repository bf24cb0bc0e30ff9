// Sums of the classes' probabilities over the pixels of bilinearly upsampled logits, and over those
// of the class.
//
// A block makes a patch (patch.h), kPatchRows rows at a time. First a thread is a column of pixels
// and finds their normalizers as cross-entropy does (upsample_cross_entropy.cu); then it is a cell
// and a class (cell_patch.h) and sums the class's probabilities. Sums of cells and of patches are
// added in their order, those of patches in double by a second kernel.
// Instructions for a pixel and a class: two interpolations of 2, two powers, 4 more for the sums.
// Floor: the logits and the targets once, and a number for each pixel, in bytes.

#include "cuda/head/cell_patch.h"
#include "cuda/head/row_count.h"
#include "cuda/head/upsample_softmax_sums.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {
namespace {

constexpr int kSums = 3;  // intersection, probability, count
constexpr int kTotalThreads = 256;

template <class F>
struct SumsShared {
  CellShared<F> cells;
  F* sums;  // [sum][cell][class]

  FASTSEG_HOST_DEVICE SumsShared(SharedSpace& space, int tile, int span, int pitch)
      : cells(space, tile, span, pitch), sums(space.take<F>(kSums * span * pitch)) {}
};

// Brings rows of pixels to shared memory and stores their normalizers. All threads meet here.
template <class T>
__device__ inline void find_normalizers(const SoftmaxSumsForward& job, SoftmaxPatch<T>& softmax,
                                        const PatchColumn<Compute<T>>& column, int first, int rows,
                                        const CellShared<Compute<T>>& cells) {
  using F = Compute<T>;
  const UpsampledLogits& z = job.of.logits;
  const Patch& patch = softmax.patch;
  const int t = threadIdx.x;
  const bool inside = t < patch.columns;
  bool counts = false;
  for (int r = 0; inside && r < rows; ++r) {
    const int64_t y = int64_t{patch.y} + first + r;
    const int64_t pixel = (patch.n * z.height + y) * z.width + patch.x + t;
    const int code =
        target_at(job.of.target, pixel,
                  "fastseg::upsample_softmax_sums: target must be a class or ignore_index");
    cells.pixels[r * softmax.tile() + t] = {kNoPixel<F>, 0, 0, code};
    counts |= code != kIgnored;
  }
  const bool busy = __ballot_sync(~0u, counts) != 0;
  with_rows<kPatchRows<F>, 1>(rows, [&](auto count) {
    constexpr int kRows = decltype(count)::value;
    Shares<F> row[kRows];
    F sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) row[r] = cells.softmax.rows[r], sum[r] = 0;
    softmax.for_classes(column, busy, [&](int, F a, F b) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] += exp2_of(-(row[r].w0 * a + row[r].w1 * b));
    });
    if (!inside) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) cells.pixels[r * softmax.tile() + t].u = sum[r];
  });
  if (!inside) return;
#pragma unroll 1
  for (int r = 0; r < rows; ++r) {
    const int64_t y = int64_t{patch.y} + first + r;
    PixelSoftmax<F>& pixel = cells.pixels[r * softmax.tile() + t];
    F s = 0;
    if (pixel.code != kIgnored) {
      s = softmax.normalizer(pixel.u, column, cells.softmax.rows[r]);
      pixel.s = s;
    }
    pixel.u = s - s;  // what makes sums undefined where the pixel is
    static_cast<F*>(job.normalizer)[(patch.n * z.height + y) * z.width + patch.x + t] = s;
  }
}

template <class T>
__global__ void __launch_bounds__(kPatchThreads, kPatchBlocks<Compute<T>>)
    softmax_sums_classes(SoftmaxSumsForward job, PatchGrid<Compute<T>> grid, ClassChunks chunks) {
  using F = Compute<T>;
  FASTSEG_DYNAMIC_SHARED(unsigned char, bytes);
  SharedSpace space(bytes);
  const SumsShared<F> shared(space, grid.tile, grid.span, chunks.pitch);
  const CellShared<F>& cells = shared.cells;
  const int classes = static_cast<int>(job.of.logits.classes);
  F* const out = static_cast<F*>(job.sums) + int64_t{blockIdx.x} * kSums * classes;
  const Patch patch = patch_of(grid, blockIdx.x);
  if (patch.rows == 0) {
    for (int i = threadIdx.x; i < kSums * classes; i += kPatchThreads) out[i] = 0;
    return;
  }
  SoftmaxPatch<T> softmax(job.of.logits, grid, patch, chunks, cells.softmax);
  softmax.find_bounds();
  load_cells(grid, patch, cells);
  const PatchColumn<F> column = softmax.column();
  const auto sum_of = [&](int sum, int cell, int k) -> F& {
    return shared.sums[(sum * grid.span + cell) * chunks.pitch + k];
  };
  for (int first = 0; first < patch.rows; first += kPatchRows<F>) {
    const int rows = patch.rows - first < kPatchRows<F> ? patch.rows - first : kPatchRows<F>;
    softmax.load_rows(first);
    find_normalizers(job, softmax, column, first, rows, cells);
    __syncthreads();
    for (int first_class = 0; first_class < classes; first_class += chunks.chunk) {
      const int count = softmax.load_classes(first_class);
      for (int i = threadIdx.x; i < patch.cells * count; i += kPatchThreads) {
        const int cell = i / count, k = i % count;
        const CellCorners<F> corners = cell_corners(softmax, cell, k);
        F intersection = 0, probability = 0;
        int pixels = 0;
        for (int r = 0; r < rows; ++r) {
          for_cell_pixels(cells, grid.tile, cell, r, cells.softmax.rows[r], corners,
                          [&](F p, const PixelSoftmax<F>& pixel, const Shares<F>&) {
                            p += pixel.u;
                            probability += job.of.squared ? p * p : p;
                            if (pixel.code == first_class + k) intersection += p, ++pixels;
                          });
        }
        sum_of(0, cell, k) = intersection, sum_of(1, cell, k) = probability;
        sum_of(2, cell, k) = static_cast<F>(pixels);
      }
      __syncthreads();
      for (int i = threadIdx.x; i < kSums * count; i += kPatchThreads) {
        const int k = i % count, sum = i / count;
        F* const total = out + sum * classes + first_class + k;
        F value = first > 0 ? *total : F(0);
        for (int cell = 0; cell < patch.cells; ++cell) value += sum_of(sum, cell, k);
        *total = value;
      }
      __syncthreads();
    }
  }
}

// A warp's lanes are sums, its block's warps share the patches of an image.
template <class F>
__global__ void __launch_bounds__(kTotalThreads)
    softmax_sums_total(SoftmaxSumsForward job, int64_t patches, int groups) {
  FASTSEG_DYNAMIC_SHARED(double, scratch);
  const int64_t classes = job.of.logits.classes;
  const int n = blockIdx.x / groups, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t i = int64_t{blockIdx.x % groups} * 32 + lane;
  double sum = 0;
  if (i < kSums * classes) {
    const F* const of_image = static_cast<const F*>(job.sums) + n * patches * kSums * classes + i;
    for (int64_t p = warp; p < patches; p += kTotalThreads / 32) {
      sum += of_image[p * kSums * classes];
    }
  }
  scratch[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || i >= kSums * classes) return;
  for (int w = 1; w < kTotalThreads / 32; ++w) sum += scratch[w * 32 + lane];
  const int which = static_cast<int>(i / classes);
  void* const out = which == 0 ? job.intersection : which == 1 ? job.probability : job.count;
  static_cast<F*>(out)[n * classes + i % classes] = static_cast<F>(sum);
}

template <class T>
cudaError_t launch(const SoftmaxSumsForward& job, cudaStream_t stream) {
  using F = Compute<T>;
  const UpsampledLogits& z = job.of.logits;
  const PatchGrid<F> grid(z);
  const int64_t blocks = grid.blocks(z.batch);
  if (blocks == 0) return cudaSuccess;
  const ClassChunks chunks(z.classes, grid.span, 2 + kSums, sizeof(F));
  SharedSpace space(nullptr);
  SumsShared<F>(space, grid.tile, grid.span, chunks.pitch);
  const cudaError_t error = allow_shared(softmax_sums_classes<T>, space.used());
  if (error != cudaSuccess) return error;
  FASTSEG_LAUNCH((softmax_sums_classes<T>), static_cast<unsigned>(blocks), kPatchThreads,
                 space.used(), stream, job, grid, chunks);
  const int groups = static_cast<int>((kSums * z.classes + 31) / 32);
  FASTSEG_LAUNCH((softmax_sums_total<F>), static_cast<unsigned>(z.batch * groups), kTotalThreads,
                 kTotalThreads * sizeof(double), stream, job, blocks / z.batch, groups);
  return cudaGetLastError();
}

}  // namespace

cudaError_t upsample_softmax_sums(const SoftmaxSumsForward& job, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  dispatch(job.of.logits.dtype, [&](auto zero) { error = launch<decltype(zero)>(job, stream); });
  return error;
}

}  // namespace fastseg::cuda
