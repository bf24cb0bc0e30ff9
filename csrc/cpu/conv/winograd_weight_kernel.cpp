// The weights of Winograd convolution: a panel of 16 output channels, packed.
//
// Bytes: reads 36 and writes 4 * rows * rows a pair of channels (16 rows * rows of F(2, 3): 64).

#include <algorithm>

#include "common/host_device.h"
#include "cpu/conv/winograd_conv2d.h"
#include "cpu/simd/simd.h"

namespace fastseg::cpu::FASTSEG_SIMD {
namespace {

constexpr int64_t kStretch = 32;  // input channels at a time

// lines[i] (16 lanes each) to sum_k taps[k] * lines[k].
inline void combine(const double* taps, const float (*lines)[kPanel], int64_t step, float* to) {
  const float a = static_cast<float>(taps[0]), b = static_cast<float>(taps[1]);
  const float c = static_cast<float>(taps[2]);
  FASTSEG_UNROLL
  for (int lane = 0; lane < kPanel; ++lane) {
    to[lane] = a * lines[0][lane] + b * lines[step][lane] + c * lines[2 * step][lane];
  }
}

}  // namespace

void winograd_weight_panel(const WinogradWeight& op, int64_t panel) {
  const int64_t panels = (op.out_channels + kPanel - 1) / kPanel;
  const int64_t first = panel * kPanel;
  const int64_t lanes = std::min<int64_t>(kPanel, op.out_channels - first);
  const int64_t slot_step = panels * op.in_channels * kPanel;
  const int64_t columns = static_cast<int64_t>(op.x_rows.size());
  float taps[kStretch][9][kPanel] = {};
  for (int64_t begin = 0; begin < op.in_channels; begin += kStretch) {
    const int64_t count = std::min(kStretch, op.in_channels - begin);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float* g = op.weight + (first + lane) * op.strides[0] + begin * op.strides[1];
      for (int tap = 0; tap < 9; ++tap) {
        const int from = op.adjoint ? 8 - tap : tap;
        const float* p = g + from / 3 * op.strides[2] + from % 3 * op.strides[3];
        for (int64_t i = 0; i < count; ++i) taps[i][tap][lane] = p[i * op.strides[1]];
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      float* to = op.packed + (panel * op.in_channels + begin + i) * kPanel;
      for (size_t y = 0; y < op.y_rows.size(); ++y) {
        float line[3][kPanel];
        for (int j = 0; j < 3; ++j) combine(kTaps[op.y_rows[y]], taps[i] + j, 3, line[j]);
        for (int64_t x = 0; x < columns; ++x) {
          combine(kTaps[op.x_rows[x]], line, 1, to + (y * columns + x) * slot_step);
        }
      }
    }
  }
}

}  // namespace fastseg::cpu::FASTSEG_SIMD
