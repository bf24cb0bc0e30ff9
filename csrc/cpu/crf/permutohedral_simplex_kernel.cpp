// The simplex of every point: the key of its vertex 0, the order of its coordinates, the weights of
// its vertices (common/crf/permutohedral.h), one point a lane.
//
// d features in, d + 1 weights, a key and an order out: for d = 5 and float32, 20 bytes in and 36
// out for about 200 vector operations, most of them the 15 comparisons and the 36 selections by
// rank. Both are far below what the tables of vertices cost.

// Each product is rounded before it is added, on every instruction set: see
// common/crf/permutohedral.h.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#endif

#include <algorithm>
#include <limits>
#include <utility>

#include "cpu/crf/permutohedral_simplex.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

using permutohedral::kMaxDimensions;

// The elevated points i to i + lanes - 1; past the last one the lanes repeat it.
template <int D, class T>
void load_elevated(const SimplexPoints<T>& p, int64_t i, typename Simd<T>::Value* elevated) {
  using V = typename Simd<T>::Value;
  constexpr int L = kLanes<T>;
  V feature[D];
  if (i + L <= p.points) {
    for (int j = 0; j < D; ++j) feature[j] = Simd<T>::load(p.features + j * p.plane_stride + i);
  } else {
    T lanes[L];
    for (int j = 0; j < D; ++j) {
      const T* plane = p.features + j * p.plane_stride;
      for (int l = 0; l < L; ++l) lanes[l] = plane[std::min<int64_t>(i + l, p.points - 1)];
      feature[j] = Simd<T>::load(lanes);
    }
  }
  permutohedral::elevate<D, V, T>(feature, p.scale, elevated);
}

template <int D, class T>
QuotientRange range_of(const SimplexPoints<T>& p) {
  using S = Simd<T>;
  using V = typename S::Value;
  constexpr T kLimit = permutohedral::kQuotientLimit<T>;
  const V limit = S::fill(kLimit);
  V low[D], high[D];
  for (int j = 0; j < D; ++j) low[j] = limit, high[j] = -limit;
  typename S::Mask good = ~typename S::Mask{};
  for (int64_t i = 0; i < p.points; i += kLanes<T>) {
    V elevated[D + 1], quotient[D + 1];
    load_elevated<D>(p, i, elevated);
    permutohedral::round_to_quotients<D, V, T>(elevated, quotient);
    for (int j = 0; j <= D; ++j) {
      good &= (quotient[j] < limit) & (quotient[j] > -limit);  // false for NaN
      if (j == D) break;
      low[j] = quotient[j] < low[j] ? quotient[j] : low[j];
      high[j] = quotient[j] > high[j] ? quotient[j] : high[j];
    }
  }
  QuotientRange range{};
  for (int l = 0; l < kLanes<T>; ++l) range.bad |= !good[l];
  for (int j = 0; j < D && !range.bad; ++j) {
    T lowest = low[j][0], highest = high[j][0];
    for (int l = 1; l < kLanes<T>; ++l) {
      lowest = std::min(lowest, low[j][l]), highest = std::max(highest, high[j][l]);
    }
    range.low[j] = static_cast<int32_t>(lowest), range.high[j] = static_cast<int32_t>(highest);
  }
  return range;
}

// Whole numbers as integers, by their bits in a sum with a large number.
template <class T>
typename Simd<T>::Mask to_integers(typename Simd<T>::Value x) {
  using S = Simd<T>;
  const auto magic = S::fill(std::is_same_v<T, double> ? T(6755399441055744.0) : T(12582912.0));
  return bit_cast<typename S::Mask>(x + magic) - bit_cast<typename S::Mask>(magic);
}

template <int D, class Key, class I>
void pack(const KeyLayout& layout, const I (&quotients)[kMaxDimensions][kSimplexBlock], int64_t n,
          Key* keys) {
  for (int64_t i = 0; i < n; ++i) {
    Key key = 0;
    FASTSEG_UNROLL
    for (int j = 0; j < D; ++j) {
      key += static_cast<Key>(static_cast<uint32_t>(quotients[j][i] - layout.low[j]))
             << layout.shift[j];
    }
    keys[i] = key;
  }
}

template <int D, class T>
void simplices_of(const SimplexPoints<T>& p, const KeyLayout& layout, Simplices<T>& out) {
  using S = Simd<T>;
  using V = typename S::Value;
  using I = typename S::I;
  constexpr int L = kLanes<T>;
  alignas(64) I quotients[kMaxDimensions][kSimplexBlock];
  alignas(64) I orders[kSimplexBlock];
  for (int64_t i = 0; i < p.points; i += L) {
    V elevated[D + 1], quotient[D + 1], rank[D + 1], weight[D + 1];
    load_elevated<D>(p, i, elevated);
    permutohedral::round_to_quotients<D, V, T>(elevated, quotient);
    permutohedral::enclose<D, V, T>(elevated, quotient, rank, weight);
    typename S::Mask order{};
    for (int j = 0; j < D; ++j) {
      write(&quotients[j][i], to_integers<T>(quotient[j]));
      order |= to_integers<T>(rank[j]) << (4 * j);
    }
    write(&orders[i], order);
    alignas(64) T weights[D + 1][L];
    for (int r = 0; r <= D; ++r) write(weights[r], weight[r]);
    T* to = out.barycentric + i * (D + 1);
    const int n = static_cast<int>(std::min<int64_t>(L, p.points - i));
    for (int l = 0; l < n; ++l) {
      for (int r = 0; r <= D; ++r) *to++ = weights[r][l];
    }
  }
  for (int64_t i = 0; i < p.points; ++i) out.orders[i] = static_cast<uint32_t>(orders[i]);
  if (layout.bits <= 64) {
    pack<D>(layout, quotients, p.points, out.keys);
  } else {
    pack<D>(layout, quotients, p.points, out.wide_keys);
  }
}

}  // namespace

template <class T>
QuotientRange quotient_range(const SimplexPoints<T>& points) {
  return with_dimensions(points.d, [&]<int D>() { return range_of<D>(points); });
}

template <class T>
void simplices(const SimplexPoints<T>& points, const KeyLayout& layout, Simplices<T>& out) {
  with_dimensions(points.d, [&]<int D>() { simplices_of<D>(points, layout, out); });
}

#define FASTSEG_INSTANTIATE(T)                                    \
  template QuotientRange quotient_range(const SimplexPoints<T>&); \
  template void simplices(const SimplexPoints<T>&, const KeyLayout&, Simplices<T>&);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
