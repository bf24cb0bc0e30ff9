#pragma once
// Depthwise convolution: what its kernels take.

#include <cstdint>
#include <type_traits>
#include <vector>

#include "common/conv/conv2d_epilogue.h"
#include "cpu/conv/conv2d_taps.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// y[n, c, i, j] = epilogue(sum of weight[tap] x[n, c, row, column] over the live taps of (i, j)).
// The gradient of the input has this form, too. Pointers are dense, of one layout.
template <class T>
struct DepthwiseConv2d {
  using F = typename Conv2dEpilogue<T>::F;

  TapAxis rows, columns;
  int64_t kernel_height, kernel_width;
  int64_t channels;
  const T* x;
  const F* weight;  // (C, taps); channels_last: (taps, C)
  Conv2dEpilogue<T> epilogue;
  T* y;
};

// In the layout (N, C, H, W). Task t is the band t % bands of the plane t / bands.
template <class T>
struct ContiguousDepthwiseConv2d : DepthwiseConv2d<T> {
  int64_t bands;
};

// In the layout (N, H, W, C). Task t is one row of a block of channels; rows come in the order
// `order`, then blocks, then images.
template <class T>
struct ChannelsLastDepthwiseConv2d : DepthwiseConv2d<T> {
  std::vector<TapRow> order;
  std::vector<TapChain> chains;           // three taps a row at stride 1; else empty
  int64_t padding_width, dilation_width;  // of the chains
  int64_t blocks;
  bool stream;  // y outgrows the caches: write past them

  int64_t tasks(int64_t batch) const { return batch * blocks * static_cast<int64_t>(order.size()); }
};

// A multiple of the lanes, so that a pixel's channels are whole cache lines.
inline constexpr int64_t kChannelMultiple = 16;

FASTSEG_DECLARE_KERNEL(template <class T>
                       void depthwise_conv2d_contiguous(const ContiguousDepthwiseConv2d<T>& op,
                                                        int64_t begin, int64_t end))
FASTSEG_DECLARE_KERNEL(template <class T>
                       void depthwise_conv2d_channels_last(const ChannelsLastDepthwiseConv2d<T>& op,
                                                           int64_t begin, int64_t end))

}  // namespace fastseg::cpu
