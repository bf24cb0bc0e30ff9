// The functions of the CUDA driver that launch kernels, loaded when they are first needed.

#pragma once

#include <dlfcn.h>

#include <type_traits>

namespace fastseg::launch {

using CUresult = int;
using CUdevice = int;
struct CUctx_st;
struct CUfunc_st;
struct CUstream_st;
using CUcontext = CUctx_st*;
using CUfunction = CUfunc_st*;
using CUstream = CUstream_st*;

constexpr CUresult kSuccess = 0;

struct Driver {
  CUresult (*cuLaunchKernel)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                             unsigned, CUstream, void**, void**);
  CUresult (*cuCtxGetCurrent)(CUcontext*);
  CUresult (*cuCtxSetCurrent)(CUcontext);
  CUresult (*cuDeviceGet)(CUdevice*, int);
  CUresult (*cuDevicePrimaryCtxRetain)(CUcontext*, CUdevice);
  CUresult (*cuGetErrorString)(CUresult, const char**);
};

inline Driver driver{};

// Loads the driver once, with Python's lock held. Returns null, or what is missing.
inline const char* load_driver() {
  if (driver.cuLaunchKernel != nullptr) return nullptr;
  void* library = dlopen("libcuda.so.1", RTLD_LAZY);
  if (library == nullptr) return "there is no libcuda.so.1";
  Driver found{};
  const auto load = [library](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    return function != nullptr;
  };
  if (!load(found.cuCtxGetCurrent, "cuCtxGetCurrent")) return "cuCtxGetCurrent";
  if (!load(found.cuCtxSetCurrent, "cuCtxSetCurrent")) return "cuCtxSetCurrent";
  if (!load(found.cuDeviceGet, "cuDeviceGet")) return "cuDeviceGet";
  if (!load(found.cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain")) {
    return "cuDevicePrimaryCtxRetain";
  }
  if (!load(found.cuGetErrorString, "cuGetErrorString")) return "cuGetErrorString";
  if (!load(found.cuLaunchKernel, "cuLaunchKernel")) return "cuLaunchKernel";
  driver = found;
  return nullptr;
}

// Gives a thread that has none yet the context in which torch's memory of the device lies.
inline CUresult use_context(int device) {
  CUcontext context = nullptr;
  CUresult status = driver.cuCtxGetCurrent(&context);
  if (status != kSuccess || context != nullptr) return status;
  CUdevice handle;
  status = driver.cuDeviceGet(&handle, device);
  if (status != kSuccess) return status;
  status = driver.cuDevicePrimaryCtxRetain(&context, handle);
  return status != kSuccess ? status : driver.cuCtxSetCurrent(context);
}

inline const char* error_text(CUresult status) {
  const char* text = nullptr;
  return driver.cuGetErrorString(status, &text) == kSuccess && text ? text : "unknown";
}

}  // namespace fastseg::launch
