// Collects the gradient of upsampled logits out of the sums of patches.
//
// A block makes a piece of a source row, of which it finds the bands once; a thread adds up the
// patches that its source column lies in: few but where a logit reaches over many pixels.
// Floor: the parts and the gradient once, in bytes.

#include "cuda/arithmetic.h"
#include "cuda/head/gradient_parts.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = 8;    // of a multiprocessor, at 64 registers a thread
constexpr int kElements = 4;  // of a thread

struct Tiles {
  int first, last;
};

// Tiles that may have pixels between the neighbours of source column x, and few others.
template <class F>
__device__ inline Tiles tiles_near(const PatchGrid<F>& grid, int x) {
  const BilinearAxis<F>& axis = grid.columns;
  if (!(axis.scale > F(0))) return {0, grid.tiles - 1};
  const F shift = axis.align_corners ? F(0) : F(0.5), last = static_cast<F>(axis.out - 1);
  const auto tile_at = [&](F source, F margin) {
    F pixel = (source + shift) / axis.scale - shift + margin;
    pixel = pixel < F(0) ? F(0) : pixel > last ? last : pixel;
    return static_cast<int>(pixel) / grid.tile;
  };
  return {tile_at(static_cast<F>(x - 1), F(-2)), tile_at(static_cast<F>(x + 1), F(2))};
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    upsampled_gradient_gather(UpsampledLogits z, PatchGrid<Compute<T>> grid, GradientParts parts,
                              int groups, T* out) {
  using F = Compute<T>;
  const int row = blockIdx.x / groups, group = blockIdx.x % groups;
  const int n = row / static_cast<int>(z.in_height), y = row % static_cast<int>(z.in_height);
  const int64_t size = z.classes * z.in_width;
  // Where the pixels of the row before, of this one and of the next one begin.
  const int64_t begin[] = {first_pixel(grid.rows, y - 1), first_pixel(grid.rows, y),
                           first_pixel(grid.rows, y + 1)};
  for (int e = 0; e < kElements; ++e) {
    const int64_t i = (int64_t{group} * kElements + e) * kThreads + threadIdx.x;
    if (i >= size) return;
    const int k = static_cast<int>(parts.channels_last ? i % z.classes : i / z.in_width);
    const int x = static_cast<int>(parts.channels_last ? i / z.classes : i % z.in_width);
    const Tiles tiles = tiles_near(grid, x);
    F sum = 0;
    for (int tile = tiles.first; tile <= tiles.last; ++tile) {
      const int64_t pixel = int64_t{tile} * grid.tile;
      const int64_t behind = pixel + grid.tile < z.width ? pixel + grid.tile : z.width;
      const int64_t left = grid.columns.tap(pixel).at;
      if (x < left || x > grid.columns.tap(behind - 1).next) continue;
      const int slot = static_cast<int>(x - left);
#pragma unroll
      for (int before = 1; before >= 0; --before) {
        const int at = y - before;
        if (at < 0) continue;
        for (int part = 0; part < grid.parts; ++part) {
          if (begin[1 - before] + int64_t{part} * grid.band_rows >= begin[2 - before]) break;
          const int64_t band = (int64_t{n} * grid.bands() + at * grid.parts + part);
          const int64_t patch = band * grid.tiles + tile;
          const auto of_row = [&](int r) {
            const int64_t index = part_index(grid, parts, z.classes, patch, r, slot, k);
            return static_cast<const F*>(parts.data)[index];
          };
          if (at == y) sum += of_row(0);
          if (grid.rows.next(at) == y) sum += of_row(1);
        }
      }
    }
    const int64_t place = parts.channels_last
                              ? row * size + i
                              : ((n * z.classes + k) * z.in_height + y) * z.in_width + x;
    out[place] = from_compute<T>(sum);
  }
}

template <class T>
void launch(const UpsampledLogits& z, const GradientParts& parts, void* out, cudaStream_t stream) {
  constexpr int64_t kGroup = int64_t{kThreads} * kElements;
  const int64_t groups = (z.classes * z.in_width + kGroup - 1) / kGroup;
  const auto blocks = static_cast<unsigned>(z.batch * z.in_height * groups);
  if (blocks == 0) return;
  FASTSEG_LAUNCH((upsampled_gradient_gather<T>), blocks, kThreads, 0, stream, z,
                 PatchGrid<Compute<T>>(z), parts, static_cast<int>(groups), static_cast<T*>(out));
}

}  // namespace

int64_t patch_count(const UpsampledLogits& logits) {
  return logits.dtype == Dtype::kFloat64 ? PatchGrid<double>(logits).blocks(logits.batch)
                                         : PatchGrid<float>(logits).blocks(logits.batch);
}

int64_t gradient_parts(const UpsampledLogits& logits) {
  const int span = logits.dtype == Dtype::kFloat64 ? PatchGrid<double>(logits).span
                                                   : PatchGrid<float>(logits).span;
  return 2 * logits.classes * span;
}

cudaError_t collect_gradient(const UpsampledLogits& logits, const GradientParts& parts,
                             void* grad_logits, cudaStream_t stream) {
  dispatch(logits.dtype,
           [&](auto zero) { launch<decltype(zero)>(logits, parts, grad_logits, stream); });
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
