// Counts of launches, told in JSON. Compiled without -fsanitize=thread, unlike the kernels.

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <sstream>
#include <string>

#include "cuda_on_cpu.h"
#include "trace_races.h"
#include "trace_requests.h"

namespace cuda_on_cpu::trace {
namespace {

struct Range {
  uintptr_t begin = 0, end = 0;
  bool holds(uintptr_t p) const { return p >= begin && p < end; }
};

Range stack_of_host() {
  pthread_attr_t attributes;
  void* begin;
  size_t bytes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &begin, &bytes);
  pthread_attr_destroy(&attributes);
  const auto p = reinterpret_cast<uintptr_t>(begin);
  return {p, p + bytes};
}

// This library: its code, and the constants of the kernels.
Range image() {
  Dl_info info;
  dladdr(reinterpret_cast<const void*>(&stack_of_host), &info);
  Range range{reinterpret_cast<uintptr_t>(info.dli_fbase), 0};
  dl_iterate_phdr(
      [](dl_phdr_info* loaded, size_t, void* data) {
        Range& r = *static_cast<Range*>(data);
        if (loaded->dlpi_addr != r.begin) return 0;
        for (int i = 0; i < loaded->dlpi_phnum; ++i) {
          const auto& part = loaded->dlpi_phdr[i];
          if (part.p_type == PT_LOAD)
            r.end = std::max(r.end, r.begin + part.p_vaddr + part.p_memsz);
        }
        return 1;
      },
      &range);
  return range;
}

struct Tracer {
  bool on = false, in_launch = false, finds_races = false;
  Range host, library;
  Requests requests;
  Races races;
  int64_t barriers = 0;
  std::ostringstream out;
  std::string text;
  bool first = true;

  uintptr_t offset(const void* place) const {
    return reinterpret_cast<uintptr_t>(place) - library.begin;
  }
  std::ostringstream& next() {
    out << (first ? "" : ",\n");
    first = false;
    return out;
  }
};

Tracer& tracer() {
  static Tracer one;
  return one;
}

void tell_sites(Tracer& t) {
  bool first = true;
  for (const auto& [place, s] : t.requests.sites()) {
    t.out << (first ? "" : ", ") << "[" << t.offset(place) << ", " << s.kind << ", " << s.shared
          << ", " << s.bytes << ", " << s.requests << ", " << s.lanes << ", " << s.lane_bytes
          << ", " << s.sectors << ", " << s.wavefronts << ", " << s.least_wavefronts << "]";
    first = false;
  }
}

void tell_races(Tracer& t) {
  bool first = true;
  for (const auto& [race, count] : t.races.found) {
    t.out << (first ? "" : ", ") << "[" << t.offset(race.place) << ", " << t.offset(race.other)
          << ", " << race.shared << ", " << race.across_blocks << ", " << count << "]";
    first = false;
  }
}

struct Instruction {
  Kind kind;
  int bytes;
  bool atomic;
  const void* place;
};

void record(const Instruction& i, const volatile void* p) {
  Tracer& t = tracer();
  if (!t.in_launch) return;
  const auto at = reinterpret_cast<uintptr_t>(p);
  const Stack stack = this_stack();
  const auto registers = reinterpret_cast<uintptr_t>(stack.begin);
  if (at >= registers && at < registers + stack.bytes) return;
  if (t.host.holds(at) || t.library.holds(at)) return;  // the launch's parameters, constants
  const auto begin = reinterpret_cast<uintptr_t>(shared_memory());
  const bool shared = at >= begin && at < begin + shared_bytes();
  const int thread = here().thread;
  t.requests.access(thread, at, i.bytes, i.kind, shared, i.place);
  if (!t.finds_races) return;
  t.races.access(thread, at, i.bytes, i.kind != kLoad, i.atomic, shared, i.place);
}

}  // namespace

void launch_begins(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  Tracer& t = tracer();
  t.in_launch = t.on;
  if (!t.on) return;
  t.barriers = 0;
  t.requests.launch_begins();
  t.races.launch_begins();
  t.next() << "{\"kernel\": " << t.offset(kernel) << ", \"grid\": [" << grid.x << ", " << grid.y
           << ", " << grid.z << "], \"threads\": " << block.x * block.y * block.z
           << ", \"shared_bytes\": " << shared_bytes;
}

void launch_ends() {
  Tracer& t = tracer();
  if (!t.in_launch) return;
  t.in_launch = false;
  const Footprint& f = t.requests.footprint;
  t.out << ", \"barriers\": " << t.barriers << ", \"footprint\": [" << f.read_a_block << ", "
        << f.read << ", " << f.written << ", " << f.fresh_read << ", " << f.fresh_written
        << "], \"sites\": [";
  tell_sites(t);
  t.out << "], \"races\": [";
  tell_races(t);
  t.out << "]}";
}

void block_begins() {
  Tracer& t = tracer();
  if (!t.in_launch) return;
  const dim3 size = here().block_size;
  const int threads = static_cast<int>(size.x * size.y * size.z);
  t.requests.block_begins(threads);
  t.races.block_begins(threads);
}

void block_ends() {
  if (tracer().in_launch) tracer().requests.block_ends();
}

void barrier() {
  Tracer& t = tracer();
  if (!t.in_launch) return;
  t.races.barrier(here().thread);
  t.barriers += here().thread % 32 == 0;  // of a warp
}

void warp_barrier() {
  if (tracer().in_launch) tracer().races.warp_barrier(here().thread);
}

void copied(const char* what, size_t bytes) {
  Tracer& t = tracer();
  if (t.on) t.next() << "{\"" << what << "\": " << bytes << "}";
}

void synchronized() { copied("synchronize", 0); }

void access(Kind kind, const volatile void* p, int bytes, const void* place) {
  record({kind, bytes, kind == kAtomic, place}, p);
}

void volatile_load(const volatile void* p, int bytes, const void* place) {
  record({kLoad, bytes, true, place}, p);
}

}  // namespace cuda_on_cpu::trace

// Begins to count. finds_races: whether unordered accesses are looked for too, which takes most of
// the time.
extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_trace_begin(bool finds_races) {
  using namespace cuda_on_cpu::trace;
  Tracer& t = tracer();
  t.on = true;
  t.finds_races = finds_races;
  t.host = stack_of_host();
  t.library = image();
  t.requests.call_begins();
  t.out.str("");
  t.first = true;
}

// Ends, and tells all since the beginning: a JSON list, valid until the next call.
extern "C" __attribute__((visibility("default"))) const char* cuda_on_cpu_trace_end() {
  cuda_on_cpu::trace::Tracer& t = cuda_on_cpu::trace::tracer();
  t.on = false;
  t.text = "[" + t.out.str() + "]";
  return t.text.c_str();
}
