// What a mean field computes once, before its iterations, and the mixing of labels by a matrix. The
// bytes of each are those of its arguments, in and out once.

#include <algorithm>

#include "cuda/crf/lattice_mean_field.h"
#include "cuda/fast_divisor.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnaryPoints = 32;       // of a block: a warp reads a label of each
constexpr int64_t kMaxPlanes = 65535;  // of a grid

unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>((items + kThreads - 1) / kThreads);
}

// A block is kUnaryPoints points of an image: their least energies, then their rows. The second
// reading is from the first-level cache, whatever the layout.
__global__ void __launch_bounds__(kThreads)
    mean_field_unary(UnaryRows op, FastDivisor packs, int blocks_per_image) {
  FASTSEG_DYNAMIC_SHARED(float, least);  // (kThreads / kUnaryPoints, kUnaryPoints)
  const int image = blockIdx.x / blocks_per_image;
  const int begin = (blockIdx.x - image * blocks_per_image) * kUnaryPoints;
  const int left = op.points - begin, count = left < kUnaryPoints ? left : kUnaryPoints;
  const float* energies = op.energies + image * op.image_stride;

  const int lane = threadIdx.x % kUnaryPoints;
  float own = INFINITY;
  if (lane < count) {
    const float* mine = energies + op.strips.pixel(begin + lane) * op.pixel_stride;
    for (int l = threadIdx.x / kUnaryPoints; l < op.labels; l += kThreads / kUnaryPoints) {
      own = fminf(own, mine[l * op.label_stride]);
    }
  }
  least[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x < kUnaryPoints) {
    for (int i = threadIdx.x + kUnaryPoints; i < kThreads; i += kUnaryPoints) {
      own = fminf(own, least[i]);
    }
    least[threadIdx.x] = own;
  }
  __syncthreads();
  float* rows = op.rows + (int64_t{image} * op.points + begin) * packs * 4;
  for (int i = threadIdx.x; i < count * packs; i += kThreads) {
    const int p = i / packs, label = (i - p * packs) * 4;
    const float* mine = energies + op.strips.pixel(begin + p) * op.pixel_stride;
    Pack<float, 4> out;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      out.v[k] = kRuledOut;
      if (label + k >= op.labels) continue;
      const float x = least[p] - mine[(label + k) * op.label_stride];
      if (!(x < kRuledOut)) out.v[k] = x;  // NaN stays
    }
    store_pack_global(rows + int64_t{i} * 4, out);
  }
}

// The second dimension of the grid is the axes.
__global__ void __launch_bounds__(kThreads) mean_field_positions(PositionFeatures op, int points) {
  const int i = blockIdx.x * kThreads + threadIdx.x, axis = blockIdx.y;
  if (i >= points) return;
  const float sigma = op.sigma[axis];
  FASTSEG_DEVICE_CHECK(sigma > 0, "fastseg::lattice_mean_field: sigma must be positive");
  int at = op.strips.pixel(i), size = 1;
#pragma unroll
  for (int a = kMaxAxes - 1; a >= 0; --a) {  // unrolled: sizes stay where they are
    if (a < op.axes && a > axis) at /= op.sizes[a];
    if (a == axis) size = op.sizes[a];
  }
  op.features[int64_t{position_plane(op.axes, axis)} * points + i] =
      static_cast<float>(at % size) / sigma;
}

__global__ void __launch_bounds__(kThreads) mean_field_gather(PointFeatures op) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= op.points) return;
  const int64_t pixel = op.strips.pixel(i);
  for (int64_t plane = blockIdx.y; plane < op.planes; plane += gridDim.y) {
    op.features[plane * op.points + i] = op.of_pixels[plane * op.points + pixel];
  }
}

__device__ inline float factor_before(Normalization normalization, float response) {
  return has_factor_before(normalization) ? point_factor(normalization, response) : 1.f;
}

// The gain is on the side where Kraehenbuehl's program has it; a normalisation cancels it.
__device__ inline float factor_after(Normalization normalization, float response, float gain) {
  if (normalization == Normalization::none) return gain;
  return has_factor_after(normalization) ? point_factor(normalization, response) : 1.f;
}

__global__ void __launch_bounds__(kThreads)
    mean_field_fold(FoldedWeights op, FastDivisor corners, FastDivisor points,
                    FastDivisor tile_points) {
  const int e = blockIdx.x * kThreads + threadIdx.x;
  if (e >= op.lattice.entries()) return;
  const int point = e / corners, image = point / points, i = point - image * points;
  const int tile = image * op.lattice.tiles_per_image + i / tile_points;
  const int row = op.lattice.tile_starts[tile] + op.lattice.slots[e];
  const float after = factor_after(op.normalization, op.response[point], op.gain);
  op.slice[e] = {op.lattice.barycentric[e] * after, op.lattice.tile_vertices[row] * op.packs};
  SplatEntry<float> entry = op.splat[e];
  entry.weight *= factor_before(op.normalization, op.response[entry.point]);
  op.splat[e] = entry;
}

