#pragma once
#include <pybind11/pybind11.h>

namespace fastseg::host {

// Adds the class DenseCRF, which fastseg.densecrf puts pydensecrf's interface on.
void add_densecrf(pybind11::module_& m);

}  // namespace fastseg::host
