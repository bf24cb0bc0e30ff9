// MeanField: its terms, its energies and its steps. See lattice_mean_field.h.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/crf/lattice_gain.h"
#include "cpu/crf/lattice_mean_field_state.h"

namespace fastseg::cpu {

MeanField::MeanField(const TaskRunner& tasks, int64_t images, int64_t labels,
                     std::vector<int64_t> size, const char* name)
    : state_(std::make_unique<State>(tasks, images, labels, std::move(size), name)) {}
MeanField::~MeanField() = default;
MeanField::MeanField(MeanField&&) noexcept = default;

Mixing MeanField::State::mixing(const Compatibility& compatibility) const {
  // Sums of messages stay finite, and beyond them a label that is ruled out stays so.
  constexpr float kLargest = 1e20f;
  for (int64_t i = 0; i < compatibility.size(labels); ++i) {
    check(std::abs(compatibility.values[i]) <= kLargest,
          "compatibility must be finite and no larger than 1e20");
  }
  check(!prepared, "terms must be added before the start");
  return Mixing(compatibility, labels, pitch);
}

void MeanField::State::add_lattice(const LatticeInput<float>& input, Normalization normalization,
                                   const Compatibility& compatibility,
                                   const LatticeOptions& options) {
  Mixing factors = mixing(compatibility);
  const int number = static_cast<int>(lattices.size());
  if (!empty()) {
    const BlurOptions blur{options.passes, options.symmetric, false, options.side};
    const double gain = lattice_gain(input.d, options.keeps_integral, options.refine, blur);
    lattices.emplace_back(input, blur, gain, normalization, std::move(factors), tasks,
                          name.c_str());
  }
  order.push_back(number);  // features that are refused make no term
}

void MeanField::add_features(const float* features, int64_t feature_images, int64_t dimensions,
                             Normalization normalization, Compatibility compatibility,
                             LatticeOptions options) {
  state_->check(dimensions >= 1 && dimensions <= permutohedral::kMaxDimensions,
                "kernels must have 1 to 8 features, got " + std::to_string(dimensions));
  State& s = *state_;
  s.check(feature_images == s.images || feature_images == 1,
          "features must be given once or for each image");
  const LatticeInput<float> input{features,
                                  feature_images,
                                  s.points,
                                  static_cast<int>(dimensions),
                                  dimensions * s.points,
                                  s.points,
                                  options.refine,
                                  options.dilation};
  s.add_lattice(input, normalization, compatibility, options);
}

void MeanField::add_positions(const float* sigma, Normalization normalization,
                              Compatibility compatibility, LatticeOptions options) {
  State& s = *state_;
  const int axes = static_cast<int>(s.size.size());
  LargeVector<float> features(axes * s.points);
  for (int a = 0; a < axes; ++a) {
    s.check(sigma[a] > 0, "sigma must be positive");
    float* plane = features.data() + position_plane(axes, a) * s.points;
    int64_t inner = 1;
    for (int b = a + 1; b < axes; ++b) inner *= s.size[b];
    for (int64_t i = 0; i < s.points; i += inner) {
      std::fill_n(plane + i, inner, static_cast<float>(i / inner % s.size[a]) / sigma[a]);
    }
  }
  add_features(features.data(), 1, axes, normalization, compatibility, options);
}

void MeanField::add_separable(const float* sigma, Normalization normalization,
                              Compatibility compatibility) {
  State& s = *state_;
  Mixing factors = s.mixing(compatibility);
  std::vector<double> deviations(sigma, sigma + s.size.size());
  for (const double x : deviations) s.check(x > 0 && std::isfinite(x), "sigma must be positive");
  s.order.push_back(-1);
  if (s.empty()) return;
  s.separables.emplace_back(s.size, deviations.data(), s.images, s.pitch, normalization,
                            std::move(factors), s.tasks);
}

void MeanField::clear_terms() {
  State& s = *state_;
  s.lattices.clear();
  s.separables.clear();
  s.order.clear();
  s.tiles = {};
  s.sums = {};
  s.prepared = s.messages = false;
}

void MeanField::set_unary(const float* energies, LabelStrides strides) {
  State& s = *state_;
  // Into memory of their own: refused energies leave those of before.
  Buffer<float> unary(s.images * s.points * s.pitch), shift(s.images * s.points);
  constexpr int64_t kTask = 2048;
  const int64_t per_image = (s.points + kTask - 1) / kTask;
  std::atomic<int> error{0};
  s.tasks.run(s.images * per_image, [&](int64_t task) {
    const int64_t image = task / per_image, first = task % per_image * kTask;
    const int64_t at = image * s.points + first;
    const UnaryError bad =
        FASTSEG_SIMD_DISPATCH(read_unary(energies + image * strides.image + first * strides.point,
                                         strides, std::min(kTask, s.points - first), s.labels,
                                         s.pitch, unary.get() + at * s.pitch, shift.get() + at));
    int before = error;
    while (before < static_cast<int>(bad) &&
           !error.compare_exchange_weak(before, static_cast<int>(bad))) {
    }
  });
  const char* message[] = {"", "unary must not be NaN", "unary must not be -infinity",
                           "unary must leave every point a label of finite energy"};
  s.check(error == 0, message[error]);
  s.unary = std::move(unary);
  s.shift = std::move(shift);
}

void MeanField::start() {
  State& s = *state_;
  s.check(static_cast<bool>(s.unary), "unary must be set before the start");
  s.prepare();
  s.messages = false;
  s.source = State::Source::messages;
  s.q = {};
}

void MeanField::set_q(const float* q, LabelStrides strides) {
  State& s = *state_;
  s.check(static_cast<bool>(s.unary), "unary must be set before Q");
  s.prepare();
  if (!s.q) s.q = Buffer<float>(s.images * s.points * s.pitch);
  for (int64_t image = 0; image < s.images; ++image) {
    FASTSEG_SIMD_DISPATCH(read_rows(q + image * strides.image, strides, s.points, s.labels, s.pitch,
                                    s.q.get() + image * s.points * s.pitch));
  }
  s.source = State::Source::given;
}

void MeanField::step() {
  State& s = *state_;
  if (s.source != State::Source::behind) {
    s.run({.splat = true});
    s.update_messages();
  }
  s.source = State::Source::messages;
  s.q = {};
}

void MeanField::read_q(float* q, LabelStrides strides) {
  state_->run({.out = q, .strides = strides});
}

void MeanField::read_log_q(float* log_q, LabelStrides strides) {
  State& s = *state_;
  s.check(s.source == State::Source::messages, "log Q must be read of an update's Q");
  s.run({.out = log_q, .log = true, .strides = strides});
}

std::vector<double> MeanField::kl_divergence() {
  State& s = *state_;
  std::vector<double> sum(s.images);
  if (s.empty()) return sum;
  if (s.source != State::Source::behind) {
    if (!s.q) s.q = Buffer<float>(s.images * s.points * s.pitch);
    s.run({.splat = true, .keep = true});
    s.update_messages();
    s.source = State::Source::behind;
  }
  const int64_t per_image = s.tiles.per_image;
  std::vector<double> parts(s.images * per_image);
  s.run({.divergences = parts.data()});
  for (int64_t image = 0; image < s.images; ++image) {
    for (int64_t k = 0; k < per_image; ++k) sum[image] += parts[image * per_image + k];
    for (int64_t i = image * s.points; i < (image + 1) * s.points; ++i) {
      double mass = 0;
      for (int64_t l = 0; l < s.labels; ++l) mass += s.q[i * s.pitch + l];
      sum[image] += mass * s.shift[i];
    }
  }
  return sum;
}

int64_t MeanField::vertex_count(int64_t term, int64_t image) const {
  const int lattice = state_->order.at(term);
  if (lattice < 0 || state_->empty()) return 0;
  const auto& counts = state_->lattices[lattice].lattice.vertex_count;
  return counts.size() == 1 ? counts[0] : counts.at(image);
}

}  // namespace fastseg::cpu
