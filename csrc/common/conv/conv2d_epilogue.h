#pragma once
// What follows a convolution before its result is stored, without torch:
//   y = activation(sum * scale + shift + residual),
// where `shift` holds the bias, too: (sum + bias) * scale + shift = sum * scale + (bias * scale +
// shift). conv2d_args.h makes one from the arguments of an op.

#include <cstdint>
#include <type_traits>

namespace fastseg {

enum class Activation : int { none, relu, relu6, leaky_relu, silu, hardswish };

inline constexpr bool is_smooth(Activation a) {
  return a == Activation::silu || a == Activation::hardswish;
}

inline constexpr double kLeakyReluSlope = 0.01;  // torch's default

// Of a convolution with outputs of T, computed in F: double for double, float for everything else.
template <class T>
struct Conv2dEpilogue {
  using F = std::conditional_t<std::is_same_v<T, double>, double, float>;

  const F* scale = nullptr;     // (C,) of the output's channels; null: 1
  const F* shift = nullptr;     // (C,); null: 0
  const T* residual = nullptr;  // dense, of the output's shape and layout; null: 0
  Activation activation = Activation::none;

  // That of the channels from `first` on, which are a convolution of their own; without residual.
  Conv2dEpilogue channels_from(int64_t first) const {
    return {scale ? scale + first : nullptr, shift ? shift + first : nullptr, nullptr, activation};
  }
};

}  // namespace fastseg
