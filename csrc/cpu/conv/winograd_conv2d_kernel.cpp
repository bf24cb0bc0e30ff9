// A task of Winograd convolution: transform, multiply, transform back.
//
// Operations of a tile of P products and its I inputs and O outputs in two axes (F(2x2, 3x3): 16,
// 16, 4): 2 P Ci Co for the products, about 2 (I + O) P / 4 additions a channel for the transforms,
// 5 % of them at 128 channels.

#include <algorithm>
#include <array>
#include <utility>

#include "cpu/conv/conv2d_epilogue.h"
#include "cpu/conv/gemm_tile.h"
#include "cpu/conv/winograd_conv2d.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int kMostPixels = kMostInputs * kMostInputs;

template <int... I>
using Ints = std::integer_sequence<int, I...>;

// sum_i Row[i] * x[i * step] with constants of 0, 1 and -1 folded away.
template <const auto& Matrix, int Row, int Step, class V, int... I>
V combine(const V* x, Ints<I...>) {
  V sum = {};
  bool first = true;  // known at compile time once unrolled
  const auto add = [&]<int K>(std::integral_constant<int, K>) {
    constexpr float c = Matrix[Row][K];
    if constexpr (c != 0) {
      const V term = c == 1 || c == -1 ? x[K * Step] : x[K * Step] * (c < 0 ? -c : c);
      if constexpr (c > 0) {
        sum = first ? term : sum + term;
      } else {
        sum = first ? -term : sum - term;
      }
      first = false;
    }
  };
  (add(std::integral_constant<int, I>{}), ...);
  return sum;
}

// out[r * InnerStep...] = Matrix * x along one of two axes: x[i * Step + j], out[r * Step + j].
template <const auto& Matrix, int Rows, int Columns, int Step, class V, int... R>
void combine_rows(const V* x, V* out, Ints<R...>) {
  ((out[R * Step] = combine<Matrix, R, Step>(x, std::make_integer_sequence<int, Columns>{})), ...);
}

using S = Simd<float>;
using V = S::Value;
constexpr int L = kLanes<float>;

// Calls body(i) for the blocks [i, i + L) of [0, end), the last one moved back to the end; for the
// first one alone, which reaches beyond the end, where a register has more lanes.
template <class Body>
void for_registers(int64_t end, const Body& body) {
  int64_t i = 0;
  for (; i + L <= end; i += L) body(i);
  if (i < end) body(std::max<int64_t>(end - L, 0));
}

// The pixels that a tile reads, by (row, column): zeros where there is padding.
void find_inputs(const WinogradConv2d& op, const PieceShape& y_piece, const PieceShape& x_piece,
                 int64_t image, int64_t y, int64_t x, const float* zeros, const float** pixels) {
  for (int i = 0; i < y_piece.inputs; ++i) {
    const int64_t row = y + (y_piece.first + i) * op.y_axis.dilation;
    const bool live_row = row >= 0 && row < op.y_axis.size;
    for (int j = 0; j < x_piece.inputs; ++j) {
      const int64_t column = x + (x_piece.first + j) * op.x_axis.dilation;
      const bool live = live_row && column >= 0 && column < op.x_axis.size;
      pixels[i * x_piece.inputs + j] =
          live ? op.x + ((image * op.y_axis.size + row) * op.x_axis.size + column) * op.in_channels
               : zeros;
    }
  }
}

