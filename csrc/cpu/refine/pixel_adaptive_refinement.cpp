// fastseg::pixel_adaptive_refinement and its gradient on the CPU.
//
// One image at a time: its weights first, then all iterations of up to kPlanes masks, back and
// forth between two buffers. The memory is that of the weights, 4 N bytes a pixel for N neighbours,
// and of two copies of the masks.
//
// The gradient sums over the pixels whose neighbour a pixel is: these lie in the opposite
// directions, on a grid that is larger by the reach on each side, with zeros outside the image. It
// is the same pass, with the weights moved to the pixels that they lead to. What lands beyond the
// edges is then added to the edge's pixels, which is what the repetition of edges is turned around.

#include "cpu/refine/pixel_adaptive_refinement.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "common/refine/pixel_adaptive_refinement_ops.h"
#include "cpu/memory/buffer.h"
#include "cpu/threads/parallel.h"
#include "cpu/threads/torch_tasks.h"

namespace fastseg::cpu {
namespace {

constexpr int64_t kPlanes = 24;    // masks of a pass; more push each other out of a cache
constexpr int64_t kColumns = 128;  // of a tile, whose rows with their neighbours' stay in the cache
constexpr int64_t kRows = 16;

// An image's size, and how far its pixels' neighbours lie from these.
struct Extent {
  int64_t height, width, rows, columns;

  explicit Extent(const RefinementCall& call)
      : height(call.planes.size(2)), width(call.planes.size(3)) {
    const int64_t widest = *std::max_element(call.dilations.begin(), call.dilations.end());
    rows = reach_within(widest, height);
    columns = reach_within(widest, width);
  }
};

struct Shifts {
  std::vector<int64_t> rows, columns;

  Shifts(const std::vector<int64_t>& dilations, int64_t height, int64_t width) {
    for (const int64_t dilation : dilations) {
      for (int k = 0; k < kDirections; ++k) {
        rows.push_back(row_of(k) * reach_within(dilation, height));
        columns.push_back(column_of(k) * reach_within(dilation, width));
      }
    }
  }

  Neighbors view() const {
    return {static_cast<int64_t>(rows.size()), rows.data(), columns.data()};
  }
};

// Calls body(begin, end) for strips of rows.
template <class Body>
void for_strips(int64_t height, const Body& body) {
  TorchTasks().run((height + kRows - 1) / kRows, [&](int64_t strip) {
    body(strip * kRows, std::min(height, (strip + 1) * kRows));
  });
}

// Calls body(tile) for all tiles of a grid: down the columns, so that a thread finds the rows of
// the tile above in its cache.
template <class Body>
void for_tiles(const RowGrid& grid, const Body& body) {
  const int64_t strips = (grid.height + kRows - 1) / kRows;
  const int64_t columns = grid.blocks() * kPixels;
  TorchTasks().run(strips * ((columns + kColumns - 1) / kColumns), [&](int64_t task) {
    const int64_t top = task % strips * kRows, left = task / strips * kColumns;
    body(RefinementTile{top, std::min(grid.height, top + kRows), left,
                        std::min(columns, left + kColumns)});
  });
}

// The planes (planes, H, W) at `in` to a grid of their size, edges repeated.
template <class T>
Buffer<RefinementFloat<T>> padded(const RowGrid& grid, int64_t planes, const T* in) {
  Buffer<RefinementFloat<T>> out(grid.elements(planes));
  const auto pad = FASTSEG_SIMD_DISPATCH_OF(T, pad_row<T>);
  for_strips(grid.height, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t plane = 0; plane < planes; ++plane) {
        pad(grid, in + (plane * grid.height + y) * grid.width, /*edges=*/true,
            out.get() + grid.row(y, planes) + plane * grid.stride);
      }
    }
  });
  return out;
}

// Calls body(begin, end, kernel) for strips of an image's rows; kernel(begin, end, weights)
// computes their weights.
template <class T, class Body>
void for_affinities(const RefinementCall& call, const RowGrid& grid, const Neighbors& neighbors,
                    int64_t index, const Body& body) {
  const int64_t channels = call.image.size(1), size = channels * grid.height * grid.width;
  const Buffer<T> image =
      padded(grid, channels, static_cast<const T*>(call.image.const_data_ptr()) + index * size);
  std::vector<T> positions(neighbors.count);
  if (call.affinity == Affinity::kPar) {
    const std::vector<double> weights = position_weights(call.dilations);
    std::copy(weights.begin(), weights.end(), positions.begin());
  }
  const AffinityPass<T> pass{call.affinity,    grid,       channels, neighbors,
                             positions.data(), image.get()};
  const auto kernel = FASTSEG_SIMD_DISPATCH_OF(T, affinity_rows<T>);
  for_strips(grid.height, [&](int64_t begin, int64_t end) {
    body(begin, end, [&](T* weights) { kernel(pass, begin, end, weights); });
  });
}

