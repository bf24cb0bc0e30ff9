// Problems: sizes, layouts, terms and options at random; values that fit, and values that do not.

#include "problems.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/crf/lattice_mean_field.h"
#include "cpu/crf/permutohedral_filter.h"
#include "cpu/crf/permutohedral_lattice.h"
#include "cpu/crf/spatial_gaussian_filter.h"
#include "host/crf/densecrf.h"

namespace fastseg::fuzz {
namespace {

void expect(bool condition, const char* what) {
  if (!condition) throw std::logic_error(std::string("not so: ") + what);
}

// Runs what may be refused: what is refused is an error with a message, and nothing else.
template <class Body>
Outcome outcome_of(double tolerance, const Body& body) {
  Outcome outcome;
  try {
    outcome.values = body();
    outcome.tolerance = tolerance;
  } catch (const std::runtime_error& error) {
    outcome.error = error.what();
    expect(!outcome.error.empty(), "an error says what is wrong");
  }
  return outcome;
}

std::vector<int64_t> random_size(Random& random, int axes) {
  if (axes == 2 && random.one_in(40))
    return random.one_of<std::vector<int64_t>>({{30000, 4}, {4, 30000}});
  const int64_t largest = axes == 1 ? 700 : axes == 2 ? 27 : 9;
  std::vector<int64_t> size(axes);
  for (int64_t& n : size) n = random.one_in(5) ? 1 : random.integer(1, largest);
  return size;
}

int64_t product(const std::vector<int64_t>& size) {
  int64_t points = 1;
  for (const int64_t n : size) points *= n;
  return points;
}

int64_t random_labels(Random& random, int64_t points) {
  if (points > 10000) return random.integer(1, 3);
  return random.one_of<int64_t>({1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 21, 24, 31, 32, 33, 100, 256});
}

// (images, dimensions, points) of one character: scattered, on a grid, or all alike.
std::vector<float> random_features(Random& random, int64_t count, bool special_ones) {
  const double reach = random.spread(1e-3, 300);
  std::vector<float> features = numbers(random, count, -reach, reach, special_ones);
  if (random.one_in(4)) {
    for (float& x : features) x = std::round(x);
  }
  if (random.one_in(10)) std::fill(features.begin(), features.end(), static_cast<float>(reach));
  return features;
}

struct Weights {
  Compatibility::Kind kind;
  std::vector<float> values;
  Compatibility view() const { return {kind, values.data()}; }
};

// Labels attract themselves, so that rounding does not grow; `wild`: anything finite and more.
Weights random_weights(Random& random, int64_t labels, bool wild) {
  using Kind = Compatibility::Kind;
  const Kind kind = random.one_of({Kind::potts, Kind::diagonal, Kind::full});
  const int64_t count = Compatibility{kind, nullptr}.size(labels);
  if (wild) return {kind, numbers(random, count, -1e4, 1e4, random.one_in(4))};
  Weights weights{kind, numbers(random, count, 0.1, 1, false)};
  if (kind == Kind::diagonal) {
    for (float& mu : weights.values) mu = -mu;
  } else if (kind == Kind::full) {
    for (int64_t i = 0; i < count; ++i) {
      weights.values[i] = i % (labels + 1) ? weights.values[i] / labels : -weights.values[i];
    }
  }
  return weights;
}

Normalization random_normalization(Random& random, bool wild) {
  return static_cast<Normalization>(random.integer(wild ? 0 : 1, 3));
}

std::vector<float> random_energies(Random& random, int64_t count, bool wild) {
  std::vector<float> energies = numbers(random, count, -5, 5, false);
  if (wild) {
    const double reach = random.spread(1, 1e9);
    energies = numbers(random, count, -reach, reach, random.one_in(3));
  }
  return energies;
}

void expect_probabilities(const std::vector<float>& q, cpu::LabelStrides strides, int64_t images,
                          int64_t labels, int64_t points) {
  for (int64_t b = 0; b < images; ++b) {
    for (int64_t i = 0; i < points; ++i) {
      double sum = 0;
      for (int64_t l = 0; l < labels; ++l) {
        const float x = q[b * strides.image + l * strides.label + i * strides.point];
        expect(x >= 0 && x <= 1.0001f, "probabilities are between 0 and 1");
        sum += x;
      }
      expect(std::abs(sum - 1) < 1e-3, "the probabilities of a point sum to 1");
    }
  }
}

template <class From>
void append(std::vector<double>& to, const From& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void add_random_term(Random& random, cpu::MeanField& field, const std::vector<int64_t>& size,
                     int64_t images, int64_t labels, bool wild) {
  const Weights weights = random_weights(random, labels, wild);
  const Normalization normalization = random_normalization(random, wild);
  cpu::LatticeOptions options;
  if (random.one_in(2)) {
    options = {random.real(0.5, 2),
               static_cast<int>(random.integer(0, 2)),
               static_cast<int>(random.integer(1, 2)),
               random.one_in(2),
               static_cast<float>(random.real(0, 1)),
               random.one_in(2)};
  }
  const int64_t points = product(size);
  const int64_t kind = random.integer(0, 2);
  if (kind == 0) {
    // Many dimensions and a dilation multiply the vertices.
    const int64_t d = random.integer(1, points > 10000 || options.dilation == 1 ? 5 : 8);
    const int64_t own = random.one_in(2) ? images : 1;
    const auto features = random_features(random, own * d * points, wild && random.one_in(3));
    field.add_features(features.data(), own, d, normalization, weights.view(), options);
  } else {
    std::vector<float> sigma(size.size());
    for (float& s : sigma) s = static_cast<float>(random.spread(0.1, 300));
    if (wild && random.one_in(4)) sigma[0] = special(random);
    kind == 1 ? field.add_positions(sigma.data(), normalization, weights.view(), options)
              : field.add_separable(sigma.data(), normalization, weights.view());
  }
}

}  // namespace

Outcome mean_field(Random& random, const cpu::TaskRunner& tasks) {
  const bool wild = random.one_in(2);
  const auto size = random_size(random, static_cast<int>(random.integer(1, 3)));
  const int64_t points = product(size), labels = random_labels(random, points);
  const int64_t images = points > 10000 ? 1 : random.integer(0, 3);
  const cpu::LabelStrides planes{labels * points, points, 1}, rows{labels * points, 1, labels};
  const cpu::LabelStrides from = random.one_in(2) ? planes : rows;
  const cpu::LabelStrides to = random.one_in(2) ? planes : rows;
  return outcome_of(wild ? 0 : 2e-3, [&] {
    cpu::MeanField field(tasks, images, labels, size);
    for (int64_t n = random.integer(0, 3); n > 0; --n) {
      add_random_term(random, field, size, images, labels, wild);
    }
    field.set_unary(random_energies(random, images * labels * points, wild).data(), from);
    field.start();
    std::vector<float> q(images * labels * points);
    std::vector<double> all;
    for (int64_t n = random.integer(0, 3); n > 0; --n) {
      field.step();
      if (random.one_in(3)) append(all, field.kl_divergence());
      if (random.one_in(4)) {
        field.read_q(q.data(), to);
        field.set_q(q.data(), to);
      }
    }
    field.read_q(q.data(), to);
    expect_probabilities(q, to, images, labels, points);
    // Divergences are not comparable where they are differences of large numbers.
    all.clear();
    append(all, q);
    if (random.one_in(4)) {
      field.clear_terms();
      field.start();
      field.step();
      field.read_q(q.data(), to);
      append(all, q);
    }
    return all;
  });
}

Outcome numpy_class(Random& random, int threads) {
  const bool wild = random.one_in(2);
  const bool image = random.one_in(2);
  const auto size = random_size(random, image ? 2 : 1);
  const int64_t points = product(size), labels = random_labels(random, points);
  return outcome_of(wild ? 0 : 2e-3, [&] {
    host::DenseCrf crf(size, labels);
    std::vector<float> q(labels * points);
    const auto add = [&] {
      const Weights weights = random_weights(random, labels, wild);
      const Normalization normalization = random_normalization(random, wild);
      const float sx = static_cast<float>(random.spread(0.1, 300));
      const float sy = static_cast<float>(random.spread(0.1, 300));
      const int64_t kind = image ? random.integer(0, 2) : 0;
      if (kind == 0) {
        const int64_t d = random.integer(1, points > 10000 ? 5 : 8);
        const auto features = random_features(random, d * points, wild && random.one_in(3));
        crf.add_features(features.data(), d, weights.view(), normalization, threads);
      } else if (kind == 1) {
        crf.add_gaussian(sx, sy, weights.view(), normalization, threads);
      } else {
        std::vector<uint8_t> pixels(3 * points);
        for (uint8_t& x : pixels) x = static_cast<uint8_t>(random.bits());
        std::vector<float> srgb(3);
        for (float& s : srgb) s = static_cast<float>(random.spread(wild ? 1e-4 : 0.5, 200));
        crf.add_bilateral(sx, sy, srgb.data(), pixels.data(), weights.view(), normalization,
                          threads);
      }
    };
    for (int64_t n = random.integer(0, 2); n > 0; --n) add();
    const auto energies = random_energies(random, labels * points, wild);
    if (!random.one_in(8)) crf.set_unary(energies.data(), threads);
    crf.inference(random.integer(0, 3), q.data(), threads, [] {});
    if (random.one_in(3)) {
      add();  // after an inference: all terms are built again
      crf.step(q.data(), threads);
    }
    crf.kl_divergence(q.data(), threads);
    const cpu::LabelStrides planes{labels * points, points, 1};
    expect_probabilities(q, planes, 1, labels, points);
    return std::vector<double>(q.begin(), q.end());
  });
}

template <class T>
Outcome lattice_filter(Random& random, const cpu::TaskRunner& tasks) {
  const bool wild = random.one_in(4);
  const int64_t batch = random.integer(0, 2),
                points = random.integer(0, random.one_in(8) ? 9000 : 400);
  const int d = static_cast<int>(random.integer(1, points > 1000 ? 4 : 8));
  const int dilation = d > 5 ? 0 : static_cast<int>(random.integer(0, 2));
  const auto floats = random_features(random, std::max<int64_t>(1, batch * d * points), wild);
  const std::vector<T> features(floats.begin(), floats.begin() + batch * d * points);
  const BlurOptions blur{static_cast<int>(random.integer(1, 2)), random.one_in(2), random.one_in(2),
                         random.real(0, 1)};
  const int64_t channels = random.one_of<int64_t>({0, 1, 2, 3, 4, 5, 8, 9, 17, 33});
  const double refine = random.real(0.5, 2);
  return outcome_of(1e-3, [&] {
    const cpu::LatticeInput<T> input{features.data(), batch,  points, d,
                                     d * points,      points, refine, dilation};
    const cpu::Lattice<T> lattice(input, tasks);
    const auto view = lattice.view();
    const int64_t count = batch * channels * points;
    std::vector<T> values(count), grad(count), out(count), grad_values(count);
    std::vector<T> grad_weights(batch * points * (d + 1));
    for (T& x : values) x = static_cast<T>(random.real(-1, 1));
    for (T& x : grad) x = static_cast<T>(random.real(-1, 1));
    cpu::filter(view, blur, T{1}, channels, values.data(), out.data(), tasks);
    cpu::filter_backward(view, blur, T{1}, channels, grad.data(), values.data(), grad_values.data(),
                         grad_weights.data(), tasks);
    std::vector<double> all(out.begin(), out.end());
    append(all, grad_values);
    append(all, grad_weights);
    return all;
  });
}
template Outcome lattice_filter<float>(Random&, const cpu::TaskRunner&);
template Outcome lattice_filter<double>(Random&, const cpu::TaskRunner&);

template <class T>
Outcome spatial_filter(Random& random, const cpu::TaskRunner& tasks) {
  const int axes = static_cast<int>(random.integer(1, 3));
  std::vector<int64_t> size = random_size(random, axes);
  for (int64_t& n : size) n = random.one_in(30) ? 0 : n;
  std::vector<double> sigma(axes);
  for (double& s : sigma) s = random.spread(1e-3, 1e4);
  const int64_t images = random.integer(0, 2), lanes = random.one_of<int64_t>({1, 2, 3, 4, 8, 21});
  const int derivative = static_cast<int>(random.integer(-1, axes - 1));
  const int64_t volume = product(size) * lanes;
  return outcome_of(1e-3, [&] {
    const auto op = cpu::spatial_gaussian<T>(size.data(), sigma.data(), axes, derivative, lanes);
    std::vector<T> in(images * volume), out(images * volume), scratch(op.has_depth() ? volume : 0);
    for (T& x : in) x = static_cast<T>(random.real(-1, 1));
    cpu::spatial_gaussian_filter(op, images, in.data(), out.data(), scratch.data(), tasks);
    return std::vector<double>(out.begin(), out.end());
  });
}
template Outcome spatial_filter<float>(Random&, const cpu::TaskRunner&);
template Outcome spatial_filter<double>(Random&, const cpu::TaskRunner&);

}  // namespace fastseg::fuzz
