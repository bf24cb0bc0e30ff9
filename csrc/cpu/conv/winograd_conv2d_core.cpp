// The memory that a task of Winograd convolution needs, without torch.

#include "cpu/conv/winograd_conv2d.h"

namespace fastseg::cpu {

int64_t winograd_task_memory(const WinogradTask& task, int64_t in_channels) {
  const int64_t products =
      kPieces[static_cast<int>(task.y)].products * kPieces[static_cast<int>(task.x)].products;
  return products * (task.end - task.begin) *
         (winograd_row(in_channels) + (task.last_panel - task.first_panel) * kPanel);
}

}  // namespace fastseg::cpu
