// Which taps are live at which outputs of an axis, computed once for each call.

#include "cpu/conv/conv2d_taps.h"

#include <algorithm>
#include <numeric>

#include "common/ceil_divide.h"

namespace fastseg::cpu {
namespace {

// source_of(destination, tap) is negative where the tap reads nothing.
template <class SourceOf>
void add_runs(TapAxis& axis, int64_t kernel, const SourceOf& source_of) {
  const auto same_taps = [](const std::vector<LiveTap>& a, const std::vector<LiveTap>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const LiveTap& s, const LiveTap& t) { return s.tap == t.tap; });
  };
  std::vector<LiveTap> taps;
  for (int64_t residue = 0; residue < std::min(axis.step, axis.size); ++residue) {
    bool extend = false;
    for (int64_t d = residue; d < axis.size; d += axis.step) {
      taps.clear();
      for (int64_t tap = 0; tap < kernel; ++tap) {
        const int64_t source = source_of(d, tap);
        if (source >= 0 && source < axis.source_size) taps.push_back({tap, source});
      }
      if (extend && same_taps(taps, axis.runs.back().taps)) {
        ++axis.runs.back().count;
      } else {
        axis.runs.push_back({d, 1, taps});
      }
      extend = true;
    }
  }
}

}  // namespace

TapAxis forward_taps(int64_t outputs, int64_t inputs, int64_t kernel, int64_t stride,
                     int64_t padding, int64_t dilation) {
  TapAxis axis{outputs, inputs, 1, stride, dilation / std::gcd(dilation, stride), {}};
  add_runs(axis, kernel,
           [&](int64_t o, int64_t tap) { return o * stride - padding + tap * dilation; });
  return axis;
}

TapAxis gradient_taps(int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride,
                      int64_t padding, int64_t dilation) {
  TapAxis axis{inputs, outputs, stride, 1, dilation, {}};
  add_runs(axis, kernel, [&](int64_t i, int64_t tap) {
    const int64_t offset = i + padding - tap * dilation;
    return offset >= 0 && offset % stride == 0 ? offset / stride : -1;
  });
  return axis;
}

std::vector<TapChain> tap_chains(int64_t outputs, int64_t inputs, int64_t padding,
                                 int64_t dilation) {
  // Longer ones save loads, but walk over more pages and, where the channels are a power of two,
  // over more lines of one set of the caches.
  constexpr int64_t kLongest = 8;
  const auto length = [&](int64_t residue) { return ceil_divide(outputs - residue, dilation); };
  const int64_t parts = ceil_divide(length(0), kLongest);
  std::vector<TapChain> chains;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = length(0) * part / parts, end = length(0) * (part + 1) / parts;
    bool open = false;  // the last chain may be paired
    for (int64_t residue = 0; residue < std::min(dilation, outputs); ++residue) {
      const int64_t count = std::min(end, length(residue)) - begin;
      if (count <= 0) break;
      const int64_t first = residue + begin * dilation;
      const int64_t live_begin = std::min(ceil_divide(padding - first, dilation), count + 2);
      const int64_t live_end =
          std::clamp(ceil_divide(inputs + padding - first, dilation), live_begin, count + 2);
      if (open && chains.back().count == count && chains.back().live_begin == live_begin &&
          chains.back().live_end == live_end) {
        chains.back().paired = true;
        open = false;
      } else {
        chains.push_back({first, count, live_begin, live_end, false});
        open = true;
      }
    }
  }
  return chains;
}

std::vector<TapRow> rows_by_reuse(const TapAxis& axis) {
  std::vector<TapRow> rows(axis.size);
  for (const TapRun& run : axis.runs) {
    for (int64_t k = 0; k < run.count; ++k) {
      const int64_t destination = run.first + k * axis.step;
      rows[destination] = {destination, &run, k};
    }
  }
  std::vector<TapRow> ordered;
  ordered.reserve(rows.size());
  for (int64_t residue = 0; residue < std::min(axis.reuse, axis.size); ++residue) {
    for (int64_t d = residue; d < axis.size; d += axis.reuse) ordered.push_back(rows[d]);
  }
  return ordered;
}

}  // namespace fastseg::cpu
