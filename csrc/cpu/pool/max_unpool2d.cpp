// fastseg::max_unpool2d, its backward and fastseg::max_pool2d_backward on the CPU.

#include "cpu/pool/max_unpool2d.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>

#include "common/pool/max_unpool2d_ops.h"
#include "cpu/pool/max_unpool2d_indices.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {
namespace {

void check_all_inside(const UnpoolArgs& args, const std::atomic<bool>& bad) {
  FASTSEG_CHECK(!bad, args.op, ": indices hold a ", args.by_code ? "code" : "flat index",
                " that lies outside its ", args.by_code ? "window or the plane of " : "plane of ",
                args.pool.h.size, " x ", args.pool.w.size);
}

IndexedImages indexed_images(const UnpoolArgs& args) {
  return {args.batch,
          args.channels,
          args.pool.h.size * args.pool.w.size,
          args.pool.h.windows * args.pool.w.windows,
          args.channels_last,
          torch::stable::get_num_threads()};
}

// Values (or gradients) from the windows to the plane.
void place(const UnpoolCall& call, bool accumulate) {
  const UnpoolArgs& args = call.args;
  const PoolAxis &h = args.pool.h, &w = args.pool.w;
  std::atomic<bool> bad{false};
  dispatch_float(call.out.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(call.input.const_data_ptr());
    T* to = static_cast<T*>(call.out.mutable_data_ptr());
    if (!args.by_code) {
      const IndexedImages images = indexed_images(args);
      const auto* indices = static_cast<const int64_t*>(args.indices.const_data_ptr());
      const int64_t plane = images.plane, task_elements = plane * images.channels_per_task;
      const auto unpool = [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          if (!args.channels_last) std::fill_n(to + t * plane, plane, T{});  // stays in the cache
          max_unpool2d_indices(images, t, from, indices, to, bad);
        }
      };
      if (args.channels_last) {
        parallel_rows(args.batch * plane, args.channels, [&](int64_t begin, int64_t end) {
          std::fill(to + begin * args.channels, to + end * args.channels, T{});
        });
      }
      parallel_rows(images.tasks(), task_elements, unpool);
      return;
    }
    const int64_t rows = args.planes() * h.size, width = w.size * args.lanes();
    const MaxUnpool2d<T> job{
        args.pool,
        args.channels,
        args.channels_last,
        outgrows_cache(rows * width * int64_t{sizeof(T)}),
        accumulate,
        from,
        {static_cast<const uint8_t*>(args.indices.const_data_ptr()), args.packed, &bad},
        to};
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, max_unpool2d_rows<T>);
    const int64_t unit = job.by_planes() ? h.size : 1;
    parallel_rows(rows / unit, width * unit,
                  [&](int64_t begin, int64_t end) { kernel(job, begin * unit, end * unit); });
  });
  check_all_inside(args, bad);
}

// Elements of the plane, picked by the windows.
void pick(const UnpoolCall& call) {
  const UnpoolArgs& args = call.args;
  const PoolAxis &h = args.pool.h, &w = args.pool.w;
  std::atomic<bool> bad{false};
  dispatch_float(call.out.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(call.input.const_data_ptr());
    T* to = static_cast<T*>(call.out.mutable_data_ptr());
    if (!args.by_code) {
      const IndexedImages images = indexed_images(args);
      const auto* indices = static_cast<const int64_t*>(args.indices.const_data_ptr());
      const int64_t task_elements = images.pooled_plane * images.channels_per_task;
      parallel_rows(images.tasks(), task_elements, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          max_unpool2d_indices_backward(images, t, from, indices, to, bad);
        }
      });
      return;
    }
    const int64_t rows = args.planes() * h.windows, width = w.windows * args.lanes();
    const MaxUnpool2dBackward<T> job{
        args.pool,
        args.channels,
        args.channels_last,
        outgrows_cache(rows * width * int64_t{sizeof(T)}),
        from,
        {static_cast<const uint8_t*>(args.indices.const_data_ptr()), args.packed, &bad},
        to};
    const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, max_unpool2d_backward_rows<T>);
    parallel_rows(rows, width, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  });
  check_all_inside(args, bad);
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
