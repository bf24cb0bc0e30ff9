#pragma once
// SIMD vectors for the CPU kernels, on the vector types of GCC and Clang.
//
// A kernel is written once against Simd<T, L> and compiled once per instruction set, each time in
// its own namespace FASTSEG_SIMD (portable, avx2, avx512), so that no inline function built for
// one instruction set can be linked into code for another. The compilers' vector types serve
// every instruction set (NEON too), carry 8-bit codes beside floating-point lanes of any width,
// and need no header of torch but the scalar half types; at::vec has no byte codes beside float
// lanes, and its AVX-512 half conversions want symbols of libtorch.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/simd/simd_convert.h"

#if defined(__AVX512F__)
#define FASTSEG_SIMD_BYTES 64
#elif defined(__AVX2__)
#define FASTSEG_SIMD_BYTES 32
#else
#define FASTSEG_SIMD_BYTES 16
#endif

namespace fastseg::cpu::FASTSEG_SIMD {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;

// Arithmetic is in double for double and in float for everything else.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The lanes that fill a register with the compute type of T.
template <class T>
inline constexpr int kLanes = FASTSEG_SIMD_BYTES / sizeof(Compute<T>);

// Whether a kernel of T is compiled in special forms, for the usual numbers of taps, beside its
// general one. Nothing fast takes double, and processors of x86 without AVX2 are of before 2013:
// the fewer the forms, the sooner all is built.
#if defined(FASTSEG_X86) && FASTSEG_SIMD_BYTES == 16
template <class T>
inline constexpr bool kSpecialForms = false;
#else
template <class T>
inline constexpr bool kSpecialForms = !std::is_same_v<T, double>;
#endif

// Instantiates kernels: calls the macro with every floating dtype of which this level has some.
#if FASTSEG_SIMD_BYTES == 64
#define FASTSEG_FOR_DOUBLE(INSTANTIATE)  // kWidestLevel
#else
#define FASTSEG_FOR_DOUBLE(INSTANTIATE) INSTANTIATE(double)
#endif
#define FASTSEG_FOR_COMPUTE_TYPES(INSTANTIATE) INSTANTIATE(float) FASTSEG_FOR_DOUBLE(INSTANTIATE)
#define FASTSEG_FOR_FLOATS(INSTANTIATE)  \
  FASTSEG_FOR_COMPUTE_TYPES(INSTANTIATE) \
  INSTANTIATE(Half)                      \
  INSTANTIATE(BFloat16)

// Without L the full register; kernels take narrower ones for the ends of rows.
template <class T, int L = kLanes<T>>
struct Simd {
  using F = Compute<T>;
  using I = std::conditional_t<std::is_same_v<F, double>, int64_t, int32_t>;
  using Value = Lanes<F, L>;
  using Mask = Lanes<I, L>;  // all ones where true, as comparisons give; also holds codes

  static Value fill(F x) { return x - Value{}; }
  static Mask fill_code(int code) { return I{code} - Mask{}; }

  static Value load(const T* p) {
    if constexpr (std::is_same_v<T, F>) {
      return read<Value>(p);
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      return bit_cast<Value>(load_halfwords<L>(p) << 16);
    } else {
      return load_half<L>(p);
    }
  }

  static void store(T* p, Value v) {
    if constexpr (std::is_same_v<T, F>) {
      write(p, v);
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      store_halfwords<L>(p, to_bfloat16(v));
    } else {
      store_half<L>(p, v);
    }
  }

  // The values that survive a store and a load.
  static Value rounded(Value v) {
    if constexpr (std::is_same_v<T, F>) {
      return v;
    } else {
      T buffer[L];
      store(buffer, v);
      return load(buffer);
    }
  }

  static Mask load_codes(const uint8_t* p) { return load_bytes<I, L>(p); }
  static void store_codes(uint8_t* p, Mask codes) { store_bytes<I, L>(p, codes); }

  // L elements that are `stride` apart.
  static Value load_strided(const T* p, int64_t stride) {
    T lanes[L];
    for (int i = 0; i < L; ++i) lanes[i] = p[i * stride];
    return load(lanes);
  }

  // The lanes 0, 2, 4, ... of 2 * L consecutive elements that start at p; reads 2 * L - 1 of them.
  static Value load_even(const T* p) {
    return even_then_odd(load(p), load(p + L - 1), std::make_integer_sequence<int, L>{});
  }

  static std::pair<Value, Value> load_even_odd(const T* p) {
    const Value a = load(p), b = load(p + L);
    return {evens(a, b, std::make_integer_sequence<int, L>{}),
            odds(a, b, std::make_integer_sequence<int, L>{})};
  }

  // Asks for the lines of load_even_odd(p). The processor's own prefetchers stop at the end of a
  // page, which a kernel that walks two rows at once reaches in every row.
  static void prefetch_even_odd(const T* p) {
    constexpr int kPerLine = 64 / sizeof(T);
    for (int i = 0; i < 2 * L; i += kPerLine) __builtin_prefetch(p + i);
  }

  // Stores even[0], odd[0], even[1], odd[1], ...
  static void store_interleaved(T* p, Value even, Value odd) {
    store(p, interleave<0>(even, odd, std::make_integer_sequence<int, L>{}));
    store(p + L, interleave<L>(even, odd, std::make_integer_sequence<int, L>{}));
  }

 private:
  template <int... K>
  static Value shuffle(Value a, Value b, std::integer_sequence<int, K...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, K...);
#else
    return __builtin_shuffle(a, b, Mask{K...});
#endif
  }
  template <int... K>
  static Value evens(Value a, Value b, std::integer_sequence<int, K...>) {
    return shuffle(a, b, std::integer_sequence<int, 2 * K...>{});
  }
  template <int... K>
  static Value odds(Value a, Value b, std::integer_sequence<int, K...>) {
    return shuffle(a, b, std::integer_sequence<int, 2 * K + 1 ...>{});
  }
  template <int... K>
  static Value even_then_odd(Value a, Value b, std::integer_sequence<int, K...>) {
    return shuffle(a, b, std::integer_sequence<int, (2 * K < L ? 2 * K : 2 * K + 1)...>{});
  }
  template <int First, int... K>
  static Value interleave(Value even, Value odd, std::integer_sequence<int, K...>) {
    return shuffle(even, odd,
                   std::integer_sequence<int, (First + K) / 2 + (First + K) % 2 * L...>{});
  }

  // In the low halves; rounds to nearest, ties to even.
  static Lanes<uint32_t, L> to_bfloat16(Value v) {
    using U = Lanes<uint32_t, L>;
    const U bits = bit_cast<U>(v);
    const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const U quiet_nan = (bits >> 16) | 0x40;
    return v != v ? quiet_nan : rounded;
  }
};

// Calls body(std::integral_constant<int, L>, i) for blocks [i, i + L) that cover [begin, end): full
// registers, the last one moved back to end exactly, so that some elements are computed twice and
// none alone; ranges shorter than a register take narrower ones. Ranges shorter than four elements
// are left to the scalar body(std::integral_constant<int, 1>, i).
template <int L, class Body>
inline void for_blocks(int64_t begin, int64_t end, const Body& body) {
  if (end - begin >= L) {
    int64_t i = begin;
    for (; i + L <= end; i += L) body(std::integral_constant<int, L>{}, i);
    if (i < end) body(std::integral_constant<int, L>{}, end - L);
  } else if constexpr (L > 4) {
    for_blocks<L / 2>(begin, end, body);
  } else {
    for (int64_t i = begin; i < end; ++i) body(std::integral_constant<int, 1>{}, i);
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