// `depth` channels of one tile from `channel`, at least a register's, to products `step` apart.
template <class Y, class X>
void transform_input(const float* const* pixels, int64_t channel, int64_t depth, const float* zeros,
                     float* to, int64_t step) {
  for_registers(depth, [&](int64_t c) {
    V in[Y::kInputs * X::kInputs], half[Y::kProducts * X::kInputs];
    FASTSEG_UNROLL
    for (int i = 0; i < Y::kInputs * X::kInputs; ++i) {
      in[i] = S::load(pixels[i] + (pixels[i] == zeros ? 0 : channel) + c);
    }
    FASTSEG_UNROLL
    for (int j = 0; j < X::kInputs; ++j) {
      combine_rows<Y::kInput, Y::kProducts, Y::kInputs, X::kInputs>(
          in + j, half + j, std::make_integer_sequence<int, Y::kProducts>{});
    }
    FASTSEG_UNROLL
    for (int i = 0; i < Y::kProducts; ++i) {
      V out[X::kProducts];
      combine_rows<X::kInput, X::kProducts, X::kInputs, 1>(
          half + i * X::kInputs, out, std::make_integer_sequence<int, X::kProducts>{});
      FASTSEG_UNROLL
      for (int j = 0; j < X::kProducts; ++j)
        S::store(to + (i * X::kProducts + j) * step + c, out[j]);
    }
  });
}

using TransformInput = decltype(&transform_input<Pair, Pair>);

// The same for all of an image's channels where a register has more lanes: few images have so few,
// which go through memory that has room for all lanes, since a scalar form of each transform would
// double the code.
void transform_few_channels(TransformInput transform, const PieceShape& y_piece,
                            const PieceShape& x_piece, const float* const* pixels, int64_t channels,
                            const float* zeros, float* to, int64_t step) {
  float in[kMostPixels][L] = {}, out[kMostProducts * kMostProducts][L];
  const float* padded[kMostPixels];
  for (int i = 0; i < y_piece.inputs * x_piece.inputs; ++i) {
    std::copy_n(pixels[i], channels, in[i]);
    padded[i] = in[i];
  }
  transform(padded, 0, L, zeros, out[0], L);
  for (int p = 0; p < y_piece.products * x_piece.products; ++p) {
    std::copy_n(out[p], channels, to + p * step);
  }
}

// The outputs of one tile, those within the image: of (rows, columns) vectors the lanes from
// `lane`, which are the channels from `channel`. It is no part of most transforms, so that they
// hold no copy of it for each of their outputs.
template <int Count>
[[gnu::noinline]] void store_outputs(const WinogradConv2d& op, const PieceShape& y_piece,
                                     const PieceShape& x_piece, int64_t image, int64_t y, int64_t x,
                                     int64_t channel, const V* values, int64_t lane = 0) {
  using Part = Simd<float, Count>;
  const auto terms = channel_terms<float, Count>(op.epilogue, channel);
  const bool smooth = is_smooth(op.epilogue.activation);
  for (int i = 0; i < y_piece.outputs; ++i) {
    const int64_t row = y + i * op.y_axis.dilation;
    if (row >= op.y_axis.size) break;
    for (int j = 0; j < x_piece.outputs; ++j) {
      const int64_t column = x + j * op.x_axis.dilation;
      if (column >= op.x_axis.size) break;
      const V& vector = values[i * x_piece.outputs + j];
      const auto value = Part::load(reinterpret_cast<const float*>(&vector) + lane);
      const int64_t at =
          ((image * op.y_axis.size + row) * op.x_axis.size + column) * op.y_step + channel;
      Part::store(op.y + at, smooth ? finish<float, Count, true>(op.epilogue, terms, value, at)
                                    : finish<float, Count, false>(op.epilogue, terms, value, at));
    }
  }
}

// Whether pieces of a kind cover most of an image where lines are long.
template <class P>
inline constexpr bool kInMostTiles = std::is_same_v<P, Pair> || std::is_same_v<P, Four>;

