// out_i = w_0 in_i + sum_k w_k (in_{i-k} + in_{i+k}), along the height and the width of an image.
//
// Floor: an element is read and written once, 8 bytes in float32, and costs r + 1 multiply-adds and
// r additions an axis, with r = 5.3 sigma taps on a side: at sigma 3, 16 + 15 twice, so arithmetic
// decides. A vector holds L values of one pixel (or of one row of pixels). Four outputs that are
// neighbours along the axis are summed at once: from one tap to the next their inputs move by one,
// so each tap loads two vectors for four outputs.
//
// A task takes a strip of rows: their height pass stays in the second-level cache for their width
// pass. Input rows are fetched again by the strips above and below, from the last-level cache.

#include <algorithm>
#include <memory>

#include "cpu/crf/spatial_gaussian_filter.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int kOutputs = 4;  // a power of two

// One convolution: `count` outputs of `lanes` values, out_stride apart, from the rows of inputs
// that begin `radius` before the first output and end `radius` behind the last.
template <class T>
struct Convolution {
  const T* const* rows;
  int64_t count;
  int64_t lanes;
  const T* taps;
  int64_t radius;
  T* out;
  int64_t out_stride;
  const T*
      upcoming;  // `count` rows, one after another, that the next convolution will need; or null
};

// Sums of L lanes for the outputs i .. i + B - 1.
template <int L, int B, class T>
inline void convolve_block(const Convolution<T>& c, int64_t i, int64_t lane) {
  using S = Simd<T, L>;
  using V = typename S::Value;
  const T* const* rows = c.rows + i;
  // Input j of those that move down with the taps is in left[j % B], of those that move up in
  // right[j % B].
  V left[B], right[B], sum[B];
  for (int m = 0; m < B; ++m) {
    left[m] = right[m] = S::load(rows[c.radius + m] + lane);
    sum[m] = c.taps[0] * left[m];
  }
  for (int64_t first = 1; first <= c.radius; first += B) {
#pragma GCC unroll 4
    for (int t = 0; t < B; ++t) {
      const int64_t k = first + t;
      if (k > c.radius) break;
      left[B - 1 - t] = S::load(rows[c.radius - k] + lane);
      right[t] = S::load(rows[c.radius + B - 1 + k] + lane);
      const T tap = c.taps[k];
#pragma GCC unroll 4
      for (int m = 0; m < B; ++m) {
        sum[m] += tap * (left[(m + 2 * B - 1 - t) % B] + right[(m + 1 + t) % B]);
      }
    }
  }
  for (int m = 0; m < B; ++m) S::store(c.out + (i + m) * c.out_stride + lane, sum[m]);
}

// The processor's own prefetchers do not follow so many rows.
template <class T>
inline void prefetch_column(const Convolution<T>& c, int64_t lane) {
  constexpr int64_t kAhead = 128 / sizeof(T);
  for (int64_t i = 0; i < c.count + 2 * c.radius; ++i)
    __builtin_prefetch(c.rows[i] + lane + kAhead);
  if (c.upcoming == nullptr) return;
  for (int64_t i = 0; i < c.count; ++i) {
    __builtin_prefetch(c.upcoming + i * c.lanes + lane, 0, /*locality=*/2);
  }
}

// All outputs, from `lane` on: what is less than a vector goes with narrower ones.
template <int L, bool kPrefetch, class T>
inline void convolve(const Convolution<T>& c, int64_t lane = 0) {
  for (; lane + L <= c.lanes; lane += L) {
    if (kPrefetch) prefetch_column(c, lane);
    int64_t i = 0;
    for (; i + kOutputs <= c.count; i += kOutputs) convolve_block<L, kOutputs>(c, i, lane);
    for (; i < c.count; ++i) convolve_block<L, 1>(c, i, lane);
  }
  if constexpr (L > 1) convolve<(L > 4 ? L / 2 : 1), kPrefetch>(c, lane);
}

// Pointers to the rows [begin - radius, end + radius) of a line of `size` rows; those beyond its
// ends point to zeros.
template <class T>
class RowPointers {
 public:
  RowPointers(int64_t count, int64_t radius, int64_t lanes)
      : radius_(radius), pointers_(count + 2 * radius), zeros_(lanes) {}

