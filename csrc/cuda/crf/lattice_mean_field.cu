// Slice, softmax and splat of a tile of points in one kernel:
//
//   x_i = unary_i + sum_m scale_m sum_c slice_imc vertices_m[vertex_imc] + sum_s scale_s after_is
//   out_is Q_i = softmax(x_i) sums_m[r] = sum over the entries e of row r of splat_e Q[point_e];
//   in_s = before_s Q
//
// A block is a tile of up to 128 points, a compact part of an image (pixel_strips.h). G lanes, a
// power of two, share a point: each holds a pack of four labels, sums its corners' rows, and the
// softmax is a few exchanges. Q goes into shared memory alone, with an odd number of packs a point
// against bank conflicts. There a thread sums a pack of a row of the tile over the row's entries,
// whose order the lattice fixes: no atomics, and a vertex that many of the tile's points touch
// costs one row of global memory. The last pass writes Q, or log Q, instead, through shared memory,
// along the output's own layout.
//
// Floor of an iteration, 500x375x21 with the two default terms (9 corners): a gather of 142 MB of
// rows, of which neighbouring points share most, 142 MB read in shared memory for the splat, 53 MB
// of blur, and streams of 18 MB of unary and 27 MB of entries: 40 to 67 us on an H100, by its
// second-level cache. 9 corners * 2 ways * 21 labels * 2 FLOPs a point are 0.14 GFLOP, 3 us.

#include <algorithm>

#include "cuda/crf/lattice_mean_field.h"
#include "cuda/crf/permutohedral_splat_slice.h"
#include "cuda/fast_divisor.h"
#include "cuda/launch.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 32;
constexpr int kTilePoints = 128, kLeastTilePoints = 64;

using Labels = Pack<float, 4>;

int64_t tile_bytes(int64_t points, int64_t labels) {
  return points * odd(static_cast<int>(label_packs(labels))) * sizeof(Labels);
}

struct Divisors {
  FastDivisor packs, labels, tile_points;
};

// A tile of an image. Points count within the image.
struct PointTile {
  int image, number, begin, count;
};

__device__ inline Labels logits(const MeanFieldPass& op, const PointTile& tile, int point,
                                int packs, int pack) {
  const int64_t at = int64_t{tile.image} * op.points + point;
  const int label = pack * 4;
  Labels x = load_pack<4>(op.unary + at * packs * 4 + label);
  if (!op.has_messages) return x;
  const int pixel = op.separables > 0 ? op.strips.pixel(point) : 0;
  for (int s = 0; s < op.separables; ++s) {
    const SeparableMessages& term = op.separable[s];
    const float after = term.after == nullptr ? 1.f : term.after[pixel];
    const Labels scale = load_pack<4>(term.scale + label);
    const int64_t at_pixel = int64_t{tile.image} * op.points + pixel;
    const Labels out = load_pack<4>(term.out + at_pixel * packs * 4 + label);
#pragma unroll
    for (int k = 0; k < 4; ++k) x.v[k] += scale.v[k] * (after * out.v[k]);
  }
  for (int m = 0; m < op.lattices; ++m) {
    const LatticeMessages& term = op.lattice[m];
    const SliceEntry<float>* entries = term.slice + (term.shared ? point : at) * term.corners;
    const float* vertices = term.vertices + tile.image * term.vertices_copy + label;
    const Labels sum =
        slice_point<4>(term.corners, [entries](int c) { return entries[c]; }, vertices);
    // By lattice: sums without normalisation are so large that another rounding shows in Q.
    const Labels scale = load_pack<4>(term.scale + label);
#pragma unroll
    for (int k = 0; k < 4; ++k) x.v[k] += scale.v[k] * sum.v[k];
  }
  return x;
}

__device__ inline float largest_of(const Labels& x) {
  return fmaxf(fmaxf(x.v[0], x.v[1]), fmaxf(x.v[2], x.v[3]));
}

// x <- e^(x - largest); returns the sum.
__device__ inline float exponentials(Labels& x, float largest) {
  constexpr float kLog2E = 1.44269504f;
#pragma unroll
  for (int k = 0; k < 4; ++k) x.v[k] = exp2f((x.v[k] - largest) * kLog2E);
  return (x.v[0] + x.v[1]) + (x.v[2] + x.v[3]);
}

// Over the G lanes of a point.
template <int G>
__device__ inline float largest_in_group(float x) {
#pragma unroll
  for (int bit = 1; bit < G; bit *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, bit));
  return x;
}
template <int G>
__device__ inline float sum_in_group(float x) {
#pragma unroll
  for (int bit = 1; bit < G; bit *= 2) x += __shfl_xor_sync(~0u, x, bit);
  return x;
}

