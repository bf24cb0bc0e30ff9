// MeanField: the state of an iteration and the passes over the tiles. See lattice_mean_field.h.
//
// The state is the messages at the lattices' vertices; Q is computed from them where it is wanted,
// and kept (in `q`) only for a divergence or where the caller gave it.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/lattice_mean_field.h"
#include "cpu/lattice_mean_field_kernel.h"
#include "cpu/lattice_mean_field_terms.h"

namespace fastseg::cpu {
namespace {

// Memory for one task at a time each: as many pieces as tasks run at once.
class Scratch {
 public:
  void resize(int64_t floats) {
    floats_ = floats;
    free_.clear();
  }

  template <class Body>
  void with(const Body& body) {
    Buffer<float> memory;
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        memory = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (!memory) memory = Buffer<float>(floats_);
    body(memory.get());
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(memory));
  }

 private:
  int64_t floats_ = 0;
  std::mutex mutex_;
  std::vector<Buffer<float>> free_;
};

// As LatticeQuality.gain in fastseg/_lattice_quality.py.
double filter_gain(int d, const LatticeOptions& options) {
  if (!options.keeps_integral) return 1 / (1 + std::pow(2.0, -d));
  const double vertex = std::pow(1.5, 0.5 * d) / std::sqrt(d + 1.0) / std::pow(options.refine, d);
  const double tau = 6.283185307179586;
  return std::pow(tau, 0.5 * d) /
         (vertex * std::pow(1 + 2.0 * options.side, options.passes * (d + 1)));
}

// What a pass over all tiles does with Q.
struct Pass {
  bool splat = false;
  bool keep = false;     // in State::q
  float* out = nullptr;  // first element of image 0
  LabelStrides strides{};
  double* divergences = nullptr;  // of tiles
};

}  // namespace

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
  void run(const Pass& pass);
  void run_tile(const Pass& pass, int64_t image, int64_t k, float* memory);
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
  Buffer<float> sums;                // of all tiles' rows
  std::vector<Buffer<float>> spare;  // for the blur of any lattice
  Scratch scratch;

  // Where Q is: in q alone (given), in q and one step behind the messages, or in the messages.
  enum class Source { messages, given, behind } source = Source::messages;
  Buffer<float> q;  // (images, points, pitch)
};

MeanField::MeanField(const TaskRunner& tasks, int64_t images, int64_t labels,
                     std::vector<int64_t> size, const char* name)
    : state_(std::make_unique<State>(tasks, images, labels, std::move(size), name)) {}
MeanField::~MeanField() = default;
MeanField::MeanField(MeanField&&) noexcept = default;

Mixing MeanField::State::mixing(const Compatibility& compatibility) const {
  using Kind = Compatibility::Kind;
  const int64_t count = compatibility.kind == Kind::potts      ? 1
                        : compatibility.kind == Kind::diagonal ? labels
                                                               : labels * labels;
  // Sums of messages stay finite, and beyond them a label that is ruled out stays so.
  constexpr float kLargest = 1e20f;
  for (int64_t i = 0; i < count; ++i) {
    check(std::abs(compatibility.values[i]) <= kLargest,
          "compatibility must be finite and no larger than 1e20");
  }
  check(!prepared, "terms must be added before the start");
  return Mixing(compatibility, labels, pitch);
}

void MeanField::State::add_lattice(const LatticeInput<float>& input, Normalization normalization,
                                   const Compatibility& compatibility,
                                   const LatticeOptions& options) {
  Mixing factors = mixing(compatibility);
  const int number = static_cast<int>(lattices.size());
  if (!empty()) {
    lattices.emplace_back(
        input, BlurOptions{options.passes, options.symmetric, false, options.side},
        filter_gain(input.d, options), normalization, std::move(factors), tasks, name.c_str());
  }
  order.push_back(number);  // features that are refused make no term
}

void MeanField::add_features(const float* features, int64_t feature_images, int64_t dimensions,
                             Normalization normalization, Compatibility compatibility,
                             LatticeOptions options) {
  state_->check(dimensions >= 1 && dimensions <= permutohedral::kMaxDimensions,
                "kernels must have 1 to 8 features, got " + std::to_string(dimensions));
  State& s = *state_;
  s.check(feature_images == s.images || feature_images == 1,
          "features must be given once or for each image");
  const LatticeInput<float> input{features,
                                  feature_images,
                                  s.points,
                                  static_cast<int>(dimensions),
                                  dimensions * s.points,
                                  s.points,
                                  options.refine,
                                  options.dilation};
  s.add_lattice(input, normalization, compatibility, options);
}

