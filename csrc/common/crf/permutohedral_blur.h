#pragma once
// How a lattice is blurred, axis after axis, between buffers. Options and the order of axes are
// those of CPU and CUDA; the steps one after another are the CPU's. A GPU takes both orders of a
// symmetric blur at once (cuda/crf/permutohedral_blur.cu).

#include <utility>

namespace fastseg {

// The numbers of LatticeQuality (fastseg/_core/lattice_quality.py) that the blur needs.
struct BlurOptions {
  int passes = 1;          // along each axis
  bool symmetric = false;  // the mean of the forward and the reverse order of axes
  bool reverse = false;    // the order d..0 of axes; without effect on symmetric
  double side = 0.5;       // a neighbour's weight
};

// The axis of step i, in the order 0..d or in its reverse.
inline int blur_axis(int i, int axes, bool reverse) {
  return reverse ? axes - 1 - i % axes : i % axes;
}

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
  const T* none = nullptr;
  if (!options.symmetric) {
    T *from = values, *to = buffer;
    for (int i = 0; i < steps; ++i) {
      step(blur_axis(i, axes, options.reverse), static_cast<const T*>(from), none, to);
      std::swap(from, to);
    }
    return from;
  }
  // The forward order leaves `values` alone.
  const T* from = values;
  T *to = buffer, *other = more;
  for (int i = 0; i < steps; ++i) {
    step(blur_axis(i, axes, false), from, none, to);
    from = to;
    std::swap(to, other);
  }
  const T* forward = from;  // `to` is the other buffer
  T* free = values;
  from = values;
  for (int i = 0; i < steps; ++i) {
    step(blur_axis(i, axes, true), from, i == steps - 1 ? forward : none, to);
    from = to;
    std::swap(to, free);
  }
  return free;
}

}  // namespace fastseg
