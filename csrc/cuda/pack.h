#pragma once
// A few neighbours in memory as one value: a load or a store is 16 bytes an instruction where they
// are as many. Unlike vector_access.h's, through the caches: for what is read again.

#include "common/host_device.h"

namespace fastseg::cuda {

template <class T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Pack {
  T v[V];

  // this += factor * other
  FASTSEG_HOST_DEVICE void add(T factor, const Pack& other) {
#pragma unroll
    for (int k = 0; k < V; ++k) v[k] += factor * other.v[k];
  }
};

template <int V, class T>
FASTSEG_HOST_DEVICE const Pack<T, V>& pack_at(const T* p) {
  return *reinterpret_cast<const Pack<T, V>*>(p);
}
template <int V, class T>
FASTSEG_HOST_DEVICE Pack<T, V>& pack_at(T* p) {
  return *reinterpret_cast<Pack<T, V>*>(p);
}

}  // namespace fastseg::cuda
