// Depthwise convolution of channels_last images: channels along the lanes.
//
// The usual case, three taps a row at stride 1, walks along columns that are a dilation apart: each
// pixel is loaded once a kernel row, multiplied into the sums of the three outputs that read it,
// and the oldest of these is complete. With the weights of a vector of channels in registers that
// is 3 loads and 9 multiply-adds an output, where output by output it is 18 loads. Two neighbouring
// columns are walked together. All other kernels take four outputs at a time.
//
// Rows that are a dilation apart follow each other, in blocks of channels of which three rows stay
// in the second-level cache: every pixel comes from memory once. The row that the next task reads
// first is prefetched; the processor's prefetchers do not follow pixels that are kilobytes apart.
//
// Floor: to read x and write y once. The multiply-adds, 9 an element, are less: 4.5 cycles a vector
// of 16 floats.

#include <algorithm>

#include "common/host_device.h"
#include "cpu/conv/conv2d_epilogue.h"
#include "cpu/conv/depthwise_conv2d.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

// Past the caches only where a register is a whole line.
template <class T>
inline constexpr bool kCanStream = FASTSEG_SIMD_BYTES == 64 && std::is_same_v<T, Compute<T>>;

template <class T, int L, bool stream>
void put(T* p, typename Simd<T, L>::Value v) {
#if defined(__AVX512F__)
  if constexpr (stream && sizeof v == 64) {
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bit_cast<__m512i>(v));
  }
#endif
  Simd<T, L>::store(p, v);
}

void fence() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

// Keeps a vector in a register: GCC would rather load it once more for each product.
template <class V>
void hold(V& v) {
#if defined(__AVX512F__)
  if constexpr (sizeof v >= 16) asm("" : "+v"(v));
#elif defined(__SSE2__)
  if constexpr (sizeof v >= 16) asm("" : "+x"(v));
#else
  (void)v;
#endif
}

// What the outputs of one row read, of the image at x.
template <class T>
struct Row {
  using F = Compute<T>;

  std::vector<const T*> sources;  // the rows of x, one for each live tap
  std::vector<const F*> weights;  // of the first column of that tap
  const T* next = nullptr;        // a row that the next task reads
  int64_t output = 0;             // the place of the row in y
};

// L channels of Q neighbouring chains; few images have so few channels that L is less than a
// register, so one form serves these. I: the number of live kernel rows, or 0 for any up to three.
template <class T, int I, int Q, int L, bool smooth, bool stream>
void walk_vector(const ChannelsLastDepthwiseConv2d<T>& op, const Row<T>& row, const TapChain& chain,
                 int64_t c) {
  using S = Simd<T, L>;
  using V = typename S::Value;
  const int64_t channels = op.channels, step = op.dilation_width * channels;
  const Conv2dEpilogue<T> epilogue = op.epilogue;
  const T* next = row.next;
  T* y = op.y;
  constexpr int kRows = I > 0 ? I : 3;
  const int rows = I > 0 ? I : static_cast<int>(row.sources.size());
  V weight[kRows][3];
  const T* source[kRows];
  FASTSEG_UNROLL
  for (int i = 0; i < kRows; ++i) {
    if (i >= rows) break;
    source[i] = row.sources[i];
    FASTSEG_UNROLL
    for (int j = 0; j < 3; ++j) {
      weight[i][j] = Simd<Compute<T>, L>::load(row.weights[i] + j * channels + c);
    }
  }
  const auto terms = channel_terms<T, L>(epilogue, c);
  int64_t at = (chain.first - op.padding_width) * channels + c;  // what is read
  int64_t out = row.output + (chain.first - 2 * op.dilation_width) * channels + c;
  V third[Q] = {}, second[Q] = {};  // the sums of outputs that have seen two pixels, and one
  const auto advance = [&](auto live, auto complete) __attribute__((always_inline)) {
    FASTSEG_UNROLL
    for (int q = 0; q < Q; ++q) {
      V first = {};
      if constexpr (live) {
        const int64_t pixel = at + q * channels;
        FASTSEG_UNROLL
        for (int i = 0; i < kRows; ++i) {
          if (i >= rows) break;
          V x = S::load(source[i] + pixel);
          hold(x);
          first += weight[i][0] * x;
          second[q] += weight[i][1] * x;
          third[q] += weight[i][2] * x;
        }
        if (next) __builtin_prefetch(next + pixel, 0, 2);
      }
      if constexpr (complete) {
        const int64_t place = out + q * channels;
        put<T, L, stream>(y + place, finish<T, L, smooth>(epilogue, terms, third[q], place));
      }
      third[q] = second[q];
      second[q] = first;
    }
    at += step;
    out += step;
  };
  constexpr std::true_type yes;
  constexpr std::false_type no;
  const int64_t end = chain.count + 2;
  for (int64_t m = 0; m < end;) {
    const bool live = chain.live_begin <= m && m < chain.live_end;
    if (live && m >= 2) {
      for (; m < chain.live_end; ++m) advance(yes, yes);
      continue;
    }
    if (live) {
      advance(yes, no);
    } else if (m >= 2) {
      advance(no, yes);
    } else {
      advance(no, no);
    }
    ++m;
  }
}

