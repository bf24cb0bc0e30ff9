// fastseg::permutohedral_lattice on CUDA: the steps of permutohedral_lattice.h, and their memory.

#include "cuda/crf/permutohedral_lattice.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/crf/permutohedral_features.h"
#include "cuda/binding.h"
#include "cuda/crf/exclusive_scan.h"
#include "cuda/crf/permutohedral_lattice_build.h"

namespace fastseg::cuda {
namespace {

constexpr int64_t kTilePoints = 128;
constexpr int kAllOnes = 0xff;  // bytes of kEmptySlot

class LatticeBuilder {
 public:
  LatticeBuilder(const LatticeCall& call, int64_t most_tile_points, LatticeTensors& out,
                 const char* op, std::optional<Tensor>* counts)
      : call_(call), out_(out), op_(op), counts_out_(counts) {
    const int64_t n = call.points(), corners = call.d() + 1;
    FASTSEG_CHECK(most_tile_points % 64 == 0 && most_tile_points * corners <= kMaxTileEntries, op,
                  ": tiles of ", most_tile_points, " points are not supported");
    const int64_t tiles = (n + most_tile_points - 1) / most_tile_points;
    const int64_t origins = permutohedral::origin_pads(n, call.dilation);
    shape_ = {call.d(), call.batch(), n, permutohedral::tile_points(n, tiles), tiles, origins};
    check_count(op, "the vertices of all points' simplices", shape_.entries());
  }

  void build(cudaStream_t stream) {
    stream_ = stream;
    bounded_ = is_captured();
    FASTSEG_CHECK(!bounded_ || counts_out_ != nullptr, op_,
                  ": the size of its result waits for the GPU, which a CUDA graph cannot capture: "
                  "call the op outside of the capture");
    const int64_t b = shape_.batch, n = shape_.points, corners = shape_.d + 1;
    out_.slots = call_.integers({b, n, corners});
    out_.barycentric =
        empty_like_layout(call_.features, {b, n, corners}, call_.features.scalar_type(), false);
    out_.tile_starts = call_.integers({b * shape_.tiles + 1});
    if (shape_.entries() == 0) return build_empty();
    find_touched();
    if (call_.dilation) dilate();
    connect();
    collect_rows();
  }

 private:
  static int* ints(const Tensor& x) { return static_cast<int*>(x.mutable_data_ptr()); }

  void check(cudaError_t error) const {
    FASTSEG_CHECK(error == cudaSuccess, op_, ": ", cudaGetErrorString(error));
  }

  bool is_captured() const {
    cudaStreamCaptureStatus status;
    check(cudaStreamIsCapturing(stream_, &status));
    return status != cudaStreamCaptureStatusNone;
  }

  void fill(const Tensor& x, int byte) const {
    check(cudaMemsetAsync(ints(x), byte, x.numel() * sizeof(int), stream_));
  }

  Tensor filled(int64_t elements, int byte) const {
    const Tensor x = call_.integers({elements});
    fill(x, byte);
    return x;
  }

  void scan(const Tensor& values) const {
    const int64_t count = values.numel() - 1;
    const Tensor sums = call_.integers({exclusive_scan_sums(count)});
    check(exclusive_scan(ints(values), count, ints(sums), stream_));
  }

  // Waits for the device.
  template <class T>
  std::vector<T> fetch(const T* from, int64_t elements) const {
    std::vector<T> to(elements);
    check(cudaMemcpyAsync(to.data(), from, elements * sizeof(T), cudaMemcpyDeviceToHost, stream_));
    check(cudaStreamSynchronize(stream_));
    return to;
  }

  void build_empty() {
    fill(out_.tile_starts, 0);
    out_.tile_vertices = call_.integers({0});
    out_.vertex_rows = call_.integers({0});
    out_.vertex_starts = filled(1, 0);
    out_.neighbors = call_.integers({shape_.d + 1, 2, 0});
    set_vertex_count(std::vector<int>(shape_.batch + 1, 0).data());
  }

