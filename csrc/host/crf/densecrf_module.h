#pragma once
// The part of the module fastseg._host that is pydensecrf's.

#include <pybind11/pybind11.h>

namespace fastseg::host {

// Adds the class DenseCRF, which fastseg.compat.pydensecrf puts pydensecrf's interface on.
void add_densecrf(pybind11::module_& m);

}  // namespace fastseg::host
