// fastseg::depthwise_conv2d and the gradient of its input on the CPU.

#include "cpu/conv/depthwise_conv2d.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "common/conv/depthwise_conv2d_ops.h"
#include "cpu/conv/folded_epilogue.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {
namespace {

// A weight (C, 1, kh, kw) in F, its taps in reverse order where `flip`; (taps, C) where
// `taps_first`.
template <class F>
std::vector<F> weights(const Tensor& weight, bool flip, bool taps_first) {
  const std::vector<F> from = elements<F>(weight);
  const int64_t channels = weight.size(0), taps = weight.size(2) * weight.size(3);
  std::vector<F> to(from.size());
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      to[taps_first ? t * channels + c : c * taps + t] = from[c * taps + (flip ? taps - 1 - t : t)];
    }
  }
  return to;
}

template <class T>
int64_t output_bytes(const DepthwiseConv2d<T>& job, int64_t batch) {
  return batch * job.channels * job.rows.size * job.columns.size * int64_t{sizeof(T)};
}

template <class T>
void run_contiguous(const DepthwiseConv2d<T>& job, int64_t batch) {
  constexpr int64_t kBand = 1 << 16;  // elements: large planes are shared among threads
  const int64_t plane = job.rows.size * job.columns.size;
  const int64_t bands = std::clamp<int64_t>(plane / kBand, 1, job.rows.size);
  const ContiguousDepthwiseConv2d<T> op{job, bands};
  const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, depthwise_conv2d_contiguous<T>);
  parallel_rows(batch * job.channels * bands, plane / bands,
                [&](int64_t begin, int64_t end) { kernel(op, begin, end); });
}

// `chains`: a kernel of three columns at stride 1, of this padding and dilation.
template <class T>
void run_channels_last(const DepthwiseConv2d<T>& job, int64_t batch, bool chains, int64_t padding,
                       int64_t dilation) {
  constexpr int64_t kBlock = 256;  // channels of which a few rows stay in the second-level cache
  const int64_t size = output_bytes(job, batch);
  // Pixels are written in pieces, whose lines a plain store would fetch first. From here on the op
  // and a reader of its output are together faster past the caches: 17 % on 65 x 65 x 256. Only
  // whole lines can be streamed.
  constexpr int64_t kStream = 4 << 20;
  const bool stream = size >= kStream && job.channels * sizeof(T) % 64 == 0 &&
                      reinterpret_cast<uintptr_t>(job.y) % 64 == 0;
  const ChannelsLastDepthwiseConv2d<T> op{
      job,
      rows_by_reuse(job.rows),
      chains ? tap_chains(job.columns.size, job.columns.source_size, padding, dilation)
             : std::vector<TapChain>{},
      padding,
      dilation,
      (job.channels + kBlock - 1) / kBlock,
      stream};
  const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, depthwise_conv2d_channels_last<T>);
  parallel_rows(op.tasks(batch), job.columns.size * std::min(kBlock, job.channels),
                [&](int64_t begin, int64_t end) { kernel(op, begin, end); });
}

void forward(const DepthwiseConv2dCall& call) {
  dispatch_float(call.x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using F = typename Conv2dEpilogue<T>::F;
    const Conv2dArgs& a = call.args;
    const FoldedEpilogue<T> epilogue(call.bias, call.scale, call.shift, call.residual,
                                     call.activation);
    const std::vector<F> weight = weights<F>(call.weight, false, call.channels_last);
    const auto axis = [&](int d) {
      return forward_taps(call.y.size(2 + d), call.x.size(2 + d), a.kernel_size[d], a.stride[d],
                          a.padding[d], a.dilation[d]);
    };
    const DepthwiseConv2d<T> job{
        axis(0),          axis(1),        a.kernel_size[0],
        a.kernel_size[1], call.x.size(1), static_cast<const T*>(call.x.const_data_ptr()),
        weight.data(),    epilogue.get(), static_cast<T*>(call.y.mutable_data_ptr())};
    if (!call.channels_last) return run_contiguous(job, call.x.size(0));
    run_channels_last(job, call.x.size(0), a.kernel_size[1] == 3 && a.stride[1] == 1, a.padding[1],
                      a.dilation[1]);
  });
}

// With stride 1 along an axis a convolution with the taps in reverse order and the padding that is
// missing to the kernel's reach; else every input gathers from the outputs that read it.
void input_grad(const DepthwiseConv2dInputGradCall& call) {
  dispatch_float(call.grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using F = typename Conv2dEpilogue<T>::F;
    const Conv2dArgs& a = call.args;
    const bool flip = a.stride[0] == 1 && a.stride[1] == 1;
    const std::vector<F> weight = weights<F>(call.weight, flip, call.channels_last);
    const auto axis = [&](int d) {
      const int64_t size = call.out.size(2 + d), outputs = call.grad.size(2 + d);
      return flip ? forward_taps(size, outputs, a.kernel_size[d], 1, a.reach(d) - a.padding[d],
                                 a.dilation[d])
                  : gradient_taps(size, outputs, a.kernel_size[d], a.stride[d], a.padding[d],
                                  a.dilation[d]);
    };
    const DepthwiseConv2d<T> job{axis(0),
                                 axis(1),
                                 a.kernel_size[0],
                                 a.kernel_size[1],
                                 call.grad.size(1),
                                 static_cast<const T*>(call.grad.const_data_ptr()),
                                 weight.data(),
                                 {},
                                 static_cast<T*>(call.out.mutable_data_ptr())};
    if (!call.channels_last) return run_contiguous(job, call.grad.size(0));
    run_channels_last(job, call.grad.size(0), flip && a.kernel_size[1] == 3,
                      a.reach(1) - a.padding[1], a.dilation[1]);
  });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::depthwise_conv2d_ops;
  m.impl("depthwise_conv2d", TORCH_BOX(&ops::depthwise_conv2d<fastseg::cpu::forward>));
  m.impl("depthwise_conv2d_input_grad",
         TORCH_BOX(&ops::depthwise_conv2d_input_grad<fastseg::cpu::input_grad>));
}
