// out[position(code)] = value (max_unpool2d) or += value (max_pool2d_backward), 0 elsewhere.
//
// Floor: every value, code and output element moves once: for 2x2 windows 4 + 1 bytes in and 16 out
// for each window in float32, 2 + 1 and 8 in the 16-bit types, 2 + 1/4 and 8 with packed codes.
//
// A gather: a thread owns elements of the output and asks the windows that cover them. So each
// element is written once, nothing is cleared before, no atomics run, and the result does not
// depend on the order of the threads; where windows overlap they act in raster order, as in torch.

#include "cuda/arithmetic.h"
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
  const T* values;
  Codes codes;
  T* out;
  bool accumulate;

  explicit Tensors(const MaxUnpool2d& op)
      : values(static_cast<const T*>(op.values)),
        codes(op.codes),
        out(static_cast<T*>(op.out)),
        accumulate(op.accumulate) {}

  __device__ void check(bool good) const {
    FASTSEG_DEVICE_CHECK(
        good, accumulate
                  ? "fastseg::max_pool2d_backward: a code lies outside its window or the plane"
                  : "fastseg::max_unpool2d: a code lies outside its window or the plane");
  }
};

// 2x2 windows: a thread makes the 4 V elements of V windows (windows_2x2.h), and zeros where the
// plane goes on below or to the right of the last window. Values are moved, not computed with: T is
// an unsigned integer of the element's size.
template <class T, int V, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_2x2(Tensors<T> op, Layout2x2 at, RowTiles tiles) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  const bool exists = index < tiles.count;
  Place2x2<V, kChannelsLast> place(at, tiles[exists ? index : 0]);
  place.exists = exists;
  T values[V] = {};
  uint8_t codes[V] = {};
  if (exists && place.has_window) {
    load(op.values + place.pooled_row * at.pooled_row + place.column, values);
    const int any = read_codes_2x2(op.codes, place.pooled_row, at.pooled_row, place.column, codes);
    op.check(any < 4);
  }
  constexpr T kNegativeZero = T{1} << (8 * sizeof(T) - 1);
  Taps<T, V> taps;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    // torch adds to zero: -0.0 becomes 0.0.
    if (op.accumulate && values[k] == kNegativeZero) values[k] = 0;
#pragma unroll
    for (int t = 0; t < 4; ++t) taps.tap[t][k] = codes[k] == t ? values[k] : T{0};
  }
  store_taps(at, place, taps, op.out);
}

// Any window: a thread makes one element. It reads one code for each window that covers it, and
// values only where the code is its own.
template <class T>
__global__ void __launch_bounds__(kThreads)
    max_unpool2d_any(Tensors<T> op, DevicePool2d pool, FastDivisor lanes, RowTiles tiles) {
  const int index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= tiles.count) return;
  const Tile tile = tiles[index];
  const int y = tile.row, x = tile.column / lanes, lane = tile.column - x * lanes;
  Compute<T> result = 0;
  for (int i = pool.h.first_window(y); i < pool.h.end_window(y); ++i) {
    const int ki = pool.h.tap_at(i, y);
    if (ki < 0) continue;
    const int64_t row = int64_t{tile.plane} * pool.h.windows + i;
    for (int j = pool.w.first_window(x); j < pool.w.end_window(x); ++j) {
      const int kj = pool.w.tap_at(j, x);
      if (kj < 0) continue;
      const int code = read_code(op.codes, row, pool.w.windows, lanes, j, lane);
      const bool whole = pool.h.whole(i) && pool.w.whole(j);
      op.check(whole ? code < pool.taps() : pool.lands_inside(i, j, code));
      if (code != ki * pool.w.kernel + kj) continue;
      const Compute<T> value = to_compute(op.values[(row * pool.w.windows + j) * lanes + lane]);
      result = op.accumulate ? result + value : value;
    }
  }
  const int64_t out = (int64_t{tile.plane} * pool.h.size + y) * pool.w.size * lanes + tile.column;
  op.out[out] = from_compute<T>(result);
}

template <class T, int V, bool kChannelsLast>
void launch_2x2(const MaxUnpool2d& op, cudaStream_t stream) {
  const Layout2x2 at(op.pool, op.lanes, V);
  const int64_t columns =
      kChannelsLast ? (op.pool.w.size + 1) / 2 * (op.lanes / V) : op.pool.w.windows / V;
  launch_row_tiles(op.planes, (op.pool.h.size + 1) / 2, columns,
                   [&](const RowTiles& tiles, unsigned blocks) {
                     FASTSEG_LAUNCH((max_unpool2d_2x2<T, V, kChannelsLast>), blocks, kThreads, 0,
                                    stream, Tensors<T>(op), at, tiles);
                   });
}

void launch_any(const MaxUnpool2d& op, cudaStream_t stream) {
  dispatch(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_row_tiles(op.planes, op.pool.h.size, op.pool.w.size * op.lanes,
                     [&](const RowTiles& tiles, unsigned blocks) {
                       FASTSEG_LAUNCH((max_unpool2d_any<T>), blocks, kThreads, 0, stream,
                                      Tensors<T>(op), device_pool(op.pool), FastDivisor(op.lanes),
                                      tiles);
                     });
  });
}

}  // namespace

cudaError_t max_unpool2d(const MaxUnpool2d& op, cudaStream_t stream) {
  const Form2x2 form = form_2x2(op.pool, op.lanes, size_of(op.dtype), op.out, op.values, op.codes,
                                /*whole_rows=*/true);
  if (form == Form2x2::kNone) {
    launch_any(op, stream);
  } else {
    dispatch_bits(op.dtype, [&](auto zero) {
      using T = decltype(zero);
      constexpr int V = kVector<T>;
      switch (form) {
        case Form2x2::kContiguousHalf:
          return launch_2x2<T, V / 2, false>(op, stream);
        case Form2x2::kChannelsLast:
          return launch_2x2<T, V, true>(op, stream);
        default:
          return launch_2x2<T, V, false>(op, stream);
      }
    });
  }
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
