// fastseg::pixel_adaptive_refinement and its gradient on CUDA.

#include "cuda/refine/pixel_adaptive_refinement.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/refine/pixel_adaptive_refinement_ops.h"
#include "cuda/binding.h"

namespace fastseg::cuda {
namespace {

constexpr const char* kRefinement = "fastseg::pixel_adaptive_refinement";

template <class T>
Refinement<T> refinement_of(const RefinementCall& call) {
  const int64_t height = call.planes.size(2), width = call.planes.size(3);
  const auto dilations = static_cast<int64_t>(call.dilations.size());
  FASTSEG_CHECK(dilations <= kMaxDilations, kRefinement, ": on CUDA, dilations must be at most ",
                kMaxDilations, ", got ", dilations);
  check_count(kRefinement, "the elements of an image",
              height * width * std::max(call.image.size(1), call.planes.size(1)));
  Refinement<T> op{
      static_cast<int>(height), static_cast<int>(width), static_cast<int>(dilations), {}};
  const bool par = call.affinity == Affinity::kPar;
  const std::vector<double> positions = position_weights(call.dilations);
  for (int64_t d = 0; d < dilations; ++d) {
    auto& ring = op.rings[d];
    ring.rows = static_cast<int>(reach_within(call.dilations[d], height));
    ring.columns = static_cast<int>(reach_within(call.dilations[d], width));
    ring.diagonal = static_cast<T>(par ? positions[d * kDirections] : 0);
    ring.straight = static_cast<T>(par ? positions[d * kDirections + 1] : 0);
  }
  return op;
}

// Planes of the compute type, which the output has unless it is of 16 bits.
template <class T>
void refine_as(const RefinementCall& call) {
  const Refinement<T> op = refinement_of<T>(call);
  const ScalarType dtype = call.image.scalar_type();
  const int64_t channels = call.image.size(1), planes = call.planes.size(1);
  const int64_t pixels = call.planes.size(2) * call.planes.size(3);
  const int64_t neighbors = int64_t{op.dilations} * kDirections;
  const Tensor in =
      call.planes.scalar_type() == dtype ? call.planes : torch::stable::to(call.planes, dtype);
  const auto memory = [&](int64_t elements) {
    return torch::stable::new_empty(in, {elements}, dtype);
  };
  const Tensor weights = memory(neighbors * pixels), first = memory(planes * pixels);
  const Tensor second = memory(call.iterations > 1 ? planes * pixels : 0);
  const bool direct = call.out.scalar_type() == dtype;
  Tensor out = direct ? call.out : memory(call.out.numel());
  const auto pointer = [](const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); };
  launch_beside(call.out, kRefinement, [&](cudaStream_t stream) {
    for (int64_t b = 0; b < call.planes.size(0); ++b) {
      const T* image = static_cast<const T*>(call.image.const_data_ptr()) + b * channels * pixels;
      cudaError_t error = refinement_weights(op, call.affinity, static_cast<int>(channels), image,
                                             pointer(weights), stream);
      const T* from = static_cast<const T*>(in.const_data_ptr()) + b * planes * pixels;
      for (int64_t i = 1; i <= call.iterations && error == cudaSuccess; ++i) {
        T* to = i == call.iterations ? pointer(out) + b * planes * pixels
                                     : pointer(i % 2 == 1 ? first : second);
        error = refinement_pass(op, call.transposed, static_cast<int>(planes), pointer(weights),
                                from, to, stream);
        from = to;
      }
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
  if (!direct) {
    Tensor rounded = call.out;
    torch::stable::copy_(rounded, torch::stable::view(out, call.out.sizes()));
  }
}

void refine(const RefinementCall& call) {
  if (call.iterations == 0) {
    Tensor out = call.out;
    torch::stable::copy_(out, call.planes);
    return;
  }
  call.image.scalar_type() == ScalarType::Double ? refine_as<double>(call) : refine_as<float>(call);
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::pixel_adaptive_refinement_ops;
  m.impl("pixel_adaptive_refinement",
         TORCH_BOX(&ops::pixel_adaptive_refinement<fastseg::cuda::refine>));
  m.impl("pixel_adaptive_refinement_backward",
         TORCH_BOX(&ops::pixel_adaptive_refinement_backward<fastseg::cuda::refine>));
}
