#pragma once
// Random problems for the C++ core of the dense CRF, the same on every machine for a seed.

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cpu/threads/tasks.h"

namespace fastseg::fuzz {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

  uint64_t bits() {  // splitmix64
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // In [low, high].
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  double real(double low, double high) {
    return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53;
  }
  // In every order of magnitude alike.
  double spread(double low, double high) { return std::exp(real(std::log(low), std::log(high))); }
  bool one_in(int64_t n) { return integer(1, n) == 1; }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[integer(0, static_cast<int64_t>(values.size()) - 1)];
  }

 private:
  uint64_t state_;
};

// What a problem computed: values, or what was refused.
struct Outcome {
  std::vector<double> values;
  std::string error;
  // Relative to the largest value; 0: other instruction sets may differ by more than any.
  double tolerance = 0;
};

// A number that arithmetic fears.
inline float special(Random& random) {
  using Limits = std::numeric_limits<float>;
  return random.one_of({Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity(), Limits::max(),
                        Limits::lowest(), Limits::denorm_min(), 1e30f, -1e7f, -0.f});
}

// (count) in a vector of exactly that size, so that a step beyond it is seen.
inline std::vector<float> numbers(Random& random, int64_t count, double low, double high,
                                  bool may_be_special) {
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(random.real(low, high));
  if (may_be_special && count > 0) {
    for (int64_t n = random.integer(1, 3); n > 0; --n) {
      values[random.integer(0, count - 1)] = special(random);
    }
  }
  return values;
}

Outcome mean_field(Random& random, const cpu::TaskRunner& tasks);
Outcome numpy_class(Random& random, int threads);
template <class T>
Outcome lattice_filter(Random& random, const cpu::TaskRunner& tasks);
template <class T>
Outcome spatial_filter(Random& random, const cpu::TaskRunner& tasks);

}  // namespace fastseg::fuzz
