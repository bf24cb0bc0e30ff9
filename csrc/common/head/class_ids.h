#pragma once
// Which ids of a label map are classes: for the CPU's kernels and the GPU's.

#include <cstdint>

#include "common/host_device.h"

namespace fastseg {

// A table of counts has a slot for each class, one for ignored ids and one for those that are
// neither.
struct ClassIds {
  int64_t count;   // ids 0 to count - 1 are classes
  bool ignores;    // whether `ignore` means anything
  int64_t ignore;  // ignored before all else, also where it is in the range of the classes

  FASTSEG_HOST_DEVICE int64_t ignored() const { return count; }
  FASTSEG_HOST_DEVICE int64_t none() const { return count + 1; }
  FASTSEG_HOST_DEVICE int64_t slots() const { return count + 2; }

  FASTSEG_HOST_DEVICE int64_t slot(int64_t id) const {
    if (ignores && id == ignore) return ignored();
    return id >= 0 && id < count ? id : none();
  }

  // The same classes where nothing is ignored: what a prediction may be.
  FASTSEG_HOST_DEVICE ClassIds without_ignored() const { return {count, false, 0}; }
};

enum class IdType : int { kUint8, kInt8, kInt16, kInt32, kInt64 };

FASTSEG_HOST_DEVICE int id_bytes(IdType type) {
  switch (type) {
    case IdType::kUint8:
    case IdType::kInt8:
      return 1;
    case IdType::kInt16:
      return 2;
    case IdType::kInt32:
      return 4;
    default:
      return 8;
  }
}

// Calls body with a zero of the type.
template <class Body>
FASTSEG_HOST_DEVICE void dispatch_id(IdType type, const Body& body) {
  switch (type) {
    case IdType::kUint8:
      return body(uint8_t{});
    case IdType::kInt8:
      return body(int8_t{});
    case IdType::kInt16:
      return body(int16_t{});
    case IdType::kInt32:
      return body(int32_t{});
    default:
      return body(int64_t{});
  }
}

}  // namespace fastseg
