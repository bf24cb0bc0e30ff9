// out_i = w_0 in_i + sum_k w_k (in_{i-k} + in_{i+k}) along one axis, a launch for each axis.
//
// A block makes a tile of outputs: a stretch of the axis times a few columns, lines side by side.
// Where the elements of an axis are `inner` apart, columns are packs of neighbours in memory, of 16
// bytes where inner allows it; along the last axis of planes, where inner is 1, they are lines,
// which are turned in shared memory on their way in and out. A thread sums four packs of outputs
// that follow each other along the axis: from tap to tap their inputs move by one, so each tap
// loads two inputs for four outputs.
//
// Floor: an element in and out for each axis, 8 bytes in float32 (500x375x24: 36 MB, 12 us), and
// r + 1 multiply-adds and r additions with r = 5.3 sigma: 6.5 us at sigma 3 and 60 TFLOP/s. The
// tile's halo is read (stretch + 2 r) / stretch times. A tile that does not fit shared memory with
// its halo, as the device alone can know, reads from the caches.

#include <algorithm>
#include <limits>
#include <utility>

#include "common/crf/gaussian_taps.h"
#include "cuda/crf/spatial_gaussian_filter.h"
#include "cuda/fast_divisor.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace fastseg::cuda {
namespace {

constexpr int kTapThreads = 256;
constexpr int kThreads = 256;  // at most
constexpr int kOutputs = 4;    // packs of a thread
constexpr int kMaxColumns = 32;
constexpr int64_t kSharedBytes = 40 << 10;  // five blocks on a multiprocessor

template <class T, class Sigma>
__global__ void __launch_bounds__(kTapThreads)
    spatial_gaussian_taps(const Sigma* bandwidth, double reach, int64_t size, bool derivative,
                          T* taps, int* radius) {
  const double sigma = *bandwidth;
  FASTSEG_DEVICE_CHECK(sigma > 0 && sigma <= 1.7976931348623157e308,
                       "fastseg::spatial_gaussian_filter: sigma must be positive and finite");
  const int last = static_cast<int>(gaussian_radius(sigma, reach, size));
  for (int k = threadIdx.x; k <= last; k += kTapThreads) {
    taps[k] = static_cast<T>(gaussian_tap(k, sigma, derivative));
  }
  if (threadIdx.x == 0) *radius = last;
}

// Columns are packs of V elements, and with them sizes of tiles, steps and offsets along a column.
template <class T, int V>
struct Pass {
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
};

// Bytes of shared memory ahead of the inputs: the taps.
FASTSEG_HOST_DEVICE int64_t tap_bytes(int64_t taps, int64_t element) {
  return (taps * element + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
}

template <class T, int V, class At>
__device__ inline void convolve(const At& at, const T* taps, int radius,
                                Pack<T, V> (&sum)[kOutputs]) {
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

// kLines: a column is a line whose elements are neighbours in memory; V is 1.
template <class T, int V, bool kLines>
__global__ void __launch_bounds__(kThreads) spatial_gaussian_pass(Pass<T, V> op) {
  FASTSEG_DYNAMIC_SHARED(unsigned char, shared);
  const int tile = blockIdx.x, tile_row = tile / op.column_tiles, threads = blockDim.x;
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

template <class T, int V, bool kLines>
cudaError_t launch_tiles(int64_t outer, int64_t size, int64_t inner, const T* in, T* out,
                         const T* taps, const int* radius, cudaStream_t stream) {
  const int64_t columns = kLines ? outer : inner / V, groups = kLines ? 1 : outer;
  const int64_t tiles = (columns * V + kMaxColumns - 1) / kMaxColumns;
  const int64_t width = (columns + tiles - 1) / tiles;
  // As many items along the axis as there are threads, then equal stretches.
  const int64_t items = (size + kOutputs - 1) / kOutputs, most = kThreads / width;
  const int64_t stretches = (items + most - 1) / most;
  const int64_t length = (items + stretches - 1) / stretches * kOutputs;
  const int64_t threads = (length / kOutputs * width + 31) / 32 * 32;
  const int64_t pitch = kLines ? width | 1 : width, element = sizeof(T);
  const int64_t with_halo = tap_bytes(size, element) + (length + 2 * size) * pitch * V * element;
  const int64_t bytes = std::min<int64_t>(kSharedBytes, with_halo);
  const Pass<T, V> op{in,
                      out,
                      taps,
                      radius,
                      static_cast<int>(size),
                      inner,
                      kLines ? size : V,
                      columns,
                      size * inner,
                      static_cast<int>(width),
                      static_cast<int>(length),
                      static_cast<int>(pitch),
                      FastDivisor(width),
                      FastDivisor(tiles),
                      FastDivisor(stretches),
                      static_cast<int>(bytes)};
  const int64_t blocks = groups * stretches * tiles;
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  FASTSEG_LAUNCH((spatial_gaussian_pass<T, V, kLines>), static_cast<unsigned>(blocks),
                 static_cast<unsigned>(threads), static_cast<size_t>(bytes), stream, op);
  return cudaGetLastError();
}

// The pass along an axis of `size` elements that are `inner` apart, `outer` times.
template <class T>
cudaError_t launch_pass(int64_t outer, int64_t size, int64_t inner, const T* in, T* out,
                        const T* taps, const int* radius, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  if (inner == 1) {
    return launch_tiles<T, 1, true>(outer, size, inner, in, out, taps, radius, stream);
  }
  if (inner % V == 0 && is_aligned(in, kVectorBytes) && is_aligned(out, kVectorBytes)) {
    return launch_tiles<T, V, false>(outer, size, inner, in, out, taps, radius, stream);
  }
  return launch_tiles<T, 1, false>(outer, size, inner, in, out, taps, radius, stream);
}

}  // namespace

template <class T, class Sigma>
cudaError_t make_taps(const PixelGrid& grid, const Sigma* sigma, int derivative,
                      const AxisTaps<T>& out, cudaStream_t stream) {
  T* taps = out.taps;
  for (int a = 0; a < grid.axes; ++a) {
    const bool derives = a == derivative;
    FASTSEG_LAUNCH((spatial_gaussian_taps<T, Sigma>), 1, kTapThreads, 0, stream, sigma + a,
                   gaussian_reach<T>(derives), grid.sizes[a], derives, taps, out.radii + a);
    taps += grid.sizes[a];
  }
  return cudaGetLastError();
}

template <class T>
cudaError_t spatial_gaussian_filter(const PixelGrid& grid, const AxisTaps<T>& taps, const T* in,
                                    T* out, T* scratch, cudaStream_t stream) {
  // The last pass ends in `out`.
  T* to = grid.axes % 2 == 1 ? out : scratch;
  T* free = grid.axes % 2 == 1 ? scratch : out;
  int64_t outer = grid.images, inner = grid.points() * grid.lanes;
  const T* axis_taps = taps.taps;
  for (int a = 0; a < grid.axes; ++a) {
    inner /= grid.sizes[a];
    const cudaError_t error =
        launch_pass(outer, grid.sizes[a], inner, in, to, axis_taps, taps.radii + a, stream);
    if (error != cudaSuccess) return error;
    outer *= grid.sizes[a];
    axis_taps += grid.sizes[a];
    in = to;
    std::swap(to, free);
  }
  return cudaSuccess;
}

#define FASTSEG_INSTANTIATE(T)                                                                     \
  template cudaError_t make_taps(const PixelGrid&, const float*, int, const AxisTaps<T>&,          \
                                 cudaStream_t);                                                    \
  template cudaError_t make_taps(const PixelGrid&, const double*, int, const AxisTaps<T>&,         \
                                 cudaStream_t);                                                    \
  template cudaError_t spatial_gaussian_filter(const PixelGrid&, const AxisTaps<T>&, const T*, T*, \
                                               T*, cudaStream_t);
FASTSEG_INSTANTIATE(float)
FASTSEG_INSTANTIATE(double)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cuda
