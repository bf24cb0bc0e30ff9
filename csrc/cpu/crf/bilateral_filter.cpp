// fastseg::bilateral_filter on the CPU: out = K values with
// K_ij = exp(-|p_i - p_j|^2 / (2 sxy^2) - |I_i - I_j|^2 / (2 srgb^2)), p being positions and I the
// image, on a lattice that serves one filtering (permutohedral_lattice.h, permutohedral_filter.h).
//
// Image after image: features, lattice, filter. What one leaves in a core's cache the next one
// reads, where the steps of a batch would take turns with memory: for 224 x 224 pixels the features
// are 1 MB and the lattice 2.4 MB. With fewer images than threads, each image is on all of them;
// the numbers are the same, since tasks do not depend on threads.

#include "cpu/crf/bilateral_filter.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>

#include "common/crf/bilateral_filter_ops.h"
#include "cpu/crf/permutohedral_filter.h"
#include "cpu/crf/permutohedral_lattice.h"
#include "cpu/memory/buffer.h"
#include "cpu/threads/task_memory.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

constexpr const char* kName = "bilateral_filter";

// The features are x / sxy, y / sxy and the image's channels / srgb, a plane each. Every one is a
// quotient, as in Kraehenbuehl's program: a product by the reciprocal may lie in another simplex.
template <class T>
void write_positions(const BilateralCall& call, T* out) {
  const int64_t h = call.height(), w = call.width();
  const T sxy = static_cast<T>(call.sxy);
  for (int64_t x = 0; x < w; ++x) out[x] = static_cast<T>(x) / sxy;
  for (int64_t y = 1; y < h; ++y) std::copy_n(out, w, out + y * w);
  for (int64_t y = 0; y < h; ++y) std::fill_n(out + (h + y) * w, w, static_cast<T>(y) / sxy);
}

template <class T>
void write_colours(const BilateralCall& call, const T* image, T* out) {
  const T srgb = static_cast<T>(call.srgb);
  const int64_t size = call.colours() * call.height() * call.width();
  for (int64_t i = 0; i < size; ++i) out[i] = image[i] / srgb;
}

// What a thread keeps from image to image.
template <class T>
struct Scratch {
  explicit Scratch(const BilateralCall& call)
      : features((2 + call.colours()) * call.height() * call.width()) {
    write_positions(call, features.get());
  }
  Buffer<T> features;
  SimplexFilterer<T> filterer;
};

template <class T>
void filter_image(const BilateralCall& call, int64_t b, const TaskRunner& tasks,
                  Scratch<T>& scratch) {
  const int64_t points = call.height() * call.width(), size = call.channels() * points;
  const int d = static_cast<int>(2 + call.colours());
  const auto* values = static_cast<const T*>(call.values.const_data_ptr()) + b * size;
  auto* out = static_cast<T*>(call.out.mutable_data_ptr()) + b * size;
  const auto* image =
      static_cast<const T*>(call.image.const_data_ptr()) + b * call.colours() * points;
  const T* features = scratch.features.get();
  write_colours(call, image, scratch.features.get() + 2 * points);
  const T gain = static_cast<T>(call.gain);
  if (call.dilation == 0 && call.channels() <= kMostSimplexChannels) {
    return scratch.filterer.run(
        {d, points, call.channels(), features, values, call.refine, call.blur, gain, out}, tasks,
        kName);
  }
  const LatticeInput<T> input{features,   1,      points,      d,
                              d * points, points, call.refine, call.dilation};
  const Lattice<T> lattice(input, tasks, kName);
  filter(lattice.view(), call.blur, gain, call.channels(), values, out, tasks);
}

template <class T>
void filter_as(const BilateralCall& call) {
  const TorchTasks threads;
  TaskMemory<Scratch<T>> memory;
  const auto with_scratch = [&](const auto& body) {
    memory.borrow([&] { return std::make_unique<Scratch<T>>(call); }, body);
  };
  if (call.batch() < torch::stable::get_num_threads()) {
    return with_scratch([&](Scratch<T>& scratch) {
      for (int64_t b = 0; b < call.batch(); ++b) filter_image(call, b, threads, scratch);
    });
  }
  threads.run(call.batch(), [&](int64_t b) {
    with_scratch([&](Scratch<T>& scratch) { filter_image(call, b, InlineTasks(), scratch); });
  });
}

void run(const BilateralCall& call) {
  call.values.scalar_type() == ScalarType::Float ? filter_as<float>(call) : filter_as<double>(call);
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  using fastseg::cpu::run;
  m.impl("bilateral_filter", TORCH_BOX(&fastseg::bilateral_filter_ops::bilateral_filter<run>));
}