// One image's masks from `in` to `out`, both (planes, H, W) of T.
template <class T>
void refine_planes(const RowGrid& grid, const Neighbors& neighbors,
                   const RefinementFloat<T>* weights, int64_t planes, int64_t iterations,
                   const T* in, T* out) {
  using F = RefinementFloat<T>;
  Buffer<F> from = padded(grid, planes, in);
  Buffer<F> to(iterations > 1 ? grid.elements(planes) : 0);
  const auto kernel = FASTSEG_SIMD_DISPATCH_OF(F, refine_tile<F>);
  for (int64_t i = 1; i < iterations; ++i) {
    const RefinementPass<F> pass{grid, planes, neighbors, weights, from.get(), to.get()};
    for_tiles(grid, [&](const RefinementTile& tile) { kernel(pass, tile, /*edges=*/true); });
    std::swap(from, to);
  }
  const RefinementPass<F> pass{grid, planes, neighbors, weights, from.get(), nullptr};
  const auto last = FASTSEG_SIMD_DISPATCH_OF(T, refine_last_tile<T>);
  for_tiles(grid, [&](const RefinementTile& tile) { last(pass, tile, out); });
}

// Calls body(offset, planes) for parts of an image's planes, which begin at that element.
template <class Body>
void for_parts(const RefinementCall& call, int64_t index, const Body& body) {
  const int64_t planes = call.planes.size(1);
  const int64_t parts = (planes + kPlanes - 1) / kPlanes;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = planes * part / parts, end = planes * (part + 1) / parts;
    body((index * planes + first) * call.planes.size(2) * call.planes.size(3), end - first);
  }
}

template <class T>
void refine_as(const RefinementCall& call) {
  using F = RefinementFloat<T>;
  const Extent extent(call);
  const RowGrid grid(extent.height, extent.width, extent.columns);
  const Shifts shifts(call.dilations, extent.height, extent.width);
  const int64_t row = weights_of_row(grid, shifts.view());
  const Buffer<F> weights(grid.height * row);
  for (int64_t b = 0; b < call.planes.size(0); ++b) {
    for_affinities<F>(
        call, grid, shifts.view(), b,
        [&](int64_t begin, int64_t, const auto& compute) { compute(weights.get() + begin * row); });
    for_parts(call, b, [&](int64_t offset, int64_t planes) {
      refine_planes<T>(grid, shifts.view(), weights.get(), planes, call.iterations,
                       static_cast<const T*>(call.planes.const_data_ptr()) + offset,
                       static_cast<T*>(call.out.mutable_data_ptr()) + offset);
    });
  }
}

// The pixels [0, W) and [0, H) of an image in a grid with all that their neighbours reach.
struct Frame {
  RowGrid grid;
  Extent extent;

  explicit Frame(const Extent& extent)
      : grid(extent.height + 2 * extent.rows, extent.width + 2 * extent.columns, extent.columns),
        extent(extent) {}

  // The first pixel of a row of the image.
  int64_t inside(int64_t y, int64_t planes, int64_t plane) const {
    return grid.row(y + extent.rows, planes) + plane * grid.stride + extent.columns;
  }
};

// The weights of rows [begin, end) of an image to the pixels that they lead to in the frame, where
// they are those of the neighbours in the opposite directions.
template <class T>
void turn_weights(const RowGrid& grid, const Frame& frame, const Neighbors& neighbors,
                  int64_t begin, int64_t end, const T* weights, T* turned) {
  for (int64_t y = begin; y < end; ++y) {
    for (int64_t x = 0; x < grid.width; x += kPixels) {
      const int64_t pixels = std::min(kPixels, grid.width - x);
      for (int64_t n = 0; n < neighbors.count; ++n, weights += kPixels) {
        const int64_t opposite = n + kDirections - 1 - 2 * (n % kDirections);
        const int64_t row = y + frame.extent.rows + neighbors.rows[n];
        const int64_t column = x + frame.extent.columns + neighbors.columns[n];
        const int64_t lane = column % kPixels, whole = std::min(pixels, kPixels - lane);
        T* block =
            turned +
            ((row * frame.grid.blocks() + column / kPixels) * neighbors.count + opposite) * kPixels;
        std::copy_n(weights, whole, block + lane);
        std::copy_n(weights + whole, pixels - whole, block + neighbors.count * kPixels);
      }
    }
  }
}

