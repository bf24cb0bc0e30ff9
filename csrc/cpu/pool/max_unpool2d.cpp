// fastseg::max_unpool2d, its backward and fastseg::max_pool2d_backward on the CPU.

#include "cpu/pool/max_unpool2d.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "common/pool/max_unpool2d_ops.h"
#include "cpu/pool/max_unpool2d_indices.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {
namespace {

// Calls by_indices(images, from, indices, to, bad) or by_codes(from, codes, to) with the pointers
// of the call's tensors; an index or code that lies outside is an error in the end.
template <class ByIndices, class ByCodes>
void run(const UnpoolCall& call, const ByIndices& by_indices, const ByCodes& by_codes) {
  const UnpoolArgs& args = call.args;
  const PoolAxis &h = args.pool.h, &w = args.pool.w;
  std::atomic<bool> bad{false};
  dispatch_float(call.out.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(call.input.const_data_ptr());
    const void* indices = args.indices.const_data_ptr();
    T* to = static_cast<T*>(call.out.mutable_data_ptr());
    if (args.by_code) {
      by_codes(from, Codes{static_cast<const uint8_t*>(indices), args.packed, &bad}, to);
      return;
    }
    const IndexedImages images{args.batch,         args.channels,
                               h.size * w.size,    h.windows * w.windows,
                               args.channels_last, torch::stable::get_num_threads()};
    by_indices(images, from, static_cast<const int64_t*>(indices), to, bad);
  });
  FASTSEG_CHECK(!bad, args.op, ": indices hold a ", args.by_code ? "code" : "flat index",
                " that lies outside its ", args.by_code ? "window or the plane of " : "plane of ",
                h.size, " x ", w.size);
}

// Values (or gradients) from the windows to the plane.
void place(const UnpoolCall& call, bool accumulate) {
  const UnpoolArgs& args = call.args;
  const auto by_indices = [](const IndexedImages& images, const auto* from, const int64_t* indices,
                             auto* to, std::atomic<bool>& bad) {
    using T = std::remove_pointer_t<decltype(to)>;
    const int64_t plane = images.plane, channels = images.channels;
    if (images.channels_last) {
      parallel_rows(images.batch * plane, channels, [&](int64_t begin, int64_t end) {
        std::fill(to + begin * channels, to + end * channels, T{});
      });
    }
    const int64_t task_elements = plane * images.channels_per_task;
    parallel_rows(images.tasks(), task_elements, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        if (!images.channels_last) std::fill_n(to + t * plane, plane, T{});  // stays in the cache
        max_unpool2d_indices(images, t, from, indices, to, bad);
      }
    });
  };
  const auto by_codes = [&](const auto* from, const Codes& codes, auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    const PoolAxis &h = args.pool.h, &w = args.pool.w;
    const int64_t rows = args.planes() * h.size, width = w.size * args.lanes();
    const bool stream = outgrows_cache(rows * width * int64_t{sizeof(T)});
    const MaxUnpool2d<T> job{
        args.pool, args.channels, args.channels_last, stream, accumulate, from, codes, to};
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, max_unpool2d_rows<T>);
    const int64_t unit = job.by_planes() ? h.size : 1;
    parallel_rows(rows / unit, width * unit,
                  [&](int64_t begin, int64_t end) { kernel(job, begin * unit, end * unit); });
  };
  run(call, by_indices, by_codes);
}

// Elements of the plane, picked by the windows.
void pick(const UnpoolCall& call) {
  const UnpoolArgs& args = call.args;
  const auto by_indices = [](const IndexedImages& images, const auto* from, const int64_t* indices,
                             auto* to, std::atomic<bool>& bad) {
    const int64_t task_elements = images.pooled_plane * images.channels_per_task;
    parallel_rows(images.tasks(), task_elements, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        max_unpool2d_indices_backward(images, t, from, indices, to, bad);
      }
    });
  };
  const auto by_codes = [&](const auto* from, const Codes& codes, auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    const PoolAxis &h = args.pool.h, &w = args.pool.w;
    const int64_t rows = args.planes() * h.windows, width = w.windows * args.lanes();
    const bool stream = outgrows_cache(rows * width * int64_t{sizeof(T)});
    const MaxUnpool2dBackward<T> job{
        args.pool, args.channels, args.channels_last, stream, from, codes, to};
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, max_unpool2d_backward_rows<T>);
    parallel_rows(rows, width, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  };
  run(call, by_indices, by_codes);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::max_unpool2d_ops;
  using fastseg::cpu::pick;
  using fastseg::cpu::place;
  m.impl("max_unpool2d", TORCH_BOX(&ops::max_unpool2d<place>));
  m.impl("max_pool2d_backward", TORCH_BOX(&ops::max_pool2d_backward<place>));
  m.impl("max_unpool2d_backward", TORCH_BOX(&ops::max_unpool2d_backward<pick>));
}
