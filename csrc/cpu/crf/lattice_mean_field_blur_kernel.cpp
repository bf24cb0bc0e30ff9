// The blur of rows of labels along chains of vertices (lattice_mean_field_blur.h).
//
//   row_i += side (row_{i-1} + row_{i+1})     all at once, along a chain
//
// Of a chain two rows stay in registers, as they were. Floor: each row in and out once, and four
// bytes of its number; rows are asked for ahead of time, since no processor foresees them.

#include <algorithm>

#include "cpu/crf/lattice_mean_field_blur.h"
#include "cpu/crf/lattice_mean_field_pieces.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int64_t kAhead = 16;  // vertices

int64_t vertex(int32_t entry) { return entry < 0 ? ~entry : entry; }

// The piece where `mask` is all ones, zeros where it is zero.
template <class P>
P masked(const P& piece, int32_t mask) {
  using V = typename P::V;
  using I = Lanes<int32_t, P::kWidth>;
  P out;
  for (int k = 0; k < P::kVectors; ++k) out.v[k] = bit_cast<V>(bit_cast<I>(piece.v[k]) & mask);
  return out;
}

template <int kPitch>
void blur_pieces(const int32_t* chains, int64_t count, float side, int64_t any_pitch, float* rows) {
  const int64_t pitch = kPitch ? kPitch : any_pitch;
  for_pieces<kPitch>(pitch, [&](auto size, int64_t label) {
    using P = Piece<size>;
    const auto row = [&](int64_t i) {
      return rows + vertex(chains[std::min(i, count - 1)]) * pitch + label;
    };
    P before{}, here = P::load(row(0));
    for (int64_t i = 0; i < count; ++i) {
      const float* ahead = row(i + kAhead);
      for (int l = 0; l < size; l += 16) __builtin_prefetch(ahead + l, 1);
      // Chains are short and their ends not foreseen: no branch depends on them.
      const int32_t goes_on = ~(chains[i] >> 31);
      const P next = P::load(row(i + 1)), behind = masked(next, goes_on);
      P sum;
      for (int k = 0; k < P::kVectors; ++k) {
        sum.v[k] = here.v[k] + (before.v[k] + behind.v[k]) * side;
      }
      sum.store(row(i));
      before = masked(here, goes_on);
      here = next;
    }
  });
}

}  // namespace

void blur_chains(const int32_t* chains, int64_t count, float side, int64_t pitch, float* rows) {
  switch (pitch) {
    case 4:
      return blur_pieces<4>(chains, count, side, pitch, rows);
    case 24:
      return blur_pieces<24>(chains, count, side, pitch, rows);
    default:
      return blur_pieces<0>(chains, count, side, pitch, rows);
  }
}

void mean_of(const float* others, int64_t floats, float* rows) {
  for (int64_t i = 0; i < floats; ++i) rows[i] = (rows[i] + others[i]) * 0.5f;
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
