// Splat and slice of a tile of points: permutohedral_filter.h.
//
// A few points at a time are turned from planes into rows, channels side by side, so that each of a
// point's d + 1 vertices is a few vector operations. Floor: a value in or out, 8 (d + 1) bytes of
// slots and weights a point, and 2 (d + 1) FLOPs a value; the rows of a tile (splat) stay in the
// core's cache, those of all vertices (slice) in whatever cache holds them.

#include <algorithm>
#include <vector>

#include "cpu/crf/permutohedral_filter.h"
#include "cpu/crf/permutohedral_rows.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int64_t kPoints = 32;  // turned at a time

// Rows of a few points.
template <class T>
class Turned {
 public:
  explicit Turned(const FilterTile<T>& tile) : tile_(tile), rows_(kPoints * tile.stride) {}

  // From the planes' points i to i + n - 1.
  void load(const T* planes, int64_t i, int64_t n) {
    for (int64_t c = 0; c < tile_.channels; ++c) {
      const T* plane = planes + c * tile_.plane_stride + i;
      T* to = rows_.data() + c;
      for (int64_t k = 0; k < n; ++k) to[k * tile_.stride] = plane[k];
    }
  }
  void store(T* planes, int64_t i, int64_t n) const {
    for (int64_t c = 0; c < tile_.channels; ++c) {
      T* plane = planes + c * tile_.plane_stride + i;
      const T* from = rows_.data() + c;
      for (int64_t k = 0; k < n; ++k) plane[k] = from[k * tile_.stride];
    }
  }
  T* row(int64_t k) { return rows_.data() + k * tile_.stride; }

 private:
  const FilterTile<T>& tile_;
  std::vector<T> rows_;  // padding stays zero
};

// body(i, n) for the points [i, i + n) of a tile.
template <class T, class Body>
void for_points(const FilterTile<T>& tile, const Body& body) {
  for (int64_t i = 0; i < tile.points; i += kPoints) body(i, std::min(kPoints, tile.points - i));
}

}  // namespace

template <class T>
void splat_tile(const FilterTile<T>& tile, const T* values, T* rows) {
  std::fill_n(rows, tile.row_count * tile.stride, T{0});
  Turned<T> turned(tile);
  for_points(tile, [&](int64_t i, int64_t n) {
    turned.load(values, i, n);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t entry = (i + k) * tile.simplex;
      for (int64_t r = 0; r < tile.simplex; ++r) {
        T* row = rows + tile.slots[entry + r] * tile.stride;
        const T weight = tile.barycentric[entry + r];
        for_row<T>(tile.stride, [&](auto lanes, int64_t c) {
          using S = Simd<T, lanes>;
          S::store(row + c, S::load(row + c) + S::fill(weight) * S::load(turned.row(k) + c));
        });
      }
    }
  });
}

template <class T>
void slice_tile(const FilterTile<T>& tile, const T* vertex_rows, T gain, T* out) {
  Turned<T> turned(tile);
  for_points(tile, [&](int64_t i, int64_t n) {
    for (int64_t k = 0; k < n; ++k) {
      const T* rows[permutohedral::kMaxDimensions + 1];
      const int64_t entry = (i + k) * tile.simplex;
      for (int64_t r = 0; r < tile.simplex; ++r) {
        rows[r] = vertex_rows + tile.vertices[tile.slots[entry + r]] * tile.stride;
      }
      for_row<T>(tile.stride, [&](auto lanes, int64_t c) {
        using S = Simd<T, lanes>;
        typename S::Value sum{};
        for (int64_t r = 0; r < tile.simplex; ++r) {
          sum += S::fill(tile.barycentric[entry + r]) * S::load(rows[r] + c);
        }
        S::store(turned.row(k) + c, sum * gain);
      });
    }
    turned.store(out, i, n);
  });
}

template <class T>
void weight_gradient_tile(const FilterTile<T>& tile, const WeightGradient<T>& op) {
  Turned<T> grad(tile), values(tile);
  for_points(tile, [&](int64_t i, int64_t n) {
    grad.load(op.grad, i, n);
    values.load(op.values, i, n);
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t e = (i + k) * tile.simplex; e < (i + k + 1) * tile.simplex; ++e) {
        const int64_t row = tile.vertices[tile.slots[e]] * tile.stride;
        T sum = 0;
        for_row<T>(tile.stride, [&](auto lanes, int64_t c) {
          using S = Simd<T, lanes>;
          const auto parts = S::load(grad.row(k) + c) * S::load(op.value_rows + row + c) +
                             S::load(values.row(k) + c) * S::load(op.grad_rows + row + c);
          for (int l = 0; l < lanes; ++l) sum += parts[l];
        });
        op.out[e] = sum * op.gain;
      }
    }
  });
}

#define FASTSEG_INSTANTIATE(T)                                     \
  template void splat_tile(const FilterTile<T>&, const T*, T*);    \
  template void slice_tile(const FilterTile<T>&, const T*, T, T*); \
  template void weight_gradient_tile(const FilterTile<T>&, const WeightGradient<T>&);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
