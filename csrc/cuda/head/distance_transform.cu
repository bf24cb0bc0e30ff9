// d2_i = min over zeros j of sum_a w_a (i_a - j_a)^2, a launch for each axis.
//
// First pass: a thread walks down a column and up again, beside its neighbours. The others: a warp
// takes a line, out_i = min_j w (i - j)^2 + in_j, as the CPU does (cpu/head/lower_envelope.h). The
// least j never moves back as i grows, so the least j at every 32nd i bound those of the 32
// between, a lane each; and they themselves are found by halving, the warp looking at 32 candidates
// at once. All stretches together try n + n / 32 candidates, whatever the mask holds.
//
// Floor for 2-D in float32: mask 1 byte, squares written, read, written and read 16, distances 4,
// so 21 bytes an element (8 x 1024 x 1024: 176 MB, 53 us at 3.35 TB/s). An element costs some ten
// instructions of its warp's 32, which is more: 90 us.

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cuda/head/distance_transform.h"
#include "cuda/launch.h"
#include "cuda/shared_memory.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;
template <class V>
constexpr V kMost = std::numeric_limits<V>::max();

__device__ inline int smaller(int a, int b) { return a < b ? a : b; }
__device__ inline int larger(int a, int b) { return a < b ? b : a; }

template <class U, class V>
__global__ void __launch_bounds__(kThreads)
    distance_columns_kernel(const U* mask, U bits, int size, int64_t row, int64_t columns, V weight,
                            V* squares) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= columns) return;
  const int64_t first = column / row * size * row + column % row;
  int steps = size;  // more than any zero in the column is away
  for (int r = 0; r < size; ++r) {
    steps = (mask[first + r * row] & bits) == 0 ? 0 : steps + 1;
    squares[first + r * row] = static_cast<V>(steps);
  }
  steps = 2 * size;
  for (int r = size - 1; r >= 0; --r) {
    V* const square = squares + first + r * row;
    const int before = static_cast<int>(*square);
    steps = before < steps + 1 ? before : steps + 1;
    const V distance = static_cast<V>(steps);
    *square = steps < size ? weight * (distance * distance) : FarAway<V>::kValue;
  }
}

// Lines of `size` elements that are `inner` apart, `inner` lines side by side.
template <class V>
struct Pass {
  const V* in;
  int size;
  int64_t inner, lines;
  V weight;
  double scale;
  bool squared;
  int warps;  // of a block
};

// A warp's line: in shared memory if kStaged, else where it comes from.
template <class V, bool kStaged>
struct Line {
  const V* f;
  int64_t stride;
  V weight;
  int lane;

  __device__ V operator[](int j) const { return kStaged ? f[j] : f[j * stride]; }

  __device__ V parabola(int i, int j) const {
    const V steps = static_cast<V>(i - j);
    return weight * (steps * steps) + (*this)[j];
  }

  // The least j of i, in [begin, end]; the same for all lanes.
  __device__ int search(int i, int begin, int end) const {
    const V here = (*this)[i];
    if (here == 0) return i;
    // No parabola that begins farther away than this one is high lies lower.
    const double reach = sqrt(static_cast<double>(here) / static_cast<double>(weight)) + 1;
    if (reach < end - begin) {
      begin = larger(begin, i - static_cast<int>(reach));
      end = smaller(end, i + static_cast<int>(reach));
    }
    V best = kMost<V>;
    int winner = begin;
    for (int j = begin + lane; j <= end; j += kWarp) {
      const V value = parabola(i, j);
      if (value < best) {
        best = value;
        winner = j;
      }
    }
    for (int bits = kWarp / 2; bits > 0; bits /= 2) {
      const V other = __shfl_xor_sync(kAllLanes, best, bits);
      const int other_winner = __shfl_xor_sync(kAllLanes, winner, bits);
      if (other < best || (other == best && other_winner < winner)) {
        best = other;
        winner = other_winner;
      }
    }
    return winner;
  }

  __device__ void find_least(int size, int* least) const {
    const int stretches = (size + kWarp - 1) / kWarp, last = size - 1;
    const auto find = [&](int s, int begin, int end) {
      const int j = search(smaller(s * kWarp, last), begin, end);
      __syncwarp();
      if (lane == 0) least[s] = j;
      __syncwarp();
    };
    find(0, 0, last);
    find(stretches, least[0], last);
    int half = 1;
    while (2 * half < stretches) half *= 2;
    for (; half > 0; half /= 2) {
      for (int s = half; s < stretches; s += 2 * half) {
        find(s, least[s - half], least[smaller(s + half, stretches)]);
      }
    }
  }
};

// kLast: distances go out; else squares of V.
template <class V, class T, bool kLast>
__device__ T finished(const Pass<V>& op, V d2) {
  if constexpr (!kLast) {
    return d2;
  } else {
    if (d2 >= FarAway<V>::kValue) return static_cast<T>(FarAway<double>::kValue);
    if (op.scale == 1 && std::is_same_v<V, int32_t>) {
      const T exact = static_cast<T>(d2);
      return op.squared ? exact : sqrt(exact);
    }
    const double wide = static_cast<double>(d2);
    return static_cast<T>(op.squared ? wide * op.scale * op.scale : sqrt(wide) * op.scale);
  }
}

