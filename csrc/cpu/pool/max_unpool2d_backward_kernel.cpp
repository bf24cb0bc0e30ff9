// out = grad[position(code)]: the gradient of max_unpool2d, and of max_pool2d_backward.
//
// Floor: for 2x2 windows of float32, 16 + 1 bytes in and 4 out for each window; the three elements
// that are not wanted share the cache lines of the one that is, so all four are loaded and the code
// selects.

#include <algorithm>

#include "cpu/conv/window_taps.h"
#include "cpu/pool/max_unpool2d.h"
#include "cpu/pool/row_writer.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

template <class T, int L>
typename Simd<T, L>::Value select(typename Simd<T, L>::Mask codes, typename Simd<T, L>::Value v0,
                                  typename Simd<T, L>::Value v1, typename Simd<T, L>::Value v2,
                                  typename Simd<T, L>::Value v3) {
  const auto right = (codes & 1) != 0, below = (codes & 2) != 0;
  const auto upper = right ? v1 : v0, lower = right ? v3 : v2;
  return below ? lower : upper;
}

// `top` is the first row of the window row's 2 x W elements.
template <class T>
void row_2x2(const MaxUnpool2dBackward<T>& op, const T* top, const uint8_t* codes,
             RowWriter<T>& out) {
  const PoolAxis& w = op.pool.w;
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve;
  for (int64_t j = 0; j < w.windows; j += kStretch) {
    const int64_t n = std::min(kStretch, w.windows - j);
    T* p = out.reserve(n);
    for_blocks<kLanes<T>>(0, n, [&](auto lanes, int64_t k) {
      using S = Simd<T, lanes>;
      const T* v = top + 2 * (j + k);
      S::prefetch_even_odd(v + 2 * w.size);
      S::prefetch_even_odd(v + 3 * w.size);
      const auto [v0, v1] = S::load_even_odd(v);
      const auto [v2, v3] = S::load_even_odd(v + w.size);
      S::store(p + k, select<T, lanes>(S::load_codes(codes + j + k), v0, v1, v2, v3));
    });
    out.advance(n);
  }
}

template <class T>
void row_2x2_channels_last(const MaxUnpool2dBackward<T>& op, const T* top, const uint8_t* codes,
                           RowWriter<T>& out) {
  const PoolAxis& w = op.pool.w;
  const int64_t channels = op.channels, below = w.size * channels;
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve;
  for (int64_t j = 0; j < w.windows; ++j) {
    for (int64_t c = 0; c < channels; c += kStretch) {
      const int64_t n = std::min(kStretch, channels - c);
      T* p = out.reserve(n);
      for_blocks<kLanes<T>>(0, n, [&](auto lanes, int64_t k) {
        using S = Simd<T, lanes>;
        const T* v = top + 2 * j * channels + c + k;
        S::store(p + k, select<T, lanes>(S::load_codes(codes + j * channels + c + k), S::load(v),
                                         S::load(v + channels), S::load(v + below),
                                         S::load(v + below + channels)));
      });
      out.advance(n);
    }
  }
}

// One element at a time: other windows, and rows or channels that are too few to fill vectors.
template <class T>
void row_of_any_window(const MaxUnpool2dBackward<T>& op, const WindowTaps& window_taps,
                       const T* plane, int64_t i, const uint8_t* codes, RowWriter<T>& out) {
  const int64_t lanes = op.lanes(), size = op.pool.w.windows * lanes;
  const Taps& taps = window_taps.whole();
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve;
  int64_t origin = window_taps.origin(i, 0), c = 0;
  for (int64_t first = 0; first < size; first += kStretch) {
    const int64_t n = std::min(kStretch, size - first);
    T* p = out.reserve(n);
    for (int64_t k = 0; k < n; ++k) {
      p[k] = plane[origin + taps.offset[codes[first + k]] + c];
      if (++c == lanes) {
        c = 0;
        origin += op.pool.w.stride * lanes;
      }
    }
    out.advance(n);
  }
}

}  // namespace

template <class T>
void max_unpool2d_backward_rows(const MaxUnpool2dBackward<T>& op, int64_t begin, int64_t end) {
  const PoolAxis &h = op.pool.h, &w = op.pool.w;
  const int64_t lanes = op.lanes();
  CodeRows codes(op.pool, op.codes, lanes);
  RowWriter<T> out(op.out + begin * w.windows * lanes, op.stream);
  const WindowTaps window_taps(op.pool, lanes);
  const bool by_vectors = op.pool.is_2x2() && (op.channels_last ? lanes >= 8 : w.windows >= 16);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t i = r % h.windows;
    const T* plane = op.grad + r / h.windows * h.size * w.size * lanes;
    const uint8_t* k = codes.row(r / h.windows, i);
    if (codes.bad()) return;
    if (!by_vectors) {
      row_of_any_window(op, window_taps, plane, i, k, out);
    } else if (op.channels_last) {
      row_2x2_channels_last(op, plane + 2 * i * w.size * lanes, k, out);
    } else {
      row_2x2(op, plane + 2 * i * w.size, k, out);
    }
  }
}

#define FASTSEG_INSTANTIATE(T) \
  template void max_unpool2d_backward_rows(const MaxUnpool2dBackward<T>&, int64_t, int64_t);
FASTSEG_FOR_FLOATS(FASTSEG_INSTANTIATE)
#undef FASTSEG_INSTANTIATE

}  // namespace fastseg::cpu::FASTSEG_SIMD