  const T* const* at(const T* line, int64_t stride, int64_t size, int64_t begin, int64_t end) {
    for (int64_t i = begin - radius_; i < end + radius_; ++i) {
      const bool inside = i >= 0 && i < size;
      pointers_[i - begin + radius_] = inside ? line + i * stride : zeros_.data();
    }
    return pointers_.data();
  }

 private:
  int64_t radius_;
  std::vector<const T*> pointers_;
  std::vector<T> zeros_;
};

template <class T>
int64_t radius_of(const std::vector<T>& taps) {
  return static_cast<int64_t>(taps.size()) - 1;
}

// The width of one row whose pixels hold few values: a vector holds neighbouring pixels. `padded`
// is the row, of `size` values, between two stretches of radius * lanes zeros.
template <class T>
void convolve_row(const T* padded, int64_t size, int64_t lanes, const std::vector<T>& taps,
                  T* out) {
  const T* centre = padded + radius_of(taps) * lanes;
  for_blocks<kLanes<T>>(0, size, [&](auto block, int64_t i) {
    using S = Simd<T, block>;
    auto sum = taps[0] * S::load(centre + i);
    for (int64_t k = 1; k <= radius_of(taps); ++k) {
      sum += taps[k] * (S::load(centre + i - k * lanes) + S::load(centre + i + k * lanes));
    }
    S::store(out + i, sum);
  });
}

}  // namespace

template <class T>
void spatial_gaussian_rows(const SpatialGaussian<T>& op, const T* in, int64_t begin, int64_t end,
                           T* out) {
  const int64_t height = op.sizes[1], width = op.sizes[2], row = op.row(), count = end - begin;
  const std::vector<T>&vertical = op.taps[1], &horizontal = op.taps[2];
  const int64_t reach = radius_of(vertical), radius = radius_of(horizontal);
  const bool by_pixels = op.lanes >= 8;
  const int64_t margin = by_pixels ? 0 : radius * op.lanes, stride = row + 2 * margin;
  const auto strip = std::make_unique_for_overwrite<T[]>(count * stride);
  RowPointers<T> rows(count, reach, row);
  const T* upcoming = end + reach + count <= height ? in + (end + reach) * row : nullptr;
  convolve<kLanes<T>, true>(Convolution<T>{rows.at(in, row, height, begin, end), count, row,
                                           vertical.data(), reach, strip.get() + margin, stride,
                                           upcoming});
  RowPointers<T> pixels(by_pixels ? width : 0, by_pixels ? radius : 0, op.lanes);
  for (int64_t i = 0; i < count; ++i) {
    T* line = strip.get() + i * stride;
    if (by_pixels) {
      convolve<kLanes<T>, false>(Convolution<T>{pixels.at(line, op.lanes, width, 0, width), width,
                                                op.lanes, horizontal.data(), radius, out + i * row,
                                                op.lanes, nullptr});
    } else {
      std::fill(line, line + margin, T{0});
      std::fill(line + margin + row, line + stride, T{0});
      convolve_row(line, row, op.lanes, horizontal, out + i * row);
    }
  }
}

template <class T>
void spatial_gaussian_depth(const SpatialGaussian<T>& op, const T* in, int64_t index, int64_t begin,
                            int64_t end, T* out) {
  const int64_t lanes = (end - begin) * op.row(), radius = radius_of(op.taps[0]);
  RowPointers<T> slices(1, radius, lanes);
  const T* line = in + begin * op.row();
  convolve<kLanes<T>, true>(
      Convolution<T>{slices.at(line, op.slice(), op.sizes[0], index, index + 1), 1, lanes,
                     op.taps[0].data(), radius, out, lanes, nullptr});
}

#define FASTSEG_INSTANTIATE(T)                                                                   \
  template void spatial_gaussian_rows<T>(const SpatialGaussian<T>&, const T*, int64_t, int64_t,  \
                                         T*);                                                    \
  template void spatial_gaussian_depth<T>(const SpatialGaussian<T>&, const T*, int64_t, int64_t, \
                                          int64_t, T*);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
