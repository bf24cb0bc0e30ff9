#pragma once
// How a lattice is blurred, once for CPU and CUDA: axis after axis, between buffers.

#include <utility>

namespace fastseg {

// The numbers of LatticeQuality (fastseg/_core/lattice_quality.py) that the blur needs.
struct BlurOptions {
  int passes = 1;          // along each axis
  bool symmetric = false;  // the mean of the forward and the reverse order of axes
  bool reverse = false;    // the order d..0 of axes; without effect on symmetric
  double side = 0.5;       // a neighbour's weight
};

// Buffers that the blur needs beside its input.
inline int blur_buffers(const BlurOptions& options) { return options.symmetric ? 2 : 1; }

// Blurs `values` along `axes` axes and returns where the result lies: an even number of steps ends
// in `values`, an odd one in the last buffer. more: only for a symmetric blur.
//
// step(axis, from, mean_with, to): blurs `from` into `to` and, where mean_with is not null, takes
// the mean with that.
template <class T, class Step>
T* blur_steps(const BlurOptions& options, int axes, T* values, T* buffer, T* more,
              const Step& step) {
  const int steps = options.passes * axes;
  const auto axis = [&](int i, bool reverse) { return reverse ? axes - 1 - i % axes : i % axes; };
  const T* none = nullptr;
  if (!options.symmetric) {
    T *from = values, *to = buffer;
    for (int i = 0; i < steps; ++i) {
      step(axis(i, options.reverse), static_cast<const T*>(from), none, to);
      std::swap(from, to);
    }
    return from;
  }
  // The forward order leaves `values` alone.
  const T* from = values;
  T *to = buffer, *other = more;
  for (int i = 0; i < steps; ++i) {
    step(axis(i, false), from, none, to);
    from = to;
    std::swap(to, other);
  }
  const T* forward = from;  // `to` is the other buffer
  T* free = values;
  from = values;
  for (int i = 0; i < steps; ++i) {
    step(axis(i, true), from, i == steps - 1 ? forward : none, to);
    from = to;
    std::swap(to, free);
  }
  return free;
}

}  // namespace fastseg
