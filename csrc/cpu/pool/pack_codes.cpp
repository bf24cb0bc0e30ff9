// fastseg::pack_codes on the CPU: four codes of 2x2 windows into one byte
// (common/pool/packed_codes.h).

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/pool/pack_codes_ops.h"
#include "cpu/threads/parallel.h"

namespace fastseg::cpu {
namespace {

void pack(const Tensor& codes, int64_t runs, int64_t run, const Tensor& out) {
  const auto* from = static_cast<const uint8_t*>(codes.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const int64_t packed_run = packed_size(run);
  parallel_rows(runs, run, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t k = 0; k < packed_run; ++k) {
        const int64_t first = k * kCodesPerByte;
        to[r * packed_run + k] = fastseg::pack_codes(from + r * run + first,
                                                     std::min<int64_t>(kCodesPerByte, run - first));
      }
    }
  });
}

}  // namespace
}  // namespace fastseg::cpu

STABLE_TORCH_LIBRARY_IMPL(fastseg, CPU, m) {
  m.impl("pack_codes", TORCH_BOX(&fastseg::pack_codes_ops::pack_codes<fastseg::cpu::pack>));
}
