#pragma once
// Checks of logits that are upsampled, shared by the bindings of all heads.

#include <vector>

#include "common/tensor_checks.h"

namespace fastseg {

inline void check_logits(const char* op, const Tensor& logits) {
  const auto size = logits.sizes();
  FASTSEG_CHECK(size.size() == 4 && size[1] > 0 && size[2] > 0 && size[3] > 0, op,
                ": logits must have the shape (N, C, h, w) with at least one class and pixel, got ",
                to_string(size));
  check_float(logits, op, "logits");
}

inline void check_size(const char* op, const std::vector<int64_t>& size) {
  FASTSEG_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0, op,
                ": size must be (H, W) with at least one pixel, got ", to_string(size));
}

}  // namespace fastseg
