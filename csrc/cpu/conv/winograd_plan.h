#pragma once
// How a convolution is cut into pieces (winograd_pieces.h) and tasks, without torch.

#include <array>
#include <cstdint>
#include <vector>

#include "cpu/conv/winograd_pieces.h"

namespace fastseg::cpu {

// One axis: `size` pixels, of which each residue class modulo `dilation` is a line of its own.
struct WinogradAxis {
  int64_t size, dilation;
  std::vector<int> rows;  // the rows of kTaps that its pieces use, ascending
  std::array<std::vector<int64_t>, kPieceKinds> starts;  // first output pixel of each piece

  // `fast` admits F(4, 3).
  WinogradAxis(int64_t size, int64_t dilation, bool fast);

  // Where among `rows` a row of kTaps is.
  int position(int row) const;

  int64_t products() const;
};

// Tiles [begin, end) of one pair of kinds, counted over (images, starts of y, starts of x), and the
// panels [first_panel, last_panel) of output channels.
struct WinogradTask {
  PieceKind y, x;
  int64_t begin, end;
  int64_t first_panel, last_panel;
};

// Products of a pair of channels.
int64_t winograd_cost(const WinogradTask& task);

// In any order, several for each thread. Every output is computed in the same way however the
// work is cut, so that its bits do not depend on the number of threads.
std::vector<WinogradTask> winograd_tasks(const WinogradAxis& y, const WinogradAxis& x,
                                         int64_t images, int64_t panels, int64_t threads);

}  // namespace fastseg::cpu
