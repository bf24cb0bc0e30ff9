// Q = softmax of a tile's logits, and its splat onto the tile's vertices.
//
//   x_i = unary_i + sum_c slice_ic table[slot_ic]       c: the corners of the point's simplices
//   q_i = 2^x_i / sum 2^x_i                             rows of `pitch` labels
//   log q_i = log 2 (x_i - log2 sum 2^x_i)              instead, where log Q is wanted
//   sums[slot_ic] += splat_ic q_i                       point after point
//
// A task is a tile. Its table and its sums stay in the L2 cache, Q never leaves the L1 cache:
// blocks of points go through the three stages one after another. A row is one to four vectors that
// stay in registers over the corners; longer rows are cut into such pieces.
//
// Floor for each point and label of the two default terms (9 corners): 18 FMA and 18 loads, 9
// stores, about 11 operations of the exponential; from memory 4 bytes of unary, and 72 bytes of
// slots and weights for each point: about 50 cycles a point at 24 labels with one 32-byte store a
// cycle.
//
// Logits are shifted by the largest unary beforehand, so that the softmax needs no maximum unless
// messages are huge: a block whose sum leaves the normal range is done again with it.

#include "cpu/crf/lattice_mean_field_kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/crf/lattice_mean_field_pieces.h"
#include "cpu/crf/lattice_mean_field_rows.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

// Points [first, first + count) of a tile and their rows.
struct Block {
  int64_t first;
  int count;
  float* rows;
};

// x += scale * factor * row, or the matrix's columns by the row's elements.
template <int C>
[[gnu::always_inline]] inline void add_pointwise(const PointwiseTerm& term, int64_t point,
                                                 int64_t labels, int64_t pitch, int64_t label,
                                                 Piece<C>& x) {
  const float* row = term.out + point * pitch;
  const float factor = term.after == nullptr ? 1 : term.after[point];
  if (term.matrix != nullptr) {
    for (int64_t l = 0; l < labels; ++l) {
      x.add(factor * row[l], term.matrix + l * pitch + label);
    }
  } else {
    auto scaled = Piece<C>::load(term.scale + label);
    scaled.scale(factor);
    const auto message = Piece<C>::load(row + label);
    for (int k = 0; k < x.kVectors; ++k) x.v[k] += scaled.v[k] * message.v[k];
  }
}

// Subtracts each row's maximum.
void shift_rows(const Block& block, int64_t labels, int64_t pitch) {
  for (int i = 0; i < block.count; ++i) {
    float* x = block.rows + i * pitch;
    const float largest = *std::max_element(x, x + labels);
    for (int64_t l = 0; l < labels; ++l) x[l] -= largest;
  }
}

// Slice with each lattice's sum in natural units (MeanFieldTile::lattices).
template <int kPitch>
void slice_by_lattice(const MeanFieldTile& tile, int64_t labels, int64_t any_pitch,
                      const Block& block) {
  const int64_t pitch = kPitch ? kPitch : any_pitch;
  for_pieces<kPitch>(pitch, [&](auto size, int64_t label) {
    for (int i = 0; i < block.count; ++i) {
      const int64_t point = block.first + i;
      auto x = Piece<size>::load(tile.unary + point * pitch + label);
      for (int k = 0; k < tile.pointwise_terms; ++k) {
        if (tile.pointwise[k].out == nullptr) continue;
        add_pointwise(tile.pointwise[k], point, labels, pitch, label, x);
      }
      x.scale(kLog2);
      const int32_t* slots = tile.slots + point * tile.corners;
      const float* weights = tile.slice + point * tile.corners;
      for (int m = 0; m < tile.lattice_count; ++m) {
        const LatticeMessages& lattice = tile.lattices[m];
        Piece<size> sum{};
        for (int c = 0; c < lattice.corners; ++c) {
          sum.add(*weights++, tile.table + *slots++ + label);
        }
        const auto scale = Piece<size>::load(lattice.scale + label);
        for (int k = 0; k < x.kVectors; ++k) x.v[k] += scale.v[k] * sum.v[k];
      }
      x.store(block.rows + i * pitch + label);
    }
  });
  // A divergence wants the logits themselves, and rounds no exponent.
  if (tile.divergence == nullptr) shift_rows(block, labels, pitch);
  for (int64_t k = 0; k < block.count * pitch; ++k) block.rows[k] /= kLog2;
}

