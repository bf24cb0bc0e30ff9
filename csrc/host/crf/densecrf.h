#pragma once
// A dense CRF as pydensecrf computes it, on plain arrays.

#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "cpu/crf/lattice_mean_field.h"
#include "host/process_mutex.h"
#include "host/thread_pool.h"

namespace fastseg::host {

// Energies and Q are dense (labels, points). Threads may share an object; they take turns.
// std::runtime_error on what is not a number or does not fit, naming the argument.
class DenseCrf {
 public:
  // size: (height, width), or (points,) for features that are no positions.
  DenseCrf(std::vector<int64_t> size, int64_t labels);

  int64_t labels() const { return labels_; }
  int64_t points() const { return points_; }
  const std::vector<int64_t>& size() const { return size_; }

  void set_unary(const float* energies, int threads);

  // Terms. features: (dimensions, points); sx, sy: pixels; srgb: three; image: (height, width, 3).
  void add_features(const float* features, int64_t dimensions, Compatibility compatibility,
                    Normalization normalization, int threads);
  void add_gaussian(float sx, float sy, Compatibility compatibility, Normalization normalization,
                    int threads);
  void add_bilateral(float sx, float sy, const float* srgb, const uint8_t* image,
                     Compatibility compatibility, Normalization normalization, int threads);

  // Iterations from softmax(-energies), which are zero if none were set. `between` is called before
  // each; it may throw to stop.
  void inference(int64_t iterations, float* q, int threads, const std::function<void()>& between);

  // One iteration in place, from any Q.
  void step(float* q, int threads);

  double kl_divergence(const float* q, int threads);

  // Vertices of term number `term`'s lattice.
  int64_t vertex_count(int64_t term);

 private:
  // A compatibility with values of its own.
  struct OwnCompatibility {
    Compatibility::Kind kind;
    std::vector<float> values;
    Compatibility view() const { return {kind, values.data()}; }
  };
  OwnCompatibility copy(const Compatibility& compatibility) const;

  // Adds a term now, and again with all others if more come after an inference.
  void add(std::function<void()> term);

  // (5, points): x, y, r, g, b over their deviations.
  std::vector<float> bilateral_features(const std::vector<float>& deviations,
                                        const uint8_t* image) const;

  // Locks and sets the threads of all that follows.
  std::unique_lock<ProcessMutex> enter(int threads);
  // Before an iteration: without a unary its energies are zero.
  void prepare();

  std::vector<int64_t> size_;
  int64_t labels_, points_;
  cpu::LabelStrides strides_;
  PoolRunner runner_;
  ProcessMutex mutex_;
  std::vector<std::function<void()>> terms_;
  bool has_unary_ = false, started_ = false;
  cpu::MeanField field_;
};

}  // namespace fastseg::host