// The products of one tile, `step` apart, to its outputs.
template <class Y, class X>
void transform_output(const WinogradConv2d& op, int64_t image, int64_t y, int64_t x,
                      int64_t first_channel, int64_t channels, const float* products,
                      int64_t step) {
  for_registers(channels, [&](int64_t c) {
    V in[Y::kProducts * X::kProducts], half[Y::kOutputs * X::kProducts];
    V out[Y::kOutputs * X::kOutputs];
    FASTSEG_UNROLL
    for (int i = 0; i < Y::kProducts * X::kProducts; ++i) in[i] = S::load(products + i * step + c);
    FASTSEG_UNROLL
    for (int j = 0; j < X::kProducts; ++j) {
      combine_rows<Y::kOutput, Y::kOutputs, Y::kProducts, X::kProducts>(
          in + j, half + j, std::make_integer_sequence<int, Y::kOutputs>{});
    }
    FASTSEG_UNROLL
    for (int i = 0; i < Y::kOutputs; ++i) {
      combine_rows<X::kOutput, X::kOutputs, X::kProducts, 1>(
          half + i * X::kProducts, out + i * X::kOutputs,
          std::make_integer_sequence<int, X::kOutputs>{});
    }
    if (channels < L) {
      for (int64_t lane = 0; lane < channels; ++lane) {
        store_outputs<1>(op, shape_of<Y>(), shape_of<X>(), image, y, x, first_channel + lane, out,
                         lane);
      }
      return;
    }
    if constexpr (kInMostTiles<Y> && kInMostTiles<X>) {
      if (!is_smooth(op.epilogue.activation)) {  // from registers, without a way through memory
        const auto terms = channel_terms<float, L>(op.epilogue, first_channel + c);
        FASTSEG_UNROLL
        for (int i = 0; i < Y::kOutputs; ++i) {
          const int64_t row = y + i * op.y_axis.dilation;
          if (row >= op.y_axis.size) break;
          FASTSEG_UNROLL
          for (int j = 0; j < X::kOutputs; ++j) {
            const int64_t column = x + j * op.x_axis.dilation;
            if (column >= op.x_axis.size) break;
            const int64_t at =
                ((image * op.y_axis.size + row) * op.x_axis.size + column) * op.y_step +
                first_channel + c;
            S::store(op.y + at,
                     finish<float, L, false>(op.epilogue, terms, out[i * X::kOutputs + j], at));
          }
        }
        return;
      }
    }
    store_outputs<L>(op, shape_of<Y>(), shape_of<X>(), image, y, x, first_channel + c, out);
  });
}

using GemmTile = decltype(&gemm_tile<1, 1, kWinogradRow, 1>);
using GemmTiles = std::array<GemmTile, kTileRows + 1>;  // by rows

template <int Panels, int RowStep, int... R>
constexpr GemmTiles gemm_tiles(Ints<R...>) {
  return {nullptr, &gemm_tile<R + 1, Panels, RowStep, 1>...};
}

// For one panel and for kTilePanels at a time.
template <int RowStep>
constexpr std::array<GemmTiles, 2> kGemmTiles = {
    gemm_tiles<1, RowStep>(std::make_integer_sequence<int, kTileRows>{}),
    gemm_tiles<kTilePanels, RowStep>(std::make_integer_sequence<int, kTileRows>{})};

// (rows, depth) times (depth, columns); `next`: the weights that are multiplied after these.
void multiply(const float* a, int64_t rows, int64_t row_step, const float* b, const float* next,
              int64_t panel_step, int64_t panels, float* c, int64_t c_step, int64_t depth,
              bool accumulate) {
  const int64_t blocks = (rows + kTileRows - 1) / kTileRows;
  const auto& tiles =
      row_step == kWinogradShortRow ? kGemmTiles<kWinogradShortRow> : kGemmTiles<kWinogradRow>;
  for (int64_t p = 0; p < panels; p += kTilePanels) {
    const GemmTiles& tile = tiles[panels - p >= kTilePanels];
    const bool last = p + kTilePanels >= panels;
    const float* ahead = last ? next : b + (p + kTilePanels) * panel_step;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t first = rows * i / blocks, count = rows * (i + 1) / blocks - first;
      tile[count](a + first * row_step, b + p * panel_step, panel_step,
                  c + first * c_step + p * kPanel, c_step, depth, accumulate,
                  ahead + i % kTilePanels * panel_step);
    }
  }
}

// The transforms of a tile whose pieces are of one kind along each axis.
struct Transforms {
  TransformInput input;
  decltype(&transform_output<Pair, Pair>) output;
};

