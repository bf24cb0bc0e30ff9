// Depthwise convolution of contiguous images: the pixels of a row along the lanes.
//
// A plane is cut where the set of live taps changes, at most five times five regions for three by
// three taps. Within one, each vector of outputs sums all taps in a register: 9 unaligned loads
// and 9 multiply-adds, with the weights in registers. Planes of the usual sizes stay in the first-
// or second-level cache.
//
// Floor: to read x and write y once.

#include <algorithm>

#include "common/host_device.h"
#include "cpu/conv/conv2d_epilogue.h"
#include "cpu/conv/depthwise_conv2d.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

// Rows [begin, end) of a run of rows, by a run of columns, of one plane.
template <class T>
struct Region {
  std::vector<int64_t> offsets;  // of the taps, from the run's first pixel in x
  std::vector<Compute<T>> weights;
  int64_t columns;  // outputs in a row
  int64_t rows;
  const T* x;
  int64_t x_row;  // from one row's pixels to the next one's
  int64_t y;      // the place of the first output
  int64_t y_row;
  int64_t channel;
};

// L outputs at a time, the last ones of a row moved back to its end. N: the number of taps, or 0
// for any. source_step: 1, 2 or 0 for any.
template <class T, int N, int source_step, bool smooth, int L>
void compute_vectors(const ContiguousDepthwiseConv2d<T>& op, const Region<T>& region) {
  using S = Simd<T, L>;
  using V = typename S::Value;
  const int64_t any_step = op.columns.source_step, step = op.columns.step;
  const int64_t taps = static_cast<int64_t>(region.offsets.size());
  const Conv2dEpilogue<T> epilogue = op.epilogue;
  const auto terms = pixel_terms<T, L>(epilogue, region.channel);
  const Compute<T>* any_weight = region.weights.data();
  const int64_t* any_offset = region.offsets.data();
  constexpr int kHeld = N > 0 ? N : 1;
  V weight[kHeld];
  int64_t offset[kHeld];
  for (int t = 0; t < N; ++t) {
    weight[t] = Simd<Compute<T>, L>::fill(any_weight[t]);
    offset[t] = any_offset[t];
  }
  T* const out = op.y;
  for (int64_t r = 0; r < region.rows; ++r) {
    const T* x = region.x + r * region.x_row;
    const int64_t y = region.y + r * region.y_row;
    for (int64_t first = 0; first < region.columns; first += L) {
      const int64_t i = std::min(first, region.columns - L);
      const auto load = [&](int64_t at) {
        if constexpr (source_step == 1) return S::load(x + at + i);
        if constexpr (source_step == 2 && L > 1) return S::load_even(x + at + 2 * i);
        return S::load_strided(x + at + any_step * i, any_step);
      };
      V sum = {};
      if constexpr (N > 0) {
        FASTSEG_UNROLL
        for (int t = 0; t < N; ++t) sum += weight[t] * load(offset[t]);
      } else {
        for (int64_t t = 0; t < taps; ++t) sum += any_weight[t] * load(any_offset[t]);
      }
      const int64_t place = y + i * step;
      const V v = finish<T, L, smooth>(epilogue, terms, sum, place);
      if (step == 1) {
        S::store(out + place, v);
      } else {
        T buffer[L];  // a gradient's, whose epilogue reads no residual
        S::store(buffer, v);
        for (int l = 0; l < L; ++l) out[place + l * step] = buffer[l];
      }
    }
  }
}

// Full vectors, those of eight, and single pixels, which columns at the edge are, have code for
// each usual number of taps.
template <class T, bool smooth, int L>
void compute_rows(const ContiguousDepthwiseConv2d<T>& op, const Region<T>& region) {
  constexpr bool kFull = kSpecialForms<T> && L == kLanes<T>;
  const size_t taps = region.offsets.size();
  if (op.columns.source_step == 1) {
    if constexpr (kFull || (kSpecialForms<T> && (L == 8 || L == 1))) {
      switch (taps) {
        case 1:
          return compute_vectors<T, 1, 1, smooth, L>(op, region);
        case 2:
          return compute_vectors<T, 2, 1, smooth, L>(op, region);
        case 3:
          return compute_vectors<T, 3, 1, smooth, L>(op, region);
        case 4:
          return compute_vectors<T, 4, 1, smooth, L>(op, region);
        case 6:
          return compute_vectors<T, 6, 1, smooth, L>(op, region);
        case 9:
          return compute_vectors<T, 9, 1, smooth, L>(op, region);
      }
    }
    if constexpr (L > 1) return compute_vectors<T, 0, 1, smooth, L>(op, region);
  }
  if constexpr (kFull) {
    if (op.columns.source_step == 2 && taps == 9) {
      return compute_vectors<T, 9, 2, smooth, L>(op, region);
    }
    if (op.columns.source_step == 2) return compute_vectors<T, 0, 2, smooth, L>(op, region);
  }
  compute_vectors<T, 0, 0, smooth, L>(op, region);
}

// By the widest vectors that a row has room for.
template <class T, bool smooth, int L = kLanes<T>>
void compute_region(const ContiguousDepthwiseConv2d<T>& op, const Region<T>& region) {
  if constexpr (L > 1) {
    if (region.columns < L) return compute_region<T, smooth, (L > 4 ? L / 2 : 1)>(op, region);
  }
  compute_rows<T, smooth, L>(op, region);
}

}  // namespace

template <class T>
void depthwise_conv2d_contiguous(const ContiguousDepthwiseConv2d<T>& op, int64_t begin,
                                 int64_t end) {
  const int64_t width = op.columns.size, source_width = op.columns.source_size;
  Region<T> region;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t plane = task / op.bands, band = task % op.bands;
    const int64_t first_row = op.rows.size * band / op.bands;
    const int64_t end_row = op.rows.size * (band + 1) / op.bands;
    region.channel = plane % op.channels;
    const auto* weight = op.weight + region.channel * op.kernel_height * op.kernel_width;
    for (const TapRun& rows : op.rows.runs) {
      const auto count_below = [&](int64_t row) {  // of the run's rows
        const int64_t k = (row - rows.first + op.rows.step - 1) / op.rows.step;
        return row <= rows.first ? 0 : std::min(k, rows.count);
      };
      const int64_t k = count_below(first_row);
      region.rows = count_below(end_row) - k;
      if (region.rows <= 0) continue;
      region.x_row = op.rows.source_step * source_width;
      region.x = op.x + plane * op.rows.source_size * source_width + k * region.x_row;
      region.y_row = op.rows.step * width;
      for (const TapRun& columns : op.columns.runs) {
        region.columns = columns.count;
        region.y =
            plane * op.rows.size * width + rows.first * width + k * region.y_row + columns.first;
        region.offsets.clear();
        region.weights.clear();
        for (const LiveTap& i : rows.taps) {
          for (const LiveTap& j : columns.taps) {
            region.offsets.push_back(i.source * source_width + j.source);
            region.weights.push_back(weight[i.tap * op.kernel_width + j.tap]);
          }
        }
        if (is_smooth(op.epilogue.activation)) {
          compute_region<T, true>(op, region);
        } else {
          compute_region<T, false>(op, region);
        }
      }
    }
  }
}

#define FASTSEG_INSTANTIATE(T) \
  template void depthwise_conv2d_contiguous(const ContiguousDepthwiseConv2d<T>&, int64_t, int64_t);
FASTSEG_FOR_FLOATS(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
