// fastseg::depthwise_conv2d_weight_grad on the CPU.

#include "cpu/conv/depthwise_conv2d_weight_grad.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/conv/depthwise_conv2d_ops.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {
namespace {

template <class T>
void run_contiguous(const DepthwiseWeightGrad<T>& job, T* out) {
  const ContiguousDepthwiseWeightGrad<T> op{job, out};
  const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, depthwise_weight_grad_contiguous<T>);
  parallel_rows(job.channels, job.batch * job.rows.size * job.columns.size,
                [&](int64_t begin, int64_t end) { kernel(op, begin, end); });
}

// Partial sums of bands, whose number follows from the sizes alone, are added in their order.
template <class T>
void run_channels_last(const DepthwiseWeightGrad<T>& job, T* out) {
  using F = typename DepthwiseWeightGrad<T>::F;
  constexpr int64_t kBlock = 256;     // channels whose sums stay in the first-level cache
  constexpr int64_t kBand = 1 << 18;  // elements
  const int64_t elements = job.rows.size * job.columns.size * std::min(kBlock, job.channels);
  const int64_t bands = std::clamp<int64_t>(elements / kBand, 1, job.rows.size);
  const int64_t blocks = (job.channels + kBlock - 1) / kBlock;
  const int64_t parts = job.batch * bands, taps = job.taps(), channels = job.channels;
  std::vector<F> partial(parts * taps * channels);
  const ChannelsLastDepthwiseWeightGrad<T> op{job, rows_by_reuse(job.rows), blocks, bands,
                                              partial.data()};
  const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, depthwise_weight_grad_channels_last<T>);
  parallel_rows(parts * blocks, elements / bands,
                [&](int64_t begin, int64_t end) { kernel(op, begin, end); });
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      double sum = 0;
      for (int64_t p = 0; p < parts; ++p) sum += partial[(p * taps + t) * channels + c];
      out[c * taps + t] = static_cast<T>(static_cast<F>(sum));
    }
  }
}

void weight_grad(const DepthwiseConv2dWeightGradCall& call) {
  dispatch_float(call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Conv2dArgs& a = call.args;
    const auto axis = [&](int d) {
      return forward_taps(call.grad.size(2 + d), call.x.size(2 + d), a.kernel_size[d], a.stride[d],
                          a.padding[d], a.dilation[d]);
    };
    const DepthwiseWeightGrad<T> job{axis(0),
                                     axis(1),
                                     a.kernel_size[0],
                                     a.kernel_size[1],
                                     call.x.size(0),
                                     call.x.size(1),
                                     static_cast<const T*>(call.x.const_data_ptr()),
                                     static_cast<const T*>(call.grad.const_data_ptr())};
    auto* out = static_cast<T*>(call.out.mutable_data_ptr());
    if (call.channels_last) return run_channels_last(job, out);
    run_contiguous(job, out);
  });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  m.impl(
      "depthwise_conv2d_weight_grad",
      TORCH_BOX(
          &fastseg::depthwise_conv2d_ops::depthwise_conv2d_weight_grad<fastseg::cpu::weight_grad>));
}
