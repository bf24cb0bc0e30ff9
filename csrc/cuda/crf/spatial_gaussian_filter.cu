// out_i = w_0 in_i + sum_k w_k (in_{i-k} + in_{i+k}) along one axis, a launch for each axis.
//
// A block makes a tile of outputs: a stretch of the axis times a few columns, lines side by side.
// Where the elements of an axis are `inner` apart, columns are neighbours in memory; along the last
// axis of planes, where inner is 1, they are lines, which are turned in shared memory on their way
// in and out. A thread sums four outputs that follow each other along the axis: from tap to tap
// their inputs move by one, so each tap loads two inputs for four outputs.
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

namespace fastseg::cuda {
namespace {

constexpr int kTapThreads = 256;
constexpr int kThreads = 512;
constexpr int kOutputs = 4;  // of a thread
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

template <class T>
struct Pass {
  const T* in;
  T* out;
  const T* taps;
  const int* radius;
  int size;             // of the axis
  int64_t inner;        // from element to element along it
  int64_t line_stride;  // from column to column: 1, or the line's length
  int64_t columns;      // of a group: inner, or all lines
  int64_t group_stride;
  int width, length;  // of a tile
  int pitch;          // of its rows in shared memory
  FastDivisor width_divisor, column_tiles, stretches;
  int shared_elements;
};

template <class T, class At>
__device__ inline void convolve(const At& at, const T* taps, int radius, T (&sum)[kOutputs]) {
  // Input j of those that move down with the taps is in left[j % 4], of those that move up in
  // right[j % 4].
  T left[kOutputs], right[kOutputs];
#pragma unroll
  for (int m = 0; m < kOutputs; ++m) {
    left[m] = right[m] = at(m);
    sum[m] = taps[0] * left[m];
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
        sum[m] +=
            tap * (left[(m + 2 * kOutputs - 1 - t) % kOutputs] + right[(m + 1 + t) % kOutputs]);
      }
    }
  }
}

// kLines: a column is a line whose elements are neighbours in memory.
template <class T, bool kLines>
__global__ void __launch_bounds__(kThreads) spatial_gaussian_pass(Pass<T> op) {
  FASTSEG_DYNAMIC_SHARED(T, shared);  // taps, then (length + 2 radius, pitch)
  const int tile = blockIdx.x, tile_row = tile / op.column_tiles;
  const int group = tile_row / op.stretches, begin = (tile_row - group * op.stretches) * op.length;
  const int64_t column = int64_t{tile - tile_row * op.column_tiles} * op.width;
  const int64_t origin = group * op.group_stride + column * op.line_stride;
  const int64_t left = op.columns - column;
  const int width = left < op.width ? static_cast<int>(left) : op.width;
  const T* const in = op.in + origin;
  const int radius = *op.radius, rows = op.length + 2 * radius;
  T* const inputs = shared + (radius + 1);
  const bool staged = radius + 1 + int64_t{rows} * op.pitch <= op.shared_elements;

  const auto from_memory = [&](int i, int j) {
    return i >= 0 && i < op.size && j < width ? in[i * op.inner + j * op.line_stride] : T{0};
  };
  if (staged) {
    for (int k = threadIdx.x; k <= radius; k += kThreads) shared[k] = op.taps[k];
    if (kLines) {
      for (int j = threadIdx.x / 32; j < op.width; j += kThreads / 32) {
        for (int i = threadIdx.x % 32; i < rows; i += 32) {
          inputs[i * op.pitch + j] = from_memory(begin - radius + i, j);
        }
      }
    } else {
      for (int f = threadIdx.x; f < rows * op.width; f += kThreads) {
        const int i = f / op.width_divisor, j = f - i * op.width;
        inputs[i * op.pitch + j] = from_memory(begin - radius + i, j);
      }
    }
    __syncthreads();
  }

  const int item = threadIdx.x / op.width_divisor, j = threadIdx.x - item * op.width;
  const int first = item * kOutputs;
  T sum[kOutputs];
  if (first < op.length) {
    if (staged) {
      const T* const centre = inputs + (first + radius) * op.pitch + j;
      convolve([&](int i) { return centre[i * op.pitch]; }, shared, radius, sum);
    } else {
      convolve([&](int i) { return from_memory(begin + first + i, j); }, op.taps, radius, sum);
    }
  }
  T* const out = op.out + origin;
  if (!kLines) {
    if (first >= op.length || j >= width) return;
#pragma unroll
    for (int m = 0; m < kOutputs; ++m) {
      const int i = begin + first + m;
      if (i < op.size) out[i * op.inner + j] = sum[m];
    }
    return;
  }
  __syncthreads();
  if (first < op.length) {
#pragma unroll
    for (int m = 0; m < kOutputs; ++m) shared[(first + m) * op.pitch + j] = sum[m];
  }
  __syncthreads();
  for (int line = threadIdx.x / 32; line < width; line += kThreads / 32) {
    for (int i = threadIdx.x % 32; i < op.length && begin + i < op.size; i += 32) {
      out[begin + i + line * op.line_stride] = shared[i * op.pitch + line];
    }
  }
}

// The pass along an axis of `size` elements that are `inner` apart, `outer` times.
template <class T>
cudaError_t launch_pass(int64_t outer, int64_t size, int64_t inner, const T* in, T* out,
                        const T* taps, const int* radius, cudaStream_t stream) {
  const bool lines = inner == 1;
  const int64_t columns = lines ? outer : inner, groups = lines ? 1 : outer;
  const int64_t tiles = (columns + kMaxColumns - 1) / kMaxColumns;
  const int64_t width = (columns + tiles - 1) / tiles;
  const int64_t whole = (size + kOutputs - 1) / kOutputs * kOutputs;
  const int64_t length = std::min(kThreads / width * kOutputs, whole);
  const int64_t stretches = (size + length - 1) / length, pitch = lines ? width | 1 : width;
  const int64_t with_halo = size + (length + 2 * size) * pitch;
  const int64_t elements = std::min<int64_t>(kSharedBytes / sizeof(T), with_halo);
  const Pass<T> op{in,
                   out,
                   taps,
                   radius,
                   static_cast<int>(size),
                   inner,
                   lines ? size : 1,
                   columns,
                   size * inner,
                   static_cast<int>(width),
                   static_cast<int>(length),
                   static_cast<int>(pitch),
                   FastDivisor(width),
                   FastDivisor(tiles),
                   FastDivisor(stretches),
                   static_cast<int>(elements)};
  const int64_t blocks = groups * stretches * tiles;
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  const size_t bytes = elements * sizeof(T);
  if (lines) {
    FASTSEG_LAUNCH((spatial_gaussian_pass<T, true>), static_cast<unsigned>(blocks), kThreads, bytes,
                   stream, op);
  } else {
    FASTSEG_LAUNCH((spatial_gaussian_pass<T, false>), static_cast<unsigned>(blocks), kThreads,
                   bytes, stream, op);
  }
  return cudaGetLastError();
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
