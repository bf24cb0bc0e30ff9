#pragma once
// What the 2x2 kernels share: a tile of V windows and its four taps of V elements each.
//
// - contiguous: the windows are neighbours in a row; the taps are the even and the odd elements of
//   2 V elements of two rows.
// - channels_last: the windows are V channels of one position; each tap is V neighbouring elements.
//
// With V = 16 / sizeof(T) a tile is four 16-byte accesses on the plane's side and one on the pooled
// side in either layout: 64 bytes in flight for each thread, about 80 KB for a multiprocessor.
// Contiguous rows that are whole numbers of 16 bytes before the pooling but not after it take half
// of that V. All else is left to the kernels for any window.

#include <cstdint>

#include "common/pool/packed_codes.h"
#include "common/pool/pool2d.h"
#include "cuda/pool/codes.h"
#include "cuda/row_tiles.h"
#include "cuda/vector_access.h"

namespace fastseg::cuda {

template <class T, int V>
struct Taps {
  T tap[4][V];  // in the order of the codes
};

// Where the tiles lie. All counts are in elements.
struct Layout2x2 {
  int height, width;                // of the plane
  int pooled_height, pooled_width;  // in windows
  int lanes;                        // channels_last: C; contiguous: 1
  int64_t row, pooled_row;          // width * lanes, pooled_width * lanes
  FastDivisor tiles_per_window;     // channels_last: C / V

  Layout2x2(const Pool2d& pool, int64_t channels_or_1, int vector)
      : height(static_cast<int>(pool.h.size)),
        width(static_cast<int>(pool.w.size)),
        pooled_height(static_cast<int>(pool.h.windows)),
        pooled_width(static_cast<int>(pool.w.windows)),
        lanes(static_cast<int>(channels_or_1)),
        row(pool.w.size * channels_or_1),
        pooled_row(pool.w.windows * channels_or_1),
        tiles_per_window(std::max<int64_t>(1, channels_or_1 / vector)) {}
};

// One tile: offsets of its first elements, and which of its taps the plane has.
template <int V, bool kChannelsLast>
struct Place2x2 {
  int channel;         // channels_last: the first of V
  int64_t top;         // tap 0 in the plane
  int64_t pooled_row;  // windows above the tile's row, of all planes
  int column;          // elements before the tile in its pooled row
  bool has_window, has_right, has_below;
  bool exists = true;

  __device__ Place2x2(const Layout2x2& at, const Tile& tile) : channel(0), column(tile.column * V) {
    const int64_t plane_row = int64_t{tile.plane} * at.height + 2 * tile.row;
    pooled_row = int64_t{tile.plane} * at.pooled_height + tile.row;
    has_window = tile.row < at.pooled_height;
    has_below = 2 * tile.row + 1 < at.height;
    if constexpr (kChannelsLast) {
      const int j = tile.column / at.tiles_per_window;
      channel = (tile.column - j * at.tiles_per_window) * V;
      top = plane_row * at.row + int64_t{2 * j} * at.lanes + channel;
      has_window = has_window && j < at.pooled_width;
      has_right = 2 * j + 1 < at.width;
    } else {
      top = plane_row * at.row + int64_t{2} * column;
      has_right = true;
    }
  }
};

// All four taps must be there.
template <class T, int V, bool kChannelsLast>
__device__ inline Taps<T, V> load_taps(const Layout2x2& at, const T* top) {
  Taps<T, V> taps;
  if constexpr (kChannelsLast) {
    load(top, taps.tap[0]);
    load(top + at.lanes, taps.tap[1]);
    load(top + at.row, taps.tap[2]);
    load(top + at.row + at.lanes, taps.tap[3]);
  } else {
    T rows[2][2 * V];
    load(top, rows[0]);
    load(top + at.row, rows[1]);
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
      for (int k = 0; k < V; ++k) taps.tap[t][k] = rows[t / 2][2 * k + t % 2];
    }
  }
  return taps;
}

// By value: a reference to one of two would keep both in memory.
__device__ inline uint4 chosen(bool first, uint4 a, uint4 b) {
  return {first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w};
}

