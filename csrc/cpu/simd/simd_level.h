#pragma once
// Which of the compiled instruction sets runs.
//
// Kernels declare themselves with FASTSEG_DECLARE_KERNEL once and are called through
// FASTSEG_SIMD_DISPATCH, those of a floating dtype T through FASTSEG_SIMD_DISPATCH_OF; the build
// compiles their source once per level.

#include <type_traits>

// The namespace that a source is compiled into; the build names it for kernels.
#ifndef FASTSEG_SIMD
#define FASTSEG_SIMD portable
#endif

namespace fastseg::cpu {

enum class SimdLevel : int { portable = 0, avx2 = 1, avx512 = 2 };

// The widest level that was built and that this processor has, unless the environment variable
// FASTSEG_SIMD (portable, avx2 or avx512) or set_simd_level lowers it.
SimdLevel simd_level();

// The widest level that has kernels of the floating dtype T. Double is there to check gradients,
// and nothing fast takes it: AVX2's kernels of it serve AVX-512, too, and need not be compiled
// twice.
template <class T>
inline constexpr SimdLevel kWidestLevel =
    std::is_same_v<T, double> ? SimdLevel::avx2 : SimdLevel::avx512;

// The level whose kernels of T run.
template <class T>
SimdLevel simd_level_of() {
  const SimdLevel level = simd_level();
  return level < kWidestLevel<T> ? level : kWidestLevel<T>;
}

// The levels that were built and that this processor has.
bool simd_level_available(SimdLevel level);

void set_simd_level(SimdLevel level);

}  // namespace fastseg::cpu

#if defined(FASTSEG_X86)
#define FASTSEG_DECLARE_KERNEL(...) \
  namespace portable {              \
  __VA_ARGS__;                      \
  }                                 \
  namespace avx2 {                  \
  __VA_ARGS__;                      \
  }                                 \
  namespace avx512 {                \
  __VA_ARGS__;                      \
  }
#define FASTSEG_SIMD_DISPATCH(...)                                   \
  (::fastseg::cpu::simd_level() == ::fastseg::cpu::SimdLevel::avx512 \
       ? ::fastseg::cpu::avx512::__VA_ARGS__                         \
   : ::fastseg::cpu::simd_level() == ::fastseg::cpu::SimdLevel::avx2 \
       ? ::fastseg::cpu::avx2::__VA_ARGS__                           \
       : ::fastseg::cpu::portable::__VA_ARGS__)
#define FASTSEG_SIMD_DISPATCH_OF(T, ...)                                           \
  ([] {                                                                            \
    using ::fastseg::cpu::SimdLevel;                                               \
    const SimdLevel level = ::fastseg::cpu::simd_level_of<T>();                    \
    if constexpr (::fastseg::cpu::kWidestLevel<T> == SimdLevel::avx512) {          \
      if (level == SimdLevel::avx512) return &::fastseg::cpu::avx512::__VA_ARGS__; \
    }                                                                              \
    return level == SimdLevel::avx2 ? &::fastseg::cpu::avx2::__VA_ARGS__           \
                                    : &::fastseg::cpu::portable::__VA_ARGS__;      \
  }())
#else
#define FASTSEG_DECLARE_KERNEL(...) \
  namespace portable {              \
  __VA_ARGS__;                      \
  }
#define FASTSEG_SIMD_DISPATCH(...) ::fastseg::cpu::portable::__VA_ARGS__
#define FASTSEG_SIMD_DISPATCH_OF(T, ...) (&::fastseg::cpu::portable::__VA_ARGS__)
#endif
