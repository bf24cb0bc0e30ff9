#include "trace_requests.h"

#include <algorithm>
#include <utility>

namespace cuda_on_cpu::trace {
namespace {

constexpr int kSectorBytes = 32;
constexpr int kBanks = 32;
constexpr int kBankBytes = 4;
constexpr int kVectorBytes = 16;
constexpr uintptr_t kNeighbours = 48;  // bytes of code that the parts of one vector are apart

}  // namespace

void Requests::launch_begins() {
  places_.clear();
  index_.clear();
  footprint = {};
  ++launch_;
}

void Requests::block_begins(int threads) {
  threads_ = threads;
  last_.thread = -1;
  ++block_;
  for (Place& p : places_) std::fill(p.counts.begin(), p.counts.end(), 0);
}

// g++ may copy a vector of 16 bytes in parts, one instruction after the other.
bool Requests::continues_last(int thread, uintptr_t at, int bytes, Kind kind,
                              const void* code) const {
  if (last_.thread != thread || last_.kind != kind || last_.end != at || kind == kAtomic) {
    return false;
  }
  const auto here = reinterpret_cast<uintptr_t>(code);
  const auto there = reinterpret_cast<uintptr_t>(last_.code);
  const uintptr_t whole = at + bytes - last_.begin;
  const uintptr_t aligned = whole <= 8 ? 8 : kVectorBytes;
  return whole <= kVectorBytes && last_.begin % aligned == 0 && here > there &&
         here - there <= kNeighbours;
}

Requests::Place& Requests::place(const void* code, Kind kind, bool shared) {
  const auto [found, is_new] = index_.try_emplace(code, static_cast<int>(places_.size()));
  if (is_new) {
    Place& p = places_.emplace_back();
    p.code = code;
    p.site.kind = kind, p.site.shared = shared;
    p.counts.assign(threads_, 0);
    p.warps.resize((threads_ + kWarp - 1) / kWarp);
  }
  return places_[found->second];
}

void Requests::access(int thread, uintptr_t at, int bytes, Kind kind, bool shared,
                      const void* code) {
  if (continues_last(thread, at, bytes, kind, code)) {
    last_.end = at + bytes;
    *last_.bytes = static_cast<int8_t>(last_.end - last_.begin);
    return;
  }
  Place& p = place(code, kind, shared);
  std::vector<Request>& requests = p.warps[thread / kWarp];
  const unsigned nth = p.counts[thread]++;
  if (nth >= requests.size()) requests.resize(nth + 1);  // zeros
  Request& request = requests[nth];
  request.at[thread % kWarp] = at;
  request.bytes[thread % kWarp] = static_cast<int8_t>(bytes);
  last_ = {thread, at, at + bytes, kind, code, &request.bytes[thread % kWarp]};
}

int64_t Requests::distinct_bytes(const Request& request) {
  std::pair<uintptr_t, uintptr_t> ranges[kWarp];
  int count = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    const uintptr_t at = request.at[lane];
    if (request.bytes[lane] > 0) ranges[count++] = {at, at + request.bytes[lane]};
  }
  if (!std::is_sorted(ranges, ranges + count)) std::sort(ranges, ranges + count);
  int64_t bytes = 0;
  uintptr_t end = 0;
  for (int i = 0; i < count; ++i) {
    const uintptr_t begin = std::max(ranges[i].first, end);
    end = std::max(end, ranges[i].second);
    bytes += static_cast<int64_t>(end - begin);
  }
  return bytes;
}

void Requests::block_ends() {
  for (Place& p : places_) {
    for (std::vector<Request>& requests : p.warps) {
      for (const Request& request : requests) {
        ++p.site.requests;
        for (const int8_t bytes : request.bytes) {
          p.site.lanes += bytes > 0;
          p.site.bytes = std::max<int>(p.site.bytes, bytes);
        }
        p.site.lane_bytes += distinct_bytes(request);
        p.site.shared ? add_shared(request, p.site) : add_global(request, p.site);
      }
      requests.clear();
    }
  }
}

std::map<const void*, Site> Requests::sites() const {
  std::map<const void*, Site> sites;
  for (const Place& p : places_) sites[p.code] = p.site;
  return sites;
}

Requests::Sector& Requests::sector(uintptr_t number) {
  const uintptr_t page = number / kPageSectors;
  if (last_sectors_ == nullptr || page != last_page_) {
    auto& sectors = pages_[page];
    if (!sectors) sectors.reset(new Sector[kPageSectors]);
    last_page_ = page, last_sectors_ = sectors.get();
  }
  return last_sectors_[number % kPageSectors];
}

void Requests::add_global(const Request& request, Site& site) {
  uintptr_t numbers[2 * kWarp];
  int count = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (request.bytes[lane] == 0) continue;
    const uintptr_t last = (request.at[lane] + request.bytes[lane] - 1) / kSectorBytes;
    for (uintptr_t s = request.at[lane] / kSectorBytes; s <= last; ++s) {
      if (count == 0 || numbers[count - 1] != s) numbers[count++] = s;
    }
  }
  if (!std::is_sorted(numbers, numbers + count)) std::sort(numbers, numbers + count);
  count = static_cast<int>(std::unique(numbers, numbers + count) - numbers);
  site.sectors += count;
  for (int i = 0; i < count; ++i) {
    Sector& s = sector(numbers[i]);
    if (site.kind != kStore) {
      footprint.read_a_block += s.read_in_block != block_;
      s.read_in_block = block_;
      footprint.read += s.read_in_launch != launch_;
      s.read_in_launch = launch_;
      footprint.fresh_read += !s.touched;
    }
    if (site.kind != kLoad) {
      footprint.written += s.written_in_launch != launch_;
      s.written_in_launch = launch_;
      footprint.fresh_written += !s.touched;
    }
    s.touched = true;
  }
}

// A warp's 16-byte accesses take four turns of eight lanes, 8-byte ones two of sixteen.
void Requests::add_shared(const Request& request, Site& site) {
  const int bytes =
      std::max<int>(kBankBytes, *std::max_element(request.bytes, request.bytes + kWarp));
  const int lanes_a_turn = kWarp * kBankBytes / bytes;
  for (int first = 0; first < kWarp; first += lanes_a_turn) {
    uintptr_t words[kWarp];
    int count = 0;
    for (int lane = first; lane < first + lanes_a_turn; ++lane) {
      if (request.bytes[lane] == 0) continue;
      const uintptr_t last = (request.at[lane] + request.bytes[lane] - 1) / kBankBytes;
      for (uintptr_t w = request.at[lane] / kBankBytes; w <= last && count < kWarp; ++w) {
        words[count++] = w;
      }
    }
    if (count == 0) continue;
    std::sort(words, words + count);
    count = static_cast<int>(std::unique(words, words + count) - words);
    int ways[kBanks] = {};
    for (int i = 0; i < count; ++i) ++ways[words[i] % kBanks];
    site.wavefronts += *std::max_element(ways, ways + kBanks);
    ++site.least_wavefronts;
  }
}

}  // namespace cuda_on_cpu::trace
