#pragma once
// The source's values on both sides of a block of cells (bilinear_cells.h), for all classes.

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "cpu/head/bilinear_cells.h"
#include "cpu/head/upsample.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// [class][corner][lane]: columns `at` and `next` of source row `at`, then of source row `next`.
inline constexpr int kCorners = 4;

// Lanes' columns on one side. When upsampling they fit into a vector, from which they are picked.
template <class T>
struct CellColumns {
  using S = Simd<T>;
  using V = typename S::Value;
  static constexpr int L = kLanes<T>;

  explicit CellColumns(const int32_t* columns)
      : columns(columns), first(columns[0]), last(columns[L - 1]) {
    for (int i = 0; i < L; ++i) index[i] = columns[i] - first;
  }

  bool fit() const { return last - first < L; }

  // From columns that begin with the first.
  V pick(V v) const {
#if defined(__clang__)
    V picked;
    for (int i = 0; i < L; ++i) picked[i] = v[index[i]];
    return picked;
#else
    return __builtin_shuffle(v, index);
#endif
  }

  const int32_t* columns;
  int32_t first, last;
  typename S::Mask index;
};

template <class T>
class CellPlanes {
 public:
  using S = Simd<T>;
  using F = Compute<T>;
  using V = typename S::Value;
  using Corners = std::array<V, kCorners>;
  static constexpr int L = kLanes<T>;

  CellPlanes(const UpsampledLogits<T>& logits, F* planes) : logits_(logits), planes_(planes) {}

  // Loads block `block` of the band's two source rows of image n and calls see(class, corners) for
  // each class. Returns whether all values are finite.
  template <class See>
  bool load(int64_t n, const BilinearBand& band, int64_t block, See& see) {
    if constexpr (std::is_same_v<T, float>) {
      if (logits_.type == LogitsType::half) return load_as<Half>(n, band, block, see);
      if (logits_.type == LogitsType::bfloat16) return load_as<BFloat16>(n, band, block, see);
    }
    return load_as<T>(n, band, block, see);
  }

 private:
  // Out of line, and with a copy of `see` that no store can reach: so all of it stays in registers.
  template <class Stored, class See>
  [[gnu::noinline]] bool load_as(int64_t n, const BilinearBand& band, int64_t block,
                                 See& shared_see) {
    See see = shared_see;
    const CellColumns<T> a(logits_.cells->at.data() + block * L);
    const CellColumns<T> b(logits_.cells->next.data() + block * L);
    const int64_t rows[2] = {band.at, band.next};
    V zeros{};
    const auto take = [&](int64_t k, const Corners& corners) {
      F* to = planes_ + k * kCorners * L;
      for (int i = 0; i < kCorners; ++i) {
        zeros += corners[i] * F(0);  // undefined as soon as one value is not finite
        write(to + i * L, corners[i]);
      }
      see(k, corners);
    };
    if (!a.fit() || !b.fit()) {
      gather<Stored>(n, rows, a, b, take);
    } else if (logits_.stride_w == 1 && std::max(a.first, b.first) + L <= logits_.width) {
      for (int64_t k = 0; k < logits_.classes; ++k) {
        Corners corners;
        for (int r = 0; r < 2; ++r) {
          const Stored* row = logits_.template row<Stored>(n, k, rows[r]);
          corners[2 * r] = a.pick(Simd<Stored>::load(row + a.first));
          corners[2 * r + 1] = b.pick(Simd<Stored>::load(row + b.first));
        }
        take(k, corners);
      }
    } else {
      load_staged<Stored>(n, rows, a, b, take);
    }
    shared_see = see;
    for (int i = 0; i < L; ++i) {
      if (zeros[i] != 0) return false;
    }
    return true;
  }

  // For other strides and at the ends of rows: some classes at a time are copied first.
  template <class Stored, class Take>
  void load_staged(int64_t n, const int64_t* rows, const CellColumns<T>& a, const CellColumns<T>& b,
                   const Take& take) {
    constexpr int kAtOnce = 16;
    Stored staged[2][kAtOnce][2 * L] = {};
    const int columns = std::max(a.last, b.last) - a.first + 1;
    for (int64_t k = 0; k < logits_.classes; k += kAtOnce) {
      const int count = static_cast<int>(std::min<int64_t>(kAtOnce, logits_.classes - k));
      for (int r = 0; r < 2; ++r) {
        const Stored* row =
            logits_.template row<Stored>(n, k, rows[r]) + a.first * logits_.stride_w;
        for (int x = 0; x < columns; ++x) {
          const Stored* from = row + x * logits_.stride_w;
          for (int i = 0; i < count; ++i) staged[r][i][x] = from[i * logits_.stride_c];
        }
      }
      for (int i = 0; i < count; ++i) {
        Corners corners;
        for (int r = 0; r < 2; ++r) {
          corners[2 * r] = a.pick(Simd<Stored>::load(staged[r][i]));
          corners[2 * r + 1] = b.pick(Simd<Stored>::load(staged[r][i] + (b.first - a.first)));
        }
        take(k + i, corners);
      }
    }
  }

  // Downsampling: the columns lie far apart.
  template <class Stored, class Take>
  void gather(int64_t n, const int64_t* rows, const CellColumns<T>& a, const CellColumns<T>& b,
              const Take& take) {
    for (int64_t k = 0; k < logits_.classes; ++k) {
      Stored lanes[kCorners][L];
      for (int r = 0; r < 2; ++r) {
        const Stored* row = logits_.template row<Stored>(n, k, rows[r]);
        for (int i = 0; i < L; ++i) {
          lanes[2 * r][i] = row[a.columns[i] * logits_.stride_w];
          lanes[2 * r + 1][i] = row[b.columns[i] * logits_.stride_w];
        }
      }
      Corners corners;
      for (int i = 0; i < kCorners; ++i) corners[i] = Simd<Stored>::load(lanes[i]);
      take(k, corners);
    }
  }

  const UpsampledLogits<T>& logits_;
  F* planes_;
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
