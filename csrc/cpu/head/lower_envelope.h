#pragma once
// out_i = min_j w (i - j)^2 + f_j along one line, in a time that no content changes much.
//
// The least j never moves back as i grows: from j to j' > j the difference of the two parabolas
// falls with i. So the least j at every L-th i bound those of the L elements in between, and all
// such stretches together try n + n / L candidates, each for L elements at once: an addition, a
// minimum and two additions for the next square, a quarter of an instruction an element and
// candidate. The least j at the ends of stretches are found by halving, in at most log2(n / L)
// rounds of n / L vectors each, and within the square root of what f_i already allows: in a mask
// whose objects are thin a search looks at a vector or two. Felzenszwalb and Huttenlocher's stack
// of parabolas takes a division and an unpredictable branch an element instead.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "common/head/distance_transform.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {

template <class V>
struct Envelope {
  static constexpr int L = FASTSEG_SIMD_BYTES / sizeof(V);
  using Vector = Lanes<V, L>;

  int64_t size;
  V weight;
  V* least;  // room for the least j at the ends of stretches: size / L + 2

  // f: readable up to L - 1 elements behind the line, where FarAway is. out: writable as far.
  void operator()(const V* f, V* out) const {
    find_least(f);
    const int64_t last = size - 1;
    for (int64_t i = 0, s = 0; i < size; i += L, ++s) {
      const auto first = static_cast<int64_t>(least[s]), end = static_cast<int64_t>(least[s + 1]);
      write(out + i, least_of(f, i, first, std::min(end, last)));
    }
  }

 private:
  static Vector fill(V x) { return x - Vector{}; }
  static Vector minimum(Vector a, Vector b) { return a < b ? a : b; }
  static Vector iota() { return iota(std::make_integer_sequence<int, L>{}); }
  template <int... K>
  static Vector iota(std::integer_sequence<int, K...>) {
    return Vector{V{K}...};
  }
  Vector weighted(Vector square) const {
    if constexpr (std::is_same_v<V, double>) return weight * square;
    return square;
  }

  // The values of the elements i .. i + L - 1, whose least j are in [first, last].
  Vector least_of(const V* f, int64_t i, int64_t first, int64_t last) const {
    const Vector distance = fill(static_cast<V>(i - first)) + iota();
    Vector square = distance * distance, step = 2 * distance - 1;
    Vector best = weighted(square) + f[first];
    for (int64_t j = first + 1; j <= last; ++j) {
      square -= step;  // (d - 1)^2 = d^2 - (2 d - 1)
      step -= 2;
      best = minimum(best, weighted(square) + f[j]);
    }
    return best;
  }

  void find_least(const V* f) const {
    const int64_t stretches = (size + L - 1) / L, last = size - 1;
    const auto find = [&](int64_t s, int64_t begin, int64_t end) {
      least[s] = static_cast<V>(search(f, std::min(s * L, last), begin, end));
    };
    find(0, 0, last);
    find(stretches, static_cast<int64_t>(least[0]), last);
    int64_t half = 1;
    while (2 * half < stretches) half *= 2;
    for (; half > 0; half /= 2) {
      for (int64_t s = half; s < stretches; s += 2 * half) {
        find(s, static_cast<int64_t>(least[s - half]),
             static_cast<int64_t>(least[std::min(s + half, stretches)]));
      }
    }
  }

  // The least j of i, which lies in [begin, end].
  int64_t search(const V* f, int64_t i, int64_t begin, int64_t end) const {
    if (f[i] == 0) return i;
    if (begin == end) return begin;
    const double reach = std::sqrt(static_cast<double>(f[i]) / static_cast<double>(weight)) + 1;
    if (reach < static_cast<double>(size)) {
      begin = std::max(begin, i - static_cast<int64_t>(reach));
      end = std::min(end, i + static_cast<int64_t>(reach));
    }
    Vector distance = fill(static_cast<V>(begin - i)) + iota();
    Vector best = fill(std::numeric_limits<V>::max()), winner = distance;
    for (int64_t j = begin; j <= end; j += L) {
      const Vector value = weighted(distance * distance) + read<Vector>(f + j);
      const auto wins = value < best;
      best = wins ? value : best;
      winner = wins ? distance : winner;
      distance += L;
    }
    return std::clamp(i + static_cast<int64_t>(winner_of<L>(best, winner)), begin, end);
  }

  // The winner that belongs to the least value, by halves.
  template <int N>
  static V winner_of(Lanes<V, N> values, Lanes<V, N> winners) {
    if constexpr (N == 1) {
      return winners[0];
    } else {
      const auto [a, b] = bit_cast<Halves<N>>(values);
      const auto [winners_of_a, winners_of_b] = bit_cast<Halves<N>>(winners);
      const auto wins = b < a;
      return winner_of<N / 2>(wins ? b : a, wins ? winners_of_b : winners_of_a);
    }
  }

  template <int N>
  struct Halves {
    Lanes<V, N / 2> first, second;
  };
};

}  // namespace fastseg::cpu::FASTSEG_SIMD