  void set_vertex_count(const int* image_starts) {
    int64_t* count = static_cast<int64_t*>(out_.vertex_count.mutable_data_ptr());
    for (int64_t b = 0; b < shape_.batch; ++b) count[b] = image_starts[b + 1] - image_starts[b];
  }

  template <class T>
  [[noreturn]] void refuse(int first_bad) const {
    const int64_t image = shape_.d * shape_.points;
    const T* features = static_cast<const T*>(call_.features.const_data_ptr());
    const auto bad = fetch(features + first_bad / shape_.points * image, image);
    permutohedral::refuse_features(op_, bad.data(), shape_.d, shape_.points, shape_.points);
  }

  // Everything up to the touched vertices' numbers.
  void find_touched() {
    const int64_t entries = shape_.entries(), b = shape_.batch;
    // Behind the table: the first bad point, rows, each image's first vertex.
    table_ = filled(shape_.table_size() + b + 3, kAllOnes);
    simplices_ = call_.integers({entries});
    check(find_simplices(shape_,
                         {dtype_of(call_.features), call_.features.const_data_ptr(), call_.refine,
                          out_.barycentric.mutable_data_ptr(), ints(simplices_), first_bad()},
                         stream_));
    row_slots_ = call_.integers({entries});
    const Tensor row_entries = call_.integers({entries});
    const Tensor group_vertices = call_.integers({shape_.groups() + 1});
    const LatticeRows rows{ints(simplices_),    ints(table_),     ints(row_entries),
                           ints(row_slots_),    ints(out_.slots), ints(out_.tile_starts),
                           ints(group_vertices)};
    check(find_rows(shape_, rows, stream_));
    scan(out_.tile_starts);
    check(count_touched(shape_, rows, stream_));
    scan(group_vertices);
    check(summarize(shape_, rows, image_starts(), summary() + 1, stream_));
    if (bounded_) {
      rows_ = vertices_ = entries;
      most_vertices_ = call_.dilation ? 2 * entries : entries;
      bound(nullptr);
    } else {
      const std::vector<int> counts = fetch<int>(summary(), b + 3);
      if (static_cast<unsigned>(counts[0]) != kNoBadPoint) {
        call_.features.scalar_type() == ScalarType::Double ? refuse<double>(counts[0])
                                                           : refuse<float>(counts[0]);
      }
      rows_ = counts[1];
      set_vertex_count(counts.data() + 2);
      vertices_ = counts[b + 2];
    }
    touched_ = call_.integers({vertices_});
    check(number_touched(shape_, rows, ints(touched_), stream_));
    sources_ = touched_;
    index_ = ints(table_);
    index_size_ = shape_.table_size();
  }

  int* summary() const { return ints(table_) + shape_.table_size(); }
  unsigned* first_bad() const { return reinterpret_cast<unsigned*>(summary()); }
  int* image_starts() const { return summary() + 2; }

  // The counts so far, of which the host knows limits alone.
  void bound(const int* added) {
    constexpr int64_t kCounts = sizeof(BoundedCounts) / sizeof(int);
    if (!*counts_out_) *counts_out_ = call_.integers({kCounts});
    check(bound_counts({first_bad(), summary() + 1, image_starts() + shape_.batch, added,
                        static_cast<int>(most_vertices_), counts()},
                       stream_));
  }

  BoundedCounts* counts() const {
    return static_cast<BoundedCounts*>((*counts_out_)->mutable_data_ptr());
  }
  DeviceCount count_of(int64_t most, int BoundedCounts::* exact) const {
    return {static_cast<int>(most), bounded_ ? &(counts()->*exact) : nullptr};
  }

