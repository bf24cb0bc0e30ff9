// The vertex of every row, and the rows in order of their vertices, ascending for each.
//
// Rows are counted for each vertex, placed in the order of the threads, and each vertex' rows then
// sorted. A vertex has few rows, unless the points of many tiles share its neighbourhood: few are
// sorted by a thread, many by a warp with a bitonic network, which takes n log^2 n steps and not
// n^2.
//
// Floor: 4 bytes in and 8 out for each row, 4 out for each vertex.

#include "cuda/crf/permutohedral_groups.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

constexpr int kRowsOfOneThread = 16;

// A block makes the rows of a tile. An atomic's result is the row's place among its vertex'.
__global__ void __launch_bounds__(kLatticeThreads)
    tile_vertices_kernel(LatticeVertexRows op, Groups groups, int corners) {
  const Group group = groups[blockIdx.x];
  if (group.tile < 0) return;
  const int begin = op.tile_starts[group.tile], end = op.tile_starts[group.tile + 1];
  const int added = op.added_starts ? op.added_starts[group.image] : 0;
  for (int row = begin + threadIdx.x; row < end; row += kLatticeThreads) {
    const int slot = op.row_slots[group.point * corners + row - begin];
    int vertex = op.table[slot < 0 ? ~slot : slot] + added;
    if (vertex >= op.vertices.most) vertex = op.vertices.most - 1;  // of a lattice that has failed
    op.tile_vertices[row] = vertex;
    op.places[row] = atomicAdd(op.vertex_starts + vertex, 1);
  }
}

__global__ void __launch_bounds__(kLatticeThreads) place_rows_kernel(LatticeVertexRows op) {
  const int row = static_cast<int>(lattice_thread());
  if (row < op.rows())
    op.vertex_rows[op.vertex_starts[op.tile_vertices[row]] + op.places[row]] = row;
}

__device__ inline void insertion_sort(int* rows, int count) {
  for (int i = 1; i < count; ++i) {
    const int row = rows[i];
    int k = i;
    for (; k > 0 && rows[k - 1] > row; --k) rows[k] = rows[k - 1];
    rows[k] = row;
  }
}

// By the calling warp. Every exchange puts the lesser row first, so that rows beyond `count`, taken
// as larger than all, would stay where they are.
__device__ inline void bitonic_sort(int* rows, int count) {
  const int lane = threadIdx.x % 32;
  const unsigned end = static_cast<unsigned>(count);
  for (unsigned size = 2; size < 2 * end; size *= 2) {
    for (unsigned stride = size / 2; stride > 0; stride /= 2) {
      for (unsigned i = lane;; i += 32) {
        const unsigned low = 2 * i - (i & (stride - 1));
        if (low >= end) break;
        // The first step of a merge mirrors the second half.
        const unsigned high = 2 * stride == size ? low ^ (size - 1) : low + stride;
        if (high >= end) continue;
        const int a = rows[low], b = rows[high];
        if (b < a) rows[low] = b, rows[high] = a;
      }
      __syncwarp();
    }
  }
}

// A warp sorts the rows of 32 vertices.
__global__ void __launch_bounds__(kLatticeThreads)
    sort_rows_kernel(const int* vertex_starts, int* vertex_rows, DeviceCount vertices) {
  const int64_t vertex = lattice_thread();
  const int count = vertices();
  const int begin = vertex < count ? vertex_starts[vertex] : 0;
  const int rows = vertex < count ? vertex_starts[vertex + 1] - begin : 0;
  if (rows <= kRowsOfOneThread) insertion_sort(vertex_rows + begin, rows);
  unsigned left = __ballot_sync(~0u, rows > kRowsOfOneThread);
  for (; left; left &= left - 1) {
    const int lane = __popc((left & -left) - 1);
    const int from = __shfl_sync(~0u, begin, lane);
    bitonic_sort(vertex_rows + from, __shfl_sync(~0u, rows, lane));
  }
}

}  // namespace

cudaError_t count_vertex_rows(const LatticeShape& shape, const LatticeVertexRows& rows,
                              cudaStream_t stream) {
  FASTSEG_LAUNCH(tile_vertices_kernel, static_cast<unsigned>(shape.groups()), kLatticeThreads, 0,
                 stream, rows, Groups(shape), shape.d + 1);
  return cudaGetLastError();
}

cudaError_t sort_vertex_rows(const LatticeVertexRows& op, cudaStream_t stream) {
  FASTSEG_LAUNCH(place_rows_kernel, lattice_blocks(op.rows.most), kLatticeThreads, 0, stream, op);
  FASTSEG_LAUNCH(sort_rows_kernel, lattice_blocks(op.vertices.most), kLatticeThreads, 0, stream,
                 static_cast<const int*>(op.vertex_starts), op.vertex_rows, op.vertices);
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
