// out[position(code)] = value (max_unpool2d) or += value (max_pool2d_backward), 0 elsewhere.
//
// Floor: every value, code and output element moves once; for 2x2 windows of float32, 4 + 1 bytes
// in and 16 out for each window. Rows of the output are made in order, each element written once:
// no memset before, no scatter across memory, and no two threads meet, so the result does not
// depend on their number. Where windows overlap they act in raster order, as in torch.

#include <algorithm>
#include <vector>

#include "cpu/max_unpool2d.h"
#include "cpu/row_writer.h"
#include "cpu/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

// Each value of a 2x2 window row goes to one of the two elements below it in output row 2i + ki.
template <bool kAccumulate, class T, int L>
typename Simd<T, L>::Value placed(const T* values, const uint8_t* codes, int code) {
  using S = Simd<T, L>;
  const typename S::Value value =
      S::load_codes(codes) == S::fill_code(code) ? S::load(values) : typename S::Value{};
  return kAccumulate ? value + typename S::Value{} : value;  // torch adds to zero: -0.0 becomes 0.0
}

template <bool kAccumulate, class T>
void row_2x2(const MaxUnpool2d<T>& op, const T* values, const uint8_t* codes, int ki,
             RowWriter<T>& out) {
  const PoolAxis& w = op.pool.w;
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve / 2;
  for (int64_t j = 0; j < w.windows; j += kStretch) {
    const int64_t n = std::min(kStretch, w.windows - j);
    T* p = out.reserve(2 * n);
    for_blocks<kLanes<T>>(0, n, [&](auto lanes, int64_t k) {
      const T* v = values + j + k;
      const uint8_t* c = codes + j + k;
      Simd<T, lanes>::store_interleaved(p + 2 * k, placed<kAccumulate, T, lanes>(v, c, 2 * ki),
                                        placed<kAccumulate, T, lanes>(v, c, 2 * ki + 1));
    });
    out.advance(2 * n);
  }
  out.zeros(w.size - 2 * w.windows);
}

template <bool kAccumulate, class T>
void row_2x2_channels_last(const MaxUnpool2d<T>& op, const T* values, const uint8_t* codes, int ki,
                           RowWriter<T>& out) {
  const PoolAxis& w = op.pool.w;
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve;
  for (int64_t x = 0; x < 2 * w.windows; ++x) {
    const int64_t first = x / 2 * op.channels;
    const int code = 2 * ki + static_cast<int>(x % 2);
    for (int64_t c = 0; c < op.channels; c += kStretch) {
      const int64_t n = std::min(kStretch, op.channels - c);
      T* p = out.reserve(n);
      for_blocks<kLanes<T>>(0, n, [&](auto lanes, int64_t k) {
        Simd<T, lanes>::store(p + k, placed<kAccumulate, T, lanes>(values + first + c + k,
                                                                   codes + first + c + k, code));
      });
      out.advance(n);
    }
  }
  out.zeros((w.size - 2 * w.windows) * op.channels);
}

// What the windows of row i whose tap row is ki put into the output row `row` of (W, lanes).
template <bool kAccumulate, class T>
void place_row(const Pool2d& pool, int64_t lanes, const T* values, const uint8_t* codes, int ki,
               Compute<T>* row) {
  const int first_code = ki * pool.w.kernel;
  const auto put = [](Compute<T>& element, const T& value) {
    if constexpr (kAccumulate) {
      element += static_cast<Compute<T>>(value);
    } else {
      element = static_cast<Compute<T>>(value);
    }
  };
  for (int64_t j = 0; j < pool.w.windows; ++j) {
    if (lanes == 1) {
      const unsigned kj = static_cast<unsigned>(codes[j] - first_code);
      if (kj < static_cast<unsigned>(pool.w.kernel)) {
        put(row[pool.w.coordinate(j, static_cast<int>(kj))], values[j]);
      }
      continue;
    }
    const T* v = values + j * lanes;
    const uint8_t* k = codes + j * lanes;
    for (int kj = pool.w.first_tap(j); kj < pool.w.end_tap(j); ++kj) {
      Compute<T>* element = row + pool.w.coordinate(j, kj) * lanes;
      for (int64_t c = 0; c < lanes; ++c) {
        if (k[c] == first_code + kj) put(element[c], v[c]);
      }
    }
  }
}

