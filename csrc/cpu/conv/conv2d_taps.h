#pragma once
// Which coordinates an axis of a convolution reads: its destinations in runs that have the same
// live taps, so that no kernel asks a tap whether it falls into padding.

#include <cstdint>
#include <vector>

namespace fastseg::cpu {

struct LiveTap {
  int64_t tap;     // in [0, kernel)
  int64_t source;  // the coordinate that the run's first destination reads
};

// Destinations first + k * step for k in [0, count), which read source + k * source_step of each
// of their taps.
struct TapRun {
  int64_t first, count;
  std::vector<LiveTap> taps;
};

struct TapAxis {
  int64_t size;         // of the destinations; each is in one run
  int64_t source_size;  // of what is read
  int64_t step;         // between the destinations of a run
  int64_t source_step;  // between the coordinates that they read
  int64_t reuse;        // destinations this far apart read coordinates in common
  std::vector<TapRun> runs;
};

// Output o reads the input at o * stride - padding + tap * dilation.
TapAxis forward_taps(int64_t outputs, int64_t inputs, int64_t kernel, int64_t stride,
                     int64_t padding, int64_t dilation);

// Input i reads the gradient of the output o where o * stride - padding + tap * dilation = i.
TapAxis gradient_taps(int64_t inputs, int64_t outputs, int64_t kernel, int64_t stride,
                      int64_t padding, int64_t dilation);

// Outputs first + k * dilation of one row or, `paired`, of this and the next column, of a kernel
// of three taps and stride 1: they read first - padding + m * dilation for m in [0, count + 2), of
// which those in [live_begin, live_end) are no padding.
struct TapChain {
  int64_t first, count;
  int64_t live_begin, live_end;
  bool paired;

  // The second chain of a pair.
  TapChain next() const { return {first + 1, count, live_begin, live_end, false}; }
};

std::vector<TapChain> tap_chains(int64_t outputs, int64_t inputs, int64_t padding,
                                 int64_t dilation);

// One destination of an axis.
struct TapRow {
  int64_t destination;
  const TapRun* run;
  int64_t k;  // its place in the run
};

// All destinations, those that read coordinates in common behind each other.
std::vector<TapRow> rows_by_reuse(const TapAxis& axis);

}  // namespace fastseg::cpu
