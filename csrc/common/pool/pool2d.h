#pragma once
// The geometry of 2-D max-pooling with byte codes, shared by the CPU and the CUDA kernels.
//
// A code is the position of the maximum inside its window, ki * kernel_w + kj in [0, 256).
// Window o along an axis covers the coordinates o * stride - padding + k * dilation for
// k = 0 .. kernel - 1; taps outside [0, size) are padding and never win.

#include <cstdint>

#include "common/host_device.h"

namespace fastseg {

// One axis of a pooling: `size` coordinates are pooled to `windows` windows.
// CUDA kernels count in int and divide by multiplication (cuda/fast_divisor.h).
template <class Int, class Divisor>
struct PoolAxisOf {
  Int size;
  Int windows;
  int kernel;
  Divisor stride;
  int padding;
  Divisor dilation;

  // The coordinate of the window's first tap, negative in the padding.
  FASTSEG_HOST_DEVICE Int start(Int window) const { return window * stride - padding; }

  FASTSEG_HOST_DEVICE Int coordinate(Int window, int tap) const {
    return start(window) + Int{tap} * dilation;
  }

  FASTSEG_HOST_DEVICE bool inside(Int coordinate) const {
    return coordinate >= 0 && coordinate < size;
  }

  // Taps [first_tap, end_tap) of a window lie inside the plane.
  FASTSEG_HOST_DEVICE int first_tap(Int window) const {
    const Int s = start(window);
    return s >= 0 ? 0 : static_cast<int>((-s + dilation - 1) / dilation);
  }
  FASTSEG_HOST_DEVICE int end_tap(Int window) const {
    const Int room = size - start(window);
    const Int taps = room <= 0 ? 0 : (room + dilation - 1) / dilation;
    return taps < kernel ? static_cast<int>(taps) : kernel;
  }

  // No tap of the window is padding.
  FASTSEG_HOST_DEVICE bool whole(Int window) const {
    return start(window) >= 0 && coordinate(window, kernel - 1) < size;
  }

  // Windows [first_window, end_window) reach from before or at `coordinate` to it or beyond.
  FASTSEG_HOST_DEVICE Int first_window(Int coordinate) const {
    const Int offset = coordinate + padding - Int{kernel - 1} * dilation;
    return offset <= 0 ? 0 : (offset + stride - 1) / stride;
  }
  FASTSEG_HOST_DEVICE Int end_window(Int coordinate) const {
    const Int end = (coordinate + padding) / stride + 1;
    return end < windows ? end : windows;
  }

  // Which tap of such a window falls on `coordinate`; -1: it lies between two dilated taps.
  FASTSEG_HOST_DEVICE int tap_at(Int window, Int coordinate) const {
    const Int offset = coordinate - start(window);
    const Int tap = offset / dilation;
    return tap * dilation == offset ? static_cast<int>(tap) : -1;
  }
};

using PoolAxis = PoolAxisOf<int64_t, int>;

template <class Axis>
struct Pool2dOf {
  using Int = decltype(Axis::size);

  Axis h;
  Axis w;

  FASTSEG_HOST_DEVICE int taps() const { return h.kernel * w.kernel; }

  // The code names a tap of window (i, j) that lies inside the plane.
  FASTSEG_HOST_DEVICE bool lands_inside(Int i, Int j, int code) const {
    return code < taps() && h.inside(h.coordinate(i, code / w.kernel)) &&
           w.inside(w.coordinate(j, code % w.kernel));
  }

  // 2x2 windows with stride 2, of which four codes fit into a byte: the pooling of SegNet, U-Net
  // and VGG.
  FASTSEG_HOST_DEVICE bool packable() const { return is_2(h) && is_2(w); }

  // The same, and no window reaches out of the plane.
  FASTSEG_HOST_DEVICE bool is_2x2() const {
    return packable() && h.size >= 2 * h.windows && w.size >= 2 * w.windows;
  }

 private:
  FASTSEG_HOST_DEVICE static bool is_2(const Axis& a) {
    return a.kernel == 2 && a.stride == 2 && a.padding == 0 && a.dilation == 1;
  }
};

using Pool2d = Pool2dOf<PoolAxis>;

// torch's rule for a new maximum: the first of equal values wins, the last NaN wins.
template <class T>
FASTSEG_HOST_DEVICE bool replaces_maximum(T candidate, T maximum) {
  return candidate > maximum || candidate != candidate;
}

}  // namespace fastseg
