// values, codes = max_pool2d(x), and the same behind relu(x * scale + shift).
//
// Floor: every input element is read once, every value and one byte of code written once: for 2x2
// windows 16 + 4 + 1 bytes a window in float32 and 8 + 2 + 1 in the 16-bit types, and 4 comparisons
// (12 operations with the prologue), so memory decides.

#include <limits>

#include "cuda/arithmetic.h"
#include "cuda/launch.h"
#include "cuda/pool/device_pool2d.h"
#include "cuda/pool/max_pool2d.h"
#include "cuda/pool/windows_2x2.h"
#include "cuda/row_tiles.h"

namespace fastseg::cuda {
namespace {

template <class T>
struct Tensors {
  const T* x;
  const Compute<T>* scale;
  const Compute<T>* shift;
  T* values;
  uint8_t* codes;
  FastDivisor channels;

  explicit Tensors(const MaxPool2d& op)
      : x(static_cast<const T*>(op.x)),
        scale(static_cast<const Compute<T>*>(op.scale)),
        shift(static_cast<const Compute<T>*>(op.shift)),
        values(static_cast<T*>(op.values)),
        codes(op.codes),
        channels(op.channels) {}
};

__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// relu(x * scale + shift), rounded to T before the comparison: the codes are those of the unfused
// chain.
template <class T>
__device__ inline T scale_shift_relu(T x, Compute<T> scale, Compute<T> shift) {
  const T y = from_compute<T>(multiply_add(to_compute(x), scale, shift));
  return to_compute(y) < 0 ? from_compute<T>(0) : y;  // NaN and -0.0 pass, as in torch
}

// The running maximum of a window and its code.
template <class T>
struct Maximum {
  Compute<T> value = -std::numeric_limits<Compute<T>>::infinity();
  int code;

  __device__ explicit Maximum(int first_code) : code(first_code) {}

  __device__ void take(T x, int candidate_code) {
    const Compute<T> candidate = to_compute(x);
    if (replaces_maximum(candidate, value)) {
      value = candidate;
      code = candidate_code;
    }
  }
};

// 2x2 windows: a thread makes V of them (windows_2x2.h).
template <class T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    max_pool2d_2x2(Tensors<T> op, Layout2x2 at, RowTiles tiles) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= tiles.count) return;
  const Tile tile = tiles[index];
  const Place2x2<V, kChannelsLast> place(at, tile);
  const Taps<T, V> taps = load_taps<T, V, kChannelsLast>(at, op.x + place.top);

  const int channel = kChannelsLast ? place.channel : tile.plane % op.channels;
  T values[V];
  uint8_t codes[V];
#pragma unroll
  for (int k = 0; k < V; ++k) {
    Compute<T> scale = 1, shift = 0;
    if (op.scale != nullptr) {
      scale = op.scale[channel + (kChannelsLast ? k : 0)];
      shift = op.shift[channel + (kChannelsLast ? k : 0)];
    }
    Maximum<T> maximum(0);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      T x = taps.tap[t][k];
      if (op.scale != nullptr) x = scale_shift_relu(x, scale, shift);
      maximum.take(x, t);
    }
    values[k] = from_compute<T>(maximum.value);
    codes[k] = static_cast<uint8_t>(maximum.code);
  }
  const int64_t first = place.pooled_row * at.pooled_row + place.column;
  store(op.values + first, values);
  store_streaming(op.codes + first, codes);
}

// Any window: a thread makes one. Taps of a row are loaded four at a time, ahead of their
// comparisons; neighbouring windows find what they share in the caches.
template <class T>
__global__ void __launch_bounds__(kThreads)
    max_pool2d_any(Tensors<T> op, DevicePool2d pool, FastDivisor lanes, RowTiles tiles) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= tiles.count) return;
  const Tile tile = tiles[index];
  const int j = tile.column / lanes, lane = tile.column - j * lanes;
  Compute<T> scale = 1, shift = 0;
  if (op.scale != nullptr) {
    const int channel = lanes > 1 ? lane : tile.plane % op.channels;
    scale = op.scale[channel];
    shift = op.shift[channel];
  }

  constexpr int kBatch = 4;
  const int first_ki = pool.h.first_tap(tile.row), end_ki = pool.h.end_tap(tile.row);
  const int first_kj = pool.w.first_tap(j), end_kj = pool.w.end_tap(j);
  Maximum<T> maximum(first_ki * pool.w.kernel + first_kj);
  for (int ki = first_ki; ki < end_ki; ++ki) {
    const int64_t y = int64_t{tile.plane} * pool.h.size + pool.h.coordinate(tile.row, ki);
    const T* row = op.x + (y * pool.w.size + pool.w.start(j)) * lanes + lane;
    const int64_t step = int64_t{pool.w.dilation} * lanes;
    for (int kj = first_kj; kj < end_kj; kj += kBatch) {
      T taps[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (kj + b < end_kj) taps[b] = row[(kj + b) * step];
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (kj + b >= end_kj) break;
        if (op.scale != nullptr) taps[b] = scale_shift_relu(taps[b], scale, shift);
        maximum.take(taps[b], ki * pool.w.kernel + kj + b);
      }
    }
  }
  const int64_t out =
      (int64_t{tile.plane} * pool.h.windows + tile.row) * pool.w.windows * lanes + tile.column;
  op.values[out] = from_compute<T>(maximum.value);
  op.codes[out] = static_cast<uint8_t>(maximum.code);
}

template <class T, int V, bool kChannelsLast>
void launch_2x2(const MaxPool2d& op, cudaStream_t stream) {
  const Layout2x2 at(op.pool, op.lanes, V);
  launch_row_tiles(op.planes, op.pool.h.windows, at.pooled_row / V,
                   [&](const RowTiles& tiles, unsigned blocks) {
                     FASTSEG_LAUNCH((max_pool2d_2x2<T, V, kChannelsLast>), blocks, kThreads, 0,
                                    stream, Tensors<T>(op), at, tiles);
                   });
}

template <class T>
void launch_any(const MaxPool2d& op, cudaStream_t stream) {
  launch_row_tiles(op.planes, op.pool.h.windows, op.pool.w.windows * op.lanes,
                   [&](const RowTiles& tiles, unsigned blocks) {
                     FASTSEG_LAUNCH((max_pool2d_any<T>), blocks, kThreads, 0, stream,
                                    Tensors<T>(op), device_pool(op.pool), FastDivisor(op.lanes),
                                    tiles);
                   });
}

template <class T>
void launch(const MaxPool2d& op, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  const Codes codes{op.codes, /*packed=*/false, /*channels_last=*/op.lanes > 1};
  switch (form_2x2(op.pool, op.lanes, sizeof(T), op.x, op.values, codes, /*whole_rows=*/false)) {
    case Form2x2::kContiguous:
      return launch_2x2<T, V, false>(op, stream);
    case Form2x2::kContiguousHalf:
      return launch_2x2<T, V / 2, false>(op, stream);
    case Form2x2::kChannelsLast:
      return launch_2x2<T, V, true>(op, stream);
    case Form2x2::kNone:
      return launch_any<T>(op, stream);
  }
}

}  // namespace

cudaError_t max_pool2d(const MaxPool2d& op, cudaStream_t stream) {
  dispatch(op.dtype, [&](auto zero) { launch<decltype(zero)>(op, stream); });
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