template <class Y>
constexpr std::array<Transforms, kPieceKinds> transforms_of() {
  return {{{&transform_input<Y, Pair>, &transform_output<Y, Pair>},
           {&transform_input<Y, Four>, &transform_output<Y, Four>},
           {&transform_input<Y, Last>, &transform_output<Y, Last>},
           {&transform_input<Y, One>, &transform_output<Y, One>},
           {&transform_input<Y, Two>, &transform_output<Y, Two>},
           {&transform_input<Y, Three>, &transform_output<Y, Three>}}};
}

// By the kinds along y and x.
constexpr std::array<std::array<Transforms, kPieceKinds>, kPieceKinds> kTransforms = {
    transforms_of<Pair>(), transforms_of<Four>(), transforms_of<Last>(),
    transforms_of<One>(),  transforms_of<Two>(),  transforms_of<Three>()};

}  // namespace

void winograd_task(const WinogradConv2d& op, const WinogradTask& task, float* memory) {
  alignas(64) static const float zeros[kWinogradDepth] = {};
  const int y_kind = static_cast<int>(task.y), x_kind = static_cast<int>(task.x);
  const Transforms& transforms = kTransforms[y_kind][x_kind];
  const PieceShape &y_piece = kPieces[y_kind], &x_piece = kPieces[x_kind];
  const int all_products = y_piece.products * x_piece.products;
  const auto& ys = op.y_axis.starts[y_kind];
  const auto& xs = op.x_axis.starts[x_kind];
  const int64_t columns = static_cast<int64_t>(xs.size());
  const int64_t tiles_of_image = static_cast<int64_t>(ys.size()) * columns;
  const auto locate = [&](int64_t tile) {
    const int64_t image = tile / tiles_of_image, rest = tile % tiles_of_image;
    return std::array<int64_t, 3>{image, ys[rest / columns], xs[rest % columns]};
  };
  const int64_t tiles = task.end - task.begin;
  const int64_t panels = task.last_panel - task.first_panel;
  const int64_t panel_step = op.in_channels * kPanel;
  const int64_t all_panels = (op.out_channels + kPanel - 1) / kPanel;
  float* const inputs = memory;
  const int64_t row_step = winograd_row(op.in_channels);
  float* const products = memory + all_products * tiles * row_step;
  const int64_t row = panels * kPanel;

  const int64_t blocks = (op.in_channels + kWinogradDepth - 1) / kWinogradDepth;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t channel = op.in_channels * block / blocks;
    const int64_t depth = op.in_channels * (block + 1) / blocks - channel;
    for (int64_t t = 0; t < tiles; ++t) {
      const auto [image, y, x] = locate(task.begin + t);
      const float* pixels[kMostPixels];
      find_inputs(op, y_piece, x_piece, image, y, x, zeros, pixels);
      float* const to = inputs + t * row_step;
      if (depth >= L) {
        transforms.input(pixels, channel, depth, zeros, to, tiles * row_step);
      } else {
        transform_few_channels(transforms.input, y_piece, x_piece, pixels, depth, zeros, to,
                               tiles * row_step);
      }
    }
    const auto weights = [&](int p) {
      const int64_t slot =
          op.y_axis.position(y_piece.rows[p / x_piece.products]) * op.x_axis.rows.size() +
          op.x_axis.position(x_piece.rows[p % x_piece.products]);
      return op.weights + (slot * all_panels + task.first_panel) * panel_step + channel * kPanel;
    };
    for (int p = 0; p < all_products; ++p) {
      const float* next = p + 1 < all_products ? weights(p + 1) : weights(0) + depth * kPanel;
      multiply(inputs + p * tiles * row_step, tiles, row_step, weights(p), next, panel_step, panels,
               products + p * tiles * row, row, depth, block > 0);
    }
  }
  const int64_t first_channel = task.first_panel * kPanel;
  const int64_t channels = std::min(row, op.out_channels - first_channel);
  for (int64_t t = 0; t < tiles; ++t) {
    const auto [image, y, x] = locate(task.begin + t);
    transforms.output(op, image, y, x, first_channel, channels, products + t * row, tiles * row);
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
