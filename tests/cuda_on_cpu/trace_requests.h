// What the memory of a GPU is asked for by a launch.
//
// The accesses of a warp's lanes in the same instruction, for the n-th time, are one request. In
// global memory it asks for 32-byte sectors; in shared memory it takes as many wavefronts as one of
// the 32 banks has different words to give.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "trace_kind.h"

namespace cuda_on_cpu::trace {

inline constexpr int kWarp = 32;

// An instruction that touches memory.
struct Site {
  Kind kind{};
  bool shared = false;
  int bytes = 0;  // of the widest access
  int64_t requests = 0;
  int64_t lanes = 0;       // accesses
  int64_t lane_bytes = 0;  // that the lanes asked for, each counted once a request
  int64_t sectors = 0;     // of global memory
  int64_t wavefronts = 0;  // of shared memory
  int64_t least_wavefronts = 0;
};

// Sectors of global memory, each counted once.
struct Footprint {
  int64_t read_a_block = 0;  // summed over the blocks: what a first-level cache cannot keep off
  int64_t read = 0;
  int64_t written = 0;
  int64_t fresh_read = 0;  // that no launch of the call has touched before
  int64_t fresh_written = 0;
};

class Requests {
 public:
  void call_begins() { pages_.clear(), last_sectors_ = nullptr; }
  void launch_begins();
  void block_begins(int threads);
  void block_ends();
  void access(int thread, uintptr_t at, int bytes, Kind kind, bool shared, const void* place);

  std::map<const void*, Site> sites() const;
  Footprint footprint;

 private:
  struct Request {
    uintptr_t at[kWarp];
    int8_t bytes[kWarp];  // 0: the lane has no part in it
  };
  // An instruction's requests by the block's warps, and how often each thread has come by.
  struct Place {
    const void* code = nullptr;
    Site site;
    std::vector<std::vector<Request>> warps;
    std::vector<unsigned> counts;
  };
  // When a sector was last touched: numbers of launches and blocks.
  struct Sector {
    unsigned read_in_launch = 0, written_in_launch = 0, read_in_block = 0;
    bool touched = false;
  };
  static constexpr uintptr_t kPageSectors = 1024;

  Place& place(const void* code, Kind kind, bool shared);
  bool continues_last(int thread, uintptr_t at, int bytes, Kind kind, const void* code) const;
  static int64_t distinct_bytes(const Request& request);
  void add_global(const Request& request, Site& site);
  void add_shared(const Request& request, Site& site);
  Sector& sector(uintptr_t number);

  std::vector<Place> places_;
  std::unordered_map<const void*, int> index_;
  std::unordered_map<uintptr_t, std::unique_ptr<Sector[]>> pages_;
  uintptr_t last_page_ = 0;
  Sector* last_sectors_ = nullptr;
  unsigned launch_ = 0, block_ = 0;
  int threads_ = 0;
  struct {
    int thread = -1;
    uintptr_t begin = 0, end = 0;
    Kind kind{};
    const void* code = nullptr;
    int8_t* bytes = nullptr;  // in its request
  } last_;
};

}  // namespace cuda_on_cpu::trace
