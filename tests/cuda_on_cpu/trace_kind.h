#pragma once

namespace cuda_on_cpu::trace {

enum Kind { kLoad, kStore, kAtomic };

}  // namespace cuda_on_cpu::trace
