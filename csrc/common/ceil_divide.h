#pragma once
// Division of what is shared out among equal parts.

#include <cstdint>

namespace fastseg {

// The number of parts of b that a takes; none where a is not positive. 0 < b.
constexpr int64_t ceil_divide(int64_t a, int64_t b) { return a <= 0 ? 0 : (a + b - 1) / b; }

}  // namespace fastseg
