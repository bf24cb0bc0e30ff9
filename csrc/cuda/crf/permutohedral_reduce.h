#pragma once
// Reduce: out[v] = sum of rows[vertex_rows[k]] over v's segment. A thread makes a pack of a row.

#include "cuda/crf/permutohedral_parts.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace fastseg::cuda {

// Rows of a vertex: doubles take twice the registers.
template <class T>
constexpr int kRowsAtOnce = sizeof(T) == 8 ? 2 : 4;

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
    constexpr int kAtOnce = kRowsAtOnce<T>;
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
        if (k + j < last) sum.add(T{1}, load_pack<V>(rows + int64_t{row[j] * op.packs} * V));
      }
    }
  }
  store_pack_global(op.out + place.copy * op.out_copy + int64_t{place.index} * V, sum);
}

template <class T>
using Reduces = Parts<Reduce<T>, kMaxVertexJobs>;

template <class T, int V>
Reduces<T> reduces(const VertexJob<T>* jobs, int count) {
  Reduces<T> sums;
  for (const VertexJob<T>* job = jobs; job != jobs + count; ++job) {
    const LatticeView<T>& lattice = *job->lattice;
    sums.add(
        {lattice.vertex_rows, lattice.vertex_starts, lattice.vertex_count(), lattice.row_count(),
         FastDivisor(job->shape.packs), job->shape.template elements<V>(lattice.rows),
         job->shape.template elements<V>(lattice.vertices + 1), job->rows, job->buffers},
        job->shape);
  }
  return sums;
}

template <class T, int V>
__device__ inline void reduce_all(const Reduces<T>& parts, int first, int stride) {
  walk(parts, first, stride,
       [](const Reduce<T>& part, const PartPlace& place) { reduce_pack<T, V>(part, place); });
}

}  // namespace fastseg::cuda
