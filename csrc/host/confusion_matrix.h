#pragma once
#include <cstdint>

namespace fastseg::host {

// counts[t * classes + p] += the elements with target t and prediction p. Elements whose target is
// `ignore` do not count. Returns the first element whose target or prediction is neither a class
// nor ignored, or -1.
int64_t confusion_matrix(const int64_t* prediction, const int64_t* target, int64_t size,
                         int64_t classes, int64_t ignore, int64_t* counts);

}  // namespace fastseg::host
