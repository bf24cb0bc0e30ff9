#pragma once
// The names of lattice vertices on the device (common/crf/permutohedral.h), made where they are
// needed from the simplex of a point: a name has no limit of bits, and a vertex is one int in
// memory.
//
// An entry is a corner of a point's simplex: e = point * (D + 1) + remainder, points of all images
// counted through. A point's simplex is D + 1 words: D quotients of vertex 0, and an order, the
// rank of coordinate j in bits 4 j.

#include "cuda/fast_divisor.h"

namespace fastseg::cuda {

template <int D>
struct VertexKey {
  int quotient[D];
  int remainder;
  int image;

  __device__ bool operator==(const VertexKey& other) const {
    int difference = (remainder ^ other.remainder) | (image ^ other.image);
#pragma unroll
    for (int j = 0; j < D; ++j) difference |= quotient[j] ^ other.quotient[j];
    return difference == 0;
  }

  // Every bit depends on all: tables take the high ones. The last steps are MurmurHash3's.
  __device__ unsigned hash() const {
    unsigned h = static_cast<unsigned>(remainder) + 0x9e3779b9u * static_cast<unsigned>(image);
#pragma unroll
    for (int j = 0; j < D; ++j) {
      h = (h ^ static_cast<unsigned>(quotient[j])) * 0xcc9e2d51u;
      h ^= h >> 15;
    }
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
  }

  // The vertex one step forward or back along an axis, 0 to D.
  __device__ VertexKey step(int axis, bool forward) const {
    VertexKey there = *this;
    const bool wraps = remainder == (forward ? D : 0);
    const int sign = forward ? 1 : -1;
    there.remainder = wraps ? D - remainder : remainder + sign;
#pragma unroll
    for (int j = 0; j < D; ++j) there.quotient[j] += sign * (int{wraps} - int{j == axis});
    return there;
  }
};

// The vertex of an entry; image 0.
template <int D>
__device__ inline VertexKey<D> key_of_corner(const int* simplices, int entry) {
  const int point = entry / (D + 1);
  const int* simplex = simplices + int64_t{point} * (D + 1);
  VertexKey<D> key;
  key.remainder = entry - point * (D + 1);
  key.image = 0;
  const unsigned order = static_cast<unsigned>(simplex[D]);
#pragma unroll
  for (int j = 0; j < D; ++j) {
    const int rank = order >> (4 * j) & 15;
    key.quotient[j] = simplex[j] - int{rank > D - key.remainder};
  }
  return key;
}

// What vertices are named by. A candidate is a step from a touched vertex, which has a number:
// c = (vertex * (D + 1) + axis) * 2 + forward. A source is an entry, or ~c.
struct VertexSources {
  const int* simplices;
  const int* touched;  // the first entry of each touched vertex
  FastDivisor points;  // of an image, with the origin's

  template <int D>
  __device__ VertexKey<D> of_entry(int entry) const {
    VertexKey<D> key = key_of_corner<D>(simplices, entry);
    key.image = image_of_entry<D>(entry);
    return key;
  }

  template <int D>
  __device__ VertexKey<D> of_candidate(int candidate) const {
    const int direction = candidate / 2, vertex = direction / (D + 1);
    return of_entry<D>(touched[vertex]).step(direction - vertex * (D + 1), candidate % 2);
  }

  template <int D>
  __device__ VertexKey<D> operator()(int source) const {
    return source >= 0 ? of_entry<D>(source) : of_candidate<D>(~source);
  }

  template <int D>
  __device__ int image_of_entry(int entry) const {
    return entry / (D + 1) / points;
  }
};

}  // namespace fastseg::cuda
