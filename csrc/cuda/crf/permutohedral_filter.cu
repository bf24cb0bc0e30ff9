// The filter: rows[r] = sum of weight * value over the entries of row r (splat); reduce and blur
// (permutohedral_blur.h); out[p] = gain * sum over corners of weight * vertex row (slice). And the
// weights' gradient: gain * (grad_p . value_rows[vertex] + value_p . grad_rows[vertex]).
//
// Values are planes (C, N), rows have the channels side by side. Both kernels that go between the
// two turn them in shared memory, so that global memory is read and written along the planes, and
// rows 16 bytes an instruction. In shared memory a point's packs are an odd number, so that eight
// neighbouring points lie in different banks.
//
// Splat: a block is a tile. It loads the tile's values, and a thread sums a pack of a row over the
// row's entries, in their order: no atomics, and each row is written once, however many entries it
// has. Tiles too large for shared memory (a lattice built elsewhere): the values come from global
// memory, point by point.
//
// Floor for N points, C channels, float32: splat 4 N C in and 8 N (d + 1) of entries, rows out;
// slice 4 N C out and 8 N (d + 1) of slots and weights, and the gather of 4 C N (d + 1) bytes from
// the caches. 500x375x21, d = 5: 16 + 9 MB, 16 + 9 MB and 95 MB; 2 N C (d + 1) FLOPs each, 47 M.

#include <algorithm>

#include "cuda/crf/permutohedral_blur.h"
#include "cuda/crf/permutohedral_filter.h"
#include "cuda/crf/permutohedral_splat_slice.h"
#include "cuda/fast_divisor.h"
#include "cuda/launch.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSlicePoints = 64;  // a block's; they lie in one tile
constexpr int kMaxCorners = 9;

// The planes of the channels [channel, channel + count).
template <class T>
struct ChannelPlanes {
  const T* values;
  int channels, points;  // of the tensor
  int channel, count;

  // Four neighbouring channels, or one, of a point.
  template <int V>
  __device__ Pack<T, V> at(int image, int point, int pack) const {
    Pack<T, V> out{};
    const int64_t plane = int64_t{image} * channels + channel + pack * V;
#pragma unroll
    for (int k = 0; k < V; ++k) {
      if (pack * V + k < count) out.v[k] = values[(plane + k) * points + point];
    }
    return out;
  }
};

