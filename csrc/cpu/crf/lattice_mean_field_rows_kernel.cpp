// Rows of labels: from the caller's layout, gathered from vertices, mixed by a matrix.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/crf/lattice_mean_field_kernel.h"
#include "cpu/crf/lattice_mean_field_rows.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int64_t kAhead = 16;  // rows

// Eight points' values of one label; the last point again where there are fewer.
Row8 load_points(const float* p, int64_t stride, int count) {
  if (stride == 1 && count == 8) return read<Row8>(p);
  float lanes[8];
  for (int i = 0; i < 8; ++i) lanes[i] = p[std::min(i, count - 1) * stride];
  return read<Row8>(lanes);
}

// Calls value(label) for eight points' values of each label, below `pitch`, and stores their rows.
template <class Value>
void store_rows(float* rows, int count, int64_t pitch, const Value& value) {
  for (int64_t label = 0; label < pitch; label += 8) {
    Row8 r[8];
    for (int k = 0; k < 8; ++k) r[k] = value(label + k);
    transpose_8x8(r);
    if (pitch < 8) {
      for (int i = 0; i < count; ++i) std::memcpy(rows + i * pitch, &r[i], pitch * sizeof(float));
    } else {
      for (int i = 0; i < count; ++i) write(rows + i * pitch + label, r[i]);
    }
  }
}

}  // namespace

UnaryError read_unary(const float* energies, LabelStrides strides, int64_t points, int64_t labels,
                      int64_t pitch, float* rows, float* shift) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr int64_t kPlaneAhead = 128;  // points; planes are too many streams for the processor
  Lanes<int32_t, 8> nan{};
  Row8 lowest = kInfinity - Row8{}, highest_least = -kInfinity - Row8{};
  for (int64_t first = 0; first < points; first += 8) {
    const int count = static_cast<int>(std::min<int64_t>(8, points - first));
    const float* from = energies + first * strides.point;
    Row8 least = kInfinity - Row8{};
    for (int64_t l = 0; l < labels; ++l) {
      __builtin_prefetch(from + l * strides.label + kPlaneAhead * strides.point);
      const Row8 u = load_points(from + l * strides.label, strides.point, count);
      nan |= u != u;
      least = u < least ? u : least;
    }
    lowest = least < lowest ? least : lowest;
    highest_least = least > highest_least ? least : highest_least;
    for (int i = 0; i < count; ++i) shift[first + i] = least[i];
    store_rows(rows + first * pitch, count, pitch, [&](int64_t l) {
      const Row8 ruled_out = kRuledOut - Row8{};
      if (l >= labels) return ruled_out;
      const Row8 x = (least - load_points(from + l * strides.label, strides.point, count)) / kLog2;
      return x > kRuledOut ? x : ruled_out;
    });
  }
  for (int i = 0; i < 8; ++i) {
    if (nan[i]) return UnaryError::not_a_number;
    if (lowest[i] == -kInfinity) return UnaryError::minus_infinity;
    if (highest_least[i] == kInfinity) return UnaryError::all_infinite;
  }
  return UnaryError::none;
}

void read_rows(const float* values, LabelStrides strides, int64_t points, int64_t labels,
               int64_t pitch, float* rows) {
  for (int64_t first = 0; first < points; first += 8) {
    const int count = static_cast<int>(std::min<int64_t>(8, points - first));
    const float* from = values + first * strides.point;
    store_rows(rows + first * pitch, count, pitch, [&](int64_t l) {
      return l < labels ? load_points(from + l * strides.label, strides.point, count) : Row8{};
    });
  }
}

void gather_rows(const float* values, const int32_t* vertices, int64_t count, int64_t pitch,
                 const float* scale, float* table) {
  using Row4 = Lanes<float, 4>;
  if (pitch == 4) {
    const Row4 factor = read<Row4>(scale);
    for (int64_t i = 0; i < count; ++i) {
      write(table + 4 * i, factor * read<Row4>(values + int64_t{4} * vertices[i]));
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* ahead = values + vertices[std::min(i + kAhead, count - 1)] * pitch;
    for (int64_t l = 0; l < pitch; l += 16) __builtin_prefetch(ahead + l);
    const float* from = values + vertices[i] * pitch;
    float* to = table + i * pitch;
    for (int64_t l = 0; l < pitch; l += 8) {
      write(to + l, read<Row8>(scale + l) * read<Row8>(from + l));
    }
  }
}

void mix_rows(float* rows, int64_t count, int64_t labels, int64_t pitch, const float* matrix) {
  std::vector<float> mixed(pitch);
  for (int64_t i = 0; i < count; ++i) {
    float* row = rows + i * pitch;
    std::fill(mixed.begin(), mixed.end(), 0.f);
    for (int64_t l = 0; l < labels; ++l) {
      const float x = row[l];
      const float* column = matrix + l * pitch;
      for (int64_t k = 0; k < pitch; ++k) mixed[k] += x * column[k];
    }
    std::copy(mixed.begin(), mixed.end(), row);
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
