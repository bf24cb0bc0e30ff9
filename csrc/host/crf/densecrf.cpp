// DenseCrf: pydensecrf's terms and steps on a MeanField, one caller at a time.

#include "host/crf/densecrf.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastseg::host {
namespace {

int64_t product(const std::vector<int64_t>& size) {
  int64_t points = 1;
  for (const int64_t extent : size) {
    if (extent < 1 || __builtin_mul_overflow(points, extent, &points)) {
      throw std::runtime_error("size must have positive extents of fewer than 2^63 points");
    }
  }
  return points;
}

}  // namespace

DenseCrf::DenseCrf(std::vector<int64_t> size, int64_t labels)
    : size_(std::move(size)),
      labels_(labels),
      points_(product(size_)),
      strides_{labels_ * points_, points_, 1},
      field_(runner_, 1, labels_, size_, "densecrf") {}

std::unique_lock<ProcessMutex> DenseCrf::enter(int threads) {
  std::unique_lock lock(mutex_);
  runner_.set_threads(std::max(1, threads));
  return lock;
}

void DenseCrf::set_unary(const float* energies, int threads) {
  const auto lock = enter(threads);
  field_.set_unary(energies, strides_);
  has_unary_ = true;
}

DenseCrf::OwnCompatibility DenseCrf::copy(const Compatibility& compatibility) const {
  const float* from = compatibility.values;
  return {compatibility.kind, {from, from + compatibility.size(labels_)}};
}

void DenseCrf::add(std::function<void()> term) {
  if (started_) {
    field_.clear_terms();
    for (const auto& earlier : terms_) earlier();
    started_ = false;
  }
  term();
  terms_.push_back(std::move(term));
}

void DenseCrf::add_features(const float* features, int64_t dimensions, Compatibility compatibility,
                            Normalization normalization, int threads) {
  const auto lock = enter(threads);
  if (dimensions < 1 || dimensions > 8) {
    throw std::runtime_error("features must have 1 to 8 dimensions, got " +
                             std::to_string(dimensions));
  }
  std::vector<float> own(features, features + dimensions * points_);
  add([this, own = std::move(own), dimensions, normalization, mu = copy(compatibility)] {
    field_.add_features(own.data(), 1, dimensions, normalization, mu.view());
  });
}

void DenseCrf::add_gaussian(float sx, float sy, Compatibility compatibility,
                            Normalization normalization, int threads) {
  const auto lock = enter(threads);
  add([this, sx, sy, normalization, mu = copy(compatibility)] {
    const float sigma[] = {sy, sx};
    field_.add_positions(sigma, normalization, mu.view());
  });
}

void DenseCrf::add_bilateral(float sx, float sy, const float* srgb, const uint8_t* image,
                             Compatibility compatibility, Normalization normalization,
                             int threads) {
  const auto lock = enter(threads);
  std::vector<uint8_t> own(image, image + 3 * points_);
  const std::vector<float> deviations{sx, sy, srgb[0], srgb[1], srgb[2]};
  add([this, own = std::move(own), deviations, normalization, mu = copy(compatibility)] {
    const std::vector<float> features = bilateral_features(deviations, own.data());
    field_.add_features(features.data(), 1, 5, normalization, mu.view());
  });
}

std::vector<float> DenseCrf::bilateral_features(const std::vector<float>& deviations,
                                                const uint8_t* image) const {
  constexpr int64_t kPointsPerTask = 8192;
  const int64_t width = size_[1];
  std::vector<float> features(5 * points_);
  runner_.run((points_ + kPointsPerTask - 1) / kPointsPerTask, [&](int64_t task) {
    const int64_t begin = task * kPointsPerTask;
    const int64_t end = std::min(points_, begin + kPointsPerTask);
    float* x = features.data();
    float* y = x + points_;
    for (int64_t i = begin; i < end; ++i) {
      x[i] = static_cast<float>(i % width) / deviations[0];
      y[i] = static_cast<float>(i / width) / deviations[1];
    }
    for (int c = 0; c < 3; ++c) {
      float* colour = x + (2 + c) * points_;
      for (int64_t i = begin; i < end; ++i) {
        colour[i] = static_cast<float>(image[3 * i + c]) / deviations[2 + c];
      }
    }
  });
  return features;
}

void DenseCrf::prepare() {
  started_ = true;
  if (has_unary_) return;
  const float zero = 0;
  field_.set_unary(&zero, {0, 0, 0});
  has_unary_ = true;
}

void DenseCrf::inference(int64_t iterations, float* q, int threads,
                         const std::function<void()>& between) {
  const auto lock = enter(threads);
  prepare();
  field_.start();
  for (int64_t i = 0; i < iterations; ++i) {
    between();
    field_.step();
  }
  field_.read_q(q, strides_);
}

void DenseCrf::step(float* q, int threads) {
  const auto lock = enter(threads);
  prepare();
  field_.set_q(q, strides_);
  field_.step();
  field_.read_q(q, strides_);
}

double DenseCrf::kl_divergence(const float* q, int threads) {
  const auto lock = enter(threads);
  prepare();
  field_.set_q(q, strides_);
  return field_.kl_divergence()[0];
}

int64_t DenseCrf::vertex_count(int64_t term) {
  const auto lock = enter(1);
  if (term < 0 || term >= static_cast<int64_t>(terms_.size())) {
    throw std::runtime_error("term must be the number of a term");
  }
  return field_.vertex_count(term, 0);
}

}  // namespace fastseg::host
