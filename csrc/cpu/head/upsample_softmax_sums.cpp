// fastseg::upsample_softmax_sums and its gradient on the CPU.

#include "cpu/head/upsample_softmax_sums.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/head/upsample_softmax_sums_ops.h"
#include "cpu/head/pixel_maps.h"
#include "cpu/head/upsample_gradient.h"
#include "cpu/head/upsample_logits.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {
namespace {

// Calls body(job of T, tasks, work of one).
template <class Body>
void with_job(const SoftmaxSumsCall& call, const Body& body) {
  const auto run = [&]<class T>(const UpsampledLogits<T>& logits, int64_t tasks, int64_t work) {
    BadTarget bad;
    const SoftmaxSums<T> job{logits, target_map(call.target, call.ignore_index, &bad),
                             call.squared};
    body(job, tasks, 4 * work);
    check_targets(call.op, bad, call.logits.size(1), call.ignore_index);
  };
  const int64_t height = call.target.size(1), width = call.target.size(2);
  with_upsampled(call.logits, height, width, call.align_corners, run);
}

void forward(const SoftmaxSumsCall& call, const SoftmaxSumsOutputs& outputs) {
  with_job(call, [&]<class T>(const SoftmaxSums<T>& of, int64_t tasks, int64_t work) {
    using F = typename SoftmaxSums<T>::F;
    const int64_t batch = call.logits.size(0), classes = of.logits.classes;
    std::vector<double> sums(tasks * 3 * classes);
    const SoftmaxSumsForward<T> job{of, static_cast<F*>(outputs.normalizer.mutable_data_ptr()),
                                    sums.data()};
    parallel_rows(tasks, work, [&](int64_t begin, int64_t end) {
      FASTSEG_SIMD_DISPATCH_OF(T, upsample_softmax_sums<T>)(job, begin, end);
    });
    F* out[] = {static_cast<F*>(outputs.intersection.mutable_data_ptr()),
                static_cast<F*>(outputs.probability.mutable_data_ptr()),
                static_cast<F*>(outputs.count.mutable_data_ptr())};
    std::vector<double> total(3 * classes);
    for (int64_t n = 0; n < batch; ++n) {
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t t = n * (tasks / batch); t < (n + 1) * (tasks / batch); ++t) {
        for (int64_t i = 0; i < 3 * classes; ++i) total[i] += sums[t * 3 * classes + i];
      }
      for (int64_t i = 0; i < 3 * classes; ++i) {
        out[i / classes][n * classes + i % classes] = static_cast<F>(total[i]);
      }
    }
  });
}

void backward(const SoftmaxSumsCall& call, const SoftmaxSumsGrads& grads, const Tensor& normalizer,
              const Tensor& grad_logits) {
  with_job(call, [&]<class T>(const SoftmaxSums<T>& of, int64_t tasks, int64_t work) {
    using F = typename SoftmaxSums<T>::F;
    const UpsampleGradient<F> gradient(grad_logits, of.logits.rows->bands);
    const SoftmaxSumsBackward<T> job{
        of, pixel_map<F>(normalizer), static_cast<const F*>(grads.intersection.const_data_ptr()),
        static_cast<const F*>(grads.probability.const_data_ptr()), gradient.sums()};
    parallel_rows(tasks, work, [&](int64_t begin, int64_t end) {
      FASTSEG_SIMD_DISPATCH_OF(T, upsample_softmax_sums_backward<T>)(job, begin, end);
    });
    gradient.write();
  });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::upsample_softmax_sums_ops;
  using fastseg::cpu::backward;
  using fastseg::cpu::forward;
  m.impl("upsample_softmax_sums", TORCH_BOX(&ops::upsample_softmax_sums<forward>));
  m.impl("upsample_softmax_sums_backward",
         TORCH_BOX(&ops::upsample_softmax_sums_backward<backward>));
}
