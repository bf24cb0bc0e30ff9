// fastseg::distance_transform on the CPU.

#include "cpu/head/distance_transform.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/head/distance_transform_ops.h"
#include "cpu/memory/buffer.h"
#include "cpu/memory/scratch.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

// The transform of all images by strips of rows, tasks of sizes alone.
template <class U>
class Strips {
 public:
  Strips(const DistanceTransformCall& call)
      : op_(call.op),
        mask_(static_cast<const U*>(call.mask.const_data_ptr())),
        bits_(static_cast<U>(distance_transform_ops::significant_bits(call.mask.scalar_type()))) {
    // A strip's distances stay in a second-level cache.
    constexpr int64_t kElements = 1 << 16;
    rows_ = std::clamp<int64_t>(kElements / op_.plane(), 4, 64);
    strips_ = (op_.sizes[0] + rows_ - 1) / rows_;
  }

  template <class V, class T>
  void run(T* out) {
    find_zeros();
    const auto before = FASTSEG_SIMD_DISPATCH(distance_before<U>);
    const auto transform = FASTSEG_SIMD_DISPATCH(distance_rows<V, T>);
    const int64_t row = op_.plane();
    TorchTasks().run(op_.images * strips_, [&](int64_t task) {
      static thread_local Scratch scratch;
      const MaskStrip<U> strip = strip_of(task);
      const int64_t rows = strip.end - strip.begin;
      const int64_t work = distance_workspace(op_) * (sizeof(V) / sizeof(float));
      float* const memory = scratch.get(work + (rows + 1) * row);
      auto* const distances = reinterpret_cast<int32_t*>(memory + work);
      before(strip, last(task, -1), distances);
      const int32_t* const below = first(task, 1);
      int32_t* const behind = distances + rows * row;
      for (int64_t i = 0; i < row; ++i) behind[i] = below[i] - static_cast<int32_t>(strip.end);
      transform(op_, rows, distances, reinterpret_cast<V*>(memory),
                out + (task / strips_ * op_.sizes[0] + strip.begin) * row);
    });
  }

 private:
  MaskStrip<U> strip_of(int64_t task) const {
    const int64_t begin = task % strips_ * rows_, row = op_.plane();
    return {mask_ + (task / strips_ * op_.sizes[0] + begin) * row, bits_, row, begin,
            std::min(begin + rows_, op_.sizes[0])};
  }

  // Of each image a row of kNowhere stands before the rows of its strips and behind them.
  int32_t* first(int64_t task, int64_t offset = 0) const { return at(first_, task, offset); }
  int32_t* last(int64_t task, int64_t offset = 0) const { return at(last_, task, offset); }
  int32_t* at(const Buffer<int32_t>& zeros, int64_t task, int64_t offset) const {
    const int64_t image = task / strips_, strip = task % strips_;
    return zeros.get() + (image * (strips_ + 2) + strip + 1 + offset) * op_.plane();
  }

  // The first zero of each column from each strip on, the last one up to each strip.
  void find_zeros() {
    const int64_t row = op_.plane(), size = op_.images * (strips_ + 2) * row;
    first_ = Buffer<int32_t>(size);
    last_ = Buffer<int32_t>(size);
    const auto extents = FASTSEG_SIMD_DISPATCH(distance_extents<U>);
    if (strips_ > 1) {
      TorchTasks().run(op_.images * strips_,
                       [&](int64_t task) { extents(strip_of(task), first(task), last(task)); });
    }
    TorchTasks().run(op_.images, [&](int64_t image) {
      const int64_t begin = image * strips_, end = begin + strips_;
      std::fill_n(last(begin, -1), row, -kNowhere);
      std::fill_n(first(end - 1, 1), row, kNowhere);
      for (int64_t task = begin + 1; task < end - 1; ++task) {
        merge(row, last(task, -1), last(task), [](int32_t a, int32_t b) { return std::max(a, b); });
      }
      for (int64_t task = end - 2; task > begin; --task) {
        merge(row, first(task, 1), first(task),
              [](int32_t a, int32_t b) { return std::min(a, b); });
      }
    });
  }

  template <class Choose>
  static void merge(int64_t row, const int32_t* from, int32_t* to, const Choose& choose) {
    for (int64_t i = 0; i < row; ++i) to[i] = choose(from[i], to[i]);
  }

  const DistanceTransform& op_;
  const U* mask_;
  U bits_;
  int64_t rows_, strips_;
  Buffer<int32_t> first_, last_;
};

void transform(const DistanceTransformCall& call) {
  distance_transform_ops::dispatch_mask(call.mask.scalar_type(), [&](auto zero) {
    Strips<decltype(zero)> strips(call);
    const auto into = [&](auto* out) {
      call.op.in_integers ? strips.template run<int32_t>(out) : strips.template run<double>(out);
    };
    void* const out = call.out.mutable_data_ptr();
    call.out.scalar_type() == ScalarType::Double ? into(static_cast<double*>(out))
                                                 : into(static_cast<float*>(out));
  });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  m.impl("distance_transform",
         TORCH_BOX(&fastseg::distance_transform_ops::distance_transform<fastseg::cpu::transform>));
}
