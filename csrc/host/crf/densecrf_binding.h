#pragma once
// fastseg._host.DenseCRF: numpy arrays in, checked, the lock of Python released, numpy arrays out.
//
// A header, which module.cpp alone includes: pybind11 takes longer to compile than all that is
// bound.

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "host/crf/densecrf.h"

namespace fastseg::host {
namespace densecrf_binding {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

inline void expect_shape(const char* name, const py::array& array,
                         const std::vector<int64_t>& shape) {
  bool same = array.ndim() == static_cast<int64_t>(shape.size());
  for (int64_t axis = 0; same && axis < array.ndim(); ++axis) {
    same = array.shape(axis) == shape[axis];
  }
  if (!same) {
    throw py::value_error(std::string(name) + " must be of shape " +
                          py::repr(py::tuple(py::cast(shape))).cast<std::string>() + ", got " +
                          py::repr(array.attr("shape")).cast<std::string>());
  }
}

inline Compatibility compatibility_of(const Array<float>& values, int64_t labels) {
  const int64_t ndim = values.ndim();
  expect_shape("compatibility", values, std::vector<int64_t>(ndim < 3 ? ndim : 2, labels));
  return {static_cast<Compatibility::Kind>(ndim), values.data()};
}

inline Normalization normalization_of(int code) {
  if (code < 0 || code > 3) {
    throw py::value_error("normalization must be 0 to 3, got " + std::to_string(code));
  }
  return static_cast<Normalization>(code);
}

// Everything that asks Python comes before the call that releases its lock. What the core refuses
// is a ValueError.
template <class Call>
auto without_lock(const Call& call) {
  const py::gil_scoped_release release;
  try {
    return call();
  } catch (const std::system_error&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw std::invalid_argument(error.what());
  }
}

inline void set_unary(DenseCrf& crf, const Array<float>& energies, int threads) {
  expect_shape("energies", energies, {crf.labels(), crf.points()});
  const float* data = energies.data();
  without_lock([&] { crf.set_unary(data, threads); });
}

inline void add_features(DenseCrf& crf, const Array<float>& features,
                         const Array<float>& compatibility, int normalization, int threads) {
  const int64_t dimensions = features.ndim() > 0 ? features.shape(0) : 0;
  expect_shape("features", features, {dimensions, crf.points()});
  const auto labels_term = compatibility_of(compatibility, crf.labels());
  const auto norm = normalization_of(normalization);
  const float* data = features.data();
  without_lock([&] { crf.add_features(data, dimensions, labels_term, norm, threads); });
}

inline void expect_image(const DenseCrf& crf) {
  if (crf.size().size() != 2) throw py::value_error("size must be (height, width) for this term");
}

inline void add_gaussian(DenseCrf& crf, std::array<float, 2> sxy, const Array<float>& compatibility,
                         int normalization, int threads) {
  expect_image(crf);
  const auto labels_term = compatibility_of(compatibility, crf.labels());
  const auto norm = normalization_of(normalization);
  without_lock([&] { crf.add_gaussian(sxy[0], sxy[1], labels_term, norm, threads); });
}

inline void add_bilateral(DenseCrf& crf, std::array<float, 2> sxy, std::array<float, 3> srgb,
                          const Array<uint8_t>& image, const Array<float>& compatibility,
                          int normalization, int threads) {
  expect_image(crf);
  expect_shape("image", image, {crf.size()[0], crf.size()[1], 3});
  const auto labels_term = compatibility_of(compatibility, crf.labels());
  const auto norm = normalization_of(normalization);
  const uint8_t* data = image.data();
  without_lock(
      [&] { crf.add_bilateral(sxy[0], sxy[1], srgb.data(), data, labels_term, norm, threads); });
}

inline Array<float> new_q(const DenseCrf& crf) {
  return Array<float>({crf.labels(), crf.points()});
}

inline void stop_at_signals() {
  const py::gil_scoped_acquire lock;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

inline Array<float> inference(DenseCrf& crf, int64_t iterations, int threads) {
  Array<float> q = new_q(crf);
  float* data = q.mutable_data();
  without_lock([&] { crf.inference(iterations, data, threads, stop_at_signals); });
  return q;
}

using InPlace = py::array_t<float, py::array::c_style>;

inline void step(DenseCrf& crf, InPlace& q, int threads) {
  expect_shape("q", q, {crf.labels(), crf.points()});
  float* data = q.mutable_data();
  without_lock([&] { crf.step(data, threads); });
}

inline double kl_divergence(DenseCrf& crf, const Array<float>& q, int threads) {
  expect_shape("q", q, {crf.labels(), crf.points()});
  const float* data = q.data();
  return without_lock([&] { return crf.kl_divergence(data, threads); });
}

inline int64_t vertex_count(DenseCrf& crf, int64_t term) {
  return without_lock([&] { return crf.vertex_count(term); });
}

inline std::unique_ptr<DenseCrf> make(std::vector<int64_t> size, int64_t labels) {
  return without_lock([&] { return std::make_unique<DenseCrf>(std::move(size), labels); });
}

}  // namespace densecrf_binding

// Adds the class DenseCRF, which fastseg.compat.pydensecrf puts pydensecrf's interface on.
inline void add_densecrf(pybind11::module_& m) {
  using namespace densecrf_binding;
  const auto threads = py::arg("threads") = 1;
  const auto compatibility = py::arg("compatibility");
  const auto normalization = py::arg("normalization") = 3;
  py::class_<DenseCrf>(m, "DenseCRF", R"(A dense CRF as pydensecrf computes it.

fastseg.densecrf puts pydensecrf's interface on it. Energies and Q are float32 (labels, points);
compatibility is float32 (), (labels,) or (labels, labels); normalization is none 0, before 1,
after 2, symmetric 3. Other threads of Python run meanwhile; those that share an object take turns.
ValueError says which argument does not fit.

Args:
    size: (height, width), or (points,) for features that are no positions.
    labels: number of labels.)")
      .def(py::init(&make), py::arg("size"), py::arg("labels"))
      .def("set_unary", &set_unary, py::arg("energies"), threads,
           "Sets the energies; +inf rules a label out.")
      .def("add_features", &add_features, py::arg("features"), compatibility, normalization,
           threads, "Adds a term of features, float32 (dimensions, points).")
      .def("add_gaussian", &add_gaussian, py::arg("sxy"), compatibility, normalization, threads,
           "Adds a term of positions; sxy: (x, y) in pixels.")
      .def("add_bilateral", &add_bilateral, py::arg("sxy"), py::arg("srgb"), py::arg("image"),
           compatibility, normalization, threads,
           "Adds a term of positions and colours; image: uint8 (height, width, 3).")
      .def("inference", &inference, py::arg("iterations"), threads,
           "Q after so many iterations from softmax(-energies).")
      .def("step", &step, py::arg("q").noconvert(), threads, "One iteration in place, from any q.")
      .def("kl_divergence", &kl_divergence, py::arg("q"), threads,
           "The divergence of q from the CRF's distribution, up to a constant.")
      .def("vertex_count", &vertex_count, py::arg("term"),
           "Vertices of the lattice of term number `term`.");
}

}  // namespace fastseg::host
