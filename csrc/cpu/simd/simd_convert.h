#pragma once
// Loads and stores that change the width of lanes: bytes and 16-bit floats from and to the lanes of
// a computation. By instructions where there are some, since compilers older than GCC 13 take
// __builtin_convertvector one lane at a time; by __builtin_convertvector elsewhere.

#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/simd/simd_level.h"

namespace fastseg::cpu::FASTSEG_SIMD {

template <class F, int L>
struct LanesOf {
  typedef F Type __attribute__((vector_size(L * sizeof(F))));
};
template <class F, int L>
using Lanes = typename LanesOf<F, L>::Type;

template <class V>
V read(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
void write(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

template <class To, class From>
To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof to);
  return to;
}

// L bytes as L lanes of I.
template <class I, int L>
Lanes<I, L> load_bytes(const uint8_t* p) {
  using V = Lanes<I, L>;
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && L == 16)
    return bit_cast<V>(_mm512_cvtepu8_epi32(read<__m128i>(p)));
  if constexpr (sizeof(V) == 64 && L == 8)
    return bit_cast<V>(_mm512_cvtepu8_epi64(_mm_loadu_si64(p)));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32 && L == 8)
    return bit_cast<V>(_mm256_cvtepu8_epi32(_mm_loadu_si64(p)));
  if constexpr (sizeof(V) == 32 && L == 4)
    return bit_cast<V>(_mm256_cvtepu8_epi64(_mm_loadu_si32(p)));
  if constexpr (sizeof(V) == 16 && L == 4) return bit_cast<V>(_mm_cvtepu8_epi32(_mm_loadu_si32(p)));
#endif
  return __builtin_convertvector(read<Lanes<uint8_t, L>>(p), V);
}

// The low bytes of L lanes of I.
template <class I, int L>
void store_bytes(uint8_t* p, Lanes<I, L> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64 && L == 16)
    return write(p, _mm512_cvtepi32_epi8(bit_cast<__m512i>(v)));
  if constexpr (sizeof v == 64 && L == 8) {
    return _mm_storeu_si64(p, _mm512_cvtepi64_epi8(bit_cast<__m512i>(v)));
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof v == 32 && L == 8) {
    const __m256i low = _mm256_set1_epi32(0x0c080400);  // bytes 0, 4, 8, 12 of each half
    const __m256i packed = _mm256_shuffle_epi8(bit_cast<__m256i>(v), low);
    return _mm_storeu_si64(
        p, _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1)));
  }
  if constexpr (sizeof v == 32 && L == 4) {
    const __m256i low = _mm256_set1_epi32(0x08000800);  // bytes 0, 8 of each half
    const __m256i packed = _mm256_shuffle_epi8(bit_cast<__m256i>(v), low);
    return _mm_storeu_si32(
        p, _mm_unpacklo_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1)));
  }
  if constexpr (sizeof v == 16 && L == 4) {
    return _mm_storeu_si32(p, _mm_shuffle_epi8(bit_cast<__m128i>(v), _mm_set1_epi32(0x0c080400)));
  }
#endif
  write(p, __builtin_convertvector(v, Lanes<uint8_t, L>));
}

// L unsigned 16-bit integers as 32-bit lanes, and back.
template <int L>
Lanes<uint32_t, L> load_halfwords(const void* p) {
  using V = Lanes<uint32_t, L>;
#if defined(__AVX512F__)
  if constexpr (L == 16) return bit_cast<V>(_mm512_cvtepu16_epi32(read<__m256i>(p)));
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) return bit_cast<V>(_mm256_cvtepu16_epi32(read<__m128i>(p)));
  if constexpr (L == 4) return bit_cast<V>(_mm_cvtepu16_epi32(_mm_loadu_si64(p)));
#endif
  return __builtin_convertvector(read<Lanes<uint16_t, L>>(p), V);
}

template <int L>
void store_halfwords(void* p, Lanes<uint32_t, L> v) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return write(p, _mm512_cvtepi32_epi16(bit_cast<__m512i>(v)));
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) {
    const __m256i packed = _mm256_packus_epi32(bit_cast<__m256i>(v), bit_cast<__m256i>(v));
    return write(p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0b1000)));
  }
  if constexpr (L == 4) {
    const __m128i x = bit_cast<__m128i>(v);
    return _mm_storeu_si64(p, _mm_packus_epi32(x, x));
  }
#endif
  write(p, __builtin_convertvector(v, Lanes<uint16_t, L>));
}

// IEEE half precision, from and to float lanes; rounds to nearest, ties to even.
template <int L>
Lanes<float, L> load_half(const c10::Half* p) {
  using V = Lanes<float, L>;
#if defined(__AVX512F__)
  if constexpr (L == 16) return bit_cast<V>(_mm512_cvtph_ps(read<__m256i>(p)));
#endif
#if defined(__F16C__)
  if constexpr (L == 8) return bit_cast<V>(_mm256_cvtph_ps(read<__m128i>(p)));
  if constexpr (L == 4) return bit_cast<V>(_mm_cvtph_ps(_mm_loadu_si64(p)));
#endif
  V v;
  for (int i = 0; i < L; ++i) v[i] = static_cast<float>(p[i]);
  return v;
}

template <int L>
void store_half(c10::Half* p, Lanes<float, L> v) {
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    return write(p, _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
#if defined(__F16C__)
  if constexpr (L == 8) {
    return write(p, _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
  }
  if constexpr (L == 4) {
    return _mm_storeu_si64(p, _mm_cvtps_ph(bit_cast<__m128>(v), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (int i = 0; i < L; ++i) p[i] = static_cast<c10::Half>(v[i]);
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