template <class T>
void write_row(const Compute<T>* row, int64_t size, RowWriter<T>& out) {
  constexpr int64_t kStretch = RowWriter<T>::kMaxReserve;
  for (int64_t x = 0; x < size; x += kStretch) {
    const int64_t n = std::min(kStretch, size - x);
    T* p = out.reserve(n);
    for_blocks<kLanes<T>>(0, n, [&](auto lanes, int64_t k) {
      Simd<T, lanes>::store(p + k, Simd<Compute<T>, lanes>::load(row + x + k));
    });
    out.advance(n);
  }
}

template <bool kAccumulate, class T>
void rows_2x2(const MaxUnpool2d<T>& op, int64_t begin, int64_t end) {
  const PoolAxis& h = op.pool.h;
  const int64_t lanes = op.lanes(), width = op.pool.w.size * lanes;
  CodeRows codes(op.pool, op.codes, lanes);
  RowWriter<T> out(op.out + begin * width, op.stream);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t plane = r / h.size, y = r % h.size, i = y / 2;
    if (i >= h.windows) {
      out.zeros(width);
      continue;
    }
    const T* values = op.values + (plane * h.windows + i) * op.pool.w.windows * lanes;
    const auto row =
        op.channels_last ? row_2x2_channels_last<kAccumulate, T> : row_2x2<kAccumulate, T>;
    row(op, values, codes.row(plane, i), static_cast<int>(y % 2), out);
  }
}

template <bool kAccumulate, class T>
void rows_of_any_window(const MaxUnpool2d<T>& op, int64_t begin, int64_t end) {
  const PoolAxis& h = op.pool.h;
  const int64_t lanes = op.lanes(), width = op.pool.w.size * lanes;
  CodeRows codes(op.pool, op.codes, lanes);
  RowWriter<T> out(op.out + begin * width, op.stream);
  std::vector<Compute<T>> row(width);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t plane = r / h.size, y = r % h.size;
    std::fill(row.begin(), row.end(), Compute<T>{});
    for (int ki = h.kernel - 1; ki >= 0; --ki) {  // later taps belong to earlier windows
      const int64_t i = h.window_at(y, ki);
      if (i < 0) continue;
      const uint8_t* k = codes.row(plane, i);
      if (codes.bad()) return;
      place_row<kAccumulate>(op.pool, lanes,
                             op.values + (plane * h.windows + i) * op.pool.w.windows * lanes, k, ki,
                             row.data());
    }
    write_row<T>(row.data(), width, out);
  }
}

}  // namespace

template <class T>
void max_unpool2d_rows(const MaxUnpool2d<T>& op, int64_t begin, int64_t end) {
  if (op.pool.is_2x2()) {
    op.accumulate ? rows_2x2<true>(op, begin, end) : rows_2x2<false>(op, begin, end);
  } else {
    op.accumulate ? rows_of_any_window<true>(op, begin, end)
                  : rows_of_any_window<false>(op, begin, end);
  }
}

template void max_unpool2d_rows(const MaxUnpool2d<float>&, int64_t, int64_t);
template void max_unpool2d_rows(const MaxUnpool2d<double>&, int64_t, int64_t);
template void max_unpool2d_rows(const MaxUnpool2d<Half>&, int64_t, int64_t);
template void max_unpool2d_rows(const MaxUnpool2d<BFloat16>&, int64_t, int64_t);

}  // namespace fastseg::cpu::FASTSEG_SIMD
