#pragma once
// Elements as bits, for kernels that move values and do not compute with them: one kernel serves
// all types of a size.

#include <cstdint>

#include "cuda/dtype.h"

namespace fastseg::cuda {

// Calls body with a zero of the unsigned integer of the element's size.
template <class Body>
void dispatch_bits(Dtype dtype, const Body& body) {
  switch (size_of(dtype)) {
    case 8:
      return body(uint64_t{});
    case 4:
      return body(uint32_t{});
    default:
      return body(uint16_t{});
  }
}

}  // namespace fastseg::cuda
