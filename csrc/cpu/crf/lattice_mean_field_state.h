#pragma once
// What a MeanField holds, and the passes over the tiles. See lattice_mean_field.h.
//
// The state is the messages at the lattices' vertices; Q is computed from them where it is wanted,
// and kept (in `q`) only for a divergence or where the caller gave it.

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/crf/lattice_mean_field.h"
#include "cpu/crf/lattice_mean_field_kernel.h"
#include "cpu/crf/lattice_mean_field_terms.h"
#include "cpu/threads/task_memory.h"

namespace fastseg::cpu {

// What a pass over all tiles does with Q.
struct MeanFieldPass {
  bool splat = false;
  bool keep = false;     // in State::q
  float* out = nullptr;  // first element of image 0
  bool log = false;      // out is log Q
  LabelStrides strides{};
  double* divergences = nullptr;  // of tiles
};

struct MeanField::State {
  State(const TaskRunner& runner, int64_t image_count, int64_t label_count,
        std::vector<int64_t> axes, const char* op)
      : tasks(runner),
        name(op),
        images(image_count),
        labels(label_count),
        pitch(mean_field_pitch(label_count)),
        size(std::move(axes)) {
    for (const int64_t n : size) points *= n;
    check(!size.empty() && size.size() <= 3, "size must have one to three axes");
    check(images >= 0 && labels >= 1 && points >= 0, "sizes must not be negative, labels positive");
  }

  void check(bool condition, const std::string& message) const {
    if (!condition) throw std::runtime_error("fastseg::" + name + ": " + message);
  }
  Mixing mixing(const Compatibility& compatibility) const;
  void add_lattice(const LatticeInput<float>& input, Normalization normalization,
                   const Compatibility& compatibility, const LatticeOptions& options);
  void prepare();
  void run(const MeanFieldPass& pass);
  void run_tile(const MeanFieldPass& pass, int64_t image, int64_t k, float* memory);
  void run_strips(const MeanFieldTile& tile, int64_t image, int64_t first, float* memory) const;
  void update_messages();
  bool empty() const { return images == 0 || points == 0; }

  const TaskRunner& tasks;
  const std::string name;
  const int64_t images, labels, pitch;
  const std::vector<int64_t> size;
  int64_t points = 1;

  std::vector<LatticeTerm> lattices;
  std::vector<SeparableTerm> separables;
  std::vector<int> order;  // of the terms as added: the number of a lattice, or -1
  CommonTiles tiles;
  bool prepared = false;
  bool by_lattice = false;  // sums are taken lattice by lattice (MeanFieldTile::lattices)
  Buffer<float> ones;       // (pitch)
  int64_t strip = 0;        // rows of separable terms that are computed at once

  Buffer<float> unary;  // (images, points, pitch)
  Buffer<float> shift;  // (images, points)
  bool messages = false;
  Buffer<float> sums;          // of all tiles' rows
  int64_t scratch_floats = 0;  // of a task
  TaskMemory<Buffer<float>> scratch;

  // Where Q is: in q alone (given), in q and one step behind the messages, or in the messages.
  enum class Source { messages, given, behind } source = Source::messages;
  Buffer<float> q;  // (images, points, pitch)
};

}  // namespace fastseg::cpu
