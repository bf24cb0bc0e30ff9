// Reduce: out[v] = sum of rows[vertex_rows[k]] over v's segment. A thread makes a pack of a row.
// Blur along one axis: out[v] = in[v] + side (in[back[v]] + in[forward[v]]), a thread a pack, too.
//
// These kernels take microseconds, so launches count: one serves all lattices and both orders of a
// symmetric blur, whose last steps are taken together with their mean.
//
// Floor: each tile's row in once and each vertex's row out; a row in and out and two indices for
// each vertex and step, if the neighbours' rows come from the second-level cache: 9 steps of 24
// thousand vertices of 24 channels are 2.3 MB each.

#include <algorithm>
#include <utility>

#include "cuda/crf/permutohedral_blur.h"
#include "cuda/fast_divisor.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace fastseg::cuda {
namespace {

constexpr int kThreads = 256;
// Rows of a vertex: doubles take twice the registers.
template <class T>
constexpr int kAtOnceOf = sizeof(T) == 8 ? 2 : 4;

// Blocks of a launch whose parts may be far smaller than their limits: enough for every processor.
constexpr unsigned kWalkingBlocks = 4096;

// Parts of a launch, each a number of blocks' places for each copy of its rows.
template <class Part, int kMax>
struct Parts {
  int count = 0;
  bool bounded = false;
  int ends[kMax];  // places of this part and those ahead
  FastDivisor blocks_a_copy[kMax];
  Part parts[kMax];

  void add(const Part& part, const RowShape& shape) {
    const DeviceCount& vertices = part.vertices;
    bounded |= vertices.exact != nullptr;
    const int64_t packs = (int64_t{vertices.most} + 1) * shape.packs;
    const int64_t blocks = (packs + kThreads - 1) / kThreads;
    blocks_a_copy[count] = FastDivisor(blocks);
    ends[count] = static_cast<int>(places() + blocks * shape.copies);
    parts[count++] = part;
  }
  FASTSEG_HOST_DEVICE int places() const { return count == 0 ? 0 : ends[count - 1]; }
  unsigned blocks() const {
    const unsigned all = static_cast<unsigned>(places());
    return bounded ? std::min(all, kWalkingBlocks) : all;
  }
};

// Where a thread works.
struct PartPlace {
  int part, copy, index;  // the pack within the copy
};

template <class Part, int kMax>
__device__ inline PartPlace place_in(const Parts<Part, kMax>& op, int block) {
  int part = 0;
  while (block >= op.ends[part]) ++part;
  if (part > 0) block -= op.ends[part - 1];
  const int copy = block / op.blocks_a_copy[part];
  return {part, copy, (block - copy * op.blocks_a_copy[part]) * kThreads + int(threadIdx.x)};
}

template <class T>
struct Reduce {
  const int* vertex_rows;
  const int* vertex_starts;
  DeviceCount vertices, row_count;
  FastDivisor packs;
  int64_t rows_copy, out_copy;  // elements from copy to copy
  const T* rows;
  T* out;
};

template <class T, int V>
__device__ inline void reduce_pack(const Reduce<T>& op, const PartPlace& place) {
  const int v = place.index / op.packs, vertices = op.vertices();
  if (v >= vertices && v != op.vertices.most) return;
  Pack<T, V> sum{};
  if (v < vertices) {
    const int first = op.vertex_starts[v], last = op.vertex_starts[v + 1],
              rows_end = op.row_count();
    FASTSEG_DEVICE_CHECK(
        (v > 0 ? first >= 0 : first == 0) && first <= last &&
            (v + 1 < vertices ? last <= rows_end : last == rows_end),
        "fastseg::permutohedral_filter: vertex_starts must ascend from 0 to the rows");
    constexpr int kAtOnce = kAtOnceOf<T>;
    const T* rows = op.rows + place.copy * op.rows_copy + (place.index - v * op.packs) * V;
    // Indices first, then rows: a check between two loads would keep the second one waiting.
    for (int k = first; k < last; k += kAtOnce) {
      int row[kAtOnce];
      bool good = true;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        row[j] = op.vertex_rows[k + j < last ? k + j : k];
        good &= row[j] >= 0 && row[j] < rows_end;
      }
      FASTSEG_DEVICE_CHECK(good,
                           "fastseg::permutohedral_filter: vertex_rows must be from 0 to the rows");
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (k + j < last) sum.add(T{1}, load_pack<V>(rows + int64_t{row[j]} * op.packs * V));
      }
    }
  }
  store_pack_global(op.out + place.copy * op.out_copy + int64_t{place.index} * V, sum);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    permutohedral_reduce(const Parts<Reduce<T>, kMaxVertexJobs> parts) {
#pragma unroll 1
  for (int block = blockIdx.x; block < parts.places(); block += gridDim.x) {
    const PartPlace place = place_in(parts, block);
    reduce_pack<T, V>(parts.parts[place.part], place);
  }
}

