// Entries sorted by row, stably, a block a tile.
//
// Of a tile of up to kMaskPoints points each row gets a mask of its points in shared memory: ranks
// and sizes are counts of bits. That takes no sort, but each point must touch different rows, as
// those of a simplex do. Other tiles are counted by row, and their entries placed chunk by chunk; a
// chunk is sorted in shared memory by (slot, position), so that an entry's place is its row's
// cursor plus its position in the chunk's run of that row. A tile of all points of an image is a
// single block's work, which is slow.
//
// Floor: 4 bytes of slots (read twice, the second time from the caches) and a weight in, an entry
// of 8 bytes (float64: 16) out. Once for each filter, once for all iterations of a mean field.

#include <algorithm>
#include <cstdint>

#include "cuda/crf/block_scan.h"
#include "cuda/crf/permutohedral_order.h"
#include "cuda/fast_divisor.h"
#include "cuda/launch.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 1024;  // a power of two; a sort in shared memory
constexpr int64_t kSortBytes = kChunk * sizeof(uint64_t);

constexpr int kMaskWords = 4;
constexpr int kMaskPoints = 32 * kMaskWords;
constexpr int64_t kScanBytes = kMaxWarps * sizeof(int);
constexpr int64_t kMaskBytes = (kMaskWords + 1) * sizeof(unsigned);  // of a row, with its count

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

// counts[i] = start + the sum of those before i, for the block; returns the sum of all. partial: as
// of block_scan.
__device__ inline int sum_before(int* counts, int size, int start, int* partial) {
  int end = start;
  for (int base = 0; base < size; base += kThreads) {
    const int i = base + threadIdx.x;
    const BlockSums sums = block_scan(i < size ? counts[i] : 0, partial);
    if (i < size) counts[i] = end + sums.before;
    end += sums.total;
  }
  __syncthreads();
  return end - start;
}

// A tile's part of the lattice and of the result.
template <class T>
struct TileEntries {
  LatticeTile tile;
  int first, count;  // entries
  const int* slots;
  const T* weights;
  int* starts;
  SplatEntry<T>* out;  // of all tiles

  __device__ int checked_slot(int e) const {
    const int slot = slots[e];
    FASTSEG_DEVICE_CHECK(slot >= 0 && slot < tile.rows,
                         "fastseg::permutohedral_filter: slots must be from 0 to a tile's rows");
    return slot;
  }
};

// False where a point touches a row twice: nothing is then placed. shared: kScanBytes, then
// kMaskBytes for each row.
template <class T>
__device__ inline bool order_by_masks(const TileEntries<T>& op, const FastDivisor& corners,
                                      unsigned char* shared) {
  int* const partial = reinterpret_cast<int*>(shared);
  unsigned* const masks = reinterpret_cast<unsigned*>(shared + kScanBytes);
  int* const counts = reinterpret_cast<int*>(masks + kMaskWords * op.tile.rows);
  for (int i = threadIdx.x; i < op.tile.rows * kMaskWords; i += kThreads) masks[i] = 0;
  __syncthreads();
  for (int e = threadIdx.x; e < op.count; e += kThreads) {
    const int point = e / corners;
    atomicOr(masks + op.checked_slot(e) * kMaskWords + point / 32, 1u << point % 32);
  }
  __syncthreads();
  for (int r = threadIdx.x; r < op.tile.rows; r += kThreads) {
    const uint4 mask = reinterpret_cast<const uint4*>(masks)[r];
    counts[r] = __popc(mask.x) + __popc(mask.y) + __popc(mask.z) + __popc(mask.w);
  }
  __syncthreads();
  if (sum_before(counts, op.tile.rows, op.first, partial) != op.count) return false;
  for (int r = threadIdx.x; r < op.tile.rows; r += kThreads) op.starts[r] = counts[r];
  for (int e = threadIdx.x; e < op.count; e += kThreads) {
    const int point = e / corners, slot = op.slots[e];
    const uint4 mask = reinterpret_cast<const uint4*>(masks)[slot];
    const unsigned words[kMaskWords] = {mask.x, mask.y, mask.z, mask.w};
    int place = counts[slot];
#pragma unroll
    for (int w = 0; w < kMaskWords; ++w) {
      const unsigned below = w < point / 32 ? ~0u : w > point / 32 ? 0u : (1u << point % 32) - 1;
      place += __popc(words[w] & below);
    }
    op.out[place] = {op.weights[e], op.tile.first + point};
  }
  return true;
}

