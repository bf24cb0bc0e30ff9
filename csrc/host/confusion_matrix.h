#pragma once
// The counts of a confusion matrix.

#include <cstdint>
#include <optional>

namespace fastseg::host {

// counts[l * classes + p] += the elements with label l and prediction p. Elements whose label is
// `ignore` do not count. Returns the first element whose label or prediction is neither a class
// nor ignored, or -1.
int64_t confusion_matrix(const int64_t* prediction, const int64_t* label, int64_t size,
                         int64_t classes, std::optional<int64_t> ignore, int64_t* counts);

}  // namespace fastseg::host
