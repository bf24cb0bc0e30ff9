// dw[c, tap] = the sum over all images and pixels p of x[c, p + tap] grad[c, p] for any kernel,
// stride, padding and dilation. A block sums a tap's products over the pixels of a run, for 32
// channels where these are neighbours in memory, else for one.

#include <algorithm>

#include "common/ceil_divide.h"
#include "cuda/conv/depthwise_conv2d_forms.h"
#include "cuda/conv/depthwise_gather.h"
#include "cuda/launch.h"
#include "cuda/slot_sum.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kRuns = 64;           // at least, of all images
constexpr int64_t kFewestPixels = 512;  // of a run

template <class T>
struct GatherWeightGrad {
  const T* x;
  const T* grad;
  Compute<T>* sums;  // (images * parts, taps, channels)
  GatherAxis rows, columns;
  FastDivisor width, taps, blocks, parts;  // blocks: of channels
  int channels;
};

template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    depthwise_weight_grad_gather_pixels(GatherWeightGrad<T> op) {
  using F = Compute<T>;
  constexpr int kLanes = kChannelsLast ? 32 : 1, kSlots = kThreads / kLanes;
  FASTSEG_DYNAMIC_SHARED(F, partial);
  const int lane = threadIdx.x % kLanes, slot = threadIdx.x / kLanes;
  const int above = static_cast<int>(blockIdx.x) / op.taps;
  const int tap = static_cast<int>(blockIdx.x) - above * op.taps;
  const int run = above / op.blocks, block = above - run * op.blocks;
  const int channel = block * kLanes + lane;
  const int a = tap / op.columns.kernel, b = tap - a * op.columns.kernel;
  const int pixels = op.rows.outputs * op.columns.outputs;
  const int image = run / op.parts;
  const int64_t part = run - image * op.parts;
  const int begin = static_cast<int>(part * pixels / op.parts);
  const int end = static_cast<int>((part + 1) * pixels / op.parts);
  const int64_t plane = int64_t{image} * op.channels;
  const int64_t area = int64_t{op.rows.sources} * op.columns.sources;
  F sum = 0;
  for (int pixel = begin + slot; channel < op.channels && pixel < end; pixel += kSlots) {
    const int row = pixel / op.width;
    const int y = op.rows.source(row, a);
    const int from = op.columns.source(pixel - row * op.columns.outputs, b);
    if (y < 0 || from < 0) continue;
    const int64_t at = int64_t{y} * op.columns.sources + from;
    const T x = kChannelsLast ? op.x[plane * area + at * op.channels + channel]
                              : op.x[(plane + channel) * area + at];
    const T grad = kChannelsLast
                       ? op.grad[(plane * pixels + int64_t{pixel} * op.channels) + channel]
                       : op.grad[(plane + channel) * pixels + pixel];
    sum += to_compute(x) * to_compute(grad);
  }
  sum = slot_sum<kSlots, kLanes>(sum, partial);
  if (slot > 0 || channel >= op.channels) return;
  op.sums[(int64_t{run} * op.taps + tap) * op.channels + channel] = sum;
}

int64_t parts_of(const DepthwiseShape& shape) {
  const int64_t pixels = shape.rows.outputs * shape.columns.outputs;
  const int64_t wanted = ceil_divide(kRuns, shape.images);
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, pixels / kFewestPixels));
}

template <class T, bool kChannelsLast>
void launch(const DepthwiseWeightGrad& op, cudaStream_t stream) {
  const DepthwiseShape& shape = op.shape;
  const int64_t taps = shape.rows.kernel * shape.columns.kernel, parts = parts_of(shape);
  const int64_t blocks = kChannelsLast ? ceil_divide(shape.channels, 32) : shape.channels;
  const GatherWeightGrad<T> job{static_cast<const T*>(op.x),
                                static_cast<const T*>(op.grad),
                                static_cast<Compute<T>*>(op.sums),
                                GatherAxis(shape.rows, false),
                                GatherAxis(shape.columns, false),
                                FastDivisor(shape.columns.outputs),
                                FastDivisor(taps),
                                FastDivisor(blocks),
                                FastDivisor(parts),
                                static_cast<int>(shape.channels)};
  const auto all = static_cast<unsigned>(blocks * taps * shape.images * parts);
  FASTSEG_LAUNCH((depthwise_weight_grad_gather_pixels<T, kChannelsLast>), all, kThreads,
                 kThreads * sizeof(Compute<T>), stream, job);
}

}  // namespace

int64_t depthwise_weight_grad_gather_runs(const DepthwiseWeightGrad& op) {
  return op.shape.images * parts_of(op.shape);
}

void depthwise_weight_grad_gather(const DepthwiseWeightGrad& op, cudaStream_t stream) {
  dispatch(op.shape.dtype, [&](auto zero) {
    if (op.shape.channels_last) return launch<decltype(zero), true>(op, stream);
    launch<decltype(zero), false>(op, stream);
  });
}

}  // namespace fastseg::cuda