// Any tile. shared: kSortBytes. cursors: (rows), in global memory.
template <class T>
__device__ inline void order_by_sort(const TileEntries<T>& op, int corners, unsigned char* shared,
                                     int* cursors) {
  uint64_t* const keys = reinterpret_cast<uint64_t*>(shared);
  for (int r = threadIdx.x; r < op.tile.rows; r += kThreads) cursors[r] = 0;
  __syncthreads();
  for (int e = threadIdx.x; e < op.count; e += kThreads) {
    atomicAdd(cursors + op.checked_slot(e), 1);
  }
  __syncthreads();
  sum_before(cursors, op.tile.rows, op.first, reinterpret_cast<int*>(shared));
  for (int r = threadIdx.x; r < op.tile.rows; r += kThreads) op.starts[r] = cursors[r];

  for (int begin = 0; begin < op.count; begin += kChunk) {
    const int left = op.count - begin, size = left < kChunk ? left : kChunk;
    int padded = 2;
    while (padded < size) padded *= 2;
    __syncthreads();
    for (int i = threadIdx.x; i < padded; i += kThreads) {
      const uint64_t slot = i < size ? static_cast<uint64_t>(op.slots[begin + i]) : UINT32_MAX;
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
      op.out[cursors[slot] + rank] = {op.weights[e], op.tile.first + e / corners};
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

template <class T>
__global__ void __launch_bounds__(kThreads)
    permutohedral_order(LatticeView<T> lattice, DeviceCount row_count, SplatOrder<T> out,
                        FastDivisor corners, int masked_rows) {
  FASTSEG_DYNAMIC_SHARED(unsigned char, shared);
  const int t = blockIdx.x, last = lattice.tiles() - 1;
  const LatticeTile tile = lattice.tile(t);
  const int beyond = row_count() - tile.row;
  FASTSEG_DEVICE_CHECK((t > 0 ? tile.row >= 0 && beyond >= 0 : tile.row == 0) && tile.rows >= 0 &&
                           (t < last ? tile.rows <= beyond : tile.rows == beyond),
                       "fastseg::permutohedral_filter: tile_starts must ascend from 0 to the rows");
  const int64_t first = int64_t{tile.first} * lattice.corners;
  const TileEntries<T> entries{tile,
                               static_cast<int>(first),
                               tile.points * lattice.corners,
                               lattice.slots + first,
                               lattice.barycentric + first,
                               out.starts + tile.row,
                               out.entries};
  if (t == last && threadIdx.x == 0) out.starts[row_count()] = lattice.entries();
  if (tile.points <= kMaskPoints && tile.rows <= masked_rows &&
      order_by_masks(entries, corners, shared)) {
    return;
  }
  __syncthreads();
  order_by_sort(entries, lattice.corners, shared, out.scratch + tile.row);
}

}  // namespace

template <class T>
cudaError_t order_entries(const LatticeView<T>& lattice, const SplatOrder<T>& out,
                          cudaStream_t stream) {
  // No tile has more rows than entries.
  const int64_t most_rows = (kDefaultSharedBytes - kScanBytes) / kMaskBytes;
  const int64_t rows = std::min(int64_t{lattice.tile_points} * lattice.corners, most_rows);
  const int64_t bytes = std::max(kSortBytes, kScanBytes + rows * kMaskBytes);
  FASTSEG_LAUNCH((permutohedral_order<T>), static_cast<unsigned>(lattice.tiles()), kThreads,
                 static_cast<size_t>(bytes), stream, lattice, lattice.row_count(), out,
                 FastDivisor(lattice.corners), static_cast<int>(rows));
  return cudaGetLastError();
}

template cudaError_t order_entries(const LatticeView<float>&, const SplatOrder<float>&,
                                   cudaStream_t);
template cudaError_t order_entries(const LatticeView<double>&, const SplatOrder<double>&,
                                   cudaStream_t);

}  // namespace fastseg::cuda
