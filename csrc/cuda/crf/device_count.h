#pragma once
// Numbers of rows and vertices that the host need not know.

#include "common/host_device.h"

namespace fastseg::cuda {

// A number of which the host knows a limit, and which the device may know better: launches are for
// `most`, and threads from the number on have nothing to do.
struct DeviceCount {
  int most;
  const int* exact = nullptr;  // null: it is `most`

  FASTSEG_HOST_DEVICE int operator()() const { return exact == nullptr ? most : *exact; }
};

// What a lattice's construction leaves on the device where the host has not waited for it.
struct BoundedCounts {
  int rows, vertices;
  int failed;  // not zero: features that make no lattice, or more vertices than there is memory for
};

}  // namespace fastseg::cuda