template <class T, int I, bool smooth, bool stream>
void walk(const ChannelsLastDepthwiseConv2d<T>& op, const Row<T>& row, int64_t begin, int64_t end) {
  for (const TapChain& chain : op.chains) {
    for_blocks<kLanes<T>>(begin, end, [&](auto lanes, int64_t c) {
      constexpr int L = decltype(lanes)::value;
      if constexpr (kSpecialForms<T> && L == kLanes<T>) {
        if (chain.paired) return walk_vector<T, I, 2, L, smooth, stream>(op, row, chain, c);
        walk_vector<T, I, 1, L, smooth, stream>(op, row, chain, c);
      } else {
        walk_vector<T, 0, 1, L, smooth, false>(op, row, chain, c);
        if (chain.paired) walk_vector<T, 0, 1, L, smooth, false>(op, row, chain.next(), c);
      }
    });
  }
}

// P outputs that are `step` apart, of the channels [c, c + L).
template <class T, int P, int L, bool smooth, bool stream>
void sum_pixels(const ChannelsLastDepthwiseConv2d<T>& op, const std::vector<const T*>& sources,
                const std::vector<const Compute<T>*>& weights, int64_t source_step, int64_t output,
                int64_t step, int64_t c) {
  using S = Simd<T, L>;
  typename S::Value sum[P] = {};
  for (size_t t = 0; t < sources.size(); ++t) {
    const auto weight = Simd<Compute<T>, L>::load(weights[t] + c);
    FASTSEG_UNROLL
    for (int p = 0; p < P; ++p) sum[p] += weight * S::load(sources[t] + p * source_step + c);
  }
  const auto terms = channel_terms<T, L>(op.epilogue, c);
  FASTSEG_UNROLL
  for (int p = 0; p < P; ++p) {
    const int64_t place = output + p * step + c;
    put<T, L, stream>(op.y + place, finish<T, L, smooth>(op.epilogue, terms, sum[p], place));
  }
}

