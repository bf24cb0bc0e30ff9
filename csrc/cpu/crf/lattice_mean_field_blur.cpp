// The chains of a lattice's vertices, and the filters of all lattices pass by pass.

#include "cpu/crf/lattice_mean_field_blur.h"

#include <algorithm>

#include "cpu/crf/lattice_mean_field_terms.h"
#include "cpu/threads/joint_pass.h"

namespace fastseg::cpu {

BlurChains::BlurChains(const LatticeView<float>& lattice, const TaskRunner& tasks)
    : chains_(lattice.d + 1) {
  const int32_t none = static_cast<int32_t>(lattice.vertices);
  tasks.run(lattice.d + 1, [&](int64_t axis) {
    const int32_t* back = lattice.back(static_cast<int>(axis));
    const int32_t* forward = lattice.forward(static_cast<int>(axis));
    LargeVector<int32_t>& chains = chains_[axis];
    chains.reserve(none);
    for (int32_t first = 0; first < none; ++first) {
      if (back[first] != none || forward[first] == none) continue;
      int32_t v = first;
      for (; forward[v] != none; v = forward[v]) chains.push_back(v);
      chains.push_back(~v);
    }
  });
}

namespace {

// The rows of a task: about 64 KB.
int64_t rows_of_task(int64_t pitch) {
  return std::max<int64_t>(64, (int64_t{1} << 16) / (pitch * int64_t{sizeof(float)}));
}

// Adds body(begin, end) over the vertices of a term to a pass.
template <class Body>
void add_vertices(JointPass& pass, int64_t vertices, int64_t pitch, const Body& body) {
  const int64_t grain = rows_of_task(pitch);
  pass.add((vertices + grain - 1) / grain,
           [=](int64_t task) { body(task * grain, std::min(vertices, (task + 1) * grain)); });
}

// Adds the blur along the chains of one axis to a pass.
void add_blur(JointPass& pass, const LargeVector<int32_t>& chains, float side, int64_t pitch,
              float* rows) {
  const int64_t size = static_cast<int64_t>(chains.size()), grain = rows_of_task(pitch);
  const int32_t* entries = chains.data();
  // A task begins with the first chain that begins at its stretch or behind.
  const auto chain_from = [=](int64_t i) {
    while (i > 0 && i < size && entries[i - 1] >= 0) ++i;
    return std::min(i, size);
  };
  const auto kernel = FASTSEG_SIMD_DISPATCH(blur_chains);
  pass.add((size + grain - 1) / grain, [=](int64_t task) {
    const int64_t begin = chain_from(task * grain), end = chain_from((task + 1) * grain);
    if (begin < end) kernel(entries + begin, end - begin, side, pitch, rows);
  });
}

}  // namespace

void filter_lattices(std::vector<LatticeTerm>& terms, const float* sums, int64_t copy_rows,
                     int64_t labels, int64_t pitch, const TaskRunner& tasks) {
  size_t copies = 0;
  int steps = 0;
  for (LatticeTerm& term : terms) {
    copies = std::max(copies, term.copies.size());
    steps = std::max(steps, term.blur_steps());
  }
  for (size_t k = 0; k < copies; ++k) {
    const auto run_pass = [&](const auto& add) {
      JointPass pass;
      for (LatticeTerm& term : terms) {
        if (k < term.copies.size()) add(pass, term, term.copies[k].blurred.get());
      }
      pass.run(tasks);
    };
    run_pass([&](JointPass& pass, LatticeTerm& term, float* rows) {
      const auto kernel = FASTSEG_SIMD_DISPATCH(reduce_rows<float>);
      const ReduceRows<float> op{term.copies[k].vertex_rows.data(),
                                 term.lattice.view().vertex_starts, pitch,
                                 sums + k * copy_rows * pitch, rows};
      float* reverse = term.reverse.get();
      add_vertices(pass, term.lattice.view().vertices, pitch, [=](int64_t begin, int64_t end) {
        kernel(op, begin, end);
        if (reverse) std::copy(rows + begin * pitch, rows + end * pitch, reverse + begin * pitch);
      });
    });
    for (int step = 0; step < steps; ++step) {
      run_pass([&](JointPass& pass, LatticeTerm& term, float* rows) {
        if (step >= term.blur_steps()) return;
        const int axes = term.lattice.view().d + 1;
        const float side = static_cast<float>(term.blur_options.side);
        add_blur(pass, term.chains.along(blur_axis(step, axes, false)), side, pitch, rows);
        if (!term.reverse) return;
        add_blur(pass, term.chains.along(blur_axis(step, axes, true)), side, pitch,
                 term.reverse.get());
      });
    }
    run_pass([&](JointPass& pass, LatticeTerm& term, float* rows) {
      const float *reverse = term.reverse.get(), *matrix = term.mixing.matrix.get();
      if (!reverse && !matrix) return;
      add_vertices(pass, term.lattice.view().vertices, pitch, [=](int64_t begin, int64_t end) {
        float* first = rows + begin * pitch;
        const int64_t count = end - begin;
        if (reverse) FASTSEG_SIMD_DISPATCH(mean_of(reverse + begin * pitch, count * pitch, first));
        if (matrix) FASTSEG_SIMD_DISPATCH(mix_rows(first, count, labels, pitch, matrix));
      });
    });
  }
}

}  // namespace fastseg::cpu
