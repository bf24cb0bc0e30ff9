// Which kernels compute a depthwise convolution and its gradients, and the last sums of the
// weight's gradient.

#include "common/ceil_divide.h"
#include "cuda/conv/depthwise_conv2d.h"
#include "cuda/conv/depthwise_conv2d_forms.h"
#include "cuda/fast_divisor.h"
#include "cuda/launch.h"
#include "cuda/slot_sum.h"

namespace fastseg::cuda {
namespace {

constexpr int kChannels = 32, kSlots = 8;  // of a block

// out[c, tap] = the sum over all runs of sums[run, tap, c], in a fixed order.
template <class T>
__global__ void __launch_bounds__(kChannels* kSlots)
    depthwise_weight_grad_total(const Compute<T>* sums, int64_t runs, FastDivisor taps,
                                int channels, T* out) {
  FASTSEG_DYNAMIC_SHARED(Compute<T>, partial);
  const int lane = threadIdx.x % kChannels, slot = threadIdx.x / kChannels;
  const int block = static_cast<int>(blockIdx.x) / taps;
  const int tap = static_cast<int>(blockIdx.x) - block * taps, channel = block * kChannels + lane;
  Compute<T> sum = 0;
  for (int64_t run = slot; channel < channels && run < runs; run += kSlots) {
    sum += sums[(run * taps + tap) * channels + channel];
  }
  sum = slot_sum<kSlots, kChannels>(sum, partial);
  if (slot == 0 && channel < channels) out[int64_t{channel} * taps + tap] = from_compute<T>(sum);
}

struct Form {
  int64_t runs;
  void (*launch)(const DepthwiseWeightGrad&, cudaStream_t);
};

Form form_of(const DepthwiseWeightGrad& op) {
  if (op.shape.images == 0) return {0, nullptr};
  if (const int64_t runs = depthwise_weight_grad_channels_last_runs(op)) {
    return {runs, &depthwise_weight_grad_channels_last};
  }
  if (const int64_t runs = depthwise_weight_grad_contiguous_runs(op)) {
    return {runs, &depthwise_weight_grad_contiguous};
  }
  return {depthwise_weight_grad_gather_runs(op), &depthwise_weight_grad_gather};
}

}  // namespace

cudaError_t depthwise_conv2d(const DepthwiseConv2d& op, cudaStream_t stream) {
  if (op.shape.images == 0) return cudaSuccess;
  if (!depthwise_conv2d_channels_last(op, stream) && !depthwise_conv2d_contiguous(op, stream)) {
    depthwise_conv2d_gather(op, stream);
  }
  return cudaGetLastError();
}

int64_t depthwise_weight_grad_runs(const DepthwiseWeightGrad& op) { return form_of(op).runs; }

cudaError_t depthwise_conv2d_weight_grad(const DepthwiseWeightGrad& op, cudaStream_t stream) {
  const Form form = form_of(op);
  if (form.launch != nullptr) form.launch(op, stream);
  const int64_t channels = op.shape.channels, taps = op.shape.rows.kernel * op.shape.columns.kernel;
  dispatch(op.shape.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto blocks = static_cast<unsigned>(ceil_divide(channels, kChannels) * taps);
    FASTSEG_LAUNCH((depthwise_weight_grad_total<T>), blocks, kChannels * kSlots,
                   kChannels * kSlots * sizeof(Compute<T>), stream,
                   static_cast<const Compute<T>*>(op.sums), form.runs, FastDivisor(taps),
                   static_cast<int>(channels), static_cast<T*>(op.out));
  });
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
