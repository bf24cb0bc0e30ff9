#pragma once
// Loads and stores of several neighbours at once, 16 bytes an instruction where they are as many.
//
// Loads are streaming: these kernels read an element once, so what they read should be the first to
// leave the caches, ahead of what they write and the next kernel reads.

#include <cstdint>
#include <cstring>

namespace fastseg::cuda {

template <int kBytes>
struct WordOf;
template <>
struct WordOf<1> {
  using Type = unsigned char;
};
template <>
struct WordOf<2> {
  using Type = unsigned short;
};
template <>
struct WordOf<4> {
  using Type = unsigned int;
};
template <>
struct WordOf<8> {
  using Type = uint2;
};
template <>
struct WordOf<16> {
  using Type = uint4;
};

inline constexpr int kVectorBytes = 16;

// The elements of a full vector.
template <class T>
inline constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));

template <class T, int N>
struct Access {
  static constexpr int kBytes = N * static_cast<int>(sizeof(T));
  static constexpr int kWordBytes = kBytes < kVectorBytes ? kBytes : kVectorBytes;
  static constexpr int kWords = kBytes / kWordBytes;
  using Word = typename WordOf<kWordBytes>::Type;
};

// p is aligned to N * sizeof(T) or 16 bytes, whichever is less.
template <class T, int N>
__device__ inline void load(const T* p, T (&out)[N]) {
  using A = Access<T, N>;
  typename A::Word words[A::kWords];
#pragma unroll
  for (int i = 0; i < A::kWords; ++i) {
    words[i] = __ldcs(reinterpret_cast<const typename A::Word*>(p) + i);
  }
  memcpy(out, words, sizeof out);
}

template <class T, int N>
__device__ inline void store(T* p, const T (&in)[N]) {
  using A = Access<T, N>;
  typename A::Word words[A::kWords];
  memcpy(words, in, sizeof in);
#pragma unroll
  for (int i = 0; i < A::kWords; ++i) reinterpret_cast<typename A::Word*>(p)[i] = words[i];
}

// For what nobody reads soon.
template <class T, int N>
__device__ inline void store_streaming(T* p, const T (&in)[N]) {
  using A = Access<T, N>;
  typename A::Word words[A::kWords];
  memcpy(words, in, sizeof in);
#pragma unroll
  for (int i = 0; i < A::kWords; ++i) {
    __stcs(reinterpret_cast<typename A::Word*>(p) + i, words[i]);
  }
}

inline bool is_aligned(const void* p, int bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

}  // namespace fastseg::cuda
