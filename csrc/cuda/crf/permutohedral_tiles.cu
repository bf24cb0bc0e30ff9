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
#include "cuda/crf/hash_table.h"
#include "cuda/crf/permutohedral_groups.h"
#include "cuda/crf/permutohedral_keys.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

// At most two thirds full.
FASTSEG_HOST_DEVICE int tile_table_size(int entries) { return entries + entries / 2; }

// A slot that holds a row instead of its entry.
__device__ inline int as_row(int value) { return kEmptySlot - 1 - value; }

// The entries of a tile that are the first of their vertices, a bit each, and how many lie before
// each word of them.
struct FirstEntries {
  unsigned* words;
  int* before;  // (words + 1)
  int count;

  __device__ FirstEntries(int* memory, int entries)
      : words(reinterpret_cast<unsigned*>(memory)),
        before(memory + words_of(entries)),
        count(words_of(entries)) {}

  FASTSEG_HOST_DEVICE static int words_of(int entries) { return (entries + 31) / 32; }
  FASTSEG_HOST_DEVICE static int memory(int entries) { return 2 * words_of(entries) + 1; }

  // By one warp, once all words are there.
  __device__ void sum() {
    const int lane = threadIdx.x % 32;
    int total = 0;
    for (int begin = 0; begin < count; begin += 32) {
      const int own = begin + lane < count ? __popc(words[begin + lane]) : 0;
      int sum = own;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
      }
      if (begin + lane < count) before[begin + lane] = total + sum - own;
      total += __shfl_sync(~0u, sum, 31);
    }
    if (lane == 0) before[count] = total;
  }

  __device__ int rows() const { return before[count]; }
  __device__ bool has(int e) const { return words[e / 32] >> e % 32 & 1; }
  __device__ int row(int e) const {
    return before[e / 32] + __popc(words[e / 32] & ((1u << e % 32) - 1));
  }
};

// 5 blocks, 48 registers: ptxas aims at 32 by itself and spills.
template <int D>
__global__ void __launch_bounds__(kLatticeThreads, 5)
    tile_rows_hash(LatticeRows op, Groups groups, VertexSources sources, unsigned table_size) {
  FASTSEG_DYNAMIC_SHARED(int, shared);
  const Group group = groups[blockIdx.x];
  const int entries = group.points * (D + 1), first = group.point * (D + 1), t = threadIdx.x;
  FirstEntries firsts(shared, entries);
  int* const simplices = shared + FirstEntries::memory(entries);
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
  __syncthreads();
  for (int begin = 0; begin < entries; begin += kLatticeThreads) {
    const int e = begin + t;
    const bool is_first = e < entries && rows.slots[entry_slots[e]] == e;
    const unsigned word = __ballot_sync(~0u, is_first);
    if (t % 32 == 0 && e < entries) firsts.words[e / 32] = word;
  }
  __syncthreads();
  if (t < 32) firsts.sum();
  __syncthreads();
  for (int e = t; e < entries; e += kLatticeThreads) {
    if (!firsts.has(e)) continue;
    const int row = firsts.row(e);
    rows.slots[entry_slots[e]] = as_row(row);
    VertexKey<D> key = key_of_corner<D>(simplices, e);
    key.image = group.image;
    op.row_entries[first + row] = first + e;
    op.row_slots[first + row] = insert_lowest(vertices, key.hash(), first + e, [&](int other) {
      return key == sources.of_entry<D>(other);
    });
  }
  if (group.tile < 0) return;
  __syncthreads();
  int* const slots =
      op.slots + int64_t{first} - int64_t{group.image} * (groups.padded - groups.points) * (D + 1);
  for (int e = t; e < entries; e += kLatticeThreads) slots[e] = as_row(rows.slots[entry_slots[e]]);
  if (t == 0) op.tile_starts[group.tile] = firsts.rows();
}

// The first entry of a group, and its rows.
struct GroupRows {
  int first, count;

  __device__ GroupRows(const Group& group, const int* tile_starts, int corners)
      : first(group.point * corners),
        count(group.tile < 0 ? corners : tile_starts[group.tile + 1] - tile_starts[group.tile]) {}
};

// A group's rows are few: a warp handles them.
struct WarpOfGroup {
  static constexpr int kGroups = kLatticeThreads / 32;  // of a block

  int group, lane;

  __device__ WarpOfGroup()
      : group(static_cast<int>(lattice_thread() / 32)), lane(threadIdx.x % 32) {}

  static unsigned blocks(int64_t groups) {
    return static_cast<unsigned>((groups + kGroups - 1) / kGroups);
  }
};

__global__ void __launch_bounds__(kLatticeThreads)
    count_touched_kernel(LatticeRows op, Groups groups, int corners, int count) {
  const WarpOfGroup warp;
  if (warp.group >= count) return;
  const GroupRows rows(groups[warp.group], op.tile_starts, corners);
  int vertices = 0;
  for (int begin = 0; begin < rows.count; begin += 32) {
    const int row = begin + warp.lane, at = rows.first + row;
    const int slot = row < rows.count ? op.row_slots[at] : 0;
    const bool is_first = row < rows.count && op.table[slot] == op.row_entries[at];
    if (is_first) op.row_slots[at] = ~slot;
    vertices += __popc(__ballot_sync(~0u, is_first));
  }
  if (warp.lane == 0) op.group_vertices[warp.group] = vertices;
}

__global__ void __launch_bounds__(kLatticeThreads)
    number_touched_kernel(LatticeRows op, Groups groups, int corners, int count, int* touched) {
  const WarpOfGroup warp;
  if (warp.group >= count) return;
  const GroupRows rows(groups[warp.group], op.tile_starts, corners);
  int vertex = op.group_vertices[warp.group];
  for (int begin = 0; begin < rows.count; begin += 32) {
    const int row = begin + warp.lane, at = rows.first + row;
    const int slot = row < rows.count ? op.row_slots[at] : 0;
    const unsigned firsts = __ballot_sync(~0u, slot < 0);
    if (slot < 0) {
      const int number = vertex + __popc(firsts & ((1u << warp.lane) - 1));
      op.table[~slot] = number;
      touched[number] = op.row_entries[at];
    }
    vertex += __popc(firsts);
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
             overflows || *op.first_bad != kNoBadPoint};
}

}  // namespace

cudaError_t find_rows(const LatticeShape& shape, const LatticeRows& rows, cudaStream_t stream) {
  const VertexSources sources{rows.simplices, nullptr, FastDivisor(shape.padded())};
  const int entries = static_cast<int>(shape.tile_points) * (shape.d + 1);
  const int words = FirstEntries::memory(entries) + 2 * entries + tile_table_size(entries);
  permutohedral::with_dimensions(shape.d, [&]<int D>() {
    FASTSEG_LAUNCH(tile_rows_hash<D>, static_cast<unsigned>(shape.groups()), kLatticeThreads,
                   words * sizeof(int), stream, rows, Groups(shape), sources,
                   static_cast<unsigned>(shape.table_size()));
  });
  return cudaGetLastError();
}

cudaError_t count_touched(const LatticeShape& shape, const LatticeRows& rows, cudaStream_t stream) {
  FASTSEG_LAUNCH(count_touched_kernel, WarpOfGroup::blocks(shape.groups()), kLatticeThreads, 0,
                 stream, rows, Groups(shape), shape.d + 1, static_cast<int>(shape.groups()));
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
  FASTSEG_LAUNCH(number_touched_kernel, WarpOfGroup::blocks(shape.groups()), kLatticeThreads, 0,
                 stream, rows, Groups(shape), shape.d + 1, static_cast<int>(shape.groups()),
                 touched);
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
