#pragma once
// The arguments of max-unpooling's kernels, of its gradient's, and their declarations.
#include <atomic>
#include <cstdint>

#include "common/pool/pool2d.h"
#include "cpu/pool/code_rows.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// All pointers are dense, in the same layout: (N, C, ...) planes or, channels_last, images of
// (..., C).
template <class T>
struct MaxUnpool2d {
  Pool2d pool;
  int64_t channels;
  bool channels_last;
  bool stream;      // the output outgrows the caches: write past them
  bool accumulate;  // windows that meet in an element: add (max_pool2d_backward), or the last wins
  const T* values;
  Codes codes;
  T* out;

  int64_t lanes() const { return channels_last ? channels : 1; }

  bool by_planes() const {
    return channels_last ? channels < 8 : !pool.is_2x2() || pool.w.windows < 8;
  }
};

// Computes the rows [begin, end) of out, counted over (N, C, H) or (N, H). If by_planes(), begin
// and end are multiples of H.
#define FASTSEG_MAX_UNPOOL2D(T) \
  void max_unpool2d_rows(const MaxUnpool2d<T>& op, int64_t begin, int64_t end)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_MAX_UNPOOL2D(T))
#undef FASTSEG_MAX_UNPOOL2D

template <class T>
struct MaxUnpool2dBackward {
  Pool2d pool;
  int64_t channels;
  bool channels_last;
  bool stream;
  const T* grad;  // of max_unpool2d's output, (H, W) planes
  Codes codes;
  T* out;  // (h, w) planes

  int64_t lanes() const { return channels_last ? channels : 1; }
};

// Computes the rows [begin, end) of out, counted over (N, C, h) or (N, h).
#define FASTSEG_MAX_UNPOOL2D_BACKWARD(T) \
  void max_unpool2d_backward_rows(const MaxUnpool2dBackward<T>& op, int64_t begin, int64_t end)
FASTSEG_DECLARE_KERNEL(template <class T> FASTSEG_MAX_UNPOOL2D_BACKWARD(T))
#undef FASTSEG_MAX_UNPOOL2D_BACKWARD

}  // namespace fastseg::cpu