// Q of a point's pack, to `row` and to the separable filters.
__device__ inline void store_q(const MeanFieldPass& op, const PointTile& tile, int point, int packs,
                               int pack, float inverse, Labels q, float* row) {
#pragma unroll
  for (int k = 0; k < 4; ++k) q.v[k] *= inverse;
  store_pack(row + pack * 4, q);
  if (!op.wants_messages || op.separables == 0) return;
  const int pixel = op.strips.pixel(point);
  const int64_t at = (int64_t{tile.image} * op.points + pixel) * packs * 4 + pack * 4;
  for (int s = 0; s < op.separables; ++s) {
    const SeparableMessages& term = op.separable[s];
    const float before = term.before == nullptr ? 1.f : term.before[pixel];
    Labels in{};
    in.add(before, q);
    store_pack_global(term.in + at, in);
  }
}

// log Q of a point's pack, of its logits.
__device__ inline void store_log_q(int pack, float largest, float log_sum, Labels x, float* row) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const bool ruled_out = x.v[k] < kLeastLogit;
    x.v[k] = ruled_out ? -INFINITY : (x.v[k] - largest) - log_sum;
  }
  store_pack(row + pack * 4, x);
}

// One pack a lane.
template <int G>
__device__ inline void softmax_pack(const MeanFieldPass& op, const PointTile& tile, int point,
                                    int packs, int lane, bool inside, float* row) {
  const bool active = inside && lane < packs;
  Labels x{};
  if (active) x = logits(op, tile, point, packs, lane);
  const float largest = largest_in_group<G>(active ? largest_of(x) : -INFINITY);
  Labels powers = x;
  const float sum = sum_in_group<G>(active ? exponentials(powers, largest) : 0.f);
  if (!active) return;
  if (op.log) {
    store_log_q(lane, largest, logf(sum), x, row);
  } else {
    store_q(op, tile, point, packs, lane, 1.f / sum, powers, row);
  }
}

// Any number of packs a lane: they wait in the row.
template <int G>
__device__ inline void softmax_row(const MeanFieldPass& op, const PointTile& tile, int point,
                                   int packs, int lane, bool inside, float* row) {
  const int last = inside ? packs : 0;
  float largest = -INFINITY, sum = 0;
  for (int pack = lane; pack < last; pack += G) {
    const Labels x = logits(op, tile, point, packs, pack);
    store_pack(row + pack * 4, x);
    largest = fmaxf(largest, largest_of(x));
  }
  largest = largest_in_group<G>(largest);
  for (int pack = lane; pack < last; pack += G) {
    Labels x = load_pack<4>(row + pack * 4);
    sum += exponentials(x, largest);
    if (!op.log) store_pack(row + pack * 4, x);
  }
  sum = sum_in_group<G>(sum);
  for (int pack = lane; pack < last; pack += G) {
    const Labels x = load_pack<4>(row + pack * 4);
    if (op.log) {
      store_log_q(pack, largest, logf(sum), x, row);
    } else {
      store_q(op, tile, point, packs, pack, 1.f / sum, x, row);
    }
  }
}

__device__ inline void splat(const MeanFieldPass& op, const PointTile& tile,
                             const FastDivisor& packs, const float* q, int pitch) {
  for (int m = 0; m < op.lattices; ++m) {
    const LatticeMessages& term = op.lattice[m];
    const int t = (term.shared ? 0 : tile.image * op.tiles_per_image) + tile.number;
    const int first_point = (term.shared ? 0 : tile.image * op.points) + tile.begin;
    const int first_row = term.tile_starts[t], rows = term.tile_starts[t + 1] - first_row;
    float* sums = term.sums + tile.image * term.sums_copy + int64_t{first_row} * packs * 4;
    for (int i = threadIdx.x; i < rows * packs; i += kThreads) {
      const int r = i / packs, label = (i - r * packs) * 4;
      const Labels sum =
          splat_row<4>(term.splat, term.starts, first_row + r, q, first_point, pitch, label);
      store_pack_global(sums + int64_t{i} * 4, sum);
    }
  }
}

// Zero, or NaN where a lattice is none, which the host could not know: Q is then NaN.
__device__ inline float failure(const MeanFieldPass& op) {
  bool failed = false;
  for (int m = 0; m < op.lattices; ++m) {
    const BoundedCounts* counts = op.lattice[m].bounded;
    failed |= counts != nullptr && counts->failed != 0;
  }
  return failed ? NAN : 0.f;
}