void MeanField::add_positions(const float* sigma, Normalization normalization,
                              Compatibility compatibility, LatticeOptions options) {
  State& s = *state_;
  const int axes = static_cast<int>(s.size.size());
  std::vector<float> features(axes * s.points);
  for (int a = 0; a < axes; ++a) {
    s.check(sigma[a] > 0, "sigma must be positive");
    // The order that the lattice of pydensecrf has: x, y, but z, y, x in volumes.
    float* plane = features.data() + (axes == 2 ? 1 - a : a) * s.points;
    int64_t inner = 1;
    for (int b = a + 1; b < axes; ++b) inner *= s.size[b];
    for (int64_t i = 0; i < s.points; i += inner) {
      std::fill_n(plane + i, inner, static_cast<float>(i / inner % s.size[a]) / sigma[a]);
    }
  }
  add_features(features.data(), 1, axes, normalization, compatibility, options);
}

void MeanField::add_separable(const float* sigma, Normalization normalization,
                              Compatibility compatibility) {
  State& s = *state_;
  Mixing factors = s.mixing(compatibility);
  std::vector<double> deviations(sigma, sigma + s.size.size());
  for (const double x : deviations) s.check(x > 0 && std::isfinite(x), "sigma must be positive");
  s.order.push_back(-1);
  if (s.empty()) return;
  s.separables.emplace_back(s.size, deviations.data(), s.images, s.pitch, normalization,
                            std::move(factors), s.tasks);
}

void MeanField::clear_terms() {
  State& s = *state_;
  s.lattices.clear();
  s.separables.clear();
  s.order.clear();
  s.tiles = {};
  s.sums = {};
  s.spare.clear();
  s.prepared = s.messages = false;
}

void MeanField::set_unary(const float* energies, LabelStrides strides) {
  State& s = *state_;
  // Into memory of their own: refused energies leave those of before.
  Buffer<float> unary(s.images * s.points * s.pitch), shift(s.images * s.points);
  constexpr int64_t kTask = 2048;
  const int64_t per_image = (s.points + kTask - 1) / kTask;
  std::atomic<int> error{0};
  s.tasks.run(s.images * per_image, [&](int64_t task) {
    const int64_t image = task / per_image, first = task % per_image * kTask;
    const int64_t at = image * s.points + first;
    const UnaryError bad =
        FASTSEG_SIMD_DISPATCH(read_unary(energies + image * strides.image + first * strides.point,
                                         strides, std::min(kTask, s.points - first), s.labels,
                                         s.pitch, unary.get() + at * s.pitch, shift.get() + at));
    int before = error;
    while (before < static_cast<int>(bad) &&
           !error.compare_exchange_weak(before, static_cast<int>(bad))) {
    }
  });
  const char* message[] = {"", "unary must not be NaN", "unary must not be -infinity",
                           "unary must leave every point a label of finite energy"};
  s.check(error == 0, message[error]);
  s.unary = std::move(unary);
  s.shift = std::move(shift);
}

void MeanField::State::prepare() {
  if (prepared || empty()) return;
  prepared = true;
  tiles = CommonTiles(lattices, images, points, pitch, tasks);
  if (tiles.corners > 0) {
    sums = Buffer<float>(tiles.starts.back() * (tiles.images == 1 ? images : 1) * pitch);
  }
  int64_t most_vertices = 0;
  size_t buffers = 0;
  for (const LatticeTerm& term : lattices) {
    most_vertices = std::max(most_vertices, term.view.vertices);
    buffers = std::max<size_t>(buffers, blur_buffers(term.blur_options));
  }
  while (spare.size() < buffers) spare.emplace_back((most_vertices + 1) * pitch);
  by_lattice = std::any_of(lattices.begin(), lattices.end(),
                           [](const LatticeTerm& term) { return !term.normalised; });
  ones = Buffer<float>(pitch);
  std::fill_n(ones.get(), pitch, 1.f);
  for (const SeparableTerm& term : separables) strip = term.gaussian.strip();
  scratch.resize(tiles.largest * pitch + mean_field_block_floats(pitch) +
                 static_cast<int64_t>(separables.size()) * strip * size.back() * pitch);
}

void MeanField::start() {
  State& s = *state_;
  s.check(static_cast<bool>(s.unary), "unary must be set before the start");
  s.prepare();
  s.messages = false;
  s.source = State::Source::messages;
  s.q = {};
}

