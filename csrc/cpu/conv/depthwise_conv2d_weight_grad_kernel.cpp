// The gradient of a depthwise convolution's weight.
//
// Outputs are cut into regions of one set of live taps; up to nine taps are summed at once in
// registers, so that the gradient is read once for three by three taps. Sums start from zero every
// few hundred products a lane and are added up in larger ones: one chain over a plane would lose
// digits with its length. Channels_last, the lanes are channels, and a run of pixels is summed
// before it is added to the task's own sums, which stay in the first-level cache; contiguous, the
// lanes are pixels, which are summed in double in the end.
//
// Floor: to read x and grad once.

#include <algorithm>
#include <memory>

#include "common/host_device.h"
#include "cpu/conv/depthwise_conv2d_weight_grad.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

// Calls body(std::integral_constant<int, M>, t) for groups of M <= 9 taps [t, t + M) of `taps`.
template <class T, class Body>
void for_tap_groups(int64_t taps, const Body& body) {
  int64_t t = 0;
  const auto take = [&](auto group) {
    for (; t + group <= taps; t += group) body(group, t);
  };
  if constexpr (kSpecialForms<T>) {
    take(std::integral_constant<int, 9>{});
    take(std::integral_constant<int, 6>{});
    take(std::integral_constant<int, 3>{});
    take(std::integral_constant<int, 2>{});
  }
  take(std::integral_constant<int, 1>{});
}

// A tap of a region: where it reads for the first output, and its number in the kernel.
struct RegionTap {
  int64_t offset, number;
};

void region_taps(const TapRun& rows, const TapRun& columns, int64_t kernel_width,
                 int64_t source_width, std::vector<RegionTap>& taps) {
  taps.clear();
  for (const LiveTap& i : rows.taps) {
    for (const LiveTap& j : columns.taps) {
      taps.push_back({i.source * source_width + j.source, i.tap * kernel_width + j.tap});
    }
  }
}

// The sums of M taps over `pixels` outputs of one row, for the channels [c, c + L), are added to
// sums[number * channels + c].
template <class T, int M, int L>
void add_pixels(const RegionTap* taps, const T* x, int64_t step, const T* grad, int64_t pixels,
                int64_t channels, int64_t c, Compute<T>* sums) {
  using S = Simd<T, L>;
  using A = Simd<Compute<T>, L>;
  typename S::Value sum[M] = {};
  const T* source[M];
  for (int t = 0; t < M; ++t) source[t] = x + taps[t].offset * channels + c;
  for (int64_t p = 0; p < pixels; ++p) {
    const auto g = S::load(grad + p * channels + c);
    FASTSEG_UNROLL
    for (int t = 0; t < M; ++t) sum[t] += g * S::load(source[t] + p * step);
  }
  for (int t = 0; t < M; ++t) {
    Compute<T>* to = sums + taps[t].number * channels + c;
    A::store(to, A::load(to) + sum[t]);
  }
}

// As for_blocks, but no element is met twice.
template <int L, class Body>
void for_disjoint_blocks(int64_t begin, int64_t end, const Body& body) {
  for (; begin + L <= end; begin += L) body(std::integral_constant<int, L>{}, begin);
  if constexpr (L > 1) {
    if (begin < end) for_disjoint_blocks<(L > 4 ? L / 2 : 1)>(begin, end, body);
  }
}

// Rows [k, k + rows) of a run of rows by a run of columns, of one plane.
template <class T>
struct Region {
  const RegionTap* taps;
  const T* x;
  int64_t x_row;
  const T* grad;
  int64_t grad_row;
  int64_t rows, columns;
};

// Out of line: kernels hold no copy of it for each of their taps.
template <class T, int L>
[[gnu::noinline]] double total_of(typename Simd<T, L>::Value sums) {
  double total = 0;
  for (int l = 0; l < L; ++l) total += sums[l];
  return total;
}

// Adds the sums of M taps to totals[number].
template <class T, int M, int L, int source_step>
void add_region(const Region<T>& region, int64_t any_step, double* totals) {
  using S = Simd<T, L>;
  using V = typename S::Value;
  constexpr int64_t kChain = 512;  // products a lane that are summed in one go
  const auto load = [&](const T* p) {
    if constexpr (source_step == 1) return S::load(p);
    if constexpr (source_step == 2 && L > 1) return S::load_even(p);
    return S::load_strided(p, any_step);
  };
  const int64_t step = source_step > 0 ? source_step : any_step;
  const int64_t whole = region.columns / L * L;
  typename S::Mask lane;
  for (int l = 0; l < L; ++l) lane[l] = l;
  V sum[M] = {};
  int64_t length = 0;
  const auto flush = [&] {
    for (int t = 0; t < M; ++t) {
      totals[region.taps[t].number] += total_of<T, L>(sum[t]);
      sum[t] = V{};
    }
    length = 0;
  };
  for (int64_t r = 0; r < region.rows; ++r) {
    const T* x = region.x + r * region.x_row;
    const T* grad = region.grad + r * region.grad_row;
    for (int64_t i = 0; i < whole; i += L) {
      const V g = S::load(grad + i);
      FASTSEG_UNROLL
      for (int t = 0; t < M; ++t) sum[t] += g * load(x + region.taps[t].offset + i * step);
    }
    if (whole < region.columns) {  // the last L columns, but for those that are summed already
      const int64_t i = region.columns - L;
      const auto fresh = lane >= static_cast<int>(whole - i);
      const V g = fresh ? S::load(grad + i) : V{};
      FASTSEG_UNROLL
      for (int t = 0; t < M; ++t) {
        const V value = load(x + region.taps[t].offset + i * step);
        sum[t] += g * (fresh ? value : V{});
      }
    }
    length += whole / L + 1;
    if (length >= kChain) flush();
  }
  flush();
}

