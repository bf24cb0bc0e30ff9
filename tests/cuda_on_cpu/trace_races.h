// Which accesses of a launch no barrier orders, though they touch the same byte, one of them writes
// and not both are atomic.
//
// Within a block a barrier orders what its threads did before and after, within a warp __syncwarp
// too; between blocks nothing does. As a thread runs from one barrier to the next without a pause,
// what it does meanwhile is one epoch. A byte keeps its last writer and two readers, of different
// threads where there were such: enough to find each race of two, not to count them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace cuda_on_cpu::trace {

struct Race {
  const void* place;  // in the code, the lower one
  const void* other;
  bool shared;  // in shared memory
  bool across_blocks;
  auto operator<=>(const Race&) const = default;
};

class Races {
 public:
  void launch_begins() {
    global_.clear();
    shared_.clear();
    epochs_.clear();
    found.clear();
    block_ = 0;
  }
  void block_begins(int threads);
  void barrier(int thread) { ++clocks_[thread].barriers, clocks_[thread].epoch = -1; }
  void warp_barrier(int thread) { ++clocks_[thread].warp_barriers, clocks_[thread].epoch = -1; }
  void access(int thread, uintptr_t at, int bytes, bool writes, bool atomic, bool shared,
              const void* place);

  std::map<Race, int64_t> found;

 private:
  struct Epoch {
    int block, thread, barriers, warp_barriers;
  };
  struct Clock {
    int barriers = 0, warp_barriers = 0, epoch = -1;
  };
  struct Mark {
    int epoch = -1;
    bool atomic = false;
    const void* place = nullptr;
  };
  struct Byte {
    Mark writer, readers[2];
  };
  static constexpr uintptr_t kPage = 1024;
  using Shadow = std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>>;

  bool ordered(const Epoch& a, const Epoch& b) const {
    if (a.block != b.block) return false;
    if (a.thread == b.thread || a.barriers != b.barriers) return true;
    return a.thread / 32 == b.thread / 32 && a.warp_barriers != b.warp_barriers;
  }
  void compare(const Mark& before, const Mark& now, bool shared);

  Shadow global_, shared_;
  std::vector<Epoch> epochs_;
  std::vector<Clock> clocks_;  // of the block's threads
  int block_ = 0;
};

}  // namespace cuda_on_cpu::trace