template <class V, class T, bool kLast, bool kStaged>
__global__ void __launch_bounds__(kThreads, 4) distance_envelope_pass(Pass<V> op, T* out) {
  FASTSEG_DYNAMIC_SHARED(V, shared);  // lines if staged, then the least j at the ends of stretches
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t index = int64_t{blockIdx.x} * op.warps + warp;
  if (index >= op.lines) return;  // the whole warp, and blocks have no barrier
  const int64_t origin = index / op.inner * op.size * op.inner + index % op.inner;
  const int staged = kStaged ? op.size : 0, ends = (op.size + kWarp - 1) / kWarp + 1;
  V* const memory = shared + warp * staged;
  int* const least = reinterpret_cast<int*>(shared + op.warps * staged) + warp * ends;
  if (kStaged) {
    for (int j = lane; j < op.size; j += kWarp) memory[j] = op.in[origin + j * op.inner];
    __syncwarp();
  }
  const Line<V, kStaged> line{kStaged ? memory : op.in + origin, op.inner, op.weight, lane};
  line.find_least(op.size, least);
  for (int s = 0; s * kWarp < op.size; ++s) {
    const int i = s * kWarp + lane, first = least[s], last = least[s + 1];
    V best = line.parabola(i, first);
    for (int j = first + 1; j <= last; ++j) {
      const V value = line.parabola(i, j);
      best = value < best ? value : best;
    }
    if (i < op.size) out[origin + i * op.inner] = finished<V, T, kLast>(op, best);
  }
}

template <class V, class T, bool kLast, bool kStaged>
cudaError_t launch_pass(Pass<V> op, int64_t line_bytes, T* out, cudaStream_t stream) {
  op.warps =
      static_cast<int>(std::clamp<int64_t>(kDefaultSharedBytes / line_bytes, 1, kThreads / kWarp));
  const int64_t blocks = (op.lines + op.warps - 1) / op.warps, bytes = op.warps * line_bytes;
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  const cudaError_t error = allow_shared(&distance_envelope_pass<V, T, kLast, kStaged>, bytes);
  if (error != cudaSuccess) return error;
  FASTSEG_LAUNCH((distance_envelope_pass<V, T, kLast, kStaged>), static_cast<unsigned>(blocks),
                 op.warps * kWarp, bytes, stream, op, out);
  return cudaGetLastError();
}

template <class V, class T, bool kLast>
cudaError_t pass(const DistanceTransform& transform, int axis, const V* in, T* out,
                 cudaStream_t stream) {
  const int64_t size = transform.sizes[axis], inner = axis == 1 ? transform.sizes[2] : 1;
  const int64_t lines = transform.images * transform.volume() / size;
  const Pass<V> op{in,
                   static_cast<int>(size),
                   inner,
                   lines,
                   static_cast<V>(transform.weights[axis]),
                   transform.scale,
                   transform.squared,
                   0};
  const int64_t ends = ((size + kWarp - 1) / kWarp + 1) * sizeof(int);
  const int64_t bytes = size * sizeof(V) + ends;
  return bytes <= kMaxSharedBytes ? launch_pass<V, T, kLast, true>(op, bytes, out, stream)
                                  : launch_pass<V, T, kLast, false>(op, ends, out, stream);
}

template <class U, class V>
cudaError_t columns(const DistanceTransformJob& job, V* squares, cudaStream_t stream) {
  const int64_t row = job.op.plane(), count = job.op.images * row;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  if (blocks > std::numeric_limits<int>::max()) return cudaErrorInvalidConfiguration;
  FASTSEG_LAUNCH((distance_columns_kernel<U, V>), static_cast<unsigned>(blocks), kThreads, 0,
                 stream, static_cast<const U*>(job.mask), static_cast<U>(job.bits),
                 static_cast<int>(job.op.sizes[0]), row, count, static_cast<V>(job.op.weights[0]),
                 squares);
  return cudaGetLastError();
}

template <class V>
cudaError_t transform_in(const DistanceTransformJob& job, cudaStream_t stream) {
  V* squares = static_cast<V*>(job.squares);
  cudaError_t error = cudaSuccess;
  switch (job.mask_bytes) {
    case 1:
      error = columns<uint8_t>(job, squares, stream);
      break;
    case 2:
      error = columns<uint16_t>(job, squares, stream);
      break;
    case 4:
      error = columns<uint32_t>(job, squares, stream);
      break;
    default:
      error = columns<uint64_t>(job, squares, stream);
  }
  if (error != cudaSuccess) return error;
  if (job.op.sizes[1] > 1) {
    V* const next = static_cast<V*>(job.more_squares);
    error = pass<V, V, false>(job.op, 1, squares, next, stream);
    if (error != cudaSuccess) return error;
    squares = next;
  }
  return job.in_float64
             ? pass<V, double, true>(job.op, 2, squares, static_cast<double*>(job.out), stream)
             : pass<V, float, true>(job.op, 2, squares, static_cast<float*>(job.out), stream);
}

}  // namespace

cudaError_t distance_transform(const DistanceTransformJob& job, cudaStream_t stream) {
  return job.op.in_integers ? transform_in<int32_t>(job, stream)
                            : transform_in<double>(job, stream);
}

}  // namespace fastseg::cuda
