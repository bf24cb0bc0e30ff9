#pragma once
// fastseg::lattice_mean_field but for the computation, which the CPU and the CUDA bindings bring:
// arguments checked, terms made of them, the output allocated.

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/crf/mean_field_terms.h"
#include "common/tensor_checks.h"

namespace fastseg {

struct LatticeMeanFieldCall {
  static constexpr const char* kOp = "fastseg::lattice_mean_field";

  // A term of the energy, which make_term makes of the op's arguments. Its tensors are dense.
  struct Term {
    enum class Gaussian { of_positions, of_features };
    Gaussian gaussian;
    Tensor sigma;     // of positions: (axes) bandwidths in pixels
    Tensor features;  // of features: (B or 1, d, *spatial), in units of their bandwidths
    Tensor mu;
    Compatibility compatibility;  // of mu
    Normalization normalization;

    const float* sigma_data() const { return static_cast<const float*>(sigma.const_data_ptr()); }
  };

  Tensor unary;  // (B, L, *spatial), points evenly spaced in memory
  bool log;      // log Q is wanted
  int64_t batch, labels, points;
  std::vector<int64_t> spatial;
  std::vector<Term> terms;
  int64_t iterations;
  bool high_quality;  // "high", else "compat"
  double refine;
  int dilation, passes;
  bool symmetric;
  float side;
  bool labels_last;  // of out
  Tensor out;        // Q dense in unary's layout, or log Q contiguous

