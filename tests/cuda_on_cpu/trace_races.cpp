#include "trace_races.h"

#include <algorithm>

namespace cuda_on_cpu::trace {

void Races::block_begins(int threads) {
  clocks_.assign(threads, {});
  shared_.clear();
  ++block_;
}

void Races::compare(const Mark& before, const Mark& now, bool shared) {
  if (before.epoch < 0 || (before.atomic && now.atomic)) return;
  const Epoch &a = epochs_[before.epoch], &b = epochs_[now.epoch];
  if (ordered(a, b)) return;
  const auto [low, high] = std::minmax(before.place, now.place);
  ++found[{low, high, shared, a.block != b.block}];
}

void Races::access(int thread, uintptr_t at, int bytes, bool writes, bool atomic, bool shared,
                   const void* place) {
  Clock& clock = clocks_[thread];
  if (clock.epoch < 0) {
    clock.epoch = static_cast<int>(epochs_.size());
    epochs_.push_back({block_, thread, clock.barriers, clock.warp_barriers});
  }
  const Mark now{clock.epoch, atomic, place};
  Shadow& shadow = shared ? shared_ : global_;
  Byte* page = nullptr;
  for (uintptr_t p = at; p < at + bytes; ++p) {
    if (page == nullptr || p % kPage == 0) {
      auto& found_page = shadow[p / kPage];
      if (!found_page) found_page.reset(new Byte[kPage]);
      page = found_page.get();
    }
    Byte& byte = page[p % kPage];
    compare(byte.writer, now, shared);
    if (!writes) {
      Mark& first = byte.readers[0];
      const bool mine = first.epoch >= 0 && epochs_[first.epoch].block == block_ &&
                        epochs_[first.epoch].thread == thread;
      (first.epoch < 0 || mine ? first : byte.readers[1]) = now;
      continue;
    }
    for (const Mark& reader : byte.readers) compare(reader, now, shared);
    byte.writer = now;
  }
}

}  // namespace cuda_on_cpu::trace
