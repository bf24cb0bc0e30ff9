#pragma once
// The order in which a mean field takes an image's points: strips of eight rows, column after
// column. A tile of consecutive points is then a compact part of the image and touches a third to
// two thirds of the vertices that as many points of one row do.

#include <algorithm>
#include <cstdint>

#include "cuda/fast_divisor.h"

namespace fastseg::cuda {

class PixelStrips {
 public:
  // sizes: of `axes` axes, of which the last two make planes.
  template <class Size>
  PixelStrips(int axes, const Size* sizes)
      : width_(static_cast<int>(sizes[axes - 1])),
        height_(axes > 1 ? static_cast<int>(sizes[axes - 2]) : 1),
        plane_(std::max<int64_t>(1, int64_t{height_} * width_)),
        strip_(std::max<int64_t>(1, int64_t{kRows} * width_)),
        last_rows_(height_ % kRows > 0 ? height_ % kRows : kRows) {}

  // The pixel of a point, both counted within an image.
  FASTSEG_HOST_DEVICE int pixel(int point) const {
    const int plane = point / plane_, in_plane = point - plane * plane_;
    const int strip = in_plane / strip_, in_strip = in_plane - strip * strip_;
    const int top = strip * kRows;
    int column = in_strip / kRows, row = in_strip % kRows;
    if (top + kRows > height_) {
      column = in_strip / last_rows_;
      row = in_strip - column * last_rows_;
    }
    return plane * plane_ + (top + row) * width_ + column;
  }

  // A place among `count` consecutive points, from a strip's column on, so that neighbours along a
  // row follow each other where that is possible.
  FASTSEG_HOST_DEVICE static int along_rows(int i, int count) {
    const int columns = count / kRows;
    return count % kRows == 0 ? i % columns * kRows + i / columns : i;
  }

 private:
  static constexpr int kRows = 8;

  int width_, height_;
  FastDivisor plane_, strip_, last_rows_;
};

}  // namespace fastseg::cuda