template <class T, int M, int L>
void add_region(const Region<T>& region, int64_t source_step, double* totals) {
  if constexpr (L > 4) {
    if (region.columns < L) return add_region<T, M, L / 2>(region, source_step, totals);
  } else if constexpr (L > 1) {
    if (region.columns < L) return add_region<T, M, 1>(region, source_step, totals);
  }
  if constexpr (L == 1) return add_region<T, M, L, 0>(region, source_step, totals);
  if (source_step == 1) return add_region<T, M, L, 1>(region, source_step, totals);
  if constexpr (L == kLanes<T> && M % 3 == 0) {
    if (source_step == 2) return add_region<T, M, L, 2>(region, source_step, totals);
  }
  // Pixels that lie apart are gathered one by one, whatever the number of taps.
  Region<T> tap = region;
  for (int t = 0; t < M; ++t, ++tap.taps) add_region<T, 1, L, 0>(tap, source_step, totals);
}

}  // namespace

template <class T>
void depthwise_weight_grad_contiguous(const ContiguousDepthwiseWeightGrad<T>& op, int64_t begin,
                                      int64_t end) {
  const int64_t width = op.columns.size, source_width = op.columns.source_size;
  std::vector<RegionTap> taps;
  const std::unique_ptr<double[]> totals(new double[op.taps()]);
  for (int64_t channel = begin; channel < end; ++channel) {
    std::fill_n(totals.get(), op.taps(), 0.0);
    for (int64_t n = 0; n < op.batch; ++n) {
      const int64_t plane = n * op.channels + channel;
      const T* x = op.x + plane * op.rows.source_size * source_width;
      const T* grad = op.grad + plane * op.rows.size * width;
      for (const TapRun& rows : op.rows.runs) {
        for (const TapRun& columns : op.columns.runs) {
          region_taps(rows, columns, op.kernel_width, source_width, taps);
          for_tap_groups<T>(taps.size(), [&](auto group, int64_t t) {
            constexpr int M = decltype(group)::value;
            const Region<T> region{taps.data() + t,
                                   x,
                                   op.rows.source_step * source_width,
                                   grad + rows.first * width + columns.first,
                                   width,
                                   rows.count,
                                   columns.count};
            add_region<T, M, kLanes<T>>(region, op.columns.source_step, totals.get());
          });
        }
      }
    }
    T* out = op.out + channel * op.taps();
    for (int64_t t = 0; t < op.taps(); ++t) {
      out[t] = static_cast<T>(static_cast<Compute<T>>(totals[t]));
    }
  }
}

template <class T>
void depthwise_weight_grad_channels_last(const ChannelsLastDepthwiseWeightGrad<T>& op,
                                         int64_t begin, int64_t end) {
  constexpr int64_t kPixels = 32;  // summed in one go
  const int64_t channels = op.channels, width = op.columns.size;
  const int64_t source_width = op.columns.source_size, step = op.columns.source_step * channels;
  const int64_t rows = static_cast<int64_t>(op.order.size());
  std::vector<RegionTap> taps;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task % op.blocks, part = task / op.blocks;
    const int64_t band = part % op.bands, image = part / op.bands;
    const int64_t first = channels * block / op.blocks, last = channels * (block + 1) / op.blocks;
    auto* sums = op.partial + part * op.taps() * channels;
    for (int64_t k = rows * band / op.bands; k < rows * (band + 1) / op.bands; ++k) {
      const TapRow& row = op.order[k];
      const int64_t source_row = image * op.rows.source_size + row.k * op.rows.source_step;
      for (const TapRun& columns : op.columns.runs) {
        region_taps(*row.run, columns, op.kernel_width, source_width, taps);
        const T* x = op.x + source_row * source_width * channels;
        const T* grad =
            op.grad + ((image * rows + row.destination) * width + columns.first) * channels;
        for (int64_t p = 0; p < columns.count; p += kPixels) {
          const int64_t pixels = std::min(kPixels, columns.count - p);
          for_tap_groups<T>(taps.size(), [&](auto group, int64_t t) {
            for_disjoint_blocks<kLanes<T>>(first, last, [&](auto lanes, int64_t c) {
              constexpr int M = decltype(group)::value, L = decltype(lanes)::value;
              const auto add = [&](auto count, int64_t first_tap) {
                add_pixels<T, decltype(count)::value, L>(taps.data() + first_tap, x + p * step,
                                                         step, grad + p * channels, pixels,
                                                         channels, c, sums);
              };
              if constexpr (L == kLanes<T> || L == 8) {
                add(group, t);
              } else {  // the last few channels
                for (int k = 0; k < M; ++k) add(std::integral_constant<int, 1>{}, t + k);
              }
            });
          });
        }
      }
    }
  }
}

#define FASTSEG_INSTANTIATE(T)                                                                     \
  template void depthwise_weight_grad_contiguous(const ContiguousDepthwiseWeightGrad<T>&, int64_t, \
                                                 int64_t);                                         \
  template void depthwise_weight_grad_channels_last(const ChannelsLastDepthwiseWeightGrad<T>&,     \
                                                    int64_t, int64_t);
FASTSEG_FOR_FLOATS(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
