// Splat to and slice from rows of simplices: bilateral_filter.h.
//
// A point's d + 1 weights are read as one vector, into whose padding the next point's run over.
// Floor for d = 5, float32: 28 bytes of weights and number a point, and for each channel a value
// and a row of 32 bytes that a cache holds; one vector operation to splat, and to slice one and the
// sum of its lanes.

#include <algorithm>

#include "common/host_device.h"
#include "cpu/crf/bilateral_filter.h"
#include "cpu/crf/permutohedral_rows.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

template <int P, int K, class T>
void splat(const SimplexTile<T>& tile, const T* values, T* rows) {
  for (int64_t i = 0; i < tile.points; ++i) {
    const T* weights = tile.barycentric + i * tile.vertices;
    T* row = rows + tile.simplices[i] * int64_t{K * P};
    FASTSEG_UNROLL
    for (int c = 0; c < K; ++c, row += P) {
      const T value = values[c * tile.plane_stride + i];
      for_row<T>(P, [&](auto lanes, int64_t r) {
        using S = Simd<T, lanes>;
        S::store(row + r, S::load(row + r) + S::load(weights + r) * value);
      });
    }
  }
}

template <int P, int K, class T>
void slice(const SimplexTile<T>& tile, const T* rows, T gain, T* out) {
  for (int64_t i = 0; i < tile.points; ++i) {
    const T* weights = tile.barycentric + i * tile.vertices;
    const T* row = rows + tile.simplices[i] * int64_t{K * P};
    FASTSEG_UNROLL
    for (int c = 0; c < K; ++c, row += P) {
      using S = Simd<T, 4>;  // compilers take apart the sum of a wider one's lanes
      auto sum = S::load(row) * S::load(weights);
      FASTSEG_UNROLL
      for (int r = 4; r < P; r += 4) sum += S::load(row + r) * S::load(weights + r);
      out[c * tile.plane_stride + i] = ((sum[0] + sum[2]) + (sum[1] + sum[3])) * gain;
    }
  }
}

template <int P, int K, class T>
void add(const SimplexRows& simplices, const T* row, T* to) {
  const int32_t* vertex = simplices.vertex;
  constexpr int kStride = K == 3 ? 4 : K;  // row_stride
  for (int64_t s = 0; s < simplices.count; ++s, vertex += simplices.vertices, row += K * P) {
    for (int64_t r = 0; r < simplices.vertices; ++r) {
      T* sum = to + vertex[r] * int64_t{kStride};
      for (int c = 0; c < K; ++c) sum[c] += row[c * P + r];
    }
  }
}

template <int P, int K, class T>
void gather(const SimplexRows& simplices, const T* from, T* row) {
  const int32_t* vertex = simplices.vertex;
  constexpr int kStride = K == 3 ? 4 : K;
  for (int64_t s = 0; s < simplices.count; ++s, vertex += simplices.vertices, row += K * P) {
    std::fill_n(row, K * P, T{0});
    for (int64_t r = 0; r < simplices.vertices; ++r) {
      const T* value = from + vertex[r] * int64_t{kStride};
      for (int c = 0; c < K; ++c) row[c * P + r] = value[c];
    }
  }
}

// Calls body.operator()<lanes, channels>() for simplices of so many vertices.
template <class Body>
void with_row(int64_t vertices, int64_t channels, const Body& body) {
  const auto with_channels = [&]<int P>() {
    switch (channels) {
      case 1:
        return body.template operator()<P, 1>();
      case 2:
        return body.template operator()<P, 2>();
      case 3:
        return body.template operator()<P, 3>();
      default:
        return body.template operator()<P, 4>();
    }
  };
  switch (simplex_lanes(vertices)) {
    case 4:
      return with_channels.template operator()<4>();
    case 8:
      return with_channels.template operator()<8>();
    default:
      return with_channels.template operator()<16>();
  }
}

}  // namespace

template <class T>
void splat_to_simplices(const SimplexTile<T>& tile, const T* values, T* rows) {
  with_row(tile.vertices, tile.channels, [&]<int P, int K>() { splat<P, K>(tile, values, rows); });
}

template <class T>
void slice_simplices(const SimplexTile<T>& tile, const T* rows, T gain, T* out) {
  with_row(tile.vertices, tile.channels,
           [&]<int P, int K>() { slice<P, K>(tile, rows, gain, out); });
}

template <class T>
void add_simplices(const SimplexRows& simplices, const T* from, T* to) {
  with_row(simplices.vertices, simplices.channels,
           [&]<int P, int K>() { add<P, K>(simplices, from, to); });
}

template <class T>
void gather_simplices(const SimplexRows& simplices, const T* from, T* to) {
  with_row(simplices.vertices, simplices.channels,
           [&]<int P, int K>() { gather<P, K>(simplices, from, to); });
}

#define FASTSEG_INSTANTIATE(T)                                           \
  template void splat_to_simplices(const SimplexTile<T>&, const T*, T*); \
  template void slice_simplices(const SimplexTile<T>&, const T*, T, T*); \
  template void add_simplices(const SimplexRows&, const T*, T*);         \
  template void gather_simplices(const SimplexRows&, const T*, T*);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
