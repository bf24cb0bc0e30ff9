// The CUDA bindings, compiled as they are, on CPU tensors: with the default stream, and no device
// to guard. The library that they are linked into names their ops' namespace (cuda_on_cpu.cpp).

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

extern "C" const char* const cuda_on_cpu_ops;

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) CUDA_ON_CPU_REGISTER(m, C10_UID)
#define CUDA_ON_CPU_REGISTER(m, uid)                                                          \
  static void C10_CONCATENATE(register_ops_, uid)(torch::stable::detail::StableLibrary&);     \
  static const torch::stable::detail::StableTorchLibraryInit C10_CONCATENATE(ops_, uid)(      \
      torch::stable::detail::StableLibrary::Kind::IMPL, &C10_CONCATENATE(register_ops_, uid), \
      cuda_on_cpu_ops, "CPU", __FILE__, __LINE__);                                            \
  void C10_CONCATENATE(register_ops_, uid)(torch::stable::detail::StableLibrary & m)

#include "cuda/conv/depthwise_conv2d.cpp"
#include "cuda/crf/lattice_mean_field.cpp"
#include "cuda/crf/permutohedral_filter.cpp"
#include "cuda/crf/permutohedral_lattice.cpp"
#include "cuda/crf/spatial_gaussian_filter.cpp"
#include "cuda/head/confusion_matrix.cpp"
#include "cuda/head/distance_transform.cpp"
#include "cuda/head/upsample_argmax.cpp"
#include "cuda/head/upsample_confusion_matrix.cpp"
#include "cuda/head/upsample_cross_entropy.cpp"
#include "cuda/head/upsample_softmax_sums.cpp"
#include "cuda/outputs.cpp"
#include "cuda/pool/max_pool2d.cpp"
#include "cuda/pool/max_unpool2d.cpp"
#include "cuda/pool/pack_codes.cpp"
#include "cuda/refine/pixel_adaptive_refinement.cpp"

// Linked with -Bsymbolic, these come before libtorch's.
extern "C" {
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
}
