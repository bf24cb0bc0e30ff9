// fastseg._host: what works on numpy arrays alone, for programs that do not have torch.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>

#include "host/confusion_matrix.h"

namespace py = pybind11;

namespace {

using Labels = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

py::array_t<int64_t> confusion_matrix(const Labels& prediction, const Labels& target,
                                      int64_t num_classes, int64_t ignore_index) {
  if (num_classes < 1) {
    throw py::value_error("num_classes must be positive, got " + std::to_string(num_classes));
  }
  if (prediction.size() != target.size()) {
    throw py::value_error("prediction and target must have the same size, got " +
                          std::to_string(prediction.size()) + " and " +
                          std::to_string(target.size()));
  }
  py::array_t<int64_t> counts({num_classes, num_classes});
  std::fill_n(counts.mutable_data(), counts.size(), 0);
  int64_t bad;
  {
    py::gil_scoped_release release;
    bad = fastseg::host::confusion_matrix(prediction.data(), target.data(), prediction.size(),
                                          num_classes, ignore_index, counts.mutable_data());
  }
  if (bad >= 0) {
    throw py::value_error(
        "prediction and target must hold classes 0 to " + std::to_string(num_classes - 1) +
        ", got " + std::to_string(prediction.data()[bad]) + " and " +
        std::to_string(target.data()[bad]) + " at element " + std::to_string(bad));
  }
  return counts;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "fastseg's numpy functions; they do not need torch.";
  m.def("confusion_matrix", &confusion_matrix, py::arg("prediction"), py::arg("target"),
        py::arg("num_classes"), py::arg("ignore_index") = 255,
        "Counts (num_classes, num_classes), row: target, column: prediction.");
}
