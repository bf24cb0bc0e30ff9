// How Winograd convolution is cut into tasks that fit the caches.

#include "cpu/conv/winograd_plan.h"

#include <algorithm>
#include <numeric>

namespace fastseg::cpu {
namespace {

// Lines of at least so many pixels end in a piece that hangs over the edge, instead of one of its
// own with further rows of taps.
constexpr int64_t kLongLine = 16;

// A task reads its weights once: of so many tiles, they cost much less than the products. Its
// transformed inputs (1.5 MB of 16 products) and products stay near a core's own cache.
constexpr int64_t kTaskTiles = 84;
constexpr int64_t kTaskPanels = 16;

}  // namespace

WinogradAxis::WinogradAxis(int64_t size, int64_t dilation, bool fast)
    : size(size), dilation(dilation) {
  const auto add = [&](PieceKind kind, int64_t first) {
    starts[static_cast<int>(kind)].push_back(first);
  };
  for (int64_t residue = 0; residue < std::min(dilation, size); ++residue) {
    const int64_t length = (size - residue + dilation - 1) / dilation;
    if (length <= 3) {
      add(length == 1 ? PieceKind::one : length == 2 ? PieceKind::two : PieceKind::three, residue);
      continue;
    }
    int64_t i = 0;
    if (fast) {
      for (; i + 4 <= length || (length >= kLongLine && i < length); i += 4) {
        add(PieceKind::four, residue + i * dilation);
      }
    }
    for (; i + 2 <= length || (length >= kLongLine && i < length); i += 2) {
      add(PieceKind::pair, residue + i * dilation);
    }
    if (i < length) add(PieceKind::last, residue + i * dilation);
  }
  for (int kind = 0; kind < kPieceKinds; ++kind) {
    if (starts[kind].empty()) continue;
    rows.insert(rows.end(), kPieces[kind].rows, kPieces[kind].rows + kPieces[kind].products);
  }
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
}

int WinogradAxis::position(int row) const {
  return static_cast<int>(std::lower_bound(rows.begin(), rows.end(), row) - rows.begin());
}

int64_t WinogradAxis::products() const {
  int64_t count = 0;
  for (int kind = 0; kind < kPieceKinds; ++kind) {
    count += static_cast<int64_t>(starts[kind].size()) * kPieces[kind].products;
  }
  return count;
}

std::vector<WinogradTask> winograd_tasks(const WinogradAxis& y, const WinogradAxis& x,
                                         int64_t images, int64_t panels, int64_t threads) {
  constexpr int64_t kTasksOfThread = 2;  // so that the last ones end at about the same time
  const int64_t total = images * y.products() * x.products() * panels;
  const int64_t most = threads == 1 ? total : total / (kTasksOfThread * threads);
  std::vector<WinogradTask> tasks;
  for (int ky = 0; ky < kPieceKinds; ++ky) {
    for (int kx = 0; kx < kPieceKinds; ++kx) {
      const int64_t tiles = images * y.starts[ky].size() * x.starts[kx].size();
      if (tiles == 0) continue;
      const int64_t products = kPieces[ky].products * kPieces[kx].products;
      int64_t blocks = (tiles + kTaskTiles - 1) / kTaskTiles;
      int64_t chunks = (panels + kTaskPanels - 1) / kTaskPanels;
      // A part of the panels costs a transform of the inputs more, a part of the tiles a pass over
      // the weights.
      const auto halve = [&](int64_t least_panels, int64_t least_tiles) {
        const bool by_panels = panels >= 2 * chunks * least_panels;
        if (!by_panels && tiles < 2 * blocks * least_tiles) return false;
        (by_panels ? chunks : blocks) *= 2;
        return true;
      };
      while (tiles * products * panels > most * blocks * chunks && (halve(4, 28) || halve(2, 14))) {
      }
      for (int64_t b = 0; b < blocks; ++b) {
        for (int64_t c = 0; c < chunks; ++c) {
          tasks.push_back({static_cast<PieceKind>(ky), static_cast<PieceKind>(kx),
                           tiles * b / blocks, tiles * (b + 1) / blocks, panels * c / chunks,
                           panels * (c + 1) / chunks});
        }
      }
    }
  }
  return tasks;
}

int64_t winograd_cost(const WinogradTask& task) {
  return (task.end - task.begin) * (task.last_panel - task.first_panel) *
         kPieces[static_cast<int>(task.y)].products * kPieces[static_cast<int>(task.x)].products;
}

}  // namespace fastseg::cpu
