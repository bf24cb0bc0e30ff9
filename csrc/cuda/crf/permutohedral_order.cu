// Entries sorted by row, stably: a block counts a tile's entries by row, sums the counts, and
// places a chunk of entries after another. A chunk is sorted in shared memory by (slot, position),
// so that an entry's place is its row's cursor plus its position in the chunk's run of that row.
//
// Floor: 4 bytes of slots (read three times, from the caches but for the first) and a weight in, an
// entry of 8 bytes (float64: 16) out. Once for each filter, once for all iterations of a mean
// field. Any size of tile: one of all points of an image is a single block's work, which is slow.

#include <cstdint>

#include "cuda/crf/block_scan.h"
#include "cuda/crf/permutohedral_order.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 1024;  // a power of two; a sort in shared memory
constexpr int kSharedBytes = kChunk * static_cast<int>(sizeof(uint64_t));

// Sorts `size` keys, a power of two: a bitonic network.
__device__ inline void sort_keys(uint64_t* keys, int size) {
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      for (int i = threadIdx.x; i < size / 2; i += kThreads) {
        const int low = i / distance * 2 * distance + i % distance, high = low + distance;
        const uint64_t a = keys[low], b = keys[high];
        if ((a > b) == ((low & run) == 0)) keys[low] = b, keys[high] = a;
      }
      __syncthreads();
    }
  }
}

// How many of the ascending keys are below `key`.
__device__ inline int lower_bound(const uint64_t* keys, int size, uint64_t key) {
  int begin = 0;
  for (int step = size; step > 0; step /= 2) {
    if (begin + step <= size && keys[begin + step - 1] < key) begin += step;
  }
  return begin;
}

// counts[i] = start + the sum of those before i, for the block. partial: as of block_scan.
__device__ inline void sum_before(int* counts, int size, int start, int* partial) {
  for (int base = 0; base < size; base += kThreads) {
    const int i = base + threadIdx.x;
    const BlockSums sums = block_scan(i < size ? counts[i] : 0, partial);
    if (i < size) counts[i] = start + sums.before;
    start += sums.total;
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    permutohedral_order(LatticeView<T> lattice, SplatOrder<T> out) {
  FASTSEG_DYNAMIC_SHARED(uint64_t, keys);
  const int t = blockIdx.x, last = lattice.tiles() - 1;
  const LatticeTile tile = lattice.tile(t);
  const int beyond = lattice.rows - tile.row;
  FASTSEG_DEVICE_CHECK((t > 0 ? tile.row >= 0 && beyond >= 0 : tile.row == 0) && tile.rows >= 0 &&
                           (t < last ? tile.rows <= beyond : tile.rows == beyond),
                       "fastseg::permutohedral_filter: tile_starts must ascend from 0 to the rows");
  const int corners = lattice.corners, count = tile.points * corners;
  const int64_t first = int64_t{tile.first} * corners;
  const int* slots = lattice.slots + first;
  const T* weights = lattice.barycentric + first;
  int* cursors = out.scratch + tile.row;

  for (int r = threadIdx.x; r < tile.rows; r += kThreads) cursors[r] = 0;
  __syncthreads();
  for (int e = threadIdx.x; e < count; e += kThreads) {
    const int slot = slots[e];
    FASTSEG_DEVICE_CHECK(slot >= 0 && slot < tile.rows,
                         "fastseg::permutohedral_filter: slots must be from 0 to a tile's rows");
    atomicAdd(cursors + slot, 1);
  }
  __syncthreads();
  sum_before(cursors, tile.rows, static_cast<int>(first), reinterpret_cast<int*>(keys));
  for (int r = threadIdx.x; r < tile.rows; r += kThreads) out.starts[tile.row + r] = cursors[r];
  if (t == last && threadIdx.x == 0) out.starts[lattice.rows] = lattice.entries();

  for (int begin = 0; begin < count; begin += kChunk) {
    const int left = count - begin, size = left < kChunk ? left : kChunk;
    int padded = 2;
    while (padded < size) padded *= 2;
    __syncthreads();
    for (int i = threadIdx.x; i < padded; i += kThreads) {
      const uint64_t slot = i < size ? static_cast<uint64_t>(slots[begin + i]) : UINT32_MAX;
      keys[i] = slot * kChunk + i;
    }
    __syncthreads();
    sort_keys(keys, padded);
    int runs_end[kChunk / kThreads];  // a run's size, of the thread that has its last entry
#pragma unroll
    for (int k = 0; k < kChunk / kThreads; ++k) {
      const int i = k * kThreads + threadIdx.x;
      runs_end[k] = 0;
      if (i >= size) continue;
      const int slot = static_cast<int>(keys[i] / kChunk), e = begin + keys[i] % kChunk;
      const int rank = i - lower_bound(keys, padded, static_cast<uint64_t>(slot) * kChunk);
      out.entries[cursors[slot] + rank] = {weights[e], tile.first + e / corners};
      const bool ends = i + 1 == size || static_cast<int>(keys[i + 1] / kChunk) != slot;
      if (ends) runs_end[k] = rank + 1;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kChunk / kThreads; ++k) {
      const int i = k * kThreads + threadIdx.x;
      if (runs_end[k] > 0) cursors[static_cast<int>(keys[i] / kChunk)] += runs_end[k];
    }
  }
}

}  // namespace

template <class T>
cudaError_t order_entries(const LatticeView<T>& lattice, const SplatOrder<T>& out,
                          cudaStream_t stream) {
  FASTSEG_LAUNCH((permutohedral_order<T>), static_cast<unsigned>(lattice.tiles()), kThreads,
                 kSharedBytes, stream, lattice, out);
  return cudaGetLastError();
}

template cudaError_t order_entries(const LatticeView<float>&, const SplatOrder<float>&,
                                   cudaStream_t);
template cudaError_t order_entries(const LatticeView<double>&, const SplatOrder<double>&,
                                   cudaStream_t);

}  // namespace fastseg::cuda
