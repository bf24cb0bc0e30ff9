#pragma once
// Blur along an axis: out[v] = in[v] + side (in[back[v]] + in[forward[v]]), a thread a pack. A
// launch takes up to three axes, one after the other: the thread blurs its pack and those of the
// last axis' two neighbours along the axes before, 9 or 27 packs instead of 3 for each of two or
// three launches. Vertices of a block share most of these: along an axis 2.1 rows of memory a
// vertex, along two 4.4 and along three 8.6 in a photo's five dimensions; in two
// dimensions 1.7, 2.5 and 2.8.

#include <algorithm>
#include <utility>

#include "cuda/crf/permutohedral_parts.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace fastseg::cuda {

inline constexpr int kMostSteps = 3;

// Of a launch: doubles would take too many registers, and what three axes share in two orders is
// too little.
template <class T>
constexpr int kStepsOfBoth = sizeof(T) == 8 ? 1 : 2;
template <class T>
constexpr int kStepsOfOne = sizeof(T) == 8 ? 1 : kMostSteps;

// What a launch does in one order of axes.
template <class T>
struct Steps {
  const T* in = nullptr;
  int count = 0;
  const int* axes[kMostSteps] = {};  // LatticeView::neighbors of an axis
};

template <class T>
struct Blur {
  Steps<T> steps;
  Steps<T> other;  // where its count is not zero: out is the mean of both
  DeviceCount vertices;
  FastDivisor packs;
  int64_t copy;  // elements from copy to copy
  T side;
  T* out;
};

// A thread's way through the steps of a launch.
template <class T, int V>
struct Blurred {
  const int* const (&axes)[kMostSteps];
  const T* rows;  // those of the copy, from the thread's pack on
  int last, packs;
  T side;
  unsigned largest = 0;  // of the neighbours

  // A vertex's pack after the first kSteps steps. The row of zeros stays what it is.
  template <int kSteps>
  __device__ Pack<T, V> at(int vertex) {
    if constexpr (kSteps == 0) {
      return load_pack<V>(rows + int64_t{vertex * packs} * V);
    } else {
      const int* const neighbors = axes[kSteps - 1];
      int back = last, forward = last;
      if (vertex != last) {
        back = inside(neighbors[vertex]);
        forward = inside(neighbors[vertex + last]);
      }
      // Nine packs at a time, since 27 would take too many registers.
      constexpr int kAtOnce = kSteps == kMostSteps ? 1 : 3;
      Pack<T, V> sum, out;
#pragma unroll kAtOnce
      for (int i = 0; i < 3; ++i) {
        out = at<kSteps - 1>(i == 0 ? back : i == 1 ? forward : vertex);
        if (i == 0) sum = out;
        if (i == 1) sum.add(T{1}, out);
      }
      out.add(side, sum);
      return out;
    }
  }

  // Without a branch, which would keep the next load waiting: is_good tells.
  __device__ int inside(int neighbor) {
    const unsigned index = neighbor, end = last;
    largest = index > largest ? index : largest;
    return static_cast<int>(index < end ? index : end);
  }
  __device__ bool is_good() const { return largest <= static_cast<unsigned>(last); }
};

// kMost: steps of a launch.
template <class T, int kMost, int V>
__device__ inline Pack<T, V> blurred(const Blur<T>& op, const Steps<T>& steps, int vertex,
                                     int64_t offset) {
  Blurred<T, V> blur{steps.axes, steps.in + offset, op.vertices.most, op.packs, op.side};
  Pack<T, V> out;
  if (kMost == 1 || steps.count == 1) {
    out = blur.template at<1>(vertex);
  } else if (kMost == 2 || steps.count == 2) {
    out = blur.template at<2>(vertex);
  } else {
    out = blur.template at<kMost>(vertex);
  }
  FASTSEG_DEVICE_CHECK(blur.is_good(),
                       "fastseg::permutohedral_filter: neighbors must be from 0 to the vertices");
  return out;
}

template <class T, int kMost, int V>
__device__ inline void blur_pack(const Blur<T>& op, const PartPlace& place) {
  const int v = place.index / op.packs, vertices = op.vertices();
  if (v >= vertices && v != op.vertices.most) return;
  const int64_t copy = place.copy * op.copy;
  Pack<T, V> out{};
  if (v < vertices) {
    const int64_t offset = copy + (place.index - v * op.packs) * V;
    out = blurred<T, kMost, V>(op, op.steps, v, offset);
    if (kMost <= kStepsOfBoth<T> && op.other.count > 0) {
      out.add(T{1}, blurred<T, kMost, V>(op, op.other, v, offset));
#pragma unroll
      for (int k = 0; k < V; ++k) out.v[k] *= T(0.5);
    }
  }
  store_pack_global(op.out + copy + int64_t{place.index} * V, out);
}

