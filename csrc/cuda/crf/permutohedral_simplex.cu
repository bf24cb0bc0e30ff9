// The simplex of every point: the quotients of its vertex 0, the order of its coordinates, the
// weights of its vertices (common/crf/permutohedral.h). A thread makes one point; a block's results
// pass through shared memory, so that they leave it in whole sectors.
//
// Floor: d features in, d + 1 weights and d + 1 words out: for d = 5 and float32, 20 bytes in and
// 48 out for about 200 operations of 4 bytes, which is far below what a GPU does meanwhile.

#include "common/crf/permutohedral.h"
#include "cuda/crf/permutohedral_groups.h"
#include "cuda/fast_divisor.h"
#include "cuda/launch.h"

namespace fastseg::cuda {
namespace {

template <class T>
struct Scales {
  T of[permutohedral::kMaxDimensions];
};

template <class T>
struct Points {
  const T* features;
  T* barycentric;
  int* simplices;
  unsigned* first_bad;
  FastDivisor padded;
  int points, count;  // of an image without its origin; of all with them
};

// What a block's points have, from shared memory to consecutive addresses.
template <class Word, class Place>
__device__ inline void store_block(const Word* staged, int words, const Place& place) {
  __syncthreads();
  for (int i = threadIdx.x; i < words; i += kLatticeThreads) {
    if (Word* const to = place(i)) *to = staged[i];
  }
  __syncthreads();
}

template <int D, class T>
__global__ void __launch_bounds__(kLatticeThreads)
    enclosing_simplex(Points<T> op, Scales<T> scales) {
  FASTSEG_DYNAMIC_SHARED(T, staged);  // (kLatticeThreads, D + 1) of T or int
  const int begin = blockIdx.x * kLatticeThreads, index = begin + int(threadIdx.x);
  const int last = op.count - 1, image = (index < last ? index : last) / op.padded;
  const int point = index - image * op.padded;
  const bool has_features = index < op.count && point < op.points;  // an origin is zero
  T feature[D], elevated[D + 1], quotient[D + 1], rank[D + 1], weight[D + 1];
  const T* features = op.features + int64_t{image} * D * op.points + point;
#pragma unroll
  for (int j = 0; j < D; ++j) {
    feature[j] = has_features ? features[int64_t{j} * op.points] : T{0};
  }
  permutohedral::elevate<D, T, T>(feature, scales.of, elevated);
  permutohedral::round_to_quotients<D, T, T>(elevated, quotient);
  constexpr T kLimit = permutohedral::kQuotientLimit<T>;
  bool good = true;
#pragma unroll
  for (int j = 0; j <= D; ++j) good &= quotient[j] < kLimit && quotient[j] > -kLimit;  // NaN: false
  if (!good) {
    atomicMin(op.first_bad, static_cast<unsigned>(image * op.points + point));
#pragma unroll
    for (int j = 0; j <= D; ++j) elevated[j] = quotient[j] = T{0};
  }
  permutohedral::enclose<D, T, T>(elevated, quotient, rank, weight);
  const int words =
      (op.count - begin < kLatticeThreads ? op.count - begin : kLatticeThreads) * (D + 1);
  T* const weights = staged + threadIdx.x * (D + 1);
#pragma unroll
  for (int r = 0; r <= D; ++r) weights[r] = weight[r];
  store_block(staged, words, [&](int i) {
    const int at = begin + i / (D + 1), origins = at / op.padded;
    // An image's origin has no weights, and those behind it lie one point nearer.
    const bool is_origin = at - origins * op.padded == op.points;
    T* const to = op.barycentric + (int64_t{begin} - origins * (op.padded - op.points)) * (D + 1);
    return is_origin ? nullptr : to + i;
  });
  int* const simplices = reinterpret_cast<int*>(staged);
  int* const simplex = simplices + threadIdx.x * (D + 1);
  int order = 0;
#pragma unroll
  for (int j = 0; j < D; ++j) {
    simplex[j] = static_cast<int>(quotient[j]);
    order |= static_cast<int>(rank[j]) << (4 * j);
  }
  simplex[D] = order;
  store_block(simplices, words, [&](int i) { return op.simplices + int64_t{begin} * (D + 1) + i; });
}

template <class T>
void launch(const LatticeShape& shape, const LatticePoints& in, cudaStream_t stream) {
  Scales<T> scales{};
  permutohedral::feature_scales(shape.d, in.refine, scales.of);
  const int64_t count = shape.batch * shape.padded();
  const Points<T> points{static_cast<const T*>(in.features),
                         static_cast<T*>(in.barycentric),
                         in.simplices,
                         in.first_bad,
                         FastDivisor(shape.padded()),
                         static_cast<int>(shape.points),
                         static_cast<int>(count)};
  permutohedral::with_dimensions(shape.d, [&]<int D>() {
    FASTSEG_LAUNCH((enclosing_simplex<D, T>), lattice_blocks(count), kLatticeThreads,
                   kLatticeThreads * (D + 1) * sizeof(T), stream, points, scales);
  });
}

}  // namespace

cudaError_t find_simplices(const LatticeShape& shape, const LatticePoints& points,
                           cudaStream_t stream) {
  if (points.dtype == Dtype::kFloat64) {
    launch<double>(shape, points, stream);
  } else {
    launch<float>(shape, points, stream);
  }
  return cudaGetLastError();
}

}  // namespace fastseg::cuda
