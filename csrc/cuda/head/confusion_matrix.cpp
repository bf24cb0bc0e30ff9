// fastseg::confusion_matrix on CUDA.

#include "cuda/head/confusion_matrix.h"

#include <torch/csrc/stable/library.h>

#include "common/head/confusion_matrix_ops.h"
#include "cuda/binding.h"

namespace fastseg::cuda {
namespace {

void count(const Tensor& prediction, const Tensor& target, const ClassIds& ids,
           const Tensor& counts) {
  using confusion_matrix_ops::id_type;
  constexpr const char* op = confusion_matrix_ops::kOp;
  FASTSEG_CHECK(target.numel() < int64_t{1} << 40, op, ": on CUDA, maps must have fewer than 2^40",
                " pixels, got ", target.numel());
  // Any order of the pixels will do, if it is the same in both.
  const bool channels_last = is_channels_last(prediction) && is_channels_last(target);
  const Tensor p = dense(prediction, channels_last), t = dense(target, channels_last);
  const ConfusionMatrix job{p.const_data_ptr(), id_type(p, "prediction"),
                            t.const_data_ptr(), id_type(t, "target"),
                            t.numel(),          ids};
  launch_beside(counts, op, [&](cudaStream_t stream) {
    return confusion_matrix(job, static_cast<int64_t*>(counts.mutable_data_ptr()), stream);
  });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::confusion_matrix_ops;
  m.impl("confusion_matrix", TORCH_BOX(&ops::confusion_matrix<fastseg::cuda::count>));
}
