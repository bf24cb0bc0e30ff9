// The neighbours of every vertex. A thread looks for one vertex' neighbour forward along one axis,
// and tells it, if it finds it, who is back.
//
// Floor: 8 (d + 1) bytes out for each vertex. Where vertices are many, the look-ups cost: a slot of
// the table and, where that is not empty, a point's simplex.

#include "common/crf/permutohedral.h"
#include "cuda/crf/hash_table.h"
#include "cuda/crf/permutohedral_groups.h"
#include "cuda/crf/permutohedral_keys.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

template <int D>
__global__ void __launch_bounds__(kLatticeThreads)
    index_hash(const int* of_vertices, HashTable table, VertexSources sources, DeviceCount count) {
  const int vertex = static_cast<int>(lattice_thread());
  if (vertex >= count()) return;
  const VertexKey<D> key = sources.operator()<D>(of_vertices[vertex]);
  insert_lowest(table, key.hash(), vertex, [](int) { return false; });  // no two are the same
}

// The grid's rows are the axes.
__global__ void __launch_bounds__(kLatticeThreads)
    none_back_kernel(int* neighbors, DeviceCount count) {
  const int vertex = static_cast<int>(lattice_thread()), none = count.most;
  if (vertex < count()) neighbors[int64_t{2} * blockIdx.y * none + vertex] = none;
}

template <int D>
__global__ void __launch_bounds__(kLatticeThreads)
    neighbors_hash(const int* of_vertices, HashTable table, VertexSources sources,
                   DeviceCount count, int* neighbors) {
  const int vertex = static_cast<int>(lattice_thread()), axis = blockIdx.y, none = count.most;
  if (vertex >= count()) return;
  const VertexKey<D> key = sources.operator()<D>(of_vertices[vertex]).step(axis, true);
  const int found = find(table, key.hash(), [&](int other) {
    return key == sources.operator()<D>(of_vertices[other]);
  });
  int* const back = neighbors + int64_t{2} * axis * none;
  int* const forward = back + none;
  forward[vertex] = found == kEmptySlot ? none : found;
  if (found != kEmptySlot) back[found] = vertex;
}

HashTable table_of(const LatticeIndex& index) {
  return {index.table, static_cast<unsigned>(index.table_size)};
}

VertexSources sources_of(const LatticeShape& shape, const LatticeIndex& index) {
  return {index.simplices, index.touched, FastDivisor(shape.padded())};
}

}  // namespace

cudaError_t index_vertices(const LatticeShape& shape, const LatticeIndex& index,
                           cudaStream_t stream) {
  permutohedral::with_dimensions(shape.d, [&]<int D>() {
    FASTSEG_LAUNCH(index_hash<D>, lattice_blocks(index.vertices.most), kLatticeThreads, 0, stream,
                   index.sources, table_of(index), sources_of(shape, index), index.vertices);
  });
  return cudaGetLastError();
}

cudaError_t find_neighbors(const LatticeShape& shape, const LatticeIndex& index, int* neighbors,
                           cudaStream_t stream) {
  const DeviceCount count = index.vertices;
  const dim3 grid(lattice_blocks(count.most), static_cast<unsigned>(shape.d + 1));
  FASTSEG_LAUNCH(none_back_kernel, grid, kLatticeThreads, 0, stream, neighbors, count);
  permutohedral::with_dimensions(shape.d, [&]<int D>() {
    FASTSEG_LAUNCH(neighbors_hash<D>, grid, kLatticeThreads, 0, stream, index.sources,
                   table_of(index), sources_of(shape, index), count, neighbors);
  });
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