// The other lane's of a pair.
__device__ inline uint4 exchanged(uint4 x) {
  return {__shfl_xor_sync(~0u, x.x, 1), __shfl_xor_sync(~0u, x.y, 1), __shfl_xor_sync(~0u, x.z, 1),
          __shfl_xor_sync(~0u, x.w, 1)};
}

// Stores a contiguous tile's two rows of 32 bytes. Two lanes store one's row together, then the
// other's, so that a store fills whole sectors.
template <class T, int V>
__device__ inline void store_rows(const Layout2x2& at, const Place2x2<V, false>& place,
                                  const T (&rows)[2][2 * V], T* out) {
  const bool odd = threadIdx.x % 2 == 1;
  const int64_t other_top = __shfl_xor_sync(~0u, place.top, 1);
  const int stored = place.exists ? place.has_below ? 2 : 1 : 0;  // rows
  const int other_stored = __shfl_xor_sync(~0u, stored, 1);
  const int half = odd ? V : 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    uint4 halves[2];
    memcpy(halves, rows[r], sizeof halves);
    const uint4 low = halves[0], high = halves[1];
    const uint4 got = exchanged(chosen(odd, low, high));
    uint4* const mine = reinterpret_cast<uint4*>(out + place.top + r * at.row + half);
    uint4* const others = reinterpret_cast<uint4*>(out + other_top + r * at.row + half);
    if (r < (odd ? other_stored : stored)) __stwb(odd ? others : mine, chosen(odd, got, low));
    if (r < (odd ? stored : other_stored)) __stwb(odd ? mine : others, chosen(odd, high, got));
  }
}

// For all lanes of a warp, also those whose tile does not exist.
template <class T, int V, bool kChannelsLast>
__device__ inline void store_taps(const Layout2x2& at, const Place2x2<V, kChannelsLast>& place,
                                  const Taps<T, V>& taps, T* out) {
  T* const top = out + place.top;
  if constexpr (kChannelsLast) {
    if (!place.exists) return;
    store(top, taps.tap[0]);
    if (place.has_right) store(top + at.lanes, taps.tap[1]);
    if (place.has_below) store(top + at.row, taps.tap[2]);
    if (place.has_right && place.has_below) store(top + at.row + at.lanes, taps.tap[3]);
  } else {
    T rows[2][2 * V];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
      for (int k = 0; k < V; ++k) rows[t / 2][2 * k + t % 2] = taps.tap[t][k];
    }
    if constexpr (V == kVector<T>) {
      store_rows<T, V>(at, place, rows, out);
    } else if (place.exists) {
      store(top, rows[0]);
      if (place.has_below) store(top + at.row, rows[1]);
    }
  }
}

// Which of the 2x2 kernels fits.
enum class Form2x2 { kNone, kContiguous, kContiguousHalf, kChannelsLast };

// `plane` and `pooled` are the tensors of T on both sides. `whole_rows`: the windows must cover the
// rows of a contiguous plane.
inline Form2x2 form_2x2(const Pool2d& pool, int64_t lanes, int element_bytes, const void* plane,
                        const void* pooled, const Codes& codes, bool whole_rows) {
  const int vector = kVectorBytes / element_bytes;
  if (!pool.is_2x2() || !is_aligned(plane, kVectorBytes) || !is_aligned(pooled, kVectorBytes) ||
      !is_aligned(codes.data, vector)) {
    return Form2x2::kNone;
  }
  if (codes.packed && codes.channels_last && lanes % kCodesPerByte != 0) return Form2x2::kNone;
  if (lanes > 1) return lanes % vector == 0 ? Form2x2::kChannelsLast : Form2x2::kNone;
  if (whole_rows && pool.w.size != 2 * pool.w.windows) return Form2x2::kNone;
  if (pool.w.size % vector == 0 && pool.w.windows % vector == 0) return Form2x2::kContiguous;
  if (pool.w.size % vector == 0 && pool.w.windows % (vector / 2) == 0) {
    return Form2x2::kContiguousHalf;
  }
  return Form2x2::kNone;
}

}  // namespace fastseg::cuda
