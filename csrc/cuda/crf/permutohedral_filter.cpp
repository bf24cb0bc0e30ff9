// fastseg::permutohedral_filter and its backward on CUDA.

#include "cuda/crf/permutohedral_filter.h"

#include <torch/csrc/stable/library.h>

#include "common/crf/permutohedral_filter_ops.h"
#include "cuda/binding.h"
#include "cuda/crf/permutohedral_binding.h"
#include "cuda/crf/permutohedral_blur.h"

namespace fastseg::cuda {
namespace {

constexpr const char* kFilter = "fastseg::permutohedral_filter";

// A job and its scratch.
template <class T>
struct Job {
  explicit Job(const FilterCall& call)
      : entries(torch::stable::new_empty(call.values, {2 * call.slots.numel()})),
        starts(torch::stable::new_empty(call.slots, {2 * call.rows + 1})),
        rows(torch::stable::new_empty(call.values, {call.rows * chunk_pitch(call.channels)})),
        buffers(new_buffers(call)),
        job{lattice_view<T>(kFilter, call, kChannelChunk / 4),
            call.blur,
            static_cast<T>(call.gain),
            static_cast<int>(call.channels),
            static_cast<const T*>(call.values.const_data_ptr()),
            static_cast<T*>(call.out.mutable_data_ptr()),
            {static_cast<SplatEntry<T>*>(entries.mutable_data_ptr()),
             static_cast<int*>(starts.mutable_data_ptr()),
             static_cast<int*>(starts.mutable_data_ptr()) + call.rows + 1},
            static_cast<T*>(rows.mutable_data_ptr()),
            static_cast<T*>(buffers.mutable_data_ptr())} {
    check_count(kFilter, "the channels", call.channels);
  }

  static Tensor new_buffers(const FilterCall& call) {
    const int64_t one = (call.vertices + 1) * chunk_pitch(call.channels);
    return torch::stable::new_empty(call.values, {(1 + device_blur_buffers(call.blur)) * one});
  }

  Tensor entries, starts, rows, buffers;
  FilterJob<T> job;
};

void filter_planes(const FilterCall& call) {
  if (call.out.numel() == 0) return;
  call.with_type([&](auto zero) {
    const Job<decltype(zero)> scratch(call);
    launch_beside(call.out, kFilter,
                  [&](cudaStream_t stream) { return permutohedral_filter(scratch.job, stream); });
  });
}

void filter_gradients(const FilterCall& call) {
  constexpr const char* op = "fastseg::permutohedral_filter_backward";
  if (call.grad_barycentric.numel() == 0) return;
  call.with_type([&](auto zero) {
    using T = decltype(zero);
    if (call.channels == 0) {
      launch_beside(call.out, op, [&](cudaStream_t stream) {
        return cudaMemsetAsync(call.grad_barycentric.mutable_data_ptr(), 0,
                               call.grad_barycentric.numel() * sizeof(T), stream);
      });
      return;
    }
    const Job<T> scratch(call);
    const Tensor buffers = Job<T>::new_buffers(call);
    const FilterGradient<T> gradient{static_cast<const T*>(call.grad.const_data_ptr()),
                                     static_cast<T*>(call.grad_barycentric.mutable_data_ptr()),
                                     static_cast<T*>(buffers.mutable_data_ptr())};
    launch_beside(call.out, op, [&](cudaStream_t stream) {
      return permutohedral_filter_backward(scratch.job, gradient, stream);
    });
  });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::permutohedral_filter_ops;
  m.impl("permutohedral_filter",
         TORCH_BOX(&ops::permutohedral_filter<fastseg::cuda::filter_planes>));
  m.impl("permutohedral_filter_backward",
         TORCH_BOX(&ops::permutohedral_filter_backward<fastseg::cuda::filter_gradients>));
}
