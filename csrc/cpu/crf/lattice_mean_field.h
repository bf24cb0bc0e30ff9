#pragma once
// Mean field of a dense CRF on permutohedral lattices, without torch: what the torch op
// fastseg::lattice_mean_field and the classes of fastseg.compat.pydensecrf run.
//
//   Q <- softmax(-U - sum_m mu_m (n_m K_m (n_m Q)))
//
// U: energies of L labels at N points of each of B images, which share nothing but the terms given
// once for all of them. Bad input raises std::runtime_error with a message that names the argument.
//
// Kraehenbuehl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge
// Potentials, NIPS 2011.

#include <cstdint>
#include <memory>
#include <vector>

#include "common/crf/mean_field_terms.h"
#include "cpu/threads/tasks.h"

namespace fastseg::cpu {

// What a better filter than Kraehenbuehl and Koltun's changes in the lattice.
struct LatticeOptions {
  double refine = 1;       // multiplies the features
  int dilation = 0;        // rings of vertices added around those that points touch
  int passes = 1;          // of the blur along each axis
  bool symmetric = false;  // average of the blurs in forward and in reverse order of the axes
  float side = 0.5f;       // a neighbour's weight in the blur
  // What scales the filter, which only Normalization::none shows: so that the filter's integral is
  // the Gaussian's, or Kraehenbuehl and Koltun's 1 / (1 + 2^-d).
  bool keeps_integral = false;
};

// Element (image, label, point) of an array of energies or probabilities.
struct LabelStrides {
  int64_t image, label, point;
};

class MeanField {
 public:
  // size: the spatial axes, (H, W), (D, H, W) or, for features that are no positions, (N,). `tasks`
  // must outlive the object. Messages of errors begin with fastseg::name.
  MeanField(const TaskRunner& tasks, int64_t images, int64_t labels, std::vector<int64_t> size,
            const char* name = "mean_field");
  ~MeanField();
  MeanField(MeanField&&) noexcept;

  // Terms are added before the first start(). The values of a compatibility are read meanwhile.

  // A Gaussian of the points' features on a lattice. features: dense (feature_images, d, N), in
  // units of their bandwidths; feature_images is `images`, or 1 for the same in all of them.
  void add_features(const float* features, int64_t feature_images, int64_t dimensions,
                    Normalization normalization, Compatibility compatibility,
                    LatticeOptions options = {});

  // A Gaussian of positions, sigma in pixels in the order of the spatial axes, on a lattice.
  void add_positions(const float* sigma, Normalization normalization, Compatibility compatibility,
                     LatticeOptions options = {});

  // The same as an exact separable convolution.
  void add_separable(const float* sigma, Normalization normalization, Compatibility compatibility);

  // Forgets all terms. The energies stay, Q does not.
  void clear_terms();

  // Energies; +infinity rules a label out. May be called again, before or after terms are added.
  void set_unary(const float* energies, LabelStrides strides);

  // Q = softmax(-U).
  void start();

  // Q given from outside, e.g. changed between two steps.
  void set_q(const float* q, LabelStrides strides);

  // One iteration.
  void step();

  // The current Q.
  void read_q(float* q, LabelStrides strides);

  // Its logarithm, also where Q underflows; -infinity where a label is ruled out. Not of a Q that
  // was given, nor after a divergence.
  void read_log_q(float* log_q, LabelStrides strides);

  // sum Q log Q + sum U Q + sum_m <Q, mu_m F_m> of each image: pydensecrf's klDivergence, up to a
  // constant the divergence of Q from the CRF's distribution. Costs a step, which the next step()
  // then has for nothing.
  std::vector<double> kl_divergence();

  // Vertices that the points of an image touch in the lattice of term number `term`; 0 for a
  // separable one.
  int64_t vertex_count(int64_t term, int64_t image) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fastseg::cpu
