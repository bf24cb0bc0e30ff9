#pragma once
// How contiguous planes are worked on by kernels that keep their size. A thread takes a few columns
// of a plane, far apart, and walks down the rows of a phase: y, y + d, y + 2 d, ... Neighbouring
// threads take neighbouring columns. Planes that fit are in shared memory; of others the rows are
// in the caches.

#include <algorithm>

#include "common/ceil_divide.h"
#include "cuda/async_copy.h"
#include "cuda/conv/depthwise_conv2d.h"
#include "cuda/fast_divisor.h"
#include "cuda/pack.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {

inline constexpr int kPlaneThreads = 256;  // at most
inline constexpr int kPlaneBlocks = 2;     // of a multiprocessor, at least
inline constexpr int64_t kMostRowsOfThread = 16;
inline constexpr int64_t kPlaneBytes = 16 << 10;  // of the planes that a block reads, about
inline constexpr int64_t kFewestPlaneBlocks = 528;

// Columns of a thread of a kernel of K x K.
template <int K>
inline constexpr int kColumns = K == 3   ? 4
                                : K == 5 ? 2
                                         : 1;

// The first column of a thread and the rows phase + k * step, first <= k < last, of the `length` in
// it.
struct PlaneItem {
  int column, phase, first, last, length;
};

// Whether the shape is one of planes, whose elements and those of a kernel's reach are ints.
inline bool is_of_planes(const DepthwiseShape& shape) {
  constexpr int64_t kLimit = int64_t{1} << 27;
  return !shape.channels_last && shape.rows.size * shape.columns.size < kLimit;
}

struct DepthwisePlanes {
  int height, width, column_step;
  int apart;             // from column to column of a thread
  FastDivisor row_step;  // the dilation, at most the height
  FastDivisor columns;   // that threads begin at
  FastDivisor segments;  // of a phase
  int segment_rows;
  int planes, in_block, threads;
  bool staged;              // a block's planes are in shared memory
  FastDivisor item_blocks;  // of a plane, where they are not

  // A block keeps, of up to `most_in_block` planes, two tensors in shared memory, if it may.
  DepthwisePlanes(const DepthwiseShape& shape, int64_t of_thread, bool may_stage,
                  int64_t most_in_block)
      : height(static_cast<int>(shape.rows.size)),
        width(static_cast<int>(shape.columns.size)),
        column_step(static_cast<int>(shape.columns.dilation)),
        apart(static_cast<int>(ceil_divide(shape.columns.size, of_thread))),
        row_step(std::min(shape.rows.size, shape.rows.dilation)),
        columns(apart),
        planes(static_cast<int>(shape.images * shape.channels)) {
    const int64_t longest = ceil_divide(shape.rows.size, row_step);
    const int64_t cuts = ceil_divide(longest, kMostRowsOfThread);
    segments = FastDivisor(cuts);
    segment_rows = static_cast<int>(ceil_divide(longest, cuts));
    const int64_t plane = shape.rows.size * shape.columns.size * size_of(shape.dtype);
    staged = may_stage && 2 * (plane + 2 * kVectorBytes) + kVectorBytes <= kMaxSharedBytes;
    in_block = 1;
    if (staged) {
      const int64_t wanted = std::min(kPlaneBytes / plane, planes / kFewestPlaneBlocks);
      in_block = static_cast<int>(std::clamp<int64_t>(wanted, 1, most_in_block));
    }
    threads = kPlaneThreads;
    for (int t = kPlaneThreads; t >= 64; t -= 32) {
      if (idle(t) < idle(threads)) threads = t;
    }
    item_blocks = FastDivisor(staged ? 1 : ceil_divide(items(), threads));
  }

  FASTSEG_HOST_DEVICE int64_t items() const { return int64_t{row_step} * segments * apart; }
  unsigned blocks() const {
    return static_cast<unsigned>(ceil_divide(planes, in_block) * item_blocks);
  }
  // Of shared memory for a block's planes of one tensor, wherever these begin.
  FASTSEG_HOST_DEVICE int64_t bytes(int64_t element) const {
    const int64_t all = int64_t{in_block} * height * width * element + kVectorBytes;
    return (all + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
  }

  __device__ PlaneItem operator[](int item) const {
    const int above = item / columns, rest = above / segments;
    const int length = (height - 1 - rest) / row_step + 1;
    const int first = (above - rest * segments) * segment_rows;
    const int last = first + segment_rows < length ? first + segment_rows : length;
    return {item - above * apart, rest, first, last, length};
  }

 private:
  int64_t idle(int t) const { return ceil_divide(items(), t) * t - items(); }
};

// Where in shared memory the element at `p` lies, as far from a multiple of 16 bytes as in global.
template <class T>
__device__ inline T* staged_at(void* shared, const T* p) {
  return static_cast<T*>(shared) + reinterpret_cast<uintptr_t>(p) % kVectorBytes / sizeof(T);
}

// How a run of elements is cut at multiples of 16 bytes.
struct VectorRun {
  int head, vectors;  // elements ahead of the first vector; elements of vectors

  template <class T>
  __device__ VectorRun(const T* p, int count) {
    constexpr int N = kVectorBytes / static_cast<int>(sizeof(T));
    const int ahead = static_cast<int>(reinterpret_cast<uintptr_t>(p) % kVectorBytes / sizeof(T));
    head = ahead == 0 ? 0 : N - ahead;
    if (head > count) head = count;
    vectors = (count - head) / N * N;
  }
};

// Begins to copy `count` elements to where staged_at says.
template <class T>
__device__ inline void stage(const T* from, int count, T* shared) {
  const VectorRun run(from, count);
  constexpr int N = kVectorBytes / static_cast<int>(sizeof(T));
  for (int i = threadIdx.x * N; i < run.vectors; i += blockDim.x * N) {
    copy_async<kVectorBytes>(shared + run.head + i, from + run.head + i);
  }
  for (int i = threadIdx.x; i < count - run.vectors; i += blockDim.x) {
    const int at = i < run.head ? i : i + run.vectors;
    shared[at] = from[at];
  }
}

// The way back, after a barrier.
template <class T>
__device__ inline void unstage(const T* shared, int count, T* to) {
  const VectorRun run(to, count);
  constexpr int N = kVectorBytes / static_cast<int>(sizeof(T));
  for (int i = threadIdx.x * N; i < run.vectors; i += blockDim.x * N) {
    store_pack(to + run.head + i, load_pack<N>(shared + run.head + i));
  }
  for (int i = threadIdx.x; i < count - run.vectors; i += blockDim.x) {
    const int at = i < run.head ? i : i + run.vectors;
    to[at] = shared[at];
  }
}

// Where a thread's taps are read: tap b of column q, in a row that begins at element `row`, is
// element begin[q][b] + lives[q][b] * row. In padding that is `zeros`, an element that is zero.
template <int K>
struct TapColumns {
  bool exists[kColumns<K>];  // a column; others take the last one's taps
  int begin[kColumns<K>][K], lives[kColumns<K>][K];

  __device__ TapColumns(const DepthwisePlanes& planes, int first, int zeros) {
#pragma unroll
    for (int q = 0; q < kColumns<K>; ++q) {
      const int column = first + q * planes.apart;
      exists[q] = column < planes.width;
#pragma unroll
      for (int b = 0; b < K; ++b) {
        const int x = (exists[q] ? column : planes.width - 1) + (b - K / 2) * planes.column_step;
        lives[q][b] = x >= 0 && x < planes.width;
        begin[q][b] = lives[q][b] ? x : zeros;
      }
    }
  }
};

}  // namespace fastseg::cuda
