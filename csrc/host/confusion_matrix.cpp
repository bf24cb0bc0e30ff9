// Counting, one element after another.

#include "host/confusion_matrix.h"

namespace fastseg::host {

int64_t confusion_matrix(const int64_t* prediction, const int64_t* label, int64_t size,
                         int64_t classes, std::optional<int64_t> ignore, int64_t* counts) {
  const auto is_class = [classes](int64_t k) { return k >= 0 && k < classes; };
  for (int64_t i = 0; i < size; ++i) {
    if (label[i] == ignore) continue;
    if (!is_class(label[i]) || !is_class(prediction[i])) return i;
    ++counts[label[i] * classes + prediction[i]];
  }
  return -1;
}

}  // namespace fastseg::host