// One step along an axis.
template <class T>
struct Step {
  const T* in = nullptr;
  const int* back = nullptr;
  const int* forward = nullptr;
};

template <class T>
struct Blur {
  Step<T> step;
  Step<T> other;  // where `in` is not null: out is the mean of both steps
  DeviceCount vertices;
  FastDivisor packs;
  int64_t copy;  // elements from copy to copy
  T side;
  T* out;
};

template <class T, int V>
__device__ inline Pack<T, V> stepped(const Blur<T>& op, const Step<T>& step, int v, int64_t copy,
                                     int index) {
  const int back = step.back[v], forward = step.forward[v];
  const int last = op.vertices.most;
  FASTSEG_DEVICE_CHECK(back >= 0 && back <= last && forward >= 0 && forward <= last,
                       "fastseg::permutohedral_filter: neighbors must be from 0 to the vertices");
  const T* rows = step.in + copy + (index - v * op.packs) * V;
  Pack<T, V> sum = load_pack<V>(rows + int64_t{back} * op.packs * V);
  sum.add(T{1}, load_pack<V>(rows + int64_t{forward} * op.packs * V));
  Pack<T, V> out = load_pack<V>(step.in + copy + int64_t{index} * V);
  out.add(op.side, sum);
  return out;
}

template <class T, int V>
__device__ inline void blur_pack(const Blur<T>& op, const PartPlace& place) {
  const int v = place.index / op.packs, vertices = op.vertices();
  if (v >= vertices && v != op.vertices.most) return;
  const int64_t copy = place.copy * op.copy;
  Pack<T, V> out{};
  if (v < vertices) {
    out = stepped<T, V>(op, op.step, v, copy, place.index);
    if (op.other.in != nullptr) {
      out.add(T{1}, stepped<T, V>(op, op.other, v, copy, place.index));
#pragma unroll
      for (int k = 0; k < V; ++k) out.v[k] *= T(0.5);
    }
  }
  store_pack_global(op.out + copy + int64_t{place.index} * V, out);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    permutohedral_blur(const Parts<Blur<T>, 2 * kMaxVertexJobs> parts) {
#pragma unroll 1
  for (int block = blockIdx.x; block < parts.places(); block += gridDim.x) {
    const PartPlace place = place_in(parts, block);
    blur_pack<T, V>(parts.parts[place.part], place);
  }
}

// One order of axes, and its buffers from step to step: what is in `from` goes to `to`, and then
// the other way, or on to `free`, which the first step leaves alone.
template <class T>
struct Chain {
  bool reverse;
  T *from, *to, *free;

  void next() {
    from = to;
    std::swap(to, free);
  }
};

// A lattice's blur, a step at a time.
template <class T, int V>
class Blurring {
 public:
  Blurring() = default;
  explicit Blurring(const VertexJob<T>& job)
      : job_(job),
        copy_(job.shape.template elements<V>(job.lattice->vertices + 1)),
        steps_(job.blur.passes * job.lattice->corners) {
    T* const values = job.buffers;
    const auto buffer = [&](int i) { return values + i * copy_ * job.shape.copies; };
    if (job.blur.symmetric) {
      chains_[0] = {false, values, buffer(1), buffer(2)};
      chains_[1] = {true, values, buffer(3), values};
    } else {
      chains_[0] = {job.blur.reverse, values, buffer(1), values};
    }
  }

  int steps() const { return steps_; }
  T* result() const { return chains_[0].from; }

  template <class Launch>
  void add_step(int i, Launch& launch) {
    const bool last = i + 1 == steps_;
    const LatticeView<T>& lattice = *job_.lattice;
    const auto add = [&](const Step<T>& step, const Step<T>& other, T* out) {
      launch.add({step, other, lattice.vertex_count(), FastDivisor(job_.shape.packs), copy_,
                  static_cast<T>(job_.blur.side), out},
                 job_.shape);
    };
    if (!job_.blur.symmetric) {
      add(step_of(chains_[0], i), {}, chains_[0].to);
    } else if (last) {
      add(step_of(chains_[0], i), step_of(chains_[1], i), chains_[0].to);
    } else {
      for (const Chain<T>& chain : chains_) add(step_of(chain, i), {}, chain.to);
    }
    for (Chain<T>& chain : chains_) chain.next();
  }

 private:
  Step<T> step_of(const Chain<T>& chain, int i) const {
    const LatticeView<T>& lattice = *job_.lattice;
    const int axis = blur_axis(i, lattice.corners, chain.reverse);
    const int* back = lattice.neighbors + int64_t{2} * axis * lattice.vertices;
    return {chain.from, back, back + lattice.vertices};
  }

  VertexJob<T> job_;
  int64_t copy_ = 0;
  int steps_ = 0;
  Chain<T> chains_[2] = {};
};

}  // namespace

