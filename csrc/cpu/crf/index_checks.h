#pragma once
// Checks of indices that a caller may have put together by hand.

#include <algorithm>
#include <cstdint>

#include "common/tensor_checks.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

// Whether a list's elements lie in [0, end).
inline void check_indices(const TaskRunner& tasks, const char* op, const char* name,
                          const int32_t* list, int64_t size, int64_t end) {
  constexpr int64_t kPerTask = 1 << 16;
  tasks.run((size + kPerTask - 1) / kPerTask, [&](int64_t t) {
    uint32_t largest = 0;  // negative ones are the largest
    for (int64_t i = t * kPerTask; i < std::min(size, (t + 1) * kPerTask); ++i) {
      largest = std::max(largest, static_cast<uint32_t>(list[i]));
    }
    FASTSEG_CHECK(size == 0 || largest < static_cast<uint64_t>(end), op, ": ", name,
                  " must be from 0 to ", end - 1, ", got ", static_cast<int32_t>(largest));
  });
}

}  // namespace fastseg::cpu
