// Reduce: out[v] = sum of rows[vertex_rows[k]] over v's segment. A thread makes a pack of a row.
// Blur along one axis: out[v] = in[v] + side (in[back[v]] + in[forward[v]]), a thread a pack, too.
//
// Floor: each tile's row in once and each vertex's row out; a row in and out and two indices for
// each vertex and step, if the neighbours' rows come from the second-level cache: 9 steps of 24
// thousand vertices of 24 channels are 2.3 MB each.

#include "cuda/crf/permutohedral_blur.h"
#include "cuda/fast_divisor.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 4;  // rows of a vertex

template <class T>
struct Reduce {
  const int* vertex_rows;
  const int* vertex_starts;
  int vertices, row_count;
  FastDivisor packs;
  int64_t rows_copy, out_copy;  // elements from copy to copy
  const T* rows;
  T* out;
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads) permutohedral_reduce(Reduce<T> op) {
  const int index = blockIdx.x * kThreads + threadIdx.x, v = index / op.packs;
  if (v > op.vertices) return;
  Pack<T, V> sum{};
  if (v < op.vertices) {
    const int first = op.vertex_starts[v], last = op.vertex_starts[v + 1];
    FASTSEG_DEVICE_CHECK(
        (v > 0 ? first >= 0 : first == 0) && first <= last &&
            (v + 1 < op.vertices ? last <= op.row_count : last == op.row_count),
        "fastseg::permutohedral_filter: vertex_starts must ascend from 0 to the rows");
    const T* rows = op.rows + blockIdx.y * op.rows_copy + (index - v * op.packs) * V;
    // Indices first, then rows: a check between two loads would keep the second one waiting.
    for (int k = first; k < last; k += kAtOnce) {
      int row[kAtOnce];
      bool good = true;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        row[j] = op.vertex_rows[k + j < last ? k + j : k];
        good &= row[j] >= 0 && row[j] < op.row_count;
      }
      FASTSEG_DEVICE_CHECK(good,
                           "fastseg::permutohedral_filter: vertex_rows must be from 0 to the rows");
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (k + j < last) sum.add(T{1}, load_pack<V>(rows + int64_t{row[j]} * op.packs * V));
      }
    }
  }
  store_pack_global(op.out + blockIdx.y * op.out_copy + int64_t{index} * V, sum);
}

template <class T>
struct Blur {
  const int* back;
  const int* forward;
  int vertices;
  FastDivisor packs;
  int64_t copy;  // elements from copy to copy
  T side;
  const T* in;
  const T* mean_with;  // not null: out = (the blurred + mean_with) / 2
  T* out;
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads) permutohedral_blur(Blur<T> op) {
  const int index = blockIdx.x * kThreads + threadIdx.x, v = index / op.packs;
  if (v > op.vertices) return;
  const int64_t copy = blockIdx.y * op.copy, here = copy + int64_t{index} * V;
  Pack<T, V> sum{};
  if (v < op.vertices) {
    const int back = op.back[v], forward = op.forward[v];
    FASTSEG_DEVICE_CHECK(back >= 0 && back <= op.vertices && forward >= 0 && forward <= op.vertices,
                         "fastseg::permutohedral_filter: neighbors must be from 0 to the vertices");
    const T* rows = op.in + copy + (index - v * op.packs) * V;
    sum = load_pack<V>(rows + int64_t{back} * op.packs * V);
    sum.add(T{1}, load_pack<V>(rows + int64_t{forward} * op.packs * V));
    Pack<T, V> out = load_pack<V>(op.in + here);
    out.add(op.side, sum);
    sum = out;
    if (op.mean_with != nullptr) {
      sum.add(T{1}, load_pack<V>(op.mean_with + here));
#pragma unroll
      for (int k = 0; k < V; ++k) sum.v[k] *= T(0.5);
    }
  }
  store_pack_global(op.out + here, sum);
}

dim3 grid(int vertices, const RowShape& shape) {
  const int64_t packs = (int64_t{vertices} + 1) * shape.packs;
  return dim3(static_cast<unsigned>((packs + kThreads - 1) / kThreads), shape.copies);
}

}  // namespace

template <class T, int V>
cudaError_t reduce(const LatticeView<T>& lattice, const RowShape& shape, const T* rows, T* out,
                   cudaStream_t stream) {
  const Reduce<T> op{lattice.vertex_rows,
                     lattice.vertex_starts,
                     lattice.vertices,
                     lattice.rows,
                     FastDivisor(shape.packs),
                     shape.elements<V>(lattice.rows),
                     shape.elements<V>(lattice.vertices + 1),
                     rows,
                     out};
  FASTSEG_LAUNCH((permutohedral_reduce<T, V>), grid(lattice.vertices, shape), kThreads, 0, stream,
                 op);
  return cudaGetLastError();
}

template <class T, int V>
cudaError_t blur(const LatticeView<T>& lattice, const RowShape& shape, const BlurOptions& options,
                 T* values, T* scratch, T** result, cudaStream_t stream) {
  const int64_t copy = shape.elements<V>(lattice.vertices + 1);
  const auto step = [&](int axis, const T* in, const T* mean_with, T* out) {
    const int* back = lattice.neighbors + int64_t{2} * axis * lattice.vertices;
    const Blur<T> op{back,
                     back + lattice.vertices,
                     lattice.vertices,
                     FastDivisor(shape.packs),
                     copy,
                     static_cast<T>(options.side),
                     in,
                     mean_with,
                     out};
    FASTSEG_LAUNCH((permutohedral_blur<T, V>), grid(lattice.vertices, shape), kThreads, 0, stream,
                   op);
  };
  T* const more = options.symmetric ? scratch + copy * shape.copies : nullptr;
  *result = blur_steps(options, lattice.corners, values, scratch, more, step);
  return cudaGetLastError();
}

#define FASTSEG_INSTANTIATE(T, V)                                                                 \
  template cudaError_t reduce<T, V>(const LatticeView<T>&, const RowShape&, const T*, T*,         \
                                    cudaStream_t);                                                \
  template cudaError_t blur<T, V>(const LatticeView<T>&, const RowShape&, const BlurOptions&, T*, \
                                  T*, T**, cudaStream_t);
FASTSEG_INSTANTIATE(float, 1)
FASTSEG_INSTANTIATE(float, 4)
FASTSEG_INSTANTIATE(double, 1)
FASTSEG_INSTANTIATE(double, 4)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cuda
