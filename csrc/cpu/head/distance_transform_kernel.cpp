// The rows of a strip: the first pass ends, the others follow in each plane while it is in the
// caches, and the distances are written once.

#include <algorithm>
#include <limits>

#include "cpu/head/distance_transform.h"
#include "cpu/head/lower_envelope.h"
#include "cpu/head/square_root.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

// The first pass backwards: row r of the distances becomes the least of itself and one more than
// row r + 1. Its squares are a plane of lines.
template <class V>
void begin_plane(const DistanceTransform& op, int32_t* __restrict distances, V* __restrict plane) {
  const int64_t height = op.sizes[1], width = op.sizes[2];
  const int32_t* __restrict next = distances + op.plane();
  const auto longest = static_cast<int32_t>(op.sizes[0] - 1);
  const V weight = static_cast<V>(op.weights[0]);
  for (int64_t y = 0; y < height; ++y) {
    V* __restrict line = plane + y * line_pitch(width);
    for (int64_t x = 0; x < width; ++x) {
      const int64_t i = y * width + x;
      const int32_t distance = std::min(distances[i], next[i] + 1);
      distances[i] = distance;
      const V steps = static_cast<V>(std::min(distance, longest));
      line[x] = distance <= longest ? weight * (steps * steps) : FarAway<V>::kValue;
    }
  }
}

// Along the columns of a plane, which are turned into lines, a vector of them at a time.
template <class V>
void envelope_of_columns(const Envelope<V>& envelope, int64_t width, V* plane, V* lines, V* out) {
  constexpr int L = Envelope<V>::L;
  const int64_t height = envelope.size, pitch = line_pitch(height), row = line_pitch(width);
  for (int64_t x = 0; x < width; x += L) {
    const int64_t columns = std::min<int64_t>(L, width - x);
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t k = 0; k < columns; ++k) lines[k * pitch + y] = plane[y * row + x + k];
    }
    for (int64_t k = 0; k < columns; ++k) {
      envelope(lines + k * pitch, out);
      std::copy(out, out + height, lines + k * pitch);
    }
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t k = 0; k < columns; ++k) plane[y * row + x + k] = lines[k * pitch + y];
    }
  }
}

// Distances of squared ones. Integers below 2^24 are floats, whose root is the root rounded once.
template <class V, class T>
void finish(const DistanceTransform& op, const V* in, T* out) {
  const bool plain = op.scale == 1 && std::is_same_v<V, int32_t>;
  using F = std::conditional_t<std::is_same_v<V, int32_t>, T, double>;
  const auto finish_as = [&](auto zero) {
    using Float = decltype(zero);
    for_blocks<kLanes<Float>>(0, op.sizes[2], [&](auto lanes, int64_t x) {
      using Floats = Lanes<Float, lanes>;
      const auto d2 = read<Lanes<V, lanes>>(in + x);
      Floats distance = __builtin_convertvector(d2, Floats);
      if (!op.squared) distance = square_root<Float, lanes>(distance);
      if (!plain) {
        distance *= static_cast<Float>(op.scale);
        if (op.squared) distance *= static_cast<Float>(op.scale);
      }
      const auto is_far =
          __builtin_convertvector(d2 >= FarAway<V>::kValue, typename Simd<Float, lanes>::Mask);
      distance = is_far ? std::numeric_limits<Float>::infinity() - Floats{} : distance;
      write(out + x, __builtin_convertvector(distance, Lanes<T, lanes>));
    });
  };
  plain ? finish_as(F{}) : finish_as(double{});
}

template <class V>
void pad_lines(V* lines, int64_t count, int64_t size) {
  const int64_t pitch = line_pitch(size);
  for (int64_t k = 0; k < count; ++k) {
    std::fill(lines + k * pitch + size, lines + (k + 1) * pitch, FarAway<V>::kValue);
  }
}

}  // namespace

template <class V, class T>
void distance_rows(const DistanceTransform& op, int64_t rows, int32_t* distances, V* workspace,
                   T* out) {
  const int64_t height = op.sizes[1], width = op.sizes[2];
  V* const plane = workspace;
  V* const columns = plane + height * line_pitch(width);
  V* const line = columns + (height > 1 ? kMostLanes * line_pitch(height) : 0);
  V* const least = line + line_pitch(std::max(height, width));
  pad_lines(plane, height, width);
  if (height > 1) pad_lines(columns, kMostLanes, height);
  const Envelope<V> down{height, static_cast<V>(op.weights[1]), least};
  const Envelope<V> across{width, static_cast<V>(op.weights[2]), least};
  for (int64_t r = rows - 1; r >= 0; --r) {
    begin_plane(op, distances + r * op.plane(), plane);
    if (height > 1) envelope_of_columns(down, width, plane, columns, line);
    for (int64_t y = 0; y < height; ++y) {
      across(plane + y * line_pitch(width), line);
      finish(op, line, out + r * op.plane() + y * width);
    }
  }
}

#define FASTSEG_INSTANTIATE(V, T) \
  template void distance_rows<V, T>(const DistanceTransform&, int64_t, int32_t*, V*, T*);
FASTSEG_INSTANTIATE(int32_t, float)
FASTSEG_INSTANTIATE(int32_t, double)
FASTSEG_INSTANTIATE(double, float)
FASTSEG_INSTANTIATE(double, double)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
