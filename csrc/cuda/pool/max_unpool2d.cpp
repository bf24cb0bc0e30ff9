// fastseg::max_unpool2d, its backward and fastseg::max_pool2d_backward on CUDA.

#include "cuda/pool/max_unpool2d.h"

#include <torch/csrc/stable/library.h>

#include "common/pool/max_unpool2d_ops.h"
#include "cuda/binding.h"
#include "cuda/pool/max_unpool2d_indices.h"

namespace fastseg::cuda {
namespace {

Codes codes_of(const UnpoolArgs& args) {
  return {static_cast<const uint8_t*>(args.indices.const_data_ptr()), args.packed,
          args.channels_last};
}

MaxUnpool2dIndices by_index(const UnpoolCall& call) {
  const UnpoolArgs& args = call.args;
  const PoolAxis &h = args.pool.h, &w = args.pool.w;
  check_count(args.op, "the elements of a plane", h.size * w.size);
  check_count(args.op, "the windows of a plane", h.windows * w.windows);
  return {dtype_of(call.input),
          args.planes(),
          args.lanes(),
          h.size,
          w.size,
          h.windows,
          w.windows,
          call.input.const_data_ptr(),
          static_cast<const int64_t*>(args.indices.const_data_ptr()),
          call.out.mutable_data_ptr()};
}

void place(const UnpoolCall& call, bool accumulate) {
  const UnpoolArgs& args = call.args;
  check_counts(args.op, args.pool, args.planes(), args.lanes());
  if (!args.by_code) {
    const MaxUnpool2dIndices job = by_index(call);
    const Tensor winners = torch::stable::new_empty(call.out, {call.out.numel()}, ScalarType::Int);
    launch_beside(call.out, args.op, [&](cudaStream_t stream) {
      return max_unpool2d_indices(job, static_cast<int*>(winners.mutable_data_ptr()), stream);
    });
    return;
  }
  const MaxUnpool2d job{dtype_of(call.input), args.pool,
                        args.planes(),        args.lanes(),
                        accumulate,           call.input.const_data_ptr(),
                        codes_of(args),       call.out.mutable_data_ptr()};
  launch_beside(call.out, args.op, [&](cudaStream_t stream) { return max_unpool2d(job, stream); });
}

void pick(const UnpoolCall& call) {
  const UnpoolArgs& args = call.args;
  check_counts(args.op, args.pool, args.planes(), args.lanes());
  if (!args.by_code) {
    const MaxUnpool2dIndices job = by_index(call);
    launch_beside(call.out, args.op,
                  [&](cudaStream_t stream) { return max_unpool2d_indices_backward(job, stream); });
    return;
  }
  const MaxUnpool2dBackward job{dtype_of(call.input),
                                args.pool,
                                args.planes(),
                                args.lanes(),
                                call.input.const_data_ptr(),
                                codes_of(args),
                                call.out.mutable_data_ptr()};
  launch_beside(call.out, args.op,
                [&](cudaStream_t stream) { return max_unpool2d_backward(job, stream); });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::max_unpool2d_ops;
  using fastseg::cuda::pick;
  using fastseg::cuda::place;
  m.impl("max_unpool2d", TORCH_BOX(&ops::max_unpool2d<place>));
  m.impl("max_pool2d_backward", TORCH_BOX(&ops::max_pool2d_backward<place>));
  m.impl("max_unpool2d_backward", TORCH_BOX(&ops::max_unpool2d_backward<pick>));
}
