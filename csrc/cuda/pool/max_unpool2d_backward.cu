// out = grad[position(code)]: the gradient of max_unpool2d, and of max_pool2d_backward.
//
// Floor: for 2x2 windows of float32, 16 + 1 bytes in and 4 out for each window (16-bit types: 8 + 1
// and 2): the three elements that are not wanted share the sectors of the one that is, so all four
// are loaded and the code selects. Values are moved, not computed with: T is an unsigned integer of
// the element's size.

#include "cuda/bits.h"
#include "cuda/launch.h"
#include "cuda/pool/device_pool2d.h"
#include "cuda/pool/max_unpool2d.h"
#include "cuda/pool/read_codes.h"
#include "cuda/pool/windows_2x2.h"
#include "cuda/row_tiles.h"

namespace fastseg::cuda {
namespace {

template <class T>
struct Tensors {
  const T* grad;
  Codes codes;
  T* out;

  explicit Tensors(const MaxUnpool2dBackward& op)
      : grad(static_cast<const T*>(op.grad)), codes(op.codes), out(static_cast<T*>(op.out)) {}

  __device__ void check(bool good) const {
    FASTSEG_DEVICE_CHECK(
        good, "fastseg::max_unpool2d_backward: a code lies outside its window or the plane");
  }
};

// 2x2 windows: a thread makes V of them (windows_2x2.h).
template <class T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_backward_2x2(Tensors<T> op, Layout2x2 at, RowTiles tiles) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= tiles.count) return;
  const Place2x2<V, kChannelsLast> place(at, tiles[index]);
  const Taps<T, V> taps = load_taps<T, V, kChannelsLast>(at, op.grad + place.top);
  uint8_t codes[V];
  op.check(read_codes_2x2(op.codes, place.pooled_row, at.pooled_row, place.column, codes) < 4);
  T values[V];
#pragma unroll
  for (int k = 0; k < V; ++k) {
    const T upper = codes[k] & 1 ? taps.tap[1][k] : taps.tap[0][k];
    const T lower = codes[k] & 1 ? taps.tap[3][k] : taps.tap[2][k];
    values[k] = codes[k] & 2 ? lower : upper;
  }
  store(op.out + place.pooled_row * at.pooled_row + place.column, values);
}

// Any window: a thread makes one.
template <class T>
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_backward_any(Tensors<T> op, DevicePool2d pool, FastDivisor lanes, RowTiles tiles) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= tiles.count) return;
  const Tile tile = tiles[index];
  const int i = tile.row, j = tile.column / lanes, lane = tile.column - j * lanes;
  const int64_t row = int64_t{tile.plane} * pool.h.windows + i;
  const int code = read_code(op.codes, row, pool.w.windows, lanes, j, lane);
  op.check(pool.lands_inside(i, j, code));
  const int64_t y = int64_t{tile.plane} * pool.h.size + pool.h.coordinate(i, code / pool.w.kernel);
  const int64_t x = pool.w.coordinate(j, code % pool.w.kernel);
  op.out[row * pool.w.windows * lanes + tile.column] =
      op.grad[(y * pool.w.size + x) * lanes + lane];
}

template <class T, int V, bool kChannelsLast>
void launch_2x2(const MaxUnpool2dBackward& op, cudaStream_t stream) {
  const Layout2x2 at(op.pool, op.lanes, V);
  launch_row_tiles(op.planes, op.pool.h.windows, at.pooled_row / V,
                   [&](const RowTiles& tiles, unsigned blocks) {
                     FASTSEG_LAUNCH((max_unpool2d_backward_2x2<T, V, kChannelsLast>), blocks,
                                    kThreads, 0, stream, Tensors<T>(op), at, tiles);
                   });
}

template <class T>
void launch_any(const MaxUnpool2dBackward& op, cudaStream_t stream) {
  launch_row_tiles(op.planes, op.pool.h.windows, op.pool.w.windows * op.lanes,
                   [&](const RowTiles& tiles, unsigned blocks) {
                     FASTSEG_LAUNCH((max_unpool2d_backward_any<T>), blocks, kThreads, 0, stream,
                                    Tensors<T>(op), device_pool(op.pool), FastDivisor(op.lanes),
                                    tiles);
                   });
}

}  // namespace

cudaError_t max_unpool2d_backward(const MaxUnpool2dBackward& op, cudaStream_t stream) {
  dispatch_bits(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = kVector<T>;
    switch (
        form_2x2(op.pool, op.lanes, sizeof(T), op.grad, op.out, op.codes, /*whole_rows=*/false)) {
      case Form2x2::kContiguous:
        return launch_2x2<T, V, false>(op, stream);
      case Form2x2::kContiguousHalf:
        return launch_2x2<T, V / 2, false>(op, stream);
      case Form2x2::kChannelsLast:
        return launch_2x2<T, V, true>(op, stream);
      case Form2x2::kNone:
        return launch_any<T>(op, stream);
    }
  });
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
