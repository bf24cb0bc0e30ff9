// Prefix sums: the sum of each chunk, the prefix sums of these by one block, then each chunk from
// its own. Of few chunks, one block makes all.
//
// Floor: 4 bytes in and 4 out for each value; chunks are read twice. Integers, so the order of
// additions does not matter.

#include "cuda/crf/block_scan.h"
#include "cuda/crf/exclusive_scan.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

constexpr int kScanThreads = 256;
constexpr int kPerThread = 4;
constexpr int kChunk = kScanThreads * kPerThread;
constexpr int64_t kChunksOfOneBlock = 4;
constexpr size_t kSharedBytes = kMaxWarps * sizeof(int);

int64_t chunks_of(int64_t elements) { return (elements + kChunk - 1) / kChunk; }

// The calling thread's values of a chunk.
struct Mine {
  int64_t first;
  int value[kPerThread];
  int sum = 0;

  // values[count] counts as 0.
  __device__ Mine(const int* values, int64_t count, int64_t chunk)
      : first(chunk * kChunk + static_cast<int>(threadIdx.x) * kPerThread) {
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      value[k] = first + k < count ? values[first + k] : 0;
      sum += value[k];
    }
  }

  __device__ void store(int* values, int64_t count, int before) const {
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      if (first + k <= count) values[first + k] = before;
      before += value[k];
    }
  }
};

__global__ void __launch_bounds__(kScanThreads)
    chunk_sums_kernel(const int* values, int64_t count, int* sums) {
  FASTSEG_DYNAMIC_SHARED(int, partial);
  const Mine mine(values, count, blockIdx.x);
  const BlockSums block = block_scan(mine.sum, partial);
  if (threadIdx.x == 0) sums[blockIdx.x] = block.total;
}

__global__ void __launch_bounds__(kScanThreads)
    scan_in_one_block_kernel(int* values, int64_t count) {
  FASTSEG_DYNAMIC_SHARED(int, partial);
  int before = 0;
  for (int64_t chunk = 0; chunk * kChunk <= count; ++chunk) {
    const Mine mine(values, count, chunk);
    const BlockSums block = block_scan(mine.sum, partial);
    mine.store(values, count, before + block.before);
    before += block.total;
  }
}

__global__ void __launch_bounds__(kScanThreads)
    scan_chunks_kernel(int* values, int64_t count, const int* sums) {
  FASTSEG_DYNAMIC_SHARED(int, partial);
  const Mine mine(values, count, blockIdx.x);
  mine.store(values, count, sums[blockIdx.x] + block_scan(mine.sum, partial).before);
}

}  // namespace

int64_t exclusive_scan_sums(int64_t count) { return chunks_of(count + 1) + 1; }

cudaError_t exclusive_scan(int* values, int64_t count, int* sums, cudaStream_t stream) {
  const int64_t chunks = chunks_of(count + 1);
  if (chunks <= kChunksOfOneBlock) {
    FASTSEG_LAUNCH(scan_in_one_block_kernel, 1, kScanThreads, kSharedBytes, stream, values, count);
    return cudaGetLastError();
  }
  const unsigned blocks = static_cast<unsigned>(chunks);
  FASTSEG_LAUNCH(chunk_sums_kernel, blocks, kScanThreads, kSharedBytes, stream, values, count,
                 sums);
  FASTSEG_LAUNCH(scan_in_one_block_kernel, 1, kScanThreads, kSharedBytes, stream, sums, chunks);
  FASTSEG_LAUNCH(scan_chunks_kernel, blocks, kScanThreads, kSharedBytes, stream, values, count,
                 static_cast<const int*>(sums));
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
