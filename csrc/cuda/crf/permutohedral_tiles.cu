// The rows of every tile and the vertices that points touch, numbered by their first entries.
//
// find_rows: a block a group (permutohedral_lattice.h). A table in shared memory finds the entries
// that share a vertex; the first of them is the vertex' row, and rows are numbered in their order.
// Each row, not each entry, then goes into the device's table: points of a tile share most
// vertices. count_touched, number_touched: a vertex is new where its first row stands, and as rows
// are in the order of entries within their tile, and tiles in that of points, prefix sums over the
// groups number vertices by first entries: the result does not depend on the order of threads.
//
// Floor: 4 (d + 1) bytes in and as many out for each point; a row touches a slot of the table and,
// in another tile than its first, another point's simplex.

#include "common/crf/permutohedral.h"
#include "common/host_device.h"
#include "cuda/crf/block_scan.h"
#include "cuda/crf/hash_table.h"
#include "cuda/crf/permutohedral_groups.h"
#include "cuda/crf/permutohedral_keys.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

constexpr size_t kScanBytes = kMaxWarps * sizeof(int);

// At most two thirds full.
FASTSEG_HOST_DEVICE int tile_table_size(int entries) { return entries + entries / 2; }

// A slot that holds a row instead of its entry.
__device__ inline int as_row(int value) { return kEmptySlot - 1 - value; }

// 5 blocks, 48 registers: ptxas aims at 32 by itself and spills.
template <int D>
__global__ void __launch_bounds__(kLatticeThreads, 5)
    tile_rows_hash(LatticeRows op, Groups groups, VertexSources sources, unsigned table_size) {
  FASTSEG_DYNAMIC_SHARED(int, partial);
  const Group group = groups[blockIdx.x];
  const int entries = group.points * (D + 1), first = group.point * (D + 1), t = threadIdx.x;
  int* const simplices = partial + kMaxWarps;
  int* const entry_slots = simplices + entries;
  const HashTable rows{entry_slots + entries, static_cast<unsigned>(tile_table_size(entries))};
  const HashTable vertices{op.table, table_size};
  for (int i = t; i < entries; i += kLatticeThreads) simplices[i] = op.simplices[first + i];
  for (unsigned i = t; i < rows.size; i += kLatticeThreads) rows.slots[i] = kEmptySlot;
  __syncthreads();
  for (int e = t; e < entries; e += kLatticeThreads) {
    const VertexKey<D> key = key_of_corner<D>(simplices, e);
    entry_slots[e] = insert_lowest(
        rows, key.hash(), e, [&](int other) { return key == key_of_corner<D>(simplices, other); });
  }
  int count = 0;
  for (int begin = 0; begin < entries; begin += kLatticeThreads) {
    __syncthreads();  // the entries' slots, then the rows that the last round put there
    const int e = begin + t;
    // Of a vertex' entries only this one finds itself, before it puts a row there and after.
    const bool is_first = e < entries && rows.slots[entry_slots[e]] == e;
    const BlockSums firsts = block_scan(is_first, partial);
    if (is_first) {
      const int row = count + firsts.before;
      rows.slots[entry_slots[e]] = as_row(row);
      VertexKey<D> key = key_of_corner<D>(simplices, e);
      key.image = group.image;
      op.row_entries[first + row] = first + e;
      op.row_slots[first + row] = insert_lowest(vertices, key.hash(), first + e, [&](int other) {
        return key == sources.of_entry<D>(other);
      });
    }
    count += firsts.total;
  }
  if (group.tile < 0) return;
  __syncthreads();
  int* const slots =
      op.slots + int64_t{first} - int64_t{group.image} * (groups.padded - groups.points) * (D + 1);
  for (int e = t; e < entries; e += kLatticeThreads) slots[e] = as_row(rows.slots[entry_slots[e]]);
  if (t == 0) op.tile_starts[group.tile] = count;
}

// The first entry of a group, and its rows.
struct GroupRows {
  int first, count;

  __device__ GroupRows(const Group& group, const int* tile_starts, int corners)
      : first(group.point * corners),
        count(group.tile < 0 ? corners : tile_starts[group.tile + 1] - tile_starts[group.tile]) {}
};

