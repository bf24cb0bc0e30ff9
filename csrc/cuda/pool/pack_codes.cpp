// fastseg::pack_codes on CUDA.

#include "cuda/pool/pack_codes.h"

#include <torch/csrc/stable/library.h>

#include "common/pool/pack_codes_ops.h"
#include "cuda/binding.h"

namespace fastseg::cuda {
namespace {

void pack(const Tensor& codes, int64_t runs, int64_t run, const Tensor& out) {
  constexpr const char* op = "fastseg::pack_codes";
  check_count(op, "the number of runs", runs);
  check_count(op, "the codes of a run", run);
  launch_beside(codes, op, [&](cudaStream_t stream) {
    return pack_codes(static_cast<const uint8_t*>(codes.const_data_ptr()), runs, run,
                      static_cast<uint8_t*>(out.mutable_data_ptr()), stream);
  });
}

}  // namespace
}  // namespace fastseg::cuda

STABLE_TORCH_LIBRARY_IMPL(fastseg, CUDA, m) {
  m.impl("pack_codes", TORCH_BOX(&fastseg::pack_codes_ops::pack_codes<fastseg::cuda::pack>));
}
