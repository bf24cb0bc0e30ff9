// fuzz FIRST COUNT: runs the problems of the seeds FIRST to FIRST + COUNT - 1, on every instruction
// set of this machine, with one thread and with three. Prints each seed before it. Ends with an
// error if a sanitizer finds something, if instruction sets differ by more than rounding, or
// threads by a bit.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "cpu/simd/simd_level.h"
#include "host/thread_pool.h"
#include "problems.h"

namespace fastseg::fuzz {
namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

Outcome solve(uint64_t seed, int threads) {
  Random random(seed);
  host::PoolRunner tasks;
  tasks.set_threads(threads);
  switch (random.integer(0, 9)) {
    case 0:
      return spatial_filter<float>(random, tasks);
    case 1:
      return spatial_filter<double>(random, tasks);
    case 2:
      return lattice_filter<float>(random, tasks);
    case 3:
      return lattice_filter<double>(random, tasks);
    case 4:
    case 5:
      return numpy_class(random, threads);
    default:
      return mean_field(random, tasks);
  }
}

void expect_close(const Outcome& a, const Outcome& b) {
  if (a.error != b.error) fail("errors differ: " + a.error + " | " + b.error);
  if (a.values.size() != b.values.size()) fail("sizes differ");
  double largest = 0, worst = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    largest = std::max(largest, std::abs(a.values[i]));
    worst = std::max(worst, std::abs(a.values[i] - b.values[i]));
  }
  if (a.tolerance > 0 && worst > a.tolerance * largest) fail("instruction sets differ");
}

void expect_same_bits(const Outcome& a, const Outcome& b) {
  if (a.error != b.error || a.values.size() != b.values.size()) fail("threads differ");
  const size_t bytes = a.values.size() * sizeof(double);
  if (bytes > 0 && std::memcmp(a.values.data(), b.values.data(), bytes) != 0) {
    fail("threads differ");
  }
}

// On all instruction sets. Whether the problem was refused.
bool run(uint64_t seed) {
  using cpu::SimdLevel;
  cpu::set_simd_level(SimdLevel::portable);
  const Outcome expected = solve(seed, 1);
  for (const SimdLevel level : {SimdLevel::portable, SimdLevel::avx2, SimdLevel::avx512}) {
    if (!cpu::simd_level_available(level)) continue;
    cpu::set_simd_level(level);
    const Outcome outcome = solve(seed, 3);
    expect_close(expected, outcome);
    expect_same_bits(level == SimdLevel::portable ? expected : solve(seed, 1), outcome);
  }
  return !expected.error.empty();
}

}  // namespace
}  // namespace fastseg::fuzz

int main(int argc, char** argv) {
  using namespace fastseg;
  if (argc != 3) {
    std::fprintf(stderr, "fuzz FIRST COUNT\n");
    return 2;
  }
  const uint64_t first = std::strtoull(argv[1], nullptr, 10);
  const uint64_t count = std::strtoull(argv[2], nullptr, 10);
  long refused = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    std::printf("%llu\n", static_cast<unsigned long long>(seed));
    std::fflush(stdout);
    try {
      refused += fuzz::run(seed);
    } catch (const std::exception& error) {
      fuzz::fail(error.what());
    }
  }
  std::printf("%llu problems, %ld refused\n", static_cast<unsigned long long>(count), refused);
  return 0;
}
