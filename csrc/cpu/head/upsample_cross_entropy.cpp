// fastseg::upsample_cross_entropy and its gradient on the CPU.

#include "cpu/head/upsample_cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/head/upsample_cross_entropy_ops.h"
#include "cpu/head/pixel_maps.h"
#include "cpu/head/upsample_gradient.h"
#include "cpu/head/upsample_logits.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {
namespace {

// Calls body(job of T, tasks, work of one) where there are pixels.
template <class Body>
void with_job(const CrossEntropyCall& call, const Body& body) {
  const auto run = [&]<class T>(const UpsampledLogits<T>& logits, int64_t tasks, int64_t work) {
    using F = typename UpsampledLogits<T>::F;
    BadTarget bad;
    const CrossEntropy<T> job{
        logits, target_map(call.target, call.ignore_index, &bad),
        call.weight ? static_cast<const F*>(call.weight->const_data_ptr()) : nullptr,
        pixel_map<F>(call.weight_map), static_cast<F>(call.label_smoothing)};
    body(job, tasks, 4 * work);
    check_targets(call.op, bad, call.logits.size(1), call.ignore_index);
  };
  const int64_t height = call.target.size(1), width = call.target.size(2);
  with_upsampled(call.logits, height, width, call.align_corners, run);
}

void forward(const CrossEntropyCall& call, const CrossEntropyOutputs& outputs) {
  with_job(call, [&]<class T>(const CrossEntropy<T>& of, int64_t tasks, int64_t work) {
    using F = typename CrossEntropy<T>::F;
    F* loss = static_cast<F*>(outputs.loss.mutable_data_ptr());
    const bool reduced = outputs.loss.dim() == 0;
    std::vector<CrossEntropySums> sums(tasks);
    const CrossEntropyForward<T> job{of, static_cast<F*>(outputs.normalizer.mutable_data_ptr()),
                                     reduced ? nullptr : loss, sums.data()};
    parallel_rows(tasks, work, [&](int64_t begin, int64_t end) {
      FASTSEG_SIMD_DISPATCH_OF(T, upsample_cross_entropy<T>)(job, begin, end);
    });
    CrossEntropySums total{0, 0};
    for (const CrossEntropySums& s : sums) total.loss += s.loss, total.weight += s.weight;
    *static_cast<F*>(outputs.total_weight.mutable_data_ptr()) = static_cast<F>(total.weight);
    if (reduced) *loss = static_cast<F>(outputs.mean ? total.loss / total.weight : total.loss);
  });
}

void backward(const CrossEntropyCall& call, const Tensor& grad, const Tensor& normalizer,
              const Tensor& grad_logits) {
  with_job(call, [&]<class T>(const CrossEntropy<T>& of, int64_t tasks, int64_t work) {
    using F = typename CrossEntropy<T>::F;
    const UpsampleGradient<F> gradient(grad_logits, of.logits.rows->bands);
    const CrossEntropyBackward<T> job{of, pixel_map<F>(normalizer), pixel_map<F>(grad),
                                      gradient.sums()};
    parallel_rows(tasks, work, [&](int64_t begin, int64_t end) {
      FASTSEG_SIMD_DISPATCH_OF(T, upsample_cross_entropy_backward<T>)(job, begin, end);
    });
    gradient.write();
  });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::upsample_cross_entropy_ops;
  using fastseg::cpu::backward;
  using fastseg::cpu::forward;
  m.impl("upsample_cross_entropy", TORCH_BOX(&ops::upsample_cross_entropy<forward>));
  m.impl("upsample_cross_entropy_backward",
         TORCH_BOX(&ops::upsample_cross_entropy_backward<backward>));
}
