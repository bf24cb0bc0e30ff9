// fastseg._host: what works on numpy arrays alone, for programs that do not have torch.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>

#include "cpu/head/confusion_matrix.h"
#include "cpu/memory/kept_memory.h"
#include "host/crf/densecrf_binding.h"

namespace py = pybind11;

namespace {

using Ids = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

Ids class_ids(const char* name, const py::array& array) {
  if (array.dtype().kind() != 'i' && array.dtype().kind() != 'u') {
    throw py::type_error(std::string(name) + " must hold integer class ids, got " +
                         py::str(array.dtype()).cast<std::string>());
  }
  return Ids(array);
}

std::string shape(const py::array& array) {
  return py::str(array.attr("shape")).cast<std::string>();
}

// The first element whose label or prediction is neither a class nor ignored; there is one.
int64_t first_bad(const fastseg::ClassIds& ids, const int64_t* prediction, const int64_t* label) {
  for (int64_t i = 0;; ++i) {
    const int64_t slot = ids.slot(label[i]);
    if (slot == ids.ignored()) continue;
    if (slot == ids.none() || ids.without_ignored().slot(prediction[i]) == ids.none()) return i;
  }
}

Ids confusion_matrix(const py::array& prediction_array, const py::array& label_array,
                     int64_t num_classes, std::optional<int64_t> ignore_index) {
  const Ids prediction = class_ids("prediction", prediction_array);
  const Ids label = class_ids("label", label_array);
  if (num_classes < 1) {
    throw py::value_error("num_classes must be at least 1, got " + std::to_string(num_classes));
  }
  if (!prediction.attr("shape").equal(label.attr("shape"))) {
    throw py::value_error("prediction and label must have one shape, got " + shape(prediction) +
                          " and " + shape(label));
  }
  Ids counts({num_classes, num_classes});
  // Reading a pointer asks Python, so all of it comes before the lock is released.
  const int64_t* predicted = prediction.data();
  const int64_t* labelled = label.data();
  const int64_t size = label.size();
  int64_t* count = counts.mutable_data();
  const fastseg::ClassIds ids{num_classes, ignore_index.has_value(), ignore_index.value_or(0)};
  int64_t bad = -1;
  {
    py::gil_scoped_release release;
    constexpr auto kInt64 = fastseg::IdType::kInt64;
    const std::array<int64_t, 1> sizes{size}, strides{1};
    const fastseg::cpu::MapPair pixels(sizes, strides, strides);
    const fastseg::cpu::LabelMaps maps{pixels, predicted, kInt64, labelled, kInt64};
    if (!fastseg::cpu::confusion_matrix(maps, ids, count, fastseg::cpu::InlineTasks())) {
      bad = first_bad(ids, predicted, labelled);
    }
  }
  if (bad >= 0) {
    throw py::value_error("prediction and label must hold ids 0 to " +
                          std::to_string(num_classes - 1) + ", got " +
                          std::to_string(predicted[bad]) + " and " + std::to_string(labelled[bad]) +
                          " at element " + std::to_string(bad));
  }
  return counts;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = R"(fastseg's functions on numpy arrays.

They do not need torch, but ``import fastseg`` does. A program without torch loads this module by
itself:

    from importlib.machinery import PathFinder
    from importlib.util import find_spec, module_from_spec

    spec = PathFinder.find_spec("_host", find_spec("fastseg").submodule_search_locations)
    host = module_from_spec(spec)
    spec.loader.exec_module(host)
)";
  m.def("confusion_matrix", &confusion_matrix, py::arg("prediction"), py::arg("label"),
        py::arg("num_classes"), py::arg("ignore_index") = py::none(),
        R"(The confusion matrix of two arrays of class ids.

Other threads of Python run meanwhile.

Args:
    prediction: integer array of class ids, any shape.
    label: integer array of the same shape.
    num_classes: number of classes C; ids are 0 to C - 1.
    ignore_index: label of pixels that are not counted; None counts all.

Returns:
    int64 array (C, C), rows are labels, columns predictions.

Raises:
    TypeError: an array that is not of integers.
    ValueError: the shapes differ, or an id outside 0 to C - 1 that is not ignored.)");
  m.def("release_memory", &fastseg::cpu::release_memory,
        "Returns the memory that this module keeps for its next buffers to the system.");
  fastseg::host::add_densecrf(m);
}