// One order of axes, and its buffers from launch to launch: what is in `from` goes to `to`, and
// then the other way, or on to `free`, which the first launch leaves alone.
template <class T>
struct Chain {
  bool reverse;
  T *from, *to, *free;

  void next() {
    from = to;
    std::swap(to, free);
  }
};

// A lattice's blur, a launch at a time.
template <class T, int V>
class Blurring {
 public:
  Blurring() = default;
  Blurring(const VertexJob<T>& job, int most)
      : job_(job),
        copy_(job.shape.template elements<V>(job.lattice->vertices + 1)),
        steps_(job.blur.passes * job.lattice->corners),
        at_once_(equal_part(steps_, most)) {
    T* const values = job.buffers;
    const auto buffer = [&](int i) { return values + i * copy_ * job.shape.copies; };
    if (job.blur.symmetric) {
      chains_[0] = {false, values, buffer(1), buffer(2)};
      chains_[1] = {true, values, buffer(3), values};
    } else {
      chains_[0] = {job.blur.reverse, values, buffer(1), values};
    }
  }

  bool remain() const { return done_ < steps_; }
  T* result() const { return chains_[0].from; }

  // The next launch's.
  template <class Launch>
  void add_steps(Launch& launch) {
    const int i = done_;
    done_ = std::min(done_ + at_once_, steps_);
    const bool last = done_ == steps_;
    const LatticeView<T>& lattice = *job_.lattice;
    const auto add = [&](const Steps<T>& steps, const Steps<T>& other, T* out) {
      launch.add({steps, other, lattice.vertex_count(), FastDivisor(job_.shape.packs), copy_,
                  static_cast<T>(job_.blur.side), out},
                 job_.shape);
    };
    if (!job_.blur.symmetric) {
      add(steps_of(chains_[0], i), {}, chains_[0].to);
    } else if (last) {
      add(steps_of(chains_[0], i), steps_of(chains_[1], i), chains_[0].to);
    } else {
      for (const Chain<T>& chain : chains_) add(steps_of(chain, i), {}, chain.to);
    }
    for (Chain<T>& chain : chains_) chain.next();
  }

 private:
  // So that four steps are two launches of two, not one of three and one of one.
  static int equal_part(int steps, int most) {
    const int launches = (steps + most - 1) / most;
    return (steps + launches - 1) / launches;
  }

  // From step i to those done.
  Steps<T> steps_of(const Chain<T>& chain, int i) const {
    Steps<T> steps{chain.from};
    while (i < done_) steps.axes[steps.count++] = neighbors(chain, i++);
    return steps;
  }

  const int* neighbors(const Chain<T>& chain, int i) const {
    const LatticeView<T>& lattice = *job_.lattice;
    const int axis = blur_axis(i, lattice.corners, chain.reverse);
    return lattice.neighbors + int64_t{2} * axis * lattice.vertices;
  }

  VertexJob<T> job_;
  int64_t copy_ = 0;
  int steps_ = 0, at_once_ = 1, done_ = 0;
  Chain<T> chains_[2] = {};
};

template <class T>
using Blurs = Parts<Blur<T>, 2 * kMaxVertexJobs>;

// The blurs of several lattices, a launch at a time.
template <class T, int V>
class Blurrings {
 public:
  // most: steps of a launch.
  Blurrings(const VertexJob<T>* jobs, int count, int most) : count_(count) {
    for (int j = 0; j < count; ++j) blurs_[j] = Blurring<T, V>(jobs[j], most);
  }

  bool remain() const {
    return std::any_of(blurs_, blurs_ + count_, [](const auto& blur) { return blur.remain(); });
  }

  // What the next launch does; nothing where none remain.
  Blurs<T> next() {
    Blurs<T> launch;
    for (int j = 0; j < count_; ++j) {
      if (blurs_[j].remain()) blurs_[j].add_steps(launch);
    }
    return launch;
  }

  void set_results(VertexJob<T>* jobs) const {
    for (int j = 0; j < count_; ++j) jobs[j].result = blurs_[j].result();
  }

 private:
  Blurring<T, V> blurs_[kMaxVertexJobs];
  int count_;
};

template <class T, int kMost, int V>
__device__ inline void blur_all(const Blurs<T>& parts, int first, int stride) {
  walk(parts, first, stride,
       [](const Blur<T>& part, const PartPlace& place) { blur_pack<T, kMost, V>(part, place); });
}

}  // namespace fastseg::cuda