void MeanField::set_q(const float* q, LabelStrides strides) {
  State& s = *state_;
  s.check(static_cast<bool>(s.unary), "unary must be set before Q");
  s.prepare();
  if (!s.q) s.q = Buffer<float>(s.images * s.points * s.pitch);
  for (int64_t image = 0; image < s.images; ++image) {
    FASTSEG_SIMD_DISPATCH(read_rows(q + image * strides.image, strides, s.points, s.labels, s.pitch,
                                    s.q.get() + image * s.points * s.pitch));
  }
  s.source = State::Source::given;
}

void MeanField::State::run_tile(const Pass& pass, int64_t image, int64_t k, float* memory) {
  const int64_t first = k * tiles.tile_points, at = image * points + first;
  const int64_t entry = (tiles.images == 1 ? first : at) * tiles.corners;
  const int64_t t = tiles.tile_of(image, k);
  const int64_t copy_row = tiles.images == 1 ? image * tiles.starts.back() : 0;
  float* block = memory + tiles.largest * pitch;
  const bool stored = source != Source::messages;

  MeanFieldTile tile{};
  tile.points = std::min(tiles.tile_points, points - first);
  tile.corners = tiles.corners;
  tile.rows = tiles.starts[t + 1] - tiles.starts[t];
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
      if (by_lattice) messages_of.push_back({term.view.d + 1, term.mixing.natural_scale.get()});
      const bool shared = term.view.batch == 1;
      const int64_t own = shared ? k : image * tiles.per_image + k;
      const int32_t* vertices = term.view.tile_vertices + term.view.tile_starts[own];
      const int64_t count = term.view.tile_starts[own + 1] - term.view.tile_starts[own];
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
    std::fill_n(tile.sums, tile.rows * pitch, 0.f);
  }
  if (pass.out != nullptr) {
    tile.out = pass.out + image * pass.strides.image + first * pass.strides.point;
    tile.out_strides = pass.strides;
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
    // As many rows as the strips have that cut what is left of the slice evenly.
    const int64_t row = begin / width, slice_end = (row / height + 1) * height;
    const int64_t rows = std::min(slice_end, (end + width - 1) / width) - row;
    const int64_t strips = (rows + strip - 1) / strip;
    const int64_t row_end = row + (rows + strips - 1) / strips;
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

void MeanField::State::run(const Pass& pass) {
  if (empty()) return;
  tasks.run(images * tiles.per_image, [&](int64_t task) {
    scratch.with([&](float* memory) {
      run_tile(pass, task / tiles.per_image, task % tiles.per_image, memory);
    });
  });
}

void MeanField::State::update_messages() {
  const int64_t copy_rows = tiles.images == 1 && !tiles.starts.empty() ? tiles.starts.back() : 0;
  for (LatticeTerm& term : lattices) {
    term.filter(sums.get(), copy_rows, labels, pitch, spare, tasks);
  }
  for (SeparableTerm& term : separables) term.filter(images, tasks);
  messages = !order.empty();
}

void MeanField::step() {
  State& s = *state_;
  if (s.source != State::Source::behind) {
    s.run({.splat = true});
    s.update_messages();
  }
  s.source = State::Source::messages;
  s.q = {};
}

void MeanField::read_q(float* q, LabelStrides strides) {
  state_->run({.out = q, .strides = strides});
}

std::vector<double> MeanField::kl_divergence() {
  State& s = *state_;
  std::vector<double> sum(s.images);
  if (s.empty()) return sum;
  if (s.source != State::Source::behind) {
    if (!s.q) s.q = Buffer<float>(s.images * s.points * s.pitch);
    s.run({.splat = true, .keep = true});
    s.update_messages();
    s.source = State::Source::behind;
  }
  const int64_t per_image = s.tiles.per_image;
  std::vector<double> parts(s.images * per_image);
  s.run({.divergences = parts.data()});
  for (int64_t image = 0; image < s.images; ++image) {
    for (int64_t k = 0; k < per_image; ++k) sum[image] += parts[image * per_image + k];
    for (int64_t i = image * s.points; i < (image + 1) * s.points; ++i) {
      double mass = 0;
      for (int64_t l = 0; l < s.labels; ++l) mass += s.q[i * s.pitch + l];
      sum[image] += mass * s.shift[i];
    }
  }
  return sum;
}

int64_t MeanField::vertex_count(int64_t term, int64_t image) const {
  const int lattice = state_->order.at(term);
  if (lattice < 0 || state_->empty()) return 0;
  const auto& counts = state_->lattices[lattice].vertex_count;
  return counts.size() == 1 ? counts[0] : counts.at(image);
}

}  // namespace fastseg::cpu
