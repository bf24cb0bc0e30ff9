#pragma once
// The Gaussian of pixels along one axis, as kernels of its own do it and blocks beside others.
//
// A block makes a tile of outputs: a stretch of the axis times a few columns, lines side by side.
// Where the elements of an axis are `inner` apart, columns are packs of neighbours in memory, of 16
// bytes where inner allows it; along the last axis of planes, where inner is 1, they are lines,
// which are turned in shared memory on their way in and out. A thread sums four packs of outputs
// that follow each other along the axis: from tap to tap their inputs move by one, so each tap
// loads two inputs for four outputs.

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cuda/crf/spatial_gaussian_filter.h"
#include "cuda/fast_divisor.h"
#include "cuda/pack.h"

namespace fastseg::cuda {

// Columns are packs of V elements, and with them sizes of tiles, steps and offsets along a column.
template <class T, int V>
struct GaussianPass {
  static constexpr int kThreads = 256;  // of a block, at most
  static constexpr int kOutputs = 4;    // packs of a thread
  static constexpr int kMaxColumns = 32;
  static constexpr int64_t kSharedBytes = 40 << 10;  // five blocks on a multiprocessor

  const T* in;
  T* out;
  const T* taps;
  const int* radius;
  int size;             // of the axis
  int64_t inner;        // elements from element to element along it
  int64_t line_stride;  // elements from column to column: V, or the line's length
  int64_t columns;      // of a group: inner / V, or all lines
  int64_t group_stride;
  int width, length;  // of a tile
  int pitch;          // of its rows in shared memory
  FastDivisor width_divisor, column_tiles, stretches;
  int shared_bytes;
  int64_t blocks;
  int threads;  // of a block, at least
};

// Bytes of shared memory ahead of the inputs: the taps.
FASTSEG_HOST_DEVICE int64_t tap_bytes(int64_t taps, int64_t element) {
  return (taps * element + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
}

// The pass along an axis of `size` elements that are `inner` apart, `outer` times. lines: a column
// is a line whose elements are neighbours in memory; inner and V are 1.
template <class T, int V>
GaussianPass<T, V> gaussian_pass(bool lines, int64_t outer, int64_t size, int64_t inner,
                                 const T* in, T* out, const T* taps, const int* radius) {
  using Pass = GaussianPass<T, V>;
  const int64_t columns = lines ? outer : inner / V, groups = lines ? 1 : outer;
  const int64_t tiles = (columns * V + Pass::kMaxColumns - 1) / Pass::kMaxColumns;
  const int64_t width = (columns + tiles - 1) / tiles;
  // As many items along the axis as there are threads, then equal stretches.
  const int64_t items = (size + Pass::kOutputs - 1) / Pass::kOutputs, most = Pass::kThreads / width;
  const int64_t stretches = (items + most - 1) / most;
  const int64_t length = (items + stretches - 1) / stretches * Pass::kOutputs;
  const int64_t threads = (length / Pass::kOutputs * width + 31) / 32 * 32;
  const int64_t pitch = lines ? width | 1 : width, element = sizeof(T);
  const int64_t with_halo = tap_bytes(size, element) + (length + 2 * size) * pitch * V * element;
  const int64_t bytes = std::min(Pass::kSharedBytes, with_halo);
  return {in,
          out,
          taps,
          radius,
          static_cast<int>(size),
          inner,
          lines ? size : V,
          columns,
          size * inner,
          static_cast<int>(width),
          static_cast<int>(length),
          static_cast<int>(pitch),
          FastDivisor(width),
          FastDivisor(tiles),
          FastDivisor(stretches),
          static_cast<int>(bytes),
          groups * stretches * tiles,
          static_cast<int>(threads)};
}

// Calls pass(outer, size, inner, in, out, taps, radius) for each axis of a filter in turn. The last
// one ends in `out`.
template <class T, class OnePass>
cudaError_t for_passes(const PixelGrid& grid, const AxisTaps<T>& taps, const T* in, T* out,
                       T* scratch, const OnePass& pass) {
  T* to = grid.axes % 2 == 1 ? out : scratch;
  T* free = grid.axes % 2 == 1 ? scratch : out;
  int64_t outer = grid.images, inner = grid.points() * grid.lanes;
  const T* axis_taps = taps.taps;
  for (int a = 0; a < grid.axes; ++a) {
    inner /= grid.sizes[a];
    const cudaError_t error = pass(outer, grid.sizes[a], inner, in, to, axis_taps, taps.radii + a);
    if (error != cudaSuccess) return error;
    outer *= grid.sizes[a];
    axis_taps += grid.sizes[a];
    in = to;
    std::swap(to, free);
  }
  return cudaSuccess;
}

template <class T, int V, class At>
__device__ inline void convolve(const At& at, const T* taps, int radius,
                                Pack<T, V> (&sum)[GaussianPass<T, V>::kOutputs]) {
  constexpr int kOutputs = GaussianPass<T, V>::kOutputs;
  // Input j of those that move down with the taps is in left[j % 4], of those that move up in
  // right[j % 4].
  Pack<T, V> left[kOutputs], right[kOutputs];
#pragma unroll
  for (int m = 0; m < kOutputs; ++m) {
    left[m] = right[m] = at(m);
    sum[m] = {};
    sum[m].add(taps[0], left[m]);
  }
  for (int first = 1; first <= radius; first += kOutputs) {
#pragma unroll
    for (int t = 0; t < kOutputs; ++t) {
      const int k = first + t;
      if (k > radius) break;
      left[kOutputs - 1 - t] = at(-k);
      right[t] = at(kOutputs - 1 + k);
      const T tap = taps[k];
#pragma unroll
      for (int m = 0; m < kOutputs; ++m) {
        Pack<T, V> both = left[(m + 2 * kOutputs - 1 - t) % kOutputs];
        both.add(1, right[(m + 1 + t) % kOutputs]);
        sum[m].add(tap, both);
      }
    }
  }
}

// A tile of a pass, by all threads of a block: op.threads or more. kLines: as gaussian_pass had it.
template <class T, int V, bool kLines>
__device__ inline void gaussian_tile(const GaussianPass<T, V>& op, int tile,
                                     unsigned char* shared) {
  constexpr int kOutputs = GaussianPass<T, V>::kOutputs;
  const int tile_row = tile / op.column_tiles, threads = blockDim.x;
  const int group = tile_row / op.stretches, begin = (tile_row - group * op.stretches) * op.length;
  const int64_t column = int64_t{tile - tile_row * op.column_tiles} * op.width;
  const int64_t origin = group * op.group_stride + column * op.line_stride;
  const int64_t left = op.columns - column;
  const int width = left < op.width ? static_cast<int>(left) : op.width;
  const T* const in = op.in + origin;
  const int radius = *op.radius, rows = op.length + 2 * radius;
  const int64_t ahead = tap_bytes(radius + 1, sizeof(T));
  T* const taps = reinterpret_cast<T*>(shared);
  T* const inputs = reinterpret_cast<T*>(shared + ahead);
  const bool staged = ahead + int64_t{rows} * op.pitch * (V * sizeof(T)) <= op.shared_bytes;

  const auto from_memory = [&](int i, int j) {
    if (i < 0 || i >= op.size || j >= width) return Pack<T, V>{};
    return load_pack<V>(in + i * op.inner + j * op.line_stride);
  };
  const auto put = [&](int i, int j) {
    store_pack(inputs + (i * op.pitch + j) * V, from_memory(begin - radius + i, j));
  };
  if (staged) {
    for (int k = threadIdx.x; k <= radius; k += threads) taps[k] = op.taps[k];
    if (kLines) {
      for (int j = threadIdx.x / 32; j < op.width; j += threads / 32) {
        for (int i = threadIdx.x % 32; i < rows; i += 32) put(i, j);
      }
    } else {
      for (int f = threadIdx.x; f < rows * op.width; f += threads) {
        const int i = f / op.width_divisor;
        put(i, f - i * op.width);
      }
    }
    __syncthreads();
  }

  const int item = threadIdx.x / op.width_divisor, j = threadIdx.x - item * op.width;
  const int first = item * kOutputs;
  Pack<T, V> sum[kOutputs];
  if (first < op.length) {
    if (staged) {
      const T* const centre = inputs + ((first + radius) * op.pitch + j) * V;
      convolve<T, V>([&](int i) { return load_pack<V>(centre + i * op.pitch * V); }, taps, radius,
                     sum);
    } else {
      convolve<T, V>([&](int i) { return from_memory(begin + first + i, j); }, op.taps, radius,
                     sum);
    }
  }
  T* const out = op.out + origin;
  if constexpr (!kLines) {
    if (first >= op.length || j >= width) return;
#pragma unroll
    for (int m = 0; m < kOutputs; ++m) {
      const int i = begin + first + m;
      if (i < op.size) store_pack(out + i * op.inner + j * V, sum[m]);
    }
  } else {
    T* const outputs = reinterpret_cast<T*>(shared);
    __syncthreads();
    if (first < op.length) {
#pragma unroll
      for (int m = 0; m < kOutputs; ++m) outputs[(first + m) * op.pitch + j] = sum[m].v[0];
    }
    __syncthreads();
    for (int line = threadIdx.x / 32; line < width; line += threads / 32) {
      for (int i = threadIdx.x % 32; i < op.length && begin + i < op.size; i += 32) {
        out[begin + i + line * op.line_stride] = outputs[i * op.pitch + line];
      }
    }
  }
}

}  // namespace fastseg::cuda