__device__ inline void write_q(const MeanFieldPass& op, const PointTile& tile,
                               const Divisors& divide, const float* q, int pitch) {
  const float failed = failure(op);
  if (op.labels_last) {
    float* const out = op.out + int64_t{tile.image} * op.points * op.labels;
    for (int i = threadIdx.x; i < tile.count * op.labels; i += kThreads) {
      const int p = i / divide.labels, label = i - p * op.labels;
      out[int64_t{op.strips.pixel(tile.begin + p)} * op.labels + label] =
          q[p * pitch + label] + failed;
    }
    return;
  }
  float* const out = op.out + int64_t{tile.image} * op.labels * op.points;
  for (int i = threadIdx.x; i < op.tile_points * divide.packs; i += kThreads) {
    const int pack = i / divide.tile_points, place = i - pack * op.tile_points;
    if (place >= tile.count) continue;
    const int p = PixelStrips::along_rows(place, tile.count);
    const int pixel = op.strips.pixel(tile.begin + p);
    const Labels values = load_pack<4>(q + p * pitch + pack * 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int label = pack * 4 + k;
      if (label < op.labels) out[int64_t{label} * op.points + pixel] = values.v[k] + failed;
    }
  }
}

// kOnePack: no more than G packs. kShared: Q stays in shared memory.
template <int G, bool kOnePack, bool kShared>
__global__ void __launch_bounds__(kThreads, 4)
    lattice_mean_field_tile(const MeanFieldPass op, const Divisors divide) {
  FASTSEG_DYNAMIC_SHARED(float, shared);
  const int packs = divide.packs, pitch = (kShared ? odd(packs) : packs) * 4;
  PointTile tile;
  tile.image = blockIdx.x / op.tiles_per_image;
  tile.number = blockIdx.x - tile.image * op.tiles_per_image;
  tile.begin = tile.number * op.tile_points;
  tile.count = op.points - tile.begin;
  if (tile.count > op.tile_points) tile.count = op.tile_points;
  float* q = shared;
  if (!kShared) q = op.q + (int64_t{tile.image} * op.points + tile.begin) * pitch;

  const int lane = threadIdx.x % G;
  for (int first = 0; first < tile.count; first += kThreads / G) {
    const int p = first + threadIdx.x / G, point = tile.begin + p;
    const bool inside = p < tile.count;
    if (kOnePack) {
      softmax_pack<G>(op, tile, point, packs, lane, inside, q + p * pitch);
    } else {
      softmax_row<G>(op, tile, point, packs, lane, inside, q + p * pitch);
    }
  }
  __syncthreads();
  if (op.wants_messages) {
    splat(op, tile, divide.packs, q, pitch);
  } else {
    write_q(op, tile, divide, q, pitch);
  }
}

template <int G, bool kOnePack, bool kShared>
cudaError_t launch_pass(const MeanFieldPass& op, cudaStream_t stream) {
  const auto kernel = lattice_mean_field_tile<G, kOnePack, kShared>;
  const int64_t bytes = kShared ? tile_bytes(op.tile_points, op.labels) : 0;
  const cudaError_t error = allow_shared(kernel, bytes);
  if (error != cudaSuccess) return error;
  const Divisors divide{FastDivisor(label_packs(op.labels)), FastDivisor(op.labels),
                        FastDivisor(op.tile_points)};
  FASTSEG_LAUNCH(kernel, static_cast<unsigned>(op.images * op.tiles_per_image), kThreads, bytes,
                 stream, op, divide);
  return cudaGetLastError();
}

}  // namespace

int64_t mean_field_tile_points(int64_t labels) {
  const bool four_blocks = tile_bytes(kTilePoints, labels) <= kDefaultSharedBytes;
  return four_blocks || !keeps_q(labels) ? kTilePoints : kLeastTilePoints;
}

bool keeps_q(int64_t labels) { return tile_bytes(kLeastTilePoints, labels) <= kMaxSharedBytes; }

cudaError_t mean_field_pass(const MeanFieldPass& op, cudaStream_t stream) {
  const int64_t packs = label_packs(op.labels);
  if (!keeps_q(op.labels)) return launch_pass<kLanes, false, false>(op, stream);
  if (packs > kLanes) return launch_pass<kLanes, false, true>(op, stream);
  if (packs > 16) return launch_pass<32, true, true>(op, stream);
  if (packs > 8) return launch_pass<16, true, true>(op, stream);
  if (packs > 4) return launch_pass<8, true, true>(op, stream);
  if (packs > 2) return launch_pass<4, true, true>(op, stream);
  if (packs > 1) return launch_pass<2, true, true>(op, stream);
  return launch_pass<1, true, true>(op, stream);
}

}  // namespace fastseg::cuda
