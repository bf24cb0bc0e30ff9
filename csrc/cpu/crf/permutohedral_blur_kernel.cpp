// The blur of lattice rows along one axis, and the sum of tiles' rows (permutohedral_blur.h).
//
// Blur: out[v] = in[v] + side (in[back[v]] + in[forward[v]]), a row of channels a vertex. Floor: a
// row in and out and two indices for each vertex, if the neighbours' rows come from a cache; they
// are asked for ahead of time, since no processor foresees them.
// Reduce: each tile's row in once, each vertex's row out; rows are asked for ahead here, too.

#include <algorithm>

#include "cpu/crf/permutohedral_blur.h"
#include "cpu/crf/permutohedral_rows.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int32_t kAhead = 12;  // vertices or rows

template <class T>
void prefetch_row(const T* row, int64_t stride) {
  for (int64_t c = 0; c < stride; c += int64_t{64 / sizeof(T)}) __builtin_prefetch(row + c);
}

template <bool kMean, class T>
void blur_scalars(const BlurStep<T>& s, int64_t begin, int64_t end) {
  for (int64_t v = begin; v < end; ++v) {
    const T sum = s.in[v] + (s.in[s.back[v]] + s.in[s.forward[v]]) * s.side;
    s.out[v] = kMean ? (sum + s.mean_with[v]) * T(0.5) : sum;
  }
}

template <bool kMean, class T>
void blur_range(const BlurStep<T>& s, int64_t begin, int64_t end) {
  for (int64_t v = begin; v < end; ++v) {
    if (v + kAhead < end) {
      prefetch_row(s.in + s.back[v + kAhead] * s.stride, s.stride);
      prefetch_row(s.in + s.forward[v + kAhead] * s.stride, s.stride);
    }
    const T* here = s.in + v * s.stride;
    const T* back = s.in + s.back[v] * s.stride;
    const T* forward = s.in + s.forward[v] * s.stride;
    for_row<T>(s.stride, [&](auto lanes, int64_t c) {
      using S = Simd<T, lanes>;
      auto sum = S::load(here + c) + (S::load(back + c) + S::load(forward + c)) * s.side;
      if constexpr (kMean) sum = (sum + S::load(s.mean_with + v * s.stride + c)) * T(0.5);
      S::store(s.out + v * s.stride + c, sum);
    });
  }
}

}  // namespace

template <class T>
void blur_rows(const BlurStep<T>& step, int64_t begin, int64_t end) {
  if (step.stride == 1) {
    return step.mean_with ? blur_scalars<true>(step, begin, end)
                          : blur_scalars<false>(step, begin, end);
  }
  step.mean_with ? blur_range<true>(step, begin, end) : blur_range<false>(step, begin, end);
}

template <class T>
void reduce_rows(const ReduceRows<T>& op, int64_t begin, int64_t end) {
  for (int64_t v = begin; v < end; ++v) {
    const int32_t first = op.vertex_starts[v], last = op.vertex_starts[v + 1];
    for (int32_t k = first + kAhead; k < std::min(last + kAhead, op.vertex_starts[end]); ++k) {
      prefetch_row(op.rows + op.vertex_rows[k] * op.stride, op.stride);
    }
    for_row<T>(op.stride, [&](auto lanes, int64_t c) {
      using S = Simd<T, lanes>;
      typename S::Value sum{};
      for (int32_t k = first; k < last; ++k) {
        sum += S::load(op.rows + op.vertex_rows[k] * op.stride + c);
      }
      S::store(op.out + v * op.stride + c, sum);
    });
  }
}

#define FASTSEG_INSTANTIATE(T)                                   \
  template void blur_rows(const BlurStep<T>&, int64_t, int64_t); \
  template void reduce_rows(const ReduceRows<T>&, int64_t, int64_t);
FASTSEG_FOR_COMPUTE_TYPES(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