// What streams from memory is asked for ahead of time: the processor's own prefetching falls behind
// here. kStreamAhead: of the unary, in floats, a number of rows or not.
constexpr int64_t kStreamAhead = 4096, kEntriesAhead = 512;

template <int C>
void ask_ahead(const float* unary, const int32_t* slots, const float* weights) {
  for (int k = 0; k < C; k += 16) __builtin_prefetch(unary + kStreamAhead + k);
  __builtin_prefetch(slots + kEntriesAhead);
  __builtin_prefetch(weights + kEntriesAhead);
}

template <int kPitch, int kCorners>
void slice(const MeanFieldTile& tile, int64_t labels, int64_t any_pitch, const Block& block) {
  const int64_t pitch = kPitch ? kPitch : any_pitch;
  if (tile.lattices != nullptr) return slice_by_lattice<kPitch>(tile, labels, pitch, block);
  const int corners = tile.table == nullptr ? 0 : kCorners ? kCorners : tile.corners;
  for_pieces<kPitch>(pitch, [&](auto size, int64_t label) {
    const int32_t* slots = tile.slots + block.first * tile.corners;
    const float* weights = tile.slice + block.first * tile.corners;
    for (int i = 0; i < block.count; ++i) {
      const int64_t point = block.first + i;
      auto x = Piece<size>::load(tile.unary + point * pitch + label);
      ask_ahead<size>(tile.unary + point * pitch + label, slots, weights);
      for (int c = 0; c < corners; ++c) x.add(weights[c], tile.table + slots[c] + label);
      for (int k = 0; k < tile.pointwise_terms; ++k) {
        if (tile.pointwise[k].out == nullptr) continue;
        add_pointwise(tile.pointwise[k], point, labels, pitch, label, x);
      }
      x.store(block.rows + i * pitch + label);
      slots += tile.corners;
      weights += tile.corners;
    }
  });
}

template <int kPitch, int kCorners>
void splat(const MeanFieldTile& tile, int64_t any_pitch, const Block& block, const float* scale) {
  const int64_t pitch = kPitch ? kPitch : any_pitch;
  const int corners = kCorners ? kCorners : tile.corners;
  for_pieces<kPitch>(pitch, [&](auto size, int64_t label) {
    const int32_t* slots = tile.slots + block.first * corners;
    const float* weights = tile.splat + block.first * corners;
    for (int i = 0; i < block.count; ++i) {
      auto q = Piece<size>::load(block.rows + i * pitch + label);
      q.scale(scale[i]);
      for (int c = 0; c < corners; ++c) q.add_to(tile.sums + slots[c] + label, weights[c]);
      slots += corners;
      weights += corners;
    }
  });
}

// rows = 2^rows, and the reciprocal of each row's sum. False if a sum is out of range.
template <int kPitch>
bool powers(const Block& block, int64_t any_pitch, float* inverse) {
  const int64_t pitch = kPitch ? kPitch : any_pitch;
  constexpr int kWidth = FASTSEG_SIMD_BYTES / 4;
  using V = Lanes<float, kWidth>;
  for (int64_t k = 0; k < block.count * pitch; k += kWidth) {  // the buffer is whole vectors
    write(block.rows + k, exp2_lanes(read<V>(block.rows + k)));
  }
  bool normal = true;
  for (int i = 0; i < block.count; ++i) {
    float sum = 0;
    for_pieces<kPitch>(pitch, [&](auto size, int64_t label) {
      auto x = Piece<size>::load(block.rows + i * pitch + label);
      for (int k = 1; k < x.kVectors; ++k) x.v[0] += x.v[k];
      sum += sum_lanes(x.v[0]);
    });
    normal &= sum > 1e-30f && sum < 1e30f;
    inverse[i] = 1 / sum;
  }
  return normal;
}

// in = before * Q.
void keep_rows(const PointwiseTerm& term, const Block& block, int64_t pitch, const float* inverse) {
  for (int i = 0; i < block.count; ++i) {
    const int64_t point = block.first + i;
    const float factor = inverse[i] * (term.before == nullptr ? 1 : term.before[point]);
    const float* row = block.rows + i * pitch;
    for (int64_t l = 0; l < pitch; ++l) term.in[point * pitch + l] = factor * row[l];
  }
}

void scale_rows(const Block& block, int64_t pitch, const float* factor) {
  for (int i = 0; i < block.count; ++i) {
    float* row = block.rows + i * pitch;
    for (int64_t l = 0; l < pitch; ++l) row[l] *= factor[i];
  }
}