__global__ void __launch_bounds__(kThreads)
    mean_field_factors(Normalization normalization, int points, const float* response,
                       float* before, float* after) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= points) return;
  if (before != nullptr) before[i] = factor_before(normalization, response[i]);
  if (after != nullptr) after[i] = factor_after(normalization, response[i], 1.f);
}

// The scale is the compatibility as it adds to the logits, or one where a matrix has it.
__global__ void __launch_bounds__(kThreads) mean_field_mixing(Mixing op, FastDivisor pitch) {
  const int i = blockIdx.x * kThreads + threadIdx.x, column = i / pitch, row = i - column * pitch;
  if (op.compatibility.kind == Compatibility::Kind::full) {
    if (column >= pitch) return;
    float element = 0;
    if (row < op.labels && column < op.labels) {
      element = -op.compatibility.values[row * op.labels + column];
    }
    FASTSEG_DEVICE_CHECK(fabsf(element) < INFINITY,
                         "fastseg::lattice_mean_field: compatibility must be finite");
    op.matrix[i] = element;
    if (column == 0) op.scale[row] = 1;
    return;
  }
  if (column > 0) return;
  float scale = 1;
  if (row < op.labels) scale = op.compatibility.scale(row);
  FASTSEG_DEVICE_CHECK(fabsf(scale) < INFINITY,
                       "fastseg::lattice_mean_field: compatibility must be finite");
  op.scale[row] = scale;
}

// A thread is a pack of a row.
__global__ void __launch_bounds__(kThreads)
    mean_field_mix(const float* matrix, int64_t items, FastDivisor packs, const float* in,
                   float* out) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= items) return;
  const int pitch = packs * 4, pack = static_cast<int>(index % packs);
  const float* row = in + index / int{packs} * pitch;
  Pack<float, 4> sum{};
  for (int l = 0; l < packs; ++l) {
    const Pack<float, 4> x = load_pack<4>(row + l * 4);
    const float* columns = matrix + int64_t{l} * 4 * pitch + pack * 4;
#pragma unroll
    for (int k = 0; k < 4; ++k) sum.add(x.v[k], load_pack<4>(columns + k * pitch));
  }
  store_pack_global(out + index * 4, sum);
}

}  // namespace

cudaError_t read_unary(const UnaryRows& op, cudaStream_t stream) {
  const int per_image = (op.points + kUnaryPoints - 1) / kUnaryPoints;
  FASTSEG_LAUNCH(mean_field_unary, static_cast<unsigned>(op.images * per_image), kThreads,
                 kThreads * sizeof(float), stream, op, FastDivisor(label_packs(op.labels)),
                 per_image);
  return cudaGetLastError();
}

cudaError_t point_features(const PointFeatures& op, cudaStream_t stream) {
  const dim3 grid(blocks_for(op.points),
                  static_cast<unsigned>(std::min<int64_t>(op.planes, kMaxPlanes)));
  FASTSEG_LAUNCH(mean_field_gather, grid, kThreads, 0, stream, op);
  return cudaGetLastError();
}

cudaError_t position_features(const PositionFeatures& op, cudaStream_t stream) {
  int points = 1;
  for (int a = 0; a < op.axes; ++a) points *= op.sizes[a];
  const dim3 grid(blocks_for(points), op.axes);
  FASTSEG_LAUNCH(mean_field_positions, grid, kThreads, 0, stream, op, points);
  return cudaGetLastError();
}

cudaError_t fold_weights(const FoldedWeights& op, cudaStream_t stream) {
  FASTSEG_LAUNCH(mean_field_fold, blocks_for(op.lattice.entries()), kThreads, 0, stream, op,
                 FastDivisor(op.lattice.corners), FastDivisor(op.lattice.points),
                 FastDivisor(op.lattice.tile_points));
  return cudaGetLastError();
}

cudaError_t point_factors(Normalization normalization, int points, const float* response,
                          float* before, float* after, cudaStream_t stream) {
  FASTSEG_LAUNCH(mean_field_factors, blocks_for(points), kThreads, 0, stream, normalization, points,
                 response, before, after);
  return cudaGetLastError();
}

cudaError_t make_mixing(const Mixing& op, cudaStream_t stream) {
  const int64_t pitch = label_packs(op.labels) * 4;
  const bool full = op.compatibility.kind == Compatibility::Kind::full;
  FASTSEG_LAUNCH(mean_field_mixing, blocks_for(full ? pitch * pitch : pitch), kThreads, 0, stream,
                 op, FastDivisor(pitch));
  return cudaGetLastError();
}

cudaError_t mix_rows(const float* matrix, int64_t rows, int packs, const float* in, float* out,
                     cudaStream_t stream) {
  FASTSEG_LAUNCH(mean_field_mix, blocks_for(rows * packs), kThreads, 0, stream, matrix,
                 rows * packs, FastDivisor(packs), in, out);
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
