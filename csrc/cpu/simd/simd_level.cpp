// Which level of SIMD runs: the widest that the processor has, or the one that was chosen.

#include "cpu/simd/simd_level.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastseg::cpu {
namespace {

SimdLevel widest() {
#if defined(FASTSEG_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return avx512 ? SimdLevel::avx512 : avx2 ? SimdLevel::avx2 : SimdLevel::portable;
#else
  return SimdLevel::portable;
#endif
}

SimdLevel requested() {
  const char* name = std::getenv("FASTSEG_SIMD");
  const SimdLevel top = widest();
  if (name == nullptr) return top;
  if (std::strcmp(name, "portable") == 0) return SimdLevel::portable;
  if (std::strcmp(name, "avx2") == 0 && top >= SimdLevel::avx2) return SimdLevel::avx2;
  return top;
}

// Set as the library is loaded, not by whichever thread comes first: its guard would stay locked in
// a child that another thread forks meanwhile.
std::atomic<SimdLevel> current{requested()};

}  // namespace

SimdLevel simd_level() { return current.load(std::memory_order_relaxed); }

bool simd_level_available(SimdLevel level) { return level <= widest(); }

void set_simd_level(SimdLevel level) {
  current.store(simd_level_available(level) ? level : widest(), std::memory_order_relaxed);
}

}  // namespace fastseg::cpu

// For Python (fastseg/_core/extension.py), by ctypes.
extern "C" {
__attribute__((visibility("default"))) int fastseg_simd_level() {
  return static_cast<int>(fastseg::cpu::simd_level());
}
__attribute__((visibility("default"))) int fastseg_simd_level_available(int level) {
  return fastseg::cpu::simd_level_available(static_cast<fastseg::cpu::SimdLevel>(level));
}
__attribute__((visibility("default"))) void fastseg_set_simd_level(int level) {
  fastseg::cpu::set_simd_level(static_cast<fastseg::cpu::SimdLevel>(level));
}
__attribute__((visibility("default"))) int fastseg_is_intel() {
#if defined(FASTSEG_X86)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") ? 1 : 0;
#else
  return 0;
#endif
}
}