  // Whether a term's filter is an exact separable convolution, and not on a lattice.
  bool is_separable(const Term& term) const {
    return high_quality && term.gaussian == Term::Gaussian::of_positions;
  }
};

using LatticeMeanFieldKernel = void (*)(const LatticeMeanFieldCall&);

namespace lattice_mean_field_ops {

// torch's suggest_memory_format for images and volumes: channels_last if the strides ascend in the
// order C, innermost to outermost axis, N.
inline bool labels_last(const Tensor& x) {
  const auto size = x.sizes(), stride = x.strides();
  const int dim = static_cast<int>(size.size());
  if (dim < 4 || stride[1] == 0) return false;
  int64_t smallest = 0;
  for (int k = 0; k < dim; ++k) {
    const int d = k == 0 ? 1 : k == dim - 1 ? 0 : dim - k;
    if (size[d] == 0 || stride[d] < smallest) return false;
    if (d == 0 && smallest == stride[1]) return false;
    smallest = stride[d];
    if (size[d] > 1) smallest *= size[d];
  }
  return true;
}

// Between neighbours along the innermost axis that has any.
inline int64_t point_stride(const Tensor& x) {
  for (int64_t d = x.dim() - 1; d > 1; --d) {
    if (x.size(d) > 1) return x.stride(d);
  }
  return 1;
}

// Point i of an image lies i * point_stride from its first.
inline bool evenly_spaced(const Tensor& x) {
  int64_t expected = point_stride(x);
  for (int64_t d = x.dim() - 1; d > 1; --d) {
    if (x.size(d) > 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

inline Tensor empty_like_unary(const Tensor& unary, bool last) {
  const std::vector<int64_t> size(unary.sizes().begin(), unary.sizes().end());
  std::vector<int64_t> moved(size), strides(size.size());
  if (last) {  // as a contiguous (B, *spatial, L)
    moved.erase(moved.begin() + 1);
    moved.push_back(size[1]);
  }
  const Tensor out = empty_like_layout(unary, moved, ScalarType::Float, false);
  if (!last) return out;
  Tensor view = out;
  for (int d = static_cast<int>(size.size()) - 1; d > 1; --d) {
    view = torch::stable::transpose(view, d - 1, d);
  }
  return view;
}

inline void check_sigma(const Tensor& sigma, const LatticeMeanFieldCall& call) {
  FASTSEG_CHECK(sigma.size(0) == static_cast<int64_t>(call.spatial.size()), call.kOp,
                ": kernels must hold a bandwidth for each of ", call.spatial.size(), " axes, got ",
                sigma.size(0));
}

inline void check_features(const Tensor& features, const LatticeMeanFieldCall& call) {
  const std::vector<int64_t> size(features.sizes().begin(), features.sizes().end());
  bool fits = size.size() == call.spatial.size() + 2 && (size[0] == 1 || size[0] == call.batch);
  for (size_t d = 2; fits && d < size.size(); ++d) fits = size[d] == call.spatial[d - 2];
  FASTSEG_CHECK(fits, call.kOp, ": kernels must be bandwidths or features (", call.batch,
                " or 1, d, spatial size ", to_string(call.spatial), "), got shape ",
                to_string(size));
}

inline void check_compatibility(const Tensor& mu, const LatticeMeanFieldCall& call) {
  const char* op = call.kOp;
  check_float32(mu, op, "compatibility");
  check_same_device(call.unary, "unary", mu, "compatibility", op);
  const std::vector<int64_t> size(mu.sizes().begin(), mu.sizes().end());
  bool fits = size.size() <= 2;
  for (const int64_t n : size) fits = fits && n == call.labels;
  FASTSEG_CHECK(fits, op, ": compatibility must have shape (), (", call.labels, ") or (",
                call.labels, ", ", call.labels, "), got ", to_string(size));
}

// kernel: an element of the op's `kernels`, whose dimensions tell which Gaussian it stands for.
inline LatticeMeanFieldCall::Term make_term(const Tensor& kernel, const Tensor& compatibility,
                                            int64_t normalization,
                                            const LatticeMeanFieldCall& call) {
  using Gaussian = LatticeMeanFieldCall::Term::Gaussian;
  const char* op = call.kOp;
  check_float32(kernel, op, "kernels");
  check_same_device(call.unary, "unary", kernel, "kernels", op);
  const Gaussian gaussian = kernel.dim() == 1 ? Gaussian::of_positions : Gaussian::of_features;
  const bool positions = gaussian == Gaussian::of_positions;
  positions ? check_sigma(kernel, call) : check_features(kernel, call);
  check_compatibility(compatibility, call);
  FASTSEG_CHECK(normalization >= 0 && normalization <= 3, op,
                ": normalization must be 0 to 3, got ", normalization);
  const Tensor parameter = dense(kernel, false), mu = dense(compatibility, false);
  return {
      gaussian,
      positions ? parameter : Tensor(),
      positions ? Tensor() : parameter,
      mu,
      {static_cast<Compatibility::Kind>(mu.dim()), static_cast<const float*>(mu.const_data_ptr())},
      static_cast<Normalization>(normalization)};
}

template <LatticeMeanFieldKernel kernel>
Tensor lattice_mean_field(const Tensor& unary, std::vector<Tensor> kernels,
                          std::vector<Tensor> compatibility, std::vector<int64_t> normalization,
                          int64_t iterations, int64_t quality, double refine, int64_t dilation,
                          int64_t passes, bool symmetric, double side, bool log) {
  constexpr const char* op = LatticeMeanFieldCall::kOp;
  FASTSEG_CHECK(unary.dim() >= 3 && unary.dim() <= 5, op,
                ": unary must be (B, L, *spatial) of one to three axes, got shape ",
                to_string(unary.sizes()));
  check_float32(unary, op, "unary");
  FASTSEG_CHECK(unary.size(1) > 0, op, ": unary must have a label, got shape ",
                to_string(unary.sizes()));
  FASTSEG_CHECK(kernels.size() == compatibility.size() && kernels.size() == normalization.size(),
                op, ": kernels, compatibility and normalization must be of one length, got ",
                kernels.size(), ", ", compatibility.size(), " and ", normalization.size());
  FASTSEG_CHECK(iterations >= 0, op, ": iterations must not be negative, got ", iterations);
  FASTSEG_CHECK(quality == 0 || quality == 1, op, ": quality must be 0 or 1, got ", quality);
  FASTSEG_CHECK(refine > 0 && std::isfinite(refine), op, ": refine must be positive, got ", refine);
  FASTSEG_CHECK(dilation >= 0 && dilation <= 2, op, ": dilation must be 0, 1 or 2, got ", dilation);
  FASTSEG_CHECK(std::isfinite(side), op, ": side must be finite, got ", side);
  FASTSEG_CHECK(passes >= 1 && passes <= 100, op, ": passes must be 1 to 100, got ", passes);

  // nll_loss, which log Q is for, has no gradient in another layout than the contiguous.
  const bool last = labels_last(unary) && !log;
  LatticeMeanFieldCall call{.unary = unary,
                            .log = log,
                            .batch = unary.size(0),
                            .labels = unary.size(1),
                            .points = 1,
                            .spatial = {unary.sizes().begin() + 2, unary.sizes().end()},
                            .terms = {},
                            .iterations = iterations,
                            .high_quality = quality == 1,
                            .refine = refine,
                            .dilation = static_cast<int>(dilation),
                            .passes = static_cast<int>(passes),
                            .symmetric = symmetric,
                            .side = static_cast<float>(side),
                            .labels_last = last,
                            .out = empty_like_unary(unary, last)};
  for (const int64_t n : call.spatial) call.points *= n;
  for (size_t k = 0; k < kernels.size(); ++k) {
    call.terms.push_back(make_term(kernels[k], compatibility[k], normalization[k], call));
  }
  if (call.batch == 0 || call.points == 0) return call.out;
  if (!evenly_spaced(unary)) call.unary = torch::stable::contiguous(unary);
  kernel(call);
  return call.out;
}

}  // namespace lattice_mean_field_ops
}  // namespace fastseg
