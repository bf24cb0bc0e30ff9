#include <algorithm>

#include "cpu/winograd_conv2d.h"

namespace fastseg::cpu {

int64_t winograd_task_memory(const WinogradTask& task) {
  const int64_t products =
      kPieces[static_cast<int>(task.y)].products * kPieces[static_cast<int>(task.x)].products;
  return products * (task.end - task.begin) *
         (kWinogradRow + (task.last_panel - task.first_panel) * 16);
}

void winograd_pack_panel(const WinogradWeight& op, int64_t panel) {
  const int64_t panels = (op.out_channels + 15) / 16;
  const int64_t columns = static_cast<int64_t>(op.x_rows.size());
  const int64_t slot_step = panels * op.in_channels * 16;
  for (int64_t lane = 0; lane < 16; ++lane) {
    const int64_t out = panel * 16 + lane;
    for (int64_t in = 0; in < op.in_channels; ++in) {
      float* to = op.packed + (panel * op.in_channels + in) * 16 + lane;
      if (out >= op.out_channels) {
        for (int64_t slot = 0; slot < columns * static_cast<int64_t>(op.y_rows.size()); ++slot) {
          to[slot * slot_step] = 0;
        }
        continue;
      }
      const float* g = op.weight + out * op.strides[0] + in * op.strides[1];
      for (size_t i = 0; i < op.y_rows.size(); ++i) {
        const double* vertical = kTaps[op.y_rows[i]];
        double line[3];
        for (int j = 0; j < 3; ++j) {
          line[j] = 0;
          for (int k = 0; k < 3; ++k) {
            line[j] += vertical[k] * g[k * op.strides[2] + j * op.strides[3]];
          }
        }
        for (int64_t j = 0; j < columns; ++j) {
          const double* horizontal = kTaps[op.x_rows[j]];
          to[(i * columns + j) * slot_step] = static_cast<float>(
              horizontal[0] * line[0] + horizontal[1] * line[1] + horizontal[2] * line[2]);
        }
      }
    }
  }
}

}  // namespace fastseg::cpu