// Row y of an image from the planes of its frame: what lies outside is added to the edge's pixels.
// sums is memory for a row of the grid.
template <class F, class T>
void fold_row(const Frame& frame, int64_t planes, int64_t plane, int64_t y, const F* in, F* sums,
              T* out) {
  const auto& [height, width, rows, columns] = frame.extent;
  const int64_t top = y == 0 ? 0 : y + rows, bottom = y + rows + (y + 1 == height ? rows : 0);
  std::fill_n(sums, frame.grid.width, F{0});
  for (int64_t i = top; i <= bottom; ++i) {
    const F* row = in + frame.grid.row(i, planes) + plane * frame.grid.stride;
    for (int64_t x = 0; x < frame.grid.width; ++x) sums[x] += row[x];
  }
  for (int64_t x = 0; x < columns; ++x) {
    sums[columns] += sums[x];
    sums[columns + width - 1] += sums[columns + width + x];
  }
  for (int64_t x = 0; x < width; ++x) out[x] = static_cast<T>(sums[columns + x]);
}

// One image's gradient from `in` to `out`, both (planes, H, W) of T.
template <class T>
void refine_planes_back(const Frame& frame, const Neighbors& neighbors,
                        const RefinementFloat<T>* weights, int64_t planes, int64_t iterations,
                        const T* in, T* out) {
  using F = RefinementFloat<T>;
  const int64_t height = frame.extent.height, width = frame.extent.width;
  const Buffer<F> grad(frame.grid.elements(planes)), sums(frame.grid.elements(planes));
  for_strips(frame.grid.height, [&](int64_t begin, int64_t end) {
    const int64_t row = planes * frame.grid.stride;
    std::fill(grad.get() + begin * row, grad.get() + end * row, F{0});
  });
  for_strips(height, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t plane = 0; plane < planes; ++plane) {
        const T* row = in + (plane * height + y) * width;
        std::copy_n(row, width, grad.get() + frame.inside(y, planes, plane));
      }
    }
  });
  const auto kernel = FASTSEG_SIMD_DISPATCH_OF(F, refine_tile<F>);
  const RefinementPass<F> pass{frame.grid, planes, neighbors, weights, grad.get(), sums.get()};
  for (int64_t i = 1; i <= iterations; ++i) {
    for_tiles(frame.grid, [&](const RefinementTile& tile) { kernel(pass, tile, /*edges=*/false); });
    for_strips(height, [&](int64_t begin, int64_t end) {
      std::vector<F> memory(frame.grid.width);
      for (int64_t y = begin; y < end; ++y) {
        for (int64_t plane = 0; plane < planes; ++plane) {
          if (i < iterations) {
            fold_row(frame, planes, plane, y, sums.get(), memory.data(),
                     grad.get() + frame.inside(y, planes, plane));
          } else {
            fold_row(frame, planes, plane, y, sums.get(), memory.data(),
                     out + (plane * height + y) * width);
          }
        }
      }
    });
  }
}

template <class T>
void refine_back_as(const RefinementCall& call) {
  using F = RefinementFloat<T>;
  const Extent extent(call);
  const RowGrid grid(extent.height, extent.width, extent.columns);
  const Frame frame(extent);
  const Shifts shifts(call.dilations, extent.height, extent.width);
  const int64_t row = weights_of_row(frame.grid, shifts.view());
  const Buffer<F> weights(frame.grid.height * row);
  for_strips(frame.grid.height, [&](int64_t begin, int64_t end) {
    std::fill(weights.get() + begin * row, weights.get() + end * row, F{0});
  });
  for (int64_t b = 0; b < call.planes.size(0); ++b) {
    for_affinities<F>(
        call, grid, shifts.view(), b, [&](int64_t begin, int64_t end, const auto& compute) {
          const Buffer<F> strip((end - begin) * weights_of_row(grid, shifts.view()));
          compute(strip.get());
          turn_weights(grid, frame, shifts.view(), begin, end, strip.get(), weights.get());
        });
    for_parts(call, b, [&](int64_t offset, int64_t planes) {
      refine_planes_back<T>(frame, shifts.view(), weights.get(), planes, call.iterations,
                            static_cast<const T*>(call.planes.const_data_ptr()) + offset,
                            static_cast<T*>(call.out.mutable_data_ptr()) + offset);
    });
  }
}

void copy_planes(const RefinementCall& call) {
  std::memcpy(call.out.mutable_data_ptr(), call.planes.const_data_ptr(),
              call.out.numel() * call.out.element_size());
}

void refine(const RefinementCall& call) {
  if (call.iterations == 0) return copy_planes(call);
  dispatch_float(call.planes.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    call.transposed ? refine_back_as<T>(call) : refine_as<T>(call);
  });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  namespace ops = fastseg::pixel_adaptive_refinement_ops;
  using fastseg::cpu::refine;
  m.impl("pixel_adaptive_refinement", TORCH_BOX(&ops::pixel_adaptive_refinement<refine>));
  m.impl("pixel_adaptive_refinement_backward",
         TORCH_BOX(&ops::pixel_adaptive_refinement_backward<refine>));
}