  void dilate() {
    LatticeDilation op{};
    op.touched_count = count_of(vertices_, &BoundedCounts::vertices);
    const int64_t candidates = op.candidates(shape_.d);
    check_count(op_, "the neighbors of all vertices", candidates);
    const Tensor table = filled(2 * candidates, kAllOnes), axes = filled(2 * candidates, 0);
    const Tensor slots = call_.integers({candidates}), numbers = call_.integers({candidates + 1});
    op.simplices = ints(simplices_);
    op.touched = ints(touched_);
    op.touched_table = ints(table_);
    op.image_starts = image_starts();
    op.joining = call_.dilation == 2;
    op.table = ints(table);
    op.axes = reinterpret_cast<unsigned*>(ints(axes));
    op.candidate_slots = ints(slots);
    op.numbers = ints(numbers);
    if (bounded_) fill(numbers, 0);
    check(find_added(shape_, op, stream_));
    scan(numbers);
    vertices_ = bounded_ ? most_vertices_ : vertices_ + fetch<int>(op.numbers + candidates, 1)[0];
    check_count(op_, "the number of vertices", vertices_);
    op.most_vertices = static_cast<int>(vertices_);
    sources_ = call_.integers({vertices_});
    added_starts_ = call_.integers({shape_.batch});
    check(number_added(shape_, op, ints(sources_), ints(added_starts_), stream_));
    if (bounded_) bound(op.numbers + candidates);
    all_vertices_ = filled(2 * vertices_, kAllOnes);
    index_ = ints(all_vertices_);
    index_size_ = all_vertices_.numel();
    check(index_vertices(shape_, index(), stream_));
  }

  LatticeIndex index() const {
    return {ints(simplices_), ints(touched_),
            ints(sources_),   count_of(vertices_, &BoundedCounts::vertices),
            index_,           index_size_};
  }

  void connect() {
    out_.neighbors = call_.integers({shape_.d + 1, 2, vertices_});
    check(find_neighbors(shape_, index(), ints(out_.neighbors), stream_));
  }

  void collect_rows() {
    out_.tile_vertices = call_.integers({rows_});
    out_.vertex_rows = call_.integers({rows_});
    out_.vertex_starts = filled(vertices_ + 1, 0);
    const Tensor places = call_.integers({rows_});
    const LatticeVertexRows rows{ints(table_),
                                 ints(row_slots_),
                                 ints(out_.tile_starts),
                                 call_.dilation ? ints(added_starts_) : nullptr,
                                 count_of(rows_, &BoundedCounts::rows),
                                 count_of(vertices_, &BoundedCounts::vertices),
                                 ints(out_.tile_vertices),
                                 ints(places),
                                 ints(out_.vertex_rows),
                                 ints(out_.vertex_starts)};
    check(count_vertex_rows(shape_, rows, stream_));
    scan(out_.vertex_starts);
    check(sort_vertex_rows(rows, stream_));
  }

  const LatticeCall& call_;
  LatticeTensors& out_;
  const char* op_;
  LatticeShape shape_;
  cudaStream_t stream_ = nullptr;
  std::optional<Tensor>* counts_out_;
  bool bounded_ = false;  // the host does not wait: rows_ and vertices_ are limits
  int64_t rows_ = 0, vertices_ = 0, most_vertices_ = 0;
  Tensor simplices_, table_, row_slots_, touched_;  // as permutohedral_lattice.h has them
  Tensor sources_, all_vertices_, added_starts_;
  int* index_ = nullptr;  // of LatticeIndex: all_vertices_, or the table where nothing is added
  int64_t index_size_ = 0;
};

void build(const LatticeCall& call, LatticeTensors& out) { build_lattice(call, kTilePoints, out); }

}  // namespace

void build_lattice(const LatticeCall& call, int64_t most_tile_points, LatticeTensors& out,
                   const char* op, std::optional<Tensor>* counts) {
  LatticeBuilder builder(call, most_tile_points, out, op, counts);
  launch_beside(call.features, op, [&](cudaStream_t stream) {
    builder.build(stream);
    return cudaSuccess;
  });
}

}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  namespace ops = fastseg::permutohedral_lattice_ops;
  m.impl("permutohedral_lattice", TORCH_BOX(&ops::permutohedral_lattice<fastseg::cuda::build>));
}
