// fastseg::spatial_gaussian_filter on the CPU.

#include "cpu/crf/spatial_gaussian_filter.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <cmath>

#include "common/crf/spatial_gaussian_filter_ops.h"
#include "cpu/memory/buffer.h"
#include "cpu/threads/parallel.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

std::array<double, 3> bandwidths(const Tensor& sigma) {
  std::array<double, 3> out{};
  dispatch_float(sigma.scalar_type(), [&](auto zero) {
    const auto* p = static_cast<const decltype(zero)*>(sigma.const_data_ptr());
    for (int64_t a = 0; a < sigma.size(0); ++a) out[a] = p[a];
  });
  for (int64_t a = 0; a < sigma.size(0); ++a) {
    FASTSEG_CHECK(out[a] > 0 && std::isfinite(out[a]), spatial_gaussian_filter_ops::kOp,
                  ": sigma must be positive and finite, got ", out[a]);
  }
  return out;
}

template <class T>
void filter_as(const SpatialGaussianCall& call) {
  const auto sigma = bandwidths(call.sigma);
  const auto op = spatial_gaussian<T>(call.values.sizes().data() + 2, sigma.data(), call.axes(),
                                      call.derivative, call.lanes());
  const Buffer<T> slices(op.has_depth() ? op.volume() : 0);
  spatial_gaussian_filter(op, call.images(), static_cast<const T*>(call.values.const_data_ptr()),
                          static_cast<T*>(call.out.mutable_data_ptr()), slices.get(), TorchTasks());
}

void filter(const SpatialGaussianCall& call) {
  const bool wide = call.values.scalar_type() == ScalarType::Double;
  wide ? filter_as<double>(call) : filter_as<float>(call);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::spatial_gaussian_filter_ops;
  using fastseg::cpu::filter;
  m.impl("spatial_gaussian_filter", TORCH_BOX(&ops::spatial_gaussian_filter<filter>));
}
