// The passes of a MeanField over its tiles, and what comes between them.

#include <algorithm>

#include "cpu/crf/lattice_mean_field_state.h"

namespace fastseg::cpu {

void MeanField::State::prepare() {
  if (prepared || empty()) return;
  prepared = true;
  tiles = CommonTiles(lattices, images, points, pitch, tasks);
  if (tiles.corners > 0) {
    sums = Buffer<float>(tiles.starts.back() * (tiles.images == 1 ? images : 1) * pitch);
  }
  for (LatticeTerm& term : lattices) term.prepare(pitch, tasks);
  by_lattice = std::any_of(lattices.begin(), lattices.end(),
                           [](const LatticeTerm& term) { return !term.normalised; });
  ones = Buffer<float>(pitch);
  std::fill_n(ones.get(), pitch, 1.f);
  for (const SeparableTerm& term : separables) strip = term.gaussian.strip();
  scratch_floats = tiles.largest * pitch + mean_field_block_floats(pitch) +
                   static_cast<int64_t>(separables.size()) * strip * size.back() * pitch;
  scratch.clear();
}

void MeanField::State::run_tile(const MeanFieldPass& pass, int64_t image, int64_t k,
                                float* memory) {
  const int64_t first = k * tiles.tile_points, at = image * points + first;
  const int64_t entry = (tiles.images == 1 ? first : at) * tiles.corners;
  const int64_t t = tiles.tile_of(image, k);
  const int64_t copy_row = tiles.images == 1 ? image * tiles.starts.back() : 0;
  float* block = memory + tiles.largest * pitch;
  const bool stored = source != Source::messages;

  MeanFieldTile tile{};
  tile.points = std::min(tiles.tile_points, points - first);
  tile.corners = tiles.corners;
  tile.slots = tiles.slots.get() + entry;
  tile.slice = tiles.slice.get() + entry;
  tile.splat = tiles.splat ? tiles.splat.get() + entry : tile.slice;
  tile.unary = unary.get() + at * pitch;
  if (stored) tile.given_q = q.get() + at * pitch;
  const bool wants_messages = messages && (!stored || pass.divergences != nullptr);
  std::vector<LatticeMessages> messages_of;
  if (wants_messages && tiles.corners > 0) {
    float* to = memory;
    for (const LatticeTerm& term : lattices) {
      const LatticeView<float>& view = term.lattice.view();
      if (by_lattice) messages_of.push_back({view.d + 1, term.mixing.natural_scale.get()});
      const bool shared = view.batch == 1;
      const int64_t own = shared ? k : image * tiles.per_image + k;
      const int32_t* vertices = view.tile_vertices + view.tile_starts[own];
      const int64_t count = view.tile_starts[own + 1] - view.tile_starts[own];
      FASTSEG_SIMD_DISPATCH(gather_rows(term.copies[shared ? image : 0].blurred.get(), vertices,
                                        count, pitch,
                                        by_lattice ? ones.get() : term.mixing.scale.get(), to));
      to += count * pitch;
    }
    tile.table = memory;
    tile.lattices = by_lattice ? messages_of.data() : nullptr;
    tile.lattice_count = static_cast<int>(messages_of.size());
  }
  std::vector<PointwiseTerm> pointwise;
  for (const SeparableTerm& term : separables) {
    const float *before = term.factors.before_or_null(), *after = term.factors.after_or_null();
    pointwise.push_back({pass.splat ? term.in.get() + at * pitch : nullptr,
                         before ? before + first : nullptr, nullptr,
                         after ? after + first : nullptr, term.mixing.scale.get(),
                         term.mixing.matrix.get()});
  }
  if (pass.keep && !stored) pointwise.push_back({.in = q.get() + at * pitch});
  tile.pointwise = pointwise.data();
  tile.pointwise_terms = static_cast<int>(pointwise.size());
  if (pass.splat && tiles.corners > 0) {
    tile.sums = sums.get() + (copy_row + tiles.starts[t]) * pitch;
    std::fill_n(tile.sums, (tiles.starts[t + 1] - tiles.starts[t]) * pitch, 0.f);
  }
  if (pass.out != nullptr) {
    tile.out = pass.out + image * pass.strides.image + first * pass.strides.point;
    tile.out_strides = pass.strides;
    tile.log = pass.log;
  }
  if (pass.divergences != nullptr) {
    tile.divergence = pass.divergences + image * tiles.per_image + k;
  }
  if (wants_messages && !separables.empty()) return run_strips(tile, image, first, block);
  FASTSEG_SIMD_DISPATCH(mean_field_tile(tile, labels, pitch, block));
}

// A tile in strips of rows, whose rows of the separable terms are computed just before.
// memory: of mean_field_tile, then of these rows.
void MeanField::State::run_strips(const MeanFieldTile& tile, int64_t image, int64_t first,
                                  float* memory) const {
  const int64_t width = size.back(), height = separables[0].gaussian.sizes[1];
  const auto kernel = FASTSEG_SIMD_DISPATCH(mean_field_tile);
  std::vector<PointwiseTerm> pointwise(tile.pointwise, tile.pointwise + tile.pointwise_terms);
  const int64_t end = first + tile.points;
  for (int64_t begin = first, stop; begin < end; begin = stop) {
    // Whole strips, and at the end as many rows as the convolution sums at once.
    const int64_t row = begin / width, slice_end = (row / height + 1) * height;
    const int64_t rows = (end + width - 1) / width - row;
    const int64_t row_end = std::min(slice_end, row + std::min(strip, (rows + 3) / 4 * 4));
    stop = std::min(end, row_end * width);
    const int64_t offset = begin - first;
    float* out = memory + mean_field_block_floats(pitch);
    for (size_t k = 0; k < pointwise.size(); ++k) {
      const PointwiseTerm& whole = tile.pointwise[k];
      if (whole.in != nullptr) pointwise[k].in = whole.in + offset * pitch;
      if (k >= separables.size()) continue;
      if (whole.before != nullptr) pointwise[k].before = whole.before + offset;
      if (whole.after != nullptr) pointwise[k].after = whole.after + offset;
      separables[k].rows(image, row, row_end, out);
      pointwise[k].out = out + (begin - row * width) * pitch;
      out += strip * width * pitch;
    }
    MeanFieldTile part = tile;
    part.points = stop - begin;
    part.slots += offset * tile.corners;
    part.slice += offset * tile.corners;
    part.splat += offset * tile.corners;
    part.unary += offset * pitch;
    if (part.given_q != nullptr) part.given_q += offset * pitch;
    if (part.out != nullptr) part.out += offset * tile.out_strides.point;
    part.pointwise = pointwise.data();
    kernel(part, labels, pitch, memory);
  }
}

void MeanField::State::run(const MeanFieldPass& pass) {
  if (empty()) return;
  tasks.run(images * tiles.per_image, [&](int64_t task) {
    scratch.borrow([&] { return std::make_unique<Buffer<float>>(scratch_floats); },
                   [&](const Buffer<float>& memory) {
                     run_tile(pass, task / tiles.per_image, task % tiles.per_image, memory.get());
                   });
  });
}

void MeanField::State::update_messages() {
  const int64_t copy_rows = tiles.images == 1 && !tiles.starts.empty() ? tiles.starts.back() : 0;
  filter_lattices(lattices, sums.get(), copy_rows, labels, pitch, tasks);
  for (SeparableTerm& term : separables) term.filter(images, tasks);
  messages = !order.empty();
}

}  // namespace fastseg::cpu
