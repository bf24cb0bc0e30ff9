#pragma once
// How the CPU ops split their work, and which outputs they write past the caches.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "common/tensor_checks.h"

namespace fastseg::cpu {

// Runs body(begin, end) over rows of `row_elements` each, on torch's threads. Work of a few
// microseconds stays on one.
template <class Body>
void parallel_rows(int64_t rows, int64_t row_elements, const Body& body) {
  constexpr int64_t kElementsPerTask = 8192;
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, row_elements));
  if (rows <= grain) {
    if (rows > 0) body(int64_t{0}, rows);
    return;
  }
  torch::stable::parallel_for(0, rows, grain, body);
}

// Outputs of this size do not survive in a last-level cache until somebody reads them.
inline bool outgrows_cache(int64_t bytes) { return bytes >= (int64_t{32} << 20); }

template <class Body>
void dispatch_float(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(c10::Half{});
    case ScalarType::BFloat16:
      return body(c10::BFloat16{});
    default:
      FASTSEG_CHECK(false, "unreachable: dtypes are checked before");
  }
}

}  // namespace fastseg::cpu
