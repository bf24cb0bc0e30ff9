#pragma once
// The geometry of bilinear interpolation along one axis, by the rule of torch's upsampling. Shared
// by the CPU and the CUDA kernels.
//
// Pixel i of `out` lies at s = scale * i with aligned corners (scale = (in - 1) / (out - 1)), at
// s = max(0, scale * (i + 1/2) - 1/2) without (scale = in / out), and is w0 * x[at] + w1 * x[next]
// with at = floor(s), next = at + 1 inside the axis, w1 = s - at, w0 = 1 - w1. An infinite or
// undefined x[next] makes the pixel undefined where w1 is zero, as it does in torch.
//
// CUDA kernels that look at a pixel in different places find the same source: s is rounded alike.

#include <cstdint>

#include "common/host_device.h"
#include "common/rounding.h"

namespace fastseg {

template <class F>
struct BilinearTap {
  int64_t at, next;
  F w0, w1;
};

template <class F>
struct BilinearAxis {
  int64_t in, out;
  bool align_corners;
  F scale;

  FASTSEG_HOST_DEVICE BilinearAxis(int64_t in, int64_t out, bool align_corners)
      : in(in), out(out), align_corners(align_corners) {
    if (align_corners) {
      scale = out > 1 ? static_cast<F>(in - 1) / static_cast<F>(out - 1) : F(0);
    } else {
      scale = static_cast<F>(in) / static_cast<F>(out);
    }
  }

  // The source after `at`.
  FASTSEG_HOST_DEVICE int64_t next(int64_t at) const {
    return in != out && at + 1 < in ? at + 1 : at;
  }

  FASTSEG_HOST_DEVICE BilinearTap<F> tap(int64_t i) const {
    if (in == out) return {i, i, F(1), F(0)};
    const F at_half = plus(times(scale, static_cast<F>(i) + F(0.5)), F(-0.5));
    const F s = align_corners ? times(scale, static_cast<F>(i)) : (at_half > 0 ? at_half : F(0));
    int64_t at = static_cast<int64_t>(s);
    if (at > in - 1) at = in - 1;
    F w1 = s - static_cast<F>(at);
    if (w1 > 1) w1 = F(1);
    return {at, next(at), F(1) - w1, w1};
  }
};

}  // namespace fastseg
