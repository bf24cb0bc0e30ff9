#pragma once
// What follows the sums of a convolution, y = act((sum + bias) * scale + shift + residual), on
// vectors of any floating-point type.

#include <limits>
#include <type_traits>

#include "common/conv/activation.h"
#include "cuda/arithmetic.h"

namespace fastseg::cuda {

// A number for each channel; null: none.
struct ChannelVector {
  const void* data;
  Dtype dtype;
};

struct EpilogueVectors {
  ChannelVector bias, scale, shift;
};

// out[k] = the number of channel + k.
template <class F, int V>
__device__ inline void channel_values(const ChannelVector& v, int channel, F otherwise,
                                      F (&out)[V]) {
  const auto from = [&](const auto* data) {
#pragma unroll
    for (int k = 0; k < V; ++k) out[k] = static_cast<F>(to_compute(data[channel + k]));
  };
  if (v.data == nullptr) {
#pragma unroll
    for (int k = 0; k < V; ++k) out[k] = otherwise;
  } else if (v.dtype == Dtype::kFloat32) {
    from(static_cast<const float*>(v.data));
  } else if (v.dtype == Dtype::kFloat64) {
    from(static_cast<const double*>(v.data));
  } else if (v.dtype == Dtype::kFloat16) {
    from(static_cast<const __half*>(v.data));
  } else {
    from(static_cast<const __nv_bfloat16*>(v.data));
  }
}

// The epilogue of V channels: a factor of their weights, and what their sums begin with.
template <class F, int V>
struct ChannelEpilogue {
  F scale[V], start[V];

  __device__ ChannelEpilogue(const EpilogueVectors& vectors, int channel) {
    channel_values<F, V>(vectors.scale, channel, 1, scale);
    channel_values<F, V>(vectors.bias, channel, 0, start);
    F shift[V];
    channel_values<F, V>(vectors.shift, channel, 0, shift);
#pragma unroll
    for (int k = 0; k < V; ++k) start[k] = start[k] * scale[k] + shift[k];
  }
};

template <class F>
inline constexpr F kInfinity = std::numeric_limits<F>::infinity();

// The activation of V numbers; kPlain: none or relu. NaN stays NaN: it is not below zero.
template <bool kPlain, class F, int V>
__device__ inline void activate(Activation activation, F (&v)[V]) {
  const auto each = [&](const auto& function) {
#pragma unroll
    for (int k = 0; k < V; ++k) v[k] = function(v[k]);
  };
  if constexpr (kPlain) {
    const F low = activation == Activation::none ? -kInfinity<F> : 0;
    each([&](F x) { return x < low ? low : x; });
  } else if (activation == Activation::silu) {
    each([](F x) { return x / (1 + exp(-x)); });
  } else if (activation == Activation::hardswish) {
    each([](F x) { return hardswish<F>(x); });
  } else {
    each([&](F x) { return activate_linear<F>(activation, x); });
  }
}

// body(std::true_type or std::false_type), whether there is no residual, and no activation but
// relu. Kernels of 3x3 are compiled for this and for all others, whose code would be in the way of
// it.
template <int K, class Body>
void with_plain(Activation a, const void* residual, const Body& body) {
  if constexpr (K == 3) {
    if ((a == Activation::none || a == Activation::relu) && residual == nullptr) {
      return body(std::true_type{});
    }
  }
  body(std::false_type{});
}

}  // namespace fastseg::cuda