template <class T, bool smooth, bool stream>
void sum_taps(const ChannelsLastDepthwiseConv2d<T>& op, const Row<T>& row, int64_t begin,
              int64_t end) {
  constexpr int kPixels = 4;
  const int64_t channels = op.channels, step = op.columns.step * channels;
  const int64_t source_step = op.columns.source_step * channels;
  std::vector<const T*> sources;
  std::vector<const Compute<T>*> weights;
  for (const TapRun& run : op.columns.runs) {
    sources.clear();
    weights.clear();
    for (size_t i = 0; i < row.sources.size(); ++i) {
      for (const LiveTap& tap : run.taps) {
        sources.push_back(row.sources[i] + tap.source * channels);
        weights.push_back(row.weights[i] + tap.tap * channels);
      }
    }
    int64_t output = row.output + run.first * channels;
    const auto advance = [&](auto pixels) {
      constexpr int P = decltype(pixels)::value;
      for_blocks<kLanes<T>>(begin, end, [&](auto lanes, int64_t c) {
        constexpr int L = decltype(lanes)::value;
        constexpr bool kStream = stream && L == kLanes<T>;
        sum_pixels<T, P, L, smooth, kStream>(op, sources, weights, source_step, output, step, c);
      });
      for (const T*& source : sources) source += P * source_step;
      output += P * step;
    };
    int64_t k = 0;
    for (; k + kPixels <= run.count; k += kPixels) {
      advance(std::integral_constant<int, kPixels>{});
    }
    for (; k < run.count; ++k) advance(std::integral_constant<int, 1>{});
  }
}

template <class T, bool smooth, bool stream>
void compute_channels(const ChannelsLastDepthwiseConv2d<T>& op, const Row<T>& row, int64_t begin,
                      int64_t end) {
  if (op.chains.empty()) return sum_taps<T, smooth, stream>(op, row, begin, end);
  switch (row.sources.size()) {
    case 1:
      return walk<T, 1, smooth, stream>(op, row, begin, end);
    case 2:
      return walk<T, 2, smooth, stream>(op, row, begin, end);
    case 3:
      return walk<T, 3, smooth, stream>(op, row, begin, end);
    default:
      return sum_taps<T, smooth, stream>(op, row, begin, end);
  }
}

template <class T, bool smooth>
void compute(const ChannelsLastDepthwiseConv2d<T>& op, const Row<T>& row, int64_t begin,
             int64_t end) {
  if constexpr (kCanStream<T>) {
    if (op.stream) return compute_channels<T, smooth, true>(op, row, begin, end);
  }
  compute_channels<T, smooth, false>(op, row, begin, end);
}

}  // namespace

template <class T>
void depthwise_conv2d_channels_last(const ChannelsLastDepthwiseConv2d<T>& op, int64_t begin,
                                    int64_t end) {
  const int64_t rows = static_cast<int64_t>(op.order.size()), channels = op.channels;
  const int64_t source_row = op.columns.source_size * channels;
  const int64_t vectors = (channels + kChannelMultiple - 1) / kChannelMultiple;
  Row<T> row;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t place = task % rows, block = task / rows % op.blocks;
    const int64_t image = task / rows / op.blocks;
    const T* x = op.x + image * op.rows.source_size * source_row;
    const auto source = [&](const TapRow& r, const LiveTap& tap) {
      return x + (tap.source + r.k * op.rows.source_step) * source_row;
    };
    const TapRow& current = op.order[place];
    row.sources.clear();
    row.weights.clear();
    for (const LiveTap& tap : current.run->taps) {
      row.sources.push_back(source(current, tap));
      row.weights.push_back(op.weight + tap.tap * op.kernel_width * channels);
    }
    row.next = nullptr;
    if (place + 1 < rows && !op.order[place + 1].run->taps.empty()) {
      row.next = source(op.order[place + 1], op.order[place + 1].run->taps.back());
    }
    row.output = (image * rows + current.destination) * op.columns.size * channels;
    const int64_t first = vectors * block / op.blocks * kChannelMultiple;
    const int64_t last = std::min(channels, vectors * (block + 1) / op.blocks * kChannelMultiple);
    if (is_smooth(op.epilogue.activation)) {
      compute<T, true>(op, row, first, last);
    } else {
      compute<T, false>(op, row, first, last);
    }
  }
  if (op.stream) fence();
}

#define FASTSEG_INSTANTIATE(T)                                                                 \
  template void depthwise_conv2d_channels_last(const ChannelsLastDepthwiseConv2d<T>&, int64_t, \
                                               int64_t);
FASTSEG_FOR_FLOATS(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
