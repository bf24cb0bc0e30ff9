// Set-up of the terms of a mean field: once, before the iterations.

#include "cpu/crf/lattice_mean_field_terms.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

namespace fastseg::cpu {

Mixing::Mixing(const Compatibility& compatibility, int64_t labels, int64_t pitch)
    : scale(pitch), natural_scale(pitch) {
  constexpr float to_logits = 1.44269504f;  // 1 / log 2
  const bool full = compatibility.kind == Compatibility::Kind::full;
  for (int64_t l = 0; l < pitch; ++l) {
    const bool mixed = full || l >= labels;
    const float factor = mixed ? 1 : compatibility.scale(l);
    scale[l] = mixed ? 1 : factor * to_logits;
    natural_scale[l] = mixed ? 1 / to_logits : factor;
  }
  if (!full) return;
  matrix = Buffer<float>(labels * pitch);
  std::fill_n(matrix.get(), labels * pitch, 0.f);
  for (int64_t row = 0; row < labels; ++row) {
    for (int64_t l = 0; l < labels; ++l) {
      matrix[l * pitch + row] = -compatibility.values[row * labels + l] * to_logits;
    }
  }
}

PointFactors::PointFactors(Normalization normalization, LargeVector<float> response, double gain,
                           const TaskRunner& tasks)
    : same_on_both_sides(normalization == Normalization::symmetric) {
  if (normalization == Normalization::none) {
    // On the side where Kraehenbuehl's program has it: sums without normalisation are so large that
    // another rounding shows in Q.
    std::fill(response.begin(), response.end(), static_cast<float>(gain));
    after = std::move(response);
    return;
  }
  constexpr int64_t kTask = 1 << 14;
  const int64_t size = static_cast<int64_t>(response.size());
  tasks.run((size + kTask - 1) / kTask, [&](int64_t t) {
    for (int64_t i = t * kTask; i < std::min(size, (t + 1) * kTask); ++i) {
      response[i] = point_factor(normalization, response[i]);
    }
  });
  (has_factor_before(normalization) ? before : after) = std::move(response);
}

LatticeTerm::LatticeTerm(const LatticeInput<float>& input, const BlurOptions& options, double gain,
                         Normalization normalization, Mixing term_mixing, const TaskRunner& tasks,
                         const char* name)
    : mixing(std::move(term_mixing)),
      normalised(normalization != Normalization::none),
      blur_options(options),
      lattice(input, tasks, name) {
  LargeVector<float> response(input.batch * input.points);
  filter_ones(lattice.view(), options, 1.f, response.data(), tasks);
  factors = PointFactors(normalization, std::move(response), gain, tasks);
}

void LatticeTerm::prepare(int64_t pitch, const TaskRunner& tasks) {
  const int64_t floats = lattice.view().vertices * pitch;
  for (Copy& copy : copies) copy.blurred = Buffer<float>(floats);
  if (blur_options.symmetric) reverse = Buffer<float>(floats);
  chains = BlurChains(lattice.view(), tasks);
  lattice.release(LatticeArray::neighbors);
}

SeparableTerm::SeparableTerm(const std::vector<int64_t>& size, const double* sigma, int64_t images,
                             int64_t pitch, Normalization normalization, Mixing term_mixing,
                             const TaskRunner& tasks)
    : mixing(std::move(term_mixing)) {
  const int axes = static_cast<int>(size.size());
  const auto ones_gaussian = spatial_gaussian<float>(size.data(), sigma, axes, -1, 1);
  const int64_t points = ones_gaussian.volume();
  LargeVector<float> ones(points, 1.f), response(points), space(points);
  spatial_gaussian_filter(ones_gaussian, 1, ones.data(), response.data(), space.data(), tasks);
  factors = PointFactors(normalization, std::move(response), 1, tasks);
  gaussian = spatial_gaussian<float>(size.data(), sigma, axes, -1, pitch);
  in = Buffer<float>(images * points * pitch);
  source = Buffer<float>(images * points * pitch);
}

void SeparableTerm::filter(int64_t images, const TaskRunner& tasks) {
  if (!gaussian.has_depth()) return std::swap(in, source);
  for (int64_t image = 0; image < images; ++image) {
    const int64_t offset = image * gaussian.volume();
    spatial_gaussian_depths(gaussian, in.get() + offset, source.get() + offset, tasks);
  }
}

void SeparableTerm::rows(int64_t image, int64_t begin, int64_t end, float* out) const {
  const int64_t height = gaussian.sizes[1], slice = begin / height;
  const float* from = source.get() + image * gaussian.volume() + slice * gaussian.slice();
  FASTSEG_SIMD_DISPATCH(
      spatial_gaussian_rows(gaussian, from, begin - slice * height, end - slice * height, out));
}

CommonTiles::CommonTiles(std::vector<LatticeTerm>& terms, int64_t all_images, int64_t points,
                         int64_t pitch, const TaskRunner& tasks) {
  bool two_sided = false;
  for (LatticeTerm& term : terms) {
    const LatticeView<float>& view = term.lattice.view();
    if (view.batch > 1) images = view.batch;
    corners += view.d + 1;
    two_sided |= !term.factors.same_on_both_sides;
    term.copies.resize(view.batch == 1 ? all_images : 1);
  }
  if (!terms.empty()) tile_points = terms[0].lattice.view().tile_points();
  per_image = points == 0 ? 0 : (points + tile_points - 1) / tile_points;
  starts.assign(images * per_image + 1, 0);
  for (const LatticeTerm& term : terms) count_rows(term.lattice.view());
  sum_rows(pitch);
  slots = Buffer<int32_t>(images * points * corners);
  slice = Buffer<float>(images * points * corners);
  if (two_sided) splat = Buffer<float>(images * points * corners);

  std::vector<int64_t> next_rows(starts.begin(), starts.end() - 1);
  int first_corner = 0;
  for (LatticeTerm& term : terms) {
    take_lattice(term, first_corner, next_rows, points, pitch, tasks);
    first_corner += term.lattice.view().d + 1;
  }
}

void CommonTiles::count_rows(const LatticeView<float>& view) {
  if (view.tile_points() != tile_points) throw std::logic_error("lattices differ in their tiles");
  for (size_t t = 0; t + 1 < starts.size(); ++t) {
    const int64_t tile = view.batch == 1 ? t % per_image : t;
    starts[t + 1] += view.tile_starts[tile + 1] - view.tile_starts[tile];
  }
}

void CommonTiles::sum_rows(int64_t pitch) {
  for (size_t t = 0; t + 1 < starts.size(); ++t) {
    largest = std::max(largest, starts[t + 1]);
    starts[t + 1] += starts[t];
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (starts.back() > kMost || largest * pitch > kMost) {
    throw std::runtime_error("more than 2^31 vertices in all tiles, or values at those of one");
  }
}

void CommonTiles::take_lattice(LatticeTerm& term, int first_corner, std::vector<int64_t>& next_rows,
                               int64_t points, int64_t pitch, const TaskRunner& tasks) {
  const LatticeView<float>& view = term.lattice.view();
  const int d1 = view.d + 1;
  const bool shared = view.batch == 1;
  // The row of a tile in the common numbering for each of the lattice's own.
  LargeVector<int32_t> common(shared ? images * view.rows : view.rows);
  tasks.run(images * per_image, [&](int64_t t) {
    const int64_t k = t % per_image, image = t / per_image, tile = shared ? k : t;
    const int64_t own = view.tile_starts[tile], rows = view.tile_starts[tile + 1] - own;
    int32_t* to = common.data() + (shared ? image * view.rows : 0) + own;
    for (int64_t r = 0; r < rows; ++r) to[r] = static_cast<int32_t>(next_rows[t] + r);
    const int32_t shift = static_cast<int32_t>(next_rows[t] - starts[t]);
    next_rows[t] += rows;
    const float* before = term.factors.before_or_null();
    const float* after = term.factors.after_or_null();
    const int64_t end = std::min((k + 1) * tile_points, points);
    for (int64_t i = k * tile_points; i < end; ++i) {
      const int64_t from = (shared ? 0 : image * points) + i;
      const int64_t at = (image * points + i) * corners + first_corner;
      const float after_i = after == nullptr ? 1 : after[from];
      const float before_i = before == nullptr ? 1 : before[from];
      for (int c = 0; c < d1; ++c) {
        const float weight = view.barycentric[from * d1 + c];
        slots[at + c] = (view.slots[from * d1 + c] + shift) * static_cast<int32_t>(pitch);
        slice[at + c] = weight * after_i;
        if (splat) splat[at + c] = weight * before_i;
      }
    }
  });
  for (size_t copy = 0; copy < term.copies.size(); ++copy) {
    const int32_t* map = common.data() + (shared && images > 1 ? copy * view.rows : 0);
    auto& rows = term.copies[copy].vertex_rows;
    rows.resize(view.rows);
    for (int64_t r = 0; r < view.rows; ++r) rows[r] = map[view.vertex_rows[r]];
  }
  for (const auto array :
       {LatticeArray::slots, LatticeArray::barycentric, LatticeArray::vertex_rows}) {
    term.lattice.release(array);
  }
  term.factors = {};
}

}  // namespace fastseg::cpu