template <class T>
struct Splat {
  LatticeView<T> lattice;
  const SplatEntry<T>* entries;
  const int* starts;
  ChannelPlanes<T> planes;
  FastDivisor packs, tile_points;
  DeviceCount row_count;
  T* rows;
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads) permutohedral_tile_splat(Splat<T> op) {
  FASTSEG_DYNAMIC_SHARED(T, staged);  // (points, odd packs)
  const LatticeTile tile = op.lattice.tile(blockIdx.x);
  const int pitch = odd(op.packs) * V, begin = tile.first - tile.image * op.lattice.points;
  for (int i = threadIdx.x; i < op.tile_points * op.packs; i += kThreads) {
    const int pack = i / op.tile_points, p = i - pack * op.tile_points;
    if (p < tile.points) {
      store_pack(staged + p * pitch + pack * V,
                 op.planes.template at<V>(tile.image, begin + p, pack));
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < tile.rows * op.packs; i += kThreads) {
    const int r = i / op.packs, row = tile.row + r, channel = (i - r * op.packs) * V;
    store_pack_global(op.rows + int64_t{row} * op.packs * V + channel,
                      splat_row<V>(op.entries, op.starts, row, staged, tile.first, pitch, channel));
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) permutohedral_any_splat(Splat<T> op) {
  const int index = blockIdx.x * kThreads + threadIdx.x, row = index / op.packs;
  if (row >= op.row_count()) return;
  const int pack = index - row * op.packs, first = op.starts[row], last = op.starts[row + 1];
  const int image = first < last ? op.entries[first].point / op.lattice.points : 0;
  Pack<T, V> sum{};
  for (int e = first; e < last; ++e) {
    const SplatEntry<T> entry = op.entries[e];
    const int point = entry.point - image * op.lattice.points;
    sum.add(entry.weight, op.planes.template at<V>(image, point, pack));
  }
  store_pack_global(op.rows + int64_t{index} * V, sum);
}

// Points [begin, begin + count) of an image, those of a block of slice.
struct Block {
  int image, begin, count;
  int64_t first_entry;
  int row, rows;  // of the tile that they lie in

  template <class T>
  __device__ explicit Block(const LatticeView<T>& lattice) {
    const int per_image = (lattice.points + kSlicePoints - 1) / kSlicePoints;
    image = blockIdx.x / per_image;
    begin = (blockIdx.x - image * per_image) * kSlicePoints;
    const int left = lattice.points - begin;
    count = left < kSlicePoints ? left : kSlicePoints;
    first_entry = (int64_t{image} * lattice.points + begin) * lattice.corners;
    const int tile = image * lattice.tiles_per_image + begin / lattice.tile_points;
    row = lattice.tile_starts[tile];
    rows = lattice.tile_starts[tile + 1] - row;
  }
};

// The vertex of an entry of the block. The order's kernel has checked the slot.
template <class T>
__device__ inline int vertex_of(const LatticeView<T>& lattice, const Block& block, int entry) {
  const int vertex = lattice.tile_vertices[block.row + lattice.slots[block.first_entry + entry]];
  FASTSEG_DEVICE_CHECK(
      vertex >= 0 && vertex < lattice.vertices,
      "fastseg::permutohedral_filter: tile_vertices must be from 0 to the vertices");
  return vertex;
}

template <class T>
struct Slice {
  LatticeView<T> lattice;
  FastDivisor packs;
  T gain;
  const T* vertex_rows;
  T* out;
  int channels, channel, count;  // of the channels, as in ChannelPlanes
};

template <class T, int V>
constexpr int slice_bytes(int packs, int corners) {
  return kSlicePoints *
         (odd(packs) * V * static_cast<int>(sizeof(T)) + corners * static_cast<int>(sizeof(int)));
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) permutohedral_slice(Slice<T> op) {
  FASTSEG_DYNAMIC_SHARED(T, turned);  // (points, odd packs)
  const LatticeView<T>& lattice = op.lattice;
  const Block block(lattice);
  const int pitch = odd(op.packs) * V, corners = lattice.corners;
  int* const packs = reinterpret_cast<int*>(turned + kSlicePoints * pitch);
  for (int i = threadIdx.x; i < block.count * corners; i += kThreads) {
    packs[i] = vertex_of(lattice, block, i) * op.packs;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < block.count * op.packs; i += kThreads) {
    const int p = i / op.packs, channel = (i - p * op.packs) * V;
    const T* weights = lattice.barycentric + block.first_entry + p * corners;
    const int* const simplex = packs + p * corners;
    const auto corner = [=](int c) { return SliceEntry<T>{weights[c], simplex[c]}; };
    Pack<T, V> sum = slice_point<V>(corners, corner, op.vertex_rows + channel);
#pragma unroll
    for (int k = 0; k < V; ++k) sum.v[k] *= op.gain;
    store_pack(turned + p * pitch + channel, sum);
  }
  __syncthreads();
  T* const out = op.out + (int64_t{block.image} * op.channels + op.channel) * lattice.points;
  for (int i = threadIdx.x; i < kSlicePoints * op.packs; i += kThreads) {
    const int pack = i / kSlicePoints, p = i % kSlicePoints;
    if (p >= block.count) continue;
    const Pack<T, V> values = load_pack<V>(turned + p * pitch + pack * V);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const int channel = pack * V + k;
      if (channel < op.count) {
        out[int64_t{channel} * lattice.points + block.begin + p] = values.v[k];
      }
    }
  }
}

template <class T>
struct WeightGradient {
  LatticeView<T> lattice;
  ChannelPlanes<T> grad, values;
  const T* grad_rows;
  const T* value_rows;
  int packs;
  T gain;
  T* out;
};

// A thread is an entry; neighbouring threads are neighbouring points. 2 blocks: ptxas aims at 32
// registers by itself and spills.
template <class T, int V>
__global__ void __launch_bounds__(kSlicePoints* kMaxCorners, 2)
    permutohedral_weight_gradient(WeightGradient<T> op) {
  const LatticeView<T>& lattice = op.lattice;
  const Block block(lattice);
  const int p = threadIdx.x % kSlicePoints, corner = threadIdx.x / kSlicePoints;
  if (p >= block.count) return;
  const int entry = p * lattice.corners + corner, point = block.begin + p;
  const int64_t row = int64_t{vertex_of(lattice, block, entry)} * op.packs * V;
  T sum = 0;
  for (int pack = 0; pack < op.packs; ++pack) {
    const Pack<T, V> grad = op.grad.template at<V>(block.image, point, pack);
    const Pack<T, V> value = op.values.template at<V>(block.image, point, pack);
    const Pack<T, V> of_value = load_pack<V>(op.value_rows + row + pack * V);
    const Pack<T, V> of_grad = load_pack<V>(op.grad_rows + row + pack * V);
#pragma unroll
    for (int k = 0; k < V; ++k) sum += grad.v[k] * of_value.v[k] + value.v[k] * of_grad.v[k];
  }
  T* const out = op.out + block.first_entry + entry;
  const T before = op.grad.channel == 0 ? T{0} : *out;  // of the chunks before
  *out = before + sum * op.gain;
}

// A filter's chunk of channels.
template <class T, int V>
class Chunk {
 public:
  Chunk(const FilterJob<T>& job, int channel, cudaStream_t stream)
      : job_(job),
        channel_(channel),
        count_(std::min(kChannelChunk, job.channels - channel)),
        shape_{(count_ + V - 1) / V, 1},
        stream_(stream) {}

  ChannelPlanes<T> planes(const T* values) const {
    return {values, job_.channels, job_.lattice.points, channel_, count_};
  }

  // Splat and blur; *rows is set to the result, in `buffers`.
  cudaError_t blurred(const BlurOptions& options, const T* values, T* buffers, T** rows) const {
    const LatticeView<T>& lattice = job_.lattice;
    const int packs = shape_.packs;
    const int64_t bytes = int64_t{lattice.tile_points} * odd(packs) * V * sizeof(T);
    const Splat<T> op{lattice,
                      job_.order.entries,
                      job_.order.starts,
                      planes(values),
                      FastDivisor(packs),
                      FastDivisor(lattice.tile_points),
                      lattice.row_count(),
                      job_.rows};
    if (bytes <= kMaxSharedBytes) {
      const auto kernel = permutohedral_tile_splat<T, V>;
      const cudaError_t error = allow_shared(kernel, bytes);
      if (error != cudaSuccess) return error;
      FASTSEG_LAUNCH(kernel, lattice.tiles(), kThreads, bytes, stream_, op);
    } else {
      const int64_t items = int64_t{lattice.rows} * packs;
      FASTSEG_LAUNCH((permutohedral_any_splat<T, V>),
                     static_cast<unsigned>((items + kThreads - 1) / kThreads), kThreads, 0, stream_,
                     op);
    }
    VertexJob<T> vertices{&lattice, shape_, options, job_.rows, buffers, nullptr};
    const cudaError_t error = reduce_and_blur<T, V>(&vertices, 1, stream_);
    *rows = vertices.result;
    return error;
  }

  cudaError_t slice(const T* rows) const {
    const LatticeView<T>& lattice = job_.lattice;
    const Slice<T> op{
        lattice, FastDivisor(shape_.packs), job_.gain, rows, job_.out, job_.channels, channel_,
        count_};
    FASTSEG_LAUNCH((permutohedral_slice<T, V>), blocks(), kThreads,
                   (slice_bytes<T, V>(shape_.packs, lattice.corners)), stream_, op);
    return cudaGetLastError();
  }

  cudaError_t weight_gradient(const FilterGradient<T>& op, const T* grad_rows,
                              const T* value_rows) const {
    const WeightGradient<T> gradient{job_.lattice, planes(op.grad),    planes(job_.values),
                                     grad_rows,    value_rows,         shape_.packs,
                                     job_.gain,    op.grad_barycentric};
    FASTSEG_LAUNCH((permutohedral_weight_gradient<T, V>), blocks(),
                   kSlicePoints * job_.lattice.corners, 0, stream_, gradient);
    return cudaGetLastError();
  }

 private:
  unsigned blocks() const {
    const LatticeView<T>& lattice = job_.lattice;
    return lattice.images * ((lattice.points + kSlicePoints - 1) / kSlicePoints);
  }

  const FilterJob<T>& job_;
  int channel_, count_;
  RowShape shape_;
  cudaStream_t stream_;
};

template <class T, int V>
cudaError_t filter(const FilterJob<T>& job, cudaStream_t stream) {
  cudaError_t error = order_entries(job.lattice, job.order, stream);
  for (int c = 0; c < job.channels && error == cudaSuccess; c += kChannelChunk) {
    const Chunk<T, V> chunk(job, c, stream);
    T* rows;
    error = chunk.blurred(job.options, job.values, job.buffers, &rows);
    if (error == cudaSuccess) error = chunk.slice(rows);
  }
  return error;
}

template <class T, int V>
cudaError_t backward(const FilterJob<T>& job, const FilterGradient<T>& op, cudaStream_t stream) {
  BlurOptions transposed = job.options;
  transposed.reverse = !job.options.reverse;
  cudaError_t error = order_entries(job.lattice, job.order, stream);
  for (int c = 0; c < job.channels && error == cudaSuccess; c += kChannelChunk) {
    const Chunk<T, V> chunk(job, c, stream);
    T *grad_rows, *value_rows;
    error = chunk.blurred(transposed, op.grad, op.buffers, &grad_rows);
    if (error == cudaSuccess) {
      error = chunk.blurred(job.options, job.values, job.buffers, &value_rows);
    }
    if (error == cudaSuccess) error = chunk.slice(grad_rows);
    if (error == cudaSuccess) error = chunk.weight_gradient(op, grad_rows, value_rows);
  }
  return error;
}

}  // namespace

template <class T>
cudaError_t permutohedral_filter(const FilterJob<T>& job, cudaStream_t stream) {
  return job.channels == 1 ? filter<T, 1>(job, stream) : filter<T, 4>(job, stream);
}

template <class T>
cudaError_t permutohedral_filter_backward(const FilterJob<T>& job, const FilterGradient<T>& op,
                                          cudaStream_t stream) {
  return job.channels == 1 ? backward<T, 1>(job, op, stream) : backward<T, 4>(job, op, stream);
}

#define FASTSEG_INSTANTIATE(T)                                                  \
  template cudaError_t permutohedral_filter(const FilterJob<T>&, cudaStream_t); \
  template cudaError_t permutohedral_filter_backward(const FilterJob<T>&,       \
                                                     const FilterGradient<T>&, cudaStream_t);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cuda