template <class T, int V>
cudaError_t reduce_and_blur(VertexJob<T>* jobs, int count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  Parts<Reduce<T>, kMaxVertexJobs> sums;
  Blurring<T, V> blurs[kMaxVertexJobs];
  int steps = 0;
  for (int j = 0; j < count; ++j) {
    const VertexJob<T>& job = jobs[j];
    const LatticeView<T>& lattice = *job.lattice;
    sums.add(
        {lattice.vertex_rows, lattice.vertex_starts, lattice.vertex_count(), lattice.row_count(),
         FastDivisor(job.shape.packs), job.shape.template elements<V>(lattice.rows),
         job.shape.template elements<V>(lattice.vertices + 1), job.rows, job.buffers},
        job.shape);
    blurs[j] = Blurring<T, V>(job);
    steps = std::max(steps, blurs[j].steps());
  }
  FASTSEG_LAUNCH((permutohedral_reduce<T, V>), sums.blocks(), kThreads, 0, stream, sums);
  for (int i = 0; i < steps; ++i) {
    Parts<Blur<T>, 2 * kMaxVertexJobs> launch;
    for (int j = 0; j < count; ++j) {
      if (i < blurs[j].steps()) blurs[j].add_step(i, launch);
    }
    FASTSEG_LAUNCH((permutohedral_blur<T, V>), launch.blocks(), kThreads, 0, stream, launch);
  }
  for (int j = 0; j < count; ++j) jobs[j].result = blurs[j].result();
  return cudaGetLastError();
}

#define FASTSEG_INSTANTIATE(T, V) \
  template cudaError_t reduce_and_blur<T, V>(VertexJob<T>*, int, cudaStream_t);
FASTSEG_INSTANTIATE(float, 1)
FASTSEG_INSTANTIATE(float, 4)
FASTSEG_INSTANTIATE(double, 1)
FASTSEG_INSTANTIATE(double, 4)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cuda
