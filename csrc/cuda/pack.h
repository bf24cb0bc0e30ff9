#pragma once
// A few neighbours in memory as one value: a load or a store is 16 bytes an instruction where they
// are as many. Unlike vector_access.h's, through the caches: for what is read again.

#include <cstring>

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
