#pragma once
// The kernels of MeanField (lattice_mean_field.h), as plain structs.
//
// Labels lie in rows of `pitch` floats, padded with labels that never win. Logits and messages are
// in units of log 2, so that the softmax takes powers of two.

#include <algorithm>
#include <cstdint>

#include "cpu/crf/lattice_mean_field.h"
#include "cpu/simd/simd_level.h"

namespace fastseg::cpu {

// Floats of a row: 4 or a multiple of 8.
inline int64_t mean_field_pitch(int64_t labels) { return labels <= 4 ? 4 : (labels + 7) / 8 * 8; }

// Points that go through slice, softmax and splat together: their rows stay in the L1 cache.
inline constexpr int kMeanFieldBlock = 256;
inline int mean_field_block(int64_t pitch) {
  return static_cast<int>(std::clamp<int64_t>(2048 / pitch / 8 * 8, 8, kMeanFieldBlock));
}
// Floats of a block's rows, whole vectors.
inline int64_t mean_field_block_floats(int64_t pitch) { return mean_field_block(pitch) * pitch; }

// A filter whose messages are computed point by point: in <- before Q, and back from out:
// logits += scale * (after out), or matrix @ (after out).
struct PointwiseTerm {
  float* in = nullptr;            // (points, pitch); null: not wanted
  const float* before = nullptr;  // (points); null: ones
  const float* out = nullptr;     // (points, pitch); null: no messages yet
  const float* after = nullptr;   // (points); null: ones
  const float* scale = nullptr;   // (pitch)
  const float* matrix = nullptr;  // (labels, pitch), column after column; null: scale
};

// A lattice among those that a point meets, where their sums are taken one by one.
struct LatticeMessages {
  int corners;
  const float* scale;  // (pitch): logits += scale * its sum, in natural units
};

// A tile's points meet the vertices of all lattices in one local numbering: `corners` rows a point.
struct MeanFieldTile {
  int64_t points;
  int corners;
  const int32_t* slots;  // (points, corners): where a row begins
  const float* slice;    // (points, corners) weights on the way from the vertices
  const float* splat;    // and to them
  const float* unary;    // (points, pitch) -U, each row's largest element zero
  const float* table;    // (rows, pitch) messages at the vertices; null: none yet
  // null: the table has each lattice's scale in it already. Else it is applied to each lattice's
  // sum: the rounding of Kraehenbuehl's program, which shows in Q where sums are in the thousands.
  const LatticeMessages* lattices;
  int lattice_count;
  const PointwiseTerm* pointwise;
  int pointwise_terms;
  const float* given_q;  // (points, pitch) instead of the softmax's; null: compute it
  float* sums;           // (rows, pitch): what the points splat is added; null: do not
  float* out;            // Q; null: not wanted
  bool log;              // out is log Q and all that is wanted; Q is not given
  LabelStrides out_strides;
  double* divergence;  // not null: sum of given_q (log given_q - logits) instead of all else
};

// block: room for mean_field_block_floats.
#define FASTSEG_MEAN_FIELD_TILE \
  void mean_field_tile(const MeanFieldTile& tile, int64_t labels, int64_t pitch, float* block)
FASTSEG_DECLARE_KERNEL(FASTSEG_MEAN_FIELD_TILE)
#undef FASTSEG_MEAN_FIELD_TILE

// table[i] = scale * values[vertices[i]], rows of pitch floats.
#define FASTSEG_GATHER_ROWS                                                                    \
  void gather_rows(const float* values, const int32_t* vertices, int64_t count, int64_t pitch, \
                   const float* scale, float* table)
FASTSEG_DECLARE_KERNEL(FASTSEG_GATHER_ROWS)
#undef FASTSEG_GATHER_ROWS

// Each of `count` rows becomes matrix @ row; matrix (labels, pitch), column after column.
#define FASTSEG_MIX_ROWS \
  void mix_rows(float* rows, int64_t count, int64_t labels, int64_t pitch, const float* matrix)
FASTSEG_DECLARE_KERNEL(FASTSEG_MIX_ROWS)
#undef FASTSEG_MIX_ROWS

// What is wrong with energies.
enum class UnaryError : int { none = 0, not_a_number, minus_infinity, all_infinite };

// rows[point] = (least energy - energies) / log 2, shift[point] = the least energy.
#define FASTSEG_READ_UNARY                                                           \
  UnaryError read_unary(const float* energies, LabelStrides strides, int64_t points, \
                        int64_t labels, int64_t pitch, float* rows, float* shift)
FASTSEG_DECLARE_KERNEL(FASTSEG_READ_UNARY)
#undef FASTSEG_READ_UNARY

// Rows from any layout, padded with zeros.
#define FASTSEG_READ_ROWS                                                                   \
  void read_rows(const float* values, LabelStrides strides, int64_t points, int64_t labels, \
                 int64_t pitch, float* rows)
FASTSEG_DECLARE_KERNEL(FASTSEG_READ_ROWS)
#undef FASTSEG_READ_ROWS

}  // namespace fastseg::cpu