__global__ void __launch_bounds__(kLatticeThreads)
    count_touched_kernel(LatticeRows op, Groups groups, int corners) {
  FASTSEG_DYNAMIC_SHARED(int, partial);
  const GroupRows rows(groups[blockIdx.x], op.tile_starts, corners);
  int count = 0;
  for (int row = threadIdx.x; row < rows.count; row += kLatticeThreads) {
    const int at = rows.first + row, slot = op.row_slots[at];
    if (op.table[slot] != op.row_entries[at]) continue;
    op.row_slots[at] = ~slot;
    ++count;
  }
  const BlockSums sums = block_scan(count, partial);
  if (threadIdx.x == 0) op.group_vertices[blockIdx.x] = sums.total;
}

__global__ void __launch_bounds__(kLatticeThreads)
    number_touched_kernel(LatticeRows op, Groups groups, int corners, int* touched) {
  FASTSEG_DYNAMIC_SHARED(int, partial);
  const GroupRows rows(groups[blockIdx.x], op.tile_starts, corners);
  int vertex = op.group_vertices[blockIdx.x];
  for (int begin = 0; begin < rows.count; begin += kLatticeThreads) {
    const int row = begin + threadIdx.x, at = rows.first + row;
    const int slot = row < rows.count ? op.row_slots[at] : 0;
    const BlockSums news = block_scan(slot < 0, partial);
    if (slot < 0) {
      op.table[~slot] = vertex + news.before;
      touched[vertex + news.before] = op.row_entries[at];
    }
    vertex += news.total;
  }
}

__global__ void __launch_bounds__(kLatticeThreads)
    summarize_kernel(LatticeRows op, Groups groups, int batch, int* image_starts, int* row_count) {
  const int image = static_cast<int>(lattice_thread());
  if (image > batch) return;
  image_starts[image] = op.group_vertices[image * groups.per_image];
  if (image == batch) *row_count = op.tile_starts[batch * groups.tiles];
}

// One thread.
__global__ void bound_counts_kernel(LatticeCounts op) {
  const int touched = *op.touched, vertices = touched + (op.added == nullptr ? 0 : *op.added);
  const bool overflows = vertices > op.most_vertices;
  *op.out = {*op.rows, overflows ? op.most_vertices : vertices,
             overflows || *op.first_bad < op.points};
}

}  // namespace

cudaError_t find_rows(const LatticeShape& shape, const LatticeRows& rows, cudaStream_t stream) {
  const VertexSources sources{rows.simplices, nullptr, FastDivisor(shape.padded())};
  const int entries = static_cast<int>(shape.tile_points) * (shape.d + 1);
  const size_t shared = kScanBytes + (2 * entries + tile_table_size(entries)) * sizeof(int);
  permutohedral::with_dimensions(shape.d, [&]<int D>() {
    FASTSEG_LAUNCH(tile_rows_hash<D>, static_cast<unsigned>(shape.groups()), kLatticeThreads,
                   shared, stream, rows, Groups(shape), sources,
                   static_cast<unsigned>(shape.table_size()));
  });
  return cudaGetLastError();
}

cudaError_t count_touched(const LatticeShape& shape, const LatticeRows& rows, cudaStream_t stream) {
  FASTSEG_LAUNCH(count_touched_kernel, static_cast<unsigned>(shape.groups()), kLatticeThreads,
                 kScanBytes, stream, rows, Groups(shape), shape.d + 1);
  return cudaGetLastError();
}

cudaError_t summarize(const LatticeShape& shape, const LatticeRows& rows, int* image_starts,
                      int* row_count, cudaStream_t stream) {
  FASTSEG_LAUNCH(summarize_kernel, lattice_blocks(shape.batch + 1), kLatticeThreads, 0, stream,
                 rows, Groups(shape), static_cast<int>(shape.batch), image_starts, row_count);
  return cudaGetLastError();
}

cudaError_t bound_counts(const LatticeCounts& counts, cudaStream_t stream) {
  FASTSEG_LAUNCH(bound_counts_kernel, 1, 1, 0, stream, counts);
  return cudaGetLastError();
}

cudaError_t number_touched(const LatticeShape& shape, const LatticeRows& rows, int* touched,
                           cudaStream_t stream) {
  FASTSEG_LAUNCH(number_touched_kernel, static_cast<unsigned>(shape.groups()), kLatticeThreads,
                 kScanBytes, stream, rows, Groups(shape), shape.d + 1, touched);
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
