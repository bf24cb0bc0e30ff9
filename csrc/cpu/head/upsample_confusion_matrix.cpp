// fastseg::upsample_confusion_matrix on the CPU: each task finds the classes of a band of rows and
// counts them beside the target's while they are in its cache. No class map is stored.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "common/head/upsample_confusion_matrix_ops.h"
#include "cpu/head/confusion_matrix.h"
#include "cpu/head/pair_counts.h"
#include "cpu/head/upsample_argmax.h"
#include "cpu/head/upsample_logits.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {
namespace {

// The target's rows.
class Target {
 public:
  explicit Target(const Tensor& target)
      : data_(static_cast<const char*>(target.const_data_ptr())),
        type_(confusion_matrix_ops::id_type(target, "target")),
        strides_{target.stride(0), target.stride(1), target.stride(2)} {}

  IdRun row(int64_t n, int64_t y) const {
    return {data_ + (n * strides_[0] + y * strides_[1]) * id_bytes(type_), type_, strides_[2]};
  }

 private:
  const char* data_;
  IdType type_;
  int64_t strides_[3];
};

// The counts of all tasks, whose order does not matter. Tables of many classes are too large for
// every task to have one.
class Sums {
 public:
  explicit Sums(const ClassIds& ids) : ids_(ids), sums_(ids.slots() * ids.slots()) {}

  void add(const PairCounts& counts) {
    const std::lock_guard lock(mutex_);
    counts.merge_into(sums_.data());
  }

  void add_row(const int32_t* prediction, const IdRun& target, int64_t width) {
    const std::lock_guard lock(mutex_);
    dispatch_id(target.type, [&](auto zero) {
      const auto* ids = static_cast<const decltype(zero)*>(target.data);
      for (int64_t x = 0; x < width; ++x) {
        ++sums_[ids_.slot(ids[x * target.stride]) * ids_.slots() + prediction[x]];
      }
    });
  }

  bool finish(int64_t* counts) const { return class_counts(sums_.data(), ids_, counts); }

 private:
  const ClassIds ids_;
  std::mutex mutex_;
  std::vector<int64_t> sums_;
};

void refuse_target(const UpsampleConfusionCall& call) {
  const Tensor& target = call.target;
  const MapPair pixels(target.sizes(), target.strides(), target.strides());
  const IdType type = confusion_matrix_ops::id_type(target, "target");
  const void* data = target.const_data_ptr();
  const IdRange range = id_ranges({pixels, data, type, data, type}, call.ids).target;
  FASTSEG_CHECK(false, upsample_confusion_matrix_ops::kOp, ": target must hold ids 0 to ",
                call.ids.count - 1, ", got ", range.low, " to ", range.high,
                call.ids.ignores ? " where it is not ignore_index" : "");
}

template <class T>
void count_bands(const UpsampleConfusionCall& call, const UpsampleArgmax<T>& job, int64_t tasks,
                 int64_t work, Sums& sums) {
  const Target target(call.target);
  const std::vector<BilinearBand>& bands = job.logits.rows->bands;
  const auto count = static_cast<int64_t>(bands.size());
  const bool by_bytes = call.ids.count <= kMostByteClasses;
  parallel_rows(tasks, work, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> rows(kMostRows * job.width);
    const auto* bytes = reinterpret_cast<const uint8_t*>(rows.data());
    PairCounts mine(by_bytes ? call.ids : ClassIds{});
    UpsampleArgmax<T> of_band = job;
    of_band.classes = rows.data();
    of_band.bytes = by_bytes ? 1 : 4;
    for (int64_t t = begin; t < end; ++t) {
      const BilinearBand& band = bands[t % count];
      of_band.first_row = t / count * job.height + band.begin;
      FASTSEG_SIMD_DISPATCH_OF(T, upsample_argmax<T>)(of_band, t, t + 1);
      for (int64_t y = band.begin; y < band.end; ++y) {
        const IdRun ids = target.row(t / count, y);
        const int64_t at = (y - band.begin) * job.width;
        if (by_bytes) {
          FASTSEG_SIMD_DISPATCH(add_pairs)(bytes + at, ids, job.width, mine.table());
        } else {
          sums.add_row(rows.data() + at, ids, job.width);
        }
      }
    }
    if (by_bytes) sums.add(mine);
  });
}

void count_classes(const UpsampleConfusionCall& call) {
  Sums sums(call.ids);
  const int64_t height = call.target.size(1), width = call.target.size(2);
  if (call.target.numel() > 0) {
    const auto count = [&]<class T>(const UpsampledLogits<T>& logits, int64_t tasks, int64_t work) {
      count_bands<T>(call, {logits, height, width, 0, nullptr, 1, nullptr}, tasks, work, sums);
    };
    with_upsampled(call.logits, height, width, call.align_corners, count);
  }
  if (!sums.finish(static_cast<int64_t*>(call.counts.mutable_data_ptr()))) refuse_target(call);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::upsample_confusion_matrix_ops;
  m.impl("upsample_confusion_matrix",
         TORCH_BOX(&ops::upsample_confusion_matrix<fastseg::cpu::count_classes>));
}
