// fastseg::confusion_matrix on the CPU.

#include "cpu/head/confusion_matrix.h"

#include <torch/csrc/stable/library.h>

#include "common/head/confusion_matrix_ops.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

void refuse(const char* name, const IdRange& range, const ClassIds& ids) {
  if (range.low >= 0 && range.high < ids.count) return;
  FASTSEG_CHECK(false, confusion_matrix_ops::kOp, ": ", name, " must hold ids 0 to ", ids.count - 1,
                ", got ", range.low, " to ", range.high,
                ids.ignores ? " where the target is not ignore_index" : "");
}

void count(const Tensor& prediction, const Tensor& target, const ClassIds& ids,
           const Tensor& counts) {
  using confusion_matrix_ops::id_type;
  const MapPair pixels(target.sizes(), prediction.strides(), target.strides());
  const LabelMaps maps{pixels, prediction.const_data_ptr(), id_type(prediction, "prediction"),
                       target.const_data_ptr(), id_type(target, "target")};
  auto* to = static_cast<int64_t*>(counts.mutable_data_ptr());
  if (confusion_matrix(maps, ids, to, TorchTasks())) return;
  const IdRanges ranges = id_ranges(maps, ids);
  refuse("prediction", ranges.prediction, ids);
  refuse("target", ranges.target, ids);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::confusion_matrix_ops;
  m.impl("confusion_matrix", TORCH_BOX(&ops::confusion_matrix<fastseg::cpu::count>));
}
