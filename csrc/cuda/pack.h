#pragma once
// A few neighbours in memory as one value: a load or a store is 16 bytes an instruction where they
// are as many. Unlike vector_access.h's, through the caches: for what is read again.

#include <cstring>

#include "cuda/arithmetic.h"
#include "cuda/vector_access.h"

namespace fastseg::cuda {

template <class T, int V>
struct Pack {
  T v[V];

  // this += factor * other
  __device__ void add(T factor, const Pack& other) {
#pragma unroll
    for (int k = 0; k < V; ++k) v[k] += factor * other.v[k];
  }
};

// p is aligned to V elements or 16 bytes, whichever is less. Through words: members of a struct
// would be loaded one by one.
template <int V, class T>
__device__ inline Pack<T, V> load_pack(const T* p) {
  using A = Access<T, V>;
  typename A::Word words[A::kWords];
#pragma unroll
  for (int i = 0; i < A::kWords; ++i) words[i] = reinterpret_cast<const typename A::Word*>(p)[i];
  Pack<T, V> out;
  memcpy(&out, words, sizeof out);
  return out;
}

// Numbers that a pack's elements stand for, and the pack of elements nearest to numbers: two at a
// time where an instruction rounds two.
template <class T, int V>
__device__ inline void widen(const Pack<T, V>& pack, Compute<T> (&out)[V]) {
  if constexpr (std::is_same_v<T, __nv_bfloat16> && V % 2 == 0) {
    // A bfloat16 is the upper half of a float. The compiler moves the upper ones twice.
    unsigned words[V / 2];
    memcpy(words, pack.v, sizeof words);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const unsigned bits = k % 2 == 0 ? words[k / 2] << 16 : words[k / 2] & 0xffff0000u;
      memcpy(&out[k], &bits, sizeof bits);
    }
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k) out[k] = to_compute(pack.v[k]);
  }
}

// Numbers that the compiler would compute anew in each branch that takes them are computed once.
template <int V>
__device__ inline void keep([[maybe_unused]] float (&v)[V]) {
#if defined(__CUDA_ARCH__)
#pragma unroll
  for (int k = 0; k < V; ++k) asm volatile("" : "+f"(v[k]));
#endif
}

template <class T, int V>
__device__ inline Pack<T, V> narrow(const Compute<T> (&v)[V]) {
  Pack<T, V> out;
  if constexpr (sizeof(T) == 2 && V % 2 == 0) {
#pragma unroll
    for (int k = 0; k < V; k += 2) {
      const auto pair = from_compute_pair<T>(v[k], v[k + 1]);
      out.v[k] = pair.x;
      out.v[k + 1] = pair.y;
    }
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k) out.v[k] = from_compute<T>(v[k]);
  }
  return out;
}

template <class T, int V>
__device__ inline void store_pack(T* p, const Pack<T, V>& pack) {
  store(p, pack.v);
}

// To global memory, where the next kernel reads it: past the first-level cache. By an intrinsic,
// since the compiler may make four stores of one.
template <class T, int V>
__device__ inline void store_pack_global(T* p, const Pack<T, V>& pack) {
  using A = Access<T, V>;
  typename A::Word words[A::kWords];
  memcpy(words, pack.v, sizeof pack.v);
#pragma unroll
  for (int i = 0; i < A::kWords; ++i) __stcg(reinterpret_cast<typename A::Word*>(p) + i, words[i]);
}

}  // namespace fastseg::cuda
