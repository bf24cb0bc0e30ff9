#pragma once
// What a loss knows of each pixel: its target, and numbers in maps of any strides.

#include <atomic>
#include <cstdint>

namespace fastseg::cpu {

// Numbers (N, H, W) of any strides, 0 among them; none where data is null.
template <class F>
struct PixelMap {
  const F* data;
  int64_t stride_n, stride_h, stride_w;

  const F* row(int64_t n, int64_t y) const { return data + n * stride_n + y * stride_h; }
};

// A target that is no class, which some task found.
struct BadTarget {
  std::atomic<bool> found{false};
  std::atomic<int64_t> value{0};
};

// The pixels' classes (N, H, W), dense.
struct TargetMap {
  const void* data;
  int bytes;  // of a target: 1 without a sign, 4 or 8
  int64_t ignore_index;
  int64_t height, width;
  BadTarget* bad;

  // Calls body(pointer to the row's targets).
  template <class Body>
  void visit_row(int64_t n, int64_t y, const Body& body) const {
    const int64_t at = (n * height + y) * width;
    switch (bytes) {
      case 1:
        return body(static_cast<const uint8_t*>(data) + at);
      case 4:
        return body(static_cast<const int32_t*>(data) + at);
      default:
        return body(static_cast<const int64_t*>(data) + at);
    }
  }
};

}  // namespace fastseg::cpu
