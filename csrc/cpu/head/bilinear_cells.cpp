// Cells and bands of an upsampled image (bilinear_cells.h).

#include "cpu/head/bilinear_cells.h"

#include <algorithm>

namespace fastseg::cpu {

template <class F>
BilinearCells<F>::BilinearCells(const BilinearAxis<F>& axis, int lanes) : lanes(lanes), phases(0) {
  // At the left border more pixels lie between two columns than elsewhere: with cells of as many
  // pixels, a third of all lanes would be idle.
  const int64_t ratio = (axis.out + axis.in - 1) / axis.in;
  const auto most = static_cast<int32_t>(std::min<int64_t>(ratio, kMostPhases));
  std::vector<BilinearTap<F>> taps(axis.out);
  std::vector<int32_t> cell_of(axis.out);
  for (int64_t i = 0; i < axis.out; ++i) {
    const BilinearTap<F> tap = taps[i] = axis.tap(i);
    const bool same = i > 0 && at.back() == tap.at && next.back() == tap.next;
    if (!same || count.back() == most) {
      at.push_back(static_cast<int32_t>(tap.at)), next.push_back(static_cast<int32_t>(tap.next));
      first.push_back(static_cast<int32_t>(i)), count.push_back(0);
    }
    phases = std::max(phases, ++count.back());
    cell_of[i] = static_cast<int32_t>(count.size()) - 1;
  }
  if (phases % 4 == 3) ++phases;  // kernels take 8, 4, 2 or 1 at once
  cells = static_cast<int64_t>(count.size());
  blocks = (cells + lanes - 1) / lanes;
  at.resize(blocks * lanes, at.back()), next.resize(blocks * lanes, next.back());
  w0.resize(blocks * block_slots()), w1.resize(blocks * block_slots());
  slots.resize(axis.out);
  for (int64_t i = 0; i < axis.out; ++i) {
    const int64_t cell = cell_of[i], block = cell / lanes, phase = i - first[cell];
    const int64_t slot = block * block_slots() + phase * lanes + cell % lanes;
    w0[slot] = taps[i].w0, w1[slot] = taps[i].w1;
    slots[i] = static_cast<int32_t>(slot);
  }
}

template <class F>
BilinearRows<F>::BilinearRows(const BilinearAxis<F>& axis) {
  for (int64_t y = 0; y < axis.out; ++y) {
    const BilinearTap<F> tap = axis.tap(y);
    w0.push_back(tap.w0), w1.push_back(tap.w1);
    const bool same = y > 0 && bands.back().at == tap.at && bands.back().next == tap.next;
    if (!same || y - bands.back().begin == kMostRows) bands.push_back({tap.at, tap.next, y, y});
    bands.back().end = y + 1;
  }
}

template struct BilinearCells<float>;
template struct BilinearCells<double>;
template struct BilinearRows<float>;
template struct BilinearRows<double>;

}  // namespace fastseg::cpu
