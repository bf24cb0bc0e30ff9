// fastseg::distance_transform on CUDA.

#include "cuda/head/distance_transform.h"

#include <torch/csrc/stable/library.h>

#include "common/head/distance_transform_ops.h"
#include "cuda/binding.h"

namespace fastseg::cuda {
namespace {

void transform_masks(const DistanceTransformCall& call) {
  const DistanceTransform& op = call.op;
  for (const int64_t size : op.sizes) {
    FASTSEG_CHECK(size <= kLongestAxis, distance_transform_ops::kOp,
                  ": on CUDA, an axis must be no longer than 2^19, got ", size);
  }
  check_count(distance_transform_ops::kOp, "the elements of an image", op.volume());
  const ScalarType squares = op.in_integers ? ScalarType::Int : ScalarType::Double;
  const int64_t count = call.out.numel();
  const Tensor first = torch::stable::new_empty(call.out, {count}, squares);
  const Tensor second =
      torch::stable::new_empty(call.out, {op.sizes[1] > 1 ? count : int64_t{0}}, squares);
  DistanceTransformJob job{op,
                           call.mask.const_data_ptr(),
                           0,
                           distance_transform_ops::significant_bits(call.mask.scalar_type()),
                           first.mutable_data_ptr(),
                           second.mutable_data_ptr(),
                           call.out.mutable_data_ptr(),
                           call.out.scalar_type() == ScalarType::Double};
  distance_transform_ops::dispatch_mask(call.mask.scalar_type(),
                                        [&](auto zero) { job.mask_bytes = sizeof(zero); });
  launch_beside(call.out, distance_transform_ops::kOp,
                [&](cudaStream_t stream) { return distance_transform(job, stream); });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::distance_transform_ops;
  m.impl("distance_transform", TORCH_BOX(&ops::distance_transform<fastseg::cuda::transform_masks>));
}