// rows = log Q of their logits; -infinity where a label is ruled out.
void log_probabilities(const Block& block, int64_t labels, int64_t pitch) {
  using V = Lanes<float, 4>;
  shift_rows(block, labels, pitch);
  for (int i = 0; i < block.count; ++i) {
    float* x = block.rows + i * pitch;
    V sums{};
    for (int64_t l = 0; l < pitch; l += 4) sums += exp2_lanes(read<V>(x + l));
    const float log_sum = std::log2(sum_lanes(sums));
    for (int64_t l = 0; l < labels; ++l) {
      const bool ruled_out = x[l] < kLeastLogit;
      x[l] = ruled_out ? -std::numeric_limits<float>::infinity() : (x[l] - log_sum) * kLog2;
    }
  }
}

void write_rows(const MeanFieldTile& tile, const Block& block, int64_t labels, int64_t pitch) {
  rows_to_labels(block.rows, block.count, labels, pitch,
                 tile.out + block.first * tile.out_strides.point, tile.out_strides);
}

// sum of q (log q - x), x in units of log 2.
double divergence(const float* q, const Block& block, int64_t labels, int64_t pitch) {
  double sum = 0;
  for (int i = 0; i < block.count; ++i) {
    double row = 0;
    for (int64_t l = 0; l < labels; ++l) {
      const float p = q[i * pitch + l];
      if (p > 0) row += p * (std::log(p) - block.rows[i * pitch + l] * kLog2);
    }
    sum += row;
  }
  return sum;
}

template <int kPitch, int kCorners>
void run_tile(const MeanFieldTile& tile, int64_t labels, int64_t any_pitch, float* rows) {
  const int64_t pitch = kPitch ? kPitch : any_pitch;
  const int size = mean_field_block(pitch);
  float inverse[kMeanFieldBlock];
  for (int64_t first = 0; first < tile.points; first += size) {
    const Block block{first, static_cast<int>(std::min<int64_t>(size, tile.points - first)), rows};
    const int64_t floats = block.count * pitch;
    if (tile.divergence != nullptr) {
      slice<kPitch, kCorners>(tile, labels, pitch, block);
      *tile.divergence += divergence(tile.given_q + first * pitch, block, labels, pitch);
      continue;
    }
    if (tile.log) {
      slice<kPitch, kCorners>(tile, labels, pitch, block);
      log_probabilities(block, labels, pitch);
      write_rows(tile, block, labels, pitch);
      continue;
    }
    if (tile.given_q != nullptr) {
      std::copy_n(tile.given_q + first * pitch, floats, rows);
      std::fill_n(inverse, block.count, 1.f);
    } else {
      slice<kPitch, kCorners>(tile, labels, pitch, block);
      if (!powers<kPitch>(block, pitch, inverse)) {
        slice<kPitch, kCorners>(tile, labels, pitch, block);
        shift_rows(block, labels, pitch);
        powers<kPitch>(block, pitch, inverse);
      }
    }
    if (tile.sums != nullptr) splat<kPitch, kCorners>(tile, pitch, block, inverse);
    for (int k = 0; k < tile.pointwise_terms; ++k) {
      if (tile.pointwise[k].in != nullptr) keep_rows(tile.pointwise[k], block, pitch, inverse);
    }
    if (tile.out != nullptr) {
      scale_rows(block, pitch, inverse);
      write_rows(tile, block, labels, pitch);
    }
  }
}

template <int kCorners>
void run_pitch(const MeanFieldTile& tile, int64_t labels, int64_t pitch, float* rows) {
  switch (pitch) {
    case 4:
      return run_tile<4, kCorners>(tile, labels, pitch, rows);
    case 8:
      return run_tile<8, kCorners>(tile, labels, pitch, rows);
    case 16:
      return run_tile<16, kCorners>(tile, labels, pitch, rows);
    case 24:
      return run_tile<24, kCorners>(tile, labels, pitch, rows);
    case 32:
      return run_tile<32, kCorners>(tile, labels, pitch, rows);
    default:
      return run_tile<0, 0>(tile, labels, pitch, rows);
  }
}

}  // namespace

void mean_field_tile(const MeanFieldTile& tile, int64_t labels, int64_t pitch, float* rows) {
  switch (tile.corners) {  // of a lattice of positions and colours, with one of positions or alone
    case 9:
      return run_pitch<9>(tile, labels, pitch, rows);
    case 6:
      return run_pitch<6>(tile, labels, pitch, rows);
    default:
      return run_pitch<0>(tile, labels, pitch, rows);
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
