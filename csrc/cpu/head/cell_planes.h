#pragma once
// The source's values on both sides of a block of cells (bilinear_cells.h), for all classes.

#include <algorithm>
#include <cstdint>

#include "cpu/head/bilinear_cells.h"
#include "cpu/head/upsample.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

// [class][4][lane]: columns `at` and `next` of source row `at`, then of source row `next`.
inline constexpr int kCorners = 4;

template <class T>
class CellPlanes {
 public:
  using S = Simd<T>;
  using F = Compute<T>;
  using V = typename S::Value;
  using M = typename S::Mask;
  static constexpr int L = kLanes<T>;

  CellPlanes(const UpsampledLogits<T>& logits, F* planes) : logits_(logits), planes_(planes) {}

  // Loads block `block` of the band's two source rows of image n. Returns whether all values are
  // finite.
  bool load(int64_t n, const BilinearBand& band, int64_t block) {
    const BilinearCells<F>& cells = *logits_.cells;
    const int32_t* at = cells.at.data() + block * L;
    const int32_t* next = cells.next.data() + block * L;
    const Window a(at, logits_.width), b(next, logits_.width);
    V zeros{};
    for (int64_t k = 0; k < logits_.classes; ++k) {
      F* to = planes_ + k * kCorners * L;
      for (const int64_t row : {band.at, band.next}) {
        const T* from = logits_.row(n, k, row);
        for (const Window* window : {&a, &b}) {
          const V v = window->load(from, logits_.stride_w);
          zeros += v * F(0);  // undefined as soon as one value is not finite
          write(to, v);
          to += L;
        }
      }
    }
    for (int i = 0; i < L; ++i) {
      if (zeros[i] != 0) return false;
    }
    return true;
  }

 private:
  // The columns of one side. Upsampling, they fit into a vector, from which they are picked.
  struct Window {
    Window(const int32_t* columns, int64_t width) : columns(columns), base(columns[0]) {
      room = static_cast<int>(std::min<int64_t>(L, width - base));
      fits = columns[L - 1] - base < L;
      for (int i = 0; i < L; ++i) index[i] = columns[i] - base;
    }

    V load(const T* row, int64_t stride) const {
      T lanes[L];
      if (!fits) {
        for (int i = 0; i < L; ++i) lanes[i] = row[columns[i] * stride];
        return S::load(lanes);
      }
      if (stride == 1 && room == L) return pick(S::load(row + base));
      for (int i = 0; i < L; ++i) lanes[i] = row[(base + std::min(i, room - 1)) * stride];
      return pick(S::load(lanes));
    }

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
    int32_t base;
    int room;  // columns from `base` to the row's end
    bool fits;
    M index;
  };

  const UpsampledLogits<T>& logits_;
  F* planes_;
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
