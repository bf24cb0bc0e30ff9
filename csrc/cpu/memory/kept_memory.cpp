// The list of kept blocks: how one is chosen, and how much is kept for how long.

#include "cpu/memory/kept_memory.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <new>
#include <vector>

#include "cpu/memory/large_pages.h"

#if defined(__unix__)
#include <pthread.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastseg::cpu {
namespace {

constexpr int64_t kLine = 64, kPage = int64_t{1} << 16, kLargePage = int64_t{2} << 20;

using Clock = std::chrono::steady_clock;

struct Block {
  void* memory;
  int64_t bytes;
  Clock::time_point since{};  // it has been kept
  bool offered = false;       // to the system
};

// Whole large pages where those waste little.
int64_t block_size(int64_t bytes) {
  const int64_t unit = bytes < kLeastKept ? kLine : bytes < 8 * kLargePage ? kPage : kLargePage;
  return (bytes + unit - 1) / unit * unit;
}

int64_t most_kept() {
  int64_t most = int64_t{1} << 30;
#if defined(__unix__)
  most = std::min(most, int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE) / 16);
#endif
  // Of a container, in either version of control groups; "max" is no number.
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    int64_t limit;
    if (std::ifstream(path) >> limit) most = std::min(most, limit / 16);
  }
  return most;
}

// The system may take the pages of a block that holds nothing; those that it leaves can be written
// to without a fault. They are slower to write to, by a third: not for blocks in steady use.
void offer_to_system(Block& block) {
#if defined(__linux__) && defined(MADV_FREE)
  if (block.bytes >= kLargePage) madvise(block.memory, block.bytes / kPage * kPage, MADV_FREE);
#endif
  block.offered = true;
}

class Keeper {
 public:
  Keeper();

  // The smallest block that serves and wastes no more than a quarter, the newest of those, which
  // caches may still hold; or null.
  void* take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      const bool serves = block->bytes >= bytes && block->bytes <= bytes + bytes / 4;
      if (serves && (best == blocks_.end() || block->bytes <= best->bytes)) best = block;
    }
    if (best == blocks_.end()) return nullptr;
    void* const memory = best->memory;
    bytes_ -= best->bytes;
    blocks_.erase(best);
    return memory;
  }

  // The oldest blocks go where this one is too much.
  void give(void* memory, int64_t bytes) {
    const auto now = Clock::now();
    const std::lock_guard lock(mutex_);
    blocks_.push_back({memory, bytes, now});
    bytes_ += bytes;
    for (Block& block : blocks_) {
      if (now - block.since < std::chrono::seconds(1)) break;  // nor are those that came later
      if (!block.offered) offer_to_system(block);
    }
    auto end = blocks_.begin();
    for (; bytes_ > most_; ++end) {
      std::free(end->memory);
      bytes_ -= end->bytes;
    }
    blocks_.erase(blocks_.begin(), end);
  }

  int64_t bytes() {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

  void release() {
    const std::lock_guard lock(mutex_);
    for (const Block& block : blocks_) std::free(block.memory);
    blocks_.clear();
    bytes_ = 0;
  }

  std::mutex mutex_;

 private:
  const int64_t most_ = most_kept();
  std::vector<Block> blocks_;  // the oldest first
  int64_t bytes_ = 0;
};

// Made as the library is loaded and never destroyed: tensors may outlive statics.
Keeper* const keeper = new Keeper;

Keeper::Keeper() {
#if defined(__unix__)
  // No thread is inside while the process forks, so that the child finds all in order.
  pthread_atfork([] { keeper->mutex_.lock(); }, [] { keeper->mutex_.unlock(); },
                 [] { keeper->mutex_.unlock(); });
#endif
}

void* allocate(int64_t bytes) {
  const bool large = bytes >= kLargePage;
  void* memory = nullptr;
#if defined(__unix__)
  if (posix_memalign(&memory, large ? kLargePage : kLine, bytes) != 0) return nullptr;
#else
  memory = std::aligned_alloc(kLine, bytes);
#endif
  if (memory != nullptr) advise_large_pages(memory, bytes);
  return memory;
}

}  // namespace

void* take_memory(int64_t bytes) {
  const int64_t size = block_size(std::max<int64_t>(bytes, 1));
  void* memory = size < kLeastKept ? nullptr : keeper->take(size);
  if (memory == nullptr) memory = allocate(size);
  if (memory == nullptr) {
    release_memory();
    memory = allocate(size);
  }
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void give_memory(void* memory, int64_t bytes) noexcept {
  const int64_t size = block_size(std::max<int64_t>(bytes, 1));
  if (size < kLeastKept) return std::free(memory);
  try {
    keeper->give(memory, size);
  } catch (const std::bad_alloc&) {  // of the list, before the block is in it
    std::free(memory);
  }
}

int64_t kept_memory() { return keeper->bytes(); }

void release_memory() { keeper->release(); }

}  // namespace fastseg::cpu

// For Python (fastseg/_core/extension.py), by ctypes.
extern "C" {
__attribute__((visibility("default"))) int64_t fastseg_kept_memory() {
  return fastseg::cpu::kept_memory();
}
__attribute__((visibility("default"))) void fastseg_release_memory() {
  fastseg::cpu::release_memory();
}
}
