// y = act(conv(x) * scale + shift + residual) for any kernel, stride, padding and dilation, and the
// gradient of its input. A thread makes a few outputs of a channel, for which it loads each weight
// once; what neighbours read twice is in the caches.

#include <algorithm>

#include "common/ceil_divide.h"
#include "cuda/conv/depthwise_conv2d_forms.h"
#include "cuda/conv/depthwise_gather.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kOutputs = 4;              // of a thread
constexpr unsigned kMostImages = 65535;  // of a launch's grid; blocks take further ones in turns

template <class T>
struct GatherConv2d : DepthwiseTensors<T> {
  GatherAxis rows, columns;
  FastDivisor channels, width, groups;  // of pixels in a plane
  int images;
};

// channels_last: threads are channels, a group is kOutputs pixels that follow each other.
// Contiguous: threads are pixels, a group is kOutputs runs of 32.
template <class T, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads, sizeof(T) < sizeof(double) ? 3 : 2)
    depthwise_conv2d_gather_pixels(GatherConv2d<T> op) {
  using F = Compute<T>;
  constexpr int kStep = kChannelsLast ? 1 : 32;
  const int index = blockIdx.x * kThreads + threadIdx.x, unit = index / kStep;
  const int slow = unit / (kChannelsLast ? op.channels : op.groups);
  const int fast = unit - slow * (kChannelsLast ? op.channels : op.groups);
  const int channel = kChannelsLast ? fast : slow, group = kChannelsLast ? slow : fast;
  const int pixels = op.rows.outputs * op.columns.outputs;
  const int first = group * (kOutputs * kStep) + index % kStep;
  if (channel >= op.channels || first >= pixels) return;
  const int64_t source_area = int64_t{op.rows.sources} * op.columns.sources;
  int row[kOutputs], column[kOutputs];
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int pixel = first + i * kStep;
    row[i] = pixel / op.width;
    column[i] = pixel - row[i] * op.columns.outputs;
  }
  const T* const weight = op.weight + int64_t{channel} * op.rows.kernel * op.columns.kernel;
  const ChannelEpilogue<F, 1> epilogue(op.vectors, channel);
  for (int image = blockIdx.y; image < op.images; image += gridDim.y) {
    const T* const x = op.x + int64_t{image} * op.channels * source_area +
                       (kChannelsLast ? channel : channel * source_area);
    F sums[kOutputs] = {};
    for (int a = 0; a < op.rows.kernel; ++a) {
      for (int b = 0; b < op.columns.kernel; ++b) {
        const F factor = to_compute(weight[a * op.columns.kernel + b]);
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) {
          if (first + i * kStep >= pixels) break;
          const int y = op.rows.source(row[i], a), from = op.columns.source(column[i], b);
          if (y < 0 || from < 0) continue;
          const int64_t at = int64_t{y} * op.columns.sources + from;
          sums[i] += factor * to_compute(x[kChannelsLast ? at * op.channels : at]);
        }
      }
    }
    const int64_t plane = int64_t{image} * op.channels;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const int pixel = first + i * kStep;
      if (pixel >= pixels) break;
      const int64_t to = kChannelsLast ? plane * pixels + int64_t{pixel} * op.channels + channel
                                       : (plane + channel) * pixels + pixel;
      F sum[1] = {sums[i] * epilogue.scale[0] + epilogue.start[0]};
      if (op.residual != nullptr) sum[0] += to_compute(op.residual[to]);
      activate</*kPlain=*/false>(op.activation, sum);
      op.y[to] = from_compute<T>(sum[0]);
    }
  }
}

template <class T, bool kChannelsLast>
void launch(const DepthwiseConv2d& op, cudaStream_t stream) {
  const GatherAxis rows(op.shape.rows, op.transposed), columns(op.shape.columns, op.transposed);
  constexpr int64_t kStep = kChannelsLast ? 1 : 32, kGroup = kOutputs * kStep;
  const int64_t groups = ceil_divide(int64_t{rows.outputs} * columns.outputs, kGroup);
  const GatherConv2d<T> job{DepthwiseTensors<T>(op),
                            rows,
                            columns,
                            FastDivisor(op.shape.channels),
                            FastDivisor(columns.outputs),
                            FastDivisor(groups),
                            static_cast<int>(op.shape.images)};
  const int64_t threads = groups * op.shape.channels * kStep;
  const dim3 grid(static_cast<unsigned>(ceil_divide(threads, kThreads)),
                  std::min(static_cast<unsigned>(op.shape.images), kMostImages));
  FASTSEG_LAUNCH((depthwise_conv2d_gather_pixels<T, kChannelsLast>), grid, kThreads, 0, stream,
                 job);
}

}  // namespace

void depthwise_conv2d_gather(const DepthwiseConv2d& op, cudaStream_t stream) {
  dispatch(op.shape.dtype, [&](auto zero) {
    if (op.shape.channels_last) return launch<decltype(zero), true>(op, stream);
    launch<decltype(zero), false>(op, stream);
  });
}

}  // namespace fastseg::cuda
