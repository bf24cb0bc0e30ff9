// fastseg._launch: what a call to a compiled kernel costs on the host, without Python's share.
//
// `describe` says in bytes all that a choice of kernels may depend on: of each tensor its dtype,
// device, sizes and strides, and whether its memory begins at a multiple of 16 bytes. `Kernels`
// holds kernels whose grids and parameters are known but for addresses, and launches them.
//
// It reads tensors through the table of functions that torch gives out (DLPack's exchange API), not
// through torch's headers, and loads the driver when the first kernel is prepared. Python's limited
// API lets one file serve every Python.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "launch/dlpack.h"
#include "launch/driver.h"

namespace fastseg::launch {
namespace {

constexpr std::size_t kMostParameters = 128;
constexpr std::size_t kMostValues = 128;
constexpr std::size_t kMostBytes = 16384;  // of a description: some 200 tensors
constexpr std::uintptr_t kAligned = 16;    // bytes: what Triton's compiler asks of an address

const DLPackExchangeAPI* tensors = nullptr;
std::array<PyObject*, 2> plain_types{};
PyObject* is_negated = nullptr;

// Reads a tensor without a reference; false with Python's error if there is no such tensor.
bool read(PyObject* object, DLTensor* out) {
  if (tensors == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "fastseg._launch: set_up has not been called");
    return false;
  }
  return tensors->dltensor_from_py_object_no_sync(object, out) == 0;
}

std::uintptr_t address(const DLTensor& t) {
  return reinterpret_cast<std::uintptr_t>(t.data) + t.byte_offset;
}

// set_up(capsule, (class, class), is_neg): where tensors are read, which classes are torch's own,
// and the method that tells whether a view negates what it reads.
PyObject* set_up(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 3 || !PyTuple_Check(args[1]) || PyTuple_Size(args[1]) != 2) {
    PyErr_SetString(PyExc_TypeError, "set_up takes a capsule, two classes and a method");
    return nullptr;
  }
  auto* api = static_cast<DLPackExchangeAPI*>(PyCapsule_GetPointer(args[0], "dlpack_exchange_api"));
  if (api == nullptr) return nullptr;
  if (api->header.version.major != 1 || api->dltensor_from_py_object_no_sync == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "fastseg._launch: torch's table of functions is unknown");
    return nullptr;
  }
  for (std::size_t i = 0; i < plain_types.size(); ++i) {
    PyObject* type = PyTuple_GetItem(args[1], static_cast<Py_ssize_t>(i));
    Py_INCREF(type);
    Py_XDECREF(plain_types[i]);
    plain_types[i] = type;
  }
  Py_INCREF(args[2]);
  Py_XDECREF(is_negated);
  is_negated = args[2];
  tensors = api;
  Py_RETURN_NONE;
}

// Whether an object is a tensor of one of torch's own classes, whose memory holds its values.
bool read_plain(PyObject* object, DLTensor* out) {
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != plain_types[0] && type != plain_types[1]) return false;
  if (!read(object, out) || out->data == nullptr) return false;
  PyObject* negated = PyObject_CallFunctionObjArgs(is_negated, object, nullptr);
  Py_XDECREF(negated);
  return negated == Py_False;
}

// describe(*tensors): bytes, or None if one is neither None nor a tensor of torch's own classes
// that has memory.
PyObject* describe(PyObject*, PyObject* const* args, Py_ssize_t count) {
  std::array<char, kMostBytes> bytes;
  std::size_t size = 0;
  for (Py_ssize_t i = 0; i < count; ++i) {
    // A description of None is shorter than that of any tensor, and begins otherwise.
    std::array<std::int64_t, 2> head{};
    if (args[i] == Py_None) {
      if (size + sizeof(head[0]) > bytes.size()) Py_RETURN_NONE;
      std::memcpy(bytes.data() + size, head.data(), sizeof(head[0]));
      size += sizeof(head[0]);
      continue;
    }
    DLTensor t{};
    if (!read_plain(args[i], &t)) {
      PyErr_Clear();
      Py_RETURN_NONE;
    }
    const std::size_t row = sizeof(std::int64_t) * static_cast<std::size_t>(t.ndim);
    if (size + sizeof(head) + 2 * row > bytes.size()) Py_RETURN_NONE;
    const bool aligned = address(t) % kAligned == 0;
    head[0] = 1 | (aligned ? 2 : 0) | std::int64_t{t.ndim} << 8 | std::int64_t{t.dtype.code} << 16 |
              std::int64_t{t.dtype.bits} << 24 | std::int64_t{t.dtype.lanes} << 32;
    head[1] = std::int64_t{t.device.device_type} << 32 | std::int64_t{t.device.device_id};
    std::memcpy(bytes.data() + size, head.data(), sizeof(head));
    size += sizeof(head);
    std::memcpy(bytes.data() + size, t.shape, row);
    std::memcpy(bytes.data() + size + row, t.strides, row);
    size += 2 * row;
  }
  return PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(size));
}

// A parameter that is an address: `offset` bytes into the memory of the call's value `value`.
struct Address {
  std::uint32_t parameter;
  std::uint32_t value;
  std::uint64_t offset;
  bool aligned;
};

struct Kernel {
  CUfunction function;
  std::array<unsigned, 3> grid;
  unsigned threads;
  unsigned shared;
  std::vector<std::uint64_t> parameters;  // narrower ones lie in the low bytes
  std::vector<Address> addresses;
};

struct Kernels {
  std::vector<Kernel> kernels;
  std::size_t values;
  int device;
};

struct Object {
  PyObject_HEAD Kernels* kernels;
};

bool parse(PyObject* item, std::size_t values, Kernel* out) {
  unsigned long long function;
  PyObject *parameters, *addresses;
  auto& [x, y, z] = out->grid;
  if (!PyArg_ParseTuple(item, "K(III)IIO!O!", &function, &x, &y, &z, &out->threads, &out->shared,
                        &PyTuple_Type, &parameters, &PyTuple_Type, &addresses)) {
    return false;
  }
  out->function = reinterpret_cast<CUfunction>(function);
  const Py_ssize_t count = PyTuple_Size(parameters);
  if (count > static_cast<Py_ssize_t>(kMostParameters)) {
    PyErr_SetString(PyExc_ValueError, "Kernels: a kernel has too many parameters");
    return false;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    out->parameters.push_back(PyLong_AsUnsignedLongLongMask(PyTuple_GetItem(parameters, i)));
  }
  for (Py_ssize_t i = 0; i < PyTuple_Size(addresses); ++i) {
    unsigned long long offset;
    unsigned parameter, value;
    int aligned;
    if (!PyArg_ParseTuple(PyTuple_GetItem(addresses, i), "IIKp", &parameter, &value, &offset,
                          &aligned)) {
      return false;
    }
    if (parameter >= out->parameters.size() || value >= values) {
      PyErr_SetString(PyExc_ValueError, "Kernels: an address names no parameter or no value");
      return false;
    }
    out->addresses.push_back({parameter, value, offset, aligned != 0});
  }
  return !PyErr_Occurred();
}

// Kernels(device, values, kernels): of each kernel (function, grid, threads, shared bytes,
// parameters, addresses), of each address (parameter, value, offset, aligned).
PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
  int device;
  unsigned values;
  PyObject* items;
  if (!PyArg_ParseTuple(args, "iIO!", &device, &values, &PyTuple_Type, &items)) return nullptr;
  if (values > kMostValues) {
    PyErr_SetString(PyExc_ValueError, "Kernels: too many values");
    return nullptr;
  }
  if (const char* missing = load_driver()) {
    PyErr_Format(PyExc_RuntimeError, "Kernels: the driver cannot be used: %s", missing);
    return nullptr;
  }
  auto* made = new Kernels{{}, values, device};
  for (Py_ssize_t i = 0; i < PyTuple_Size(items); ++i) {
    made->kernels.emplace_back();
    if (!parse(PyTuple_GetItem(items, i), values, &made->kernels.back())) {
      delete made;
      return nullptr;
    }
  }
  auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  auto* object = reinterpret_cast<Object*>(allocate(type, 0));
  if (object == nullptr) {
    delete made;
    return nullptr;
  }
  object->kernels = made;
  return reinterpret_cast<PyObject*>(object);
}

void drop(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  delete reinterpret_cast<Object*>(self)->kernels;
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

using Addresses = std::array<std::uint64_t, kMostValues>;

bool fits(const Kernel& kernel, const Addresses& memory) {
  for (const Address& a : kernel.addresses) {
    if (((memory[a.value] + a.offset) % kAligned == 0) != a.aligned) return false;
  }
  return true;
}

CUresult launch_one(const Kernel& kernel, const Addresses& memory, CUstream stream) {
  std::array<std::uint64_t, kMostParameters> parameters;
  std::array<void*, kMostParameters> places;
  std::memcpy(parameters.data(), kernel.parameters.data(),
              kernel.parameters.size() * sizeof(parameters[0]));
  for (const Address& a : kernel.addresses) parameters[a.parameter] = memory[a.value] + a.offset;
  for (std::size_t i = 0; i < kernel.parameters.size(); ++i) places[i] = &parameters[i];
  const auto& [x, y, z] = kernel.grid;
  return driver.cuLaunchKernel(kernel.function, x, y, z, kernel.threads, 1, 1, kernel.shared,
                               stream, places.data(), nullptr);
}

// launch(stream, values): launches all kernels in their order. False, and nothing is launched, if a
// tensor does not begin where the kernels were compiled for.
PyObject* launch(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  const Kernels& call = *reinterpret_cast<Object*>(self)->kernels;
  if (count != 2 || !PyList_Check(args[1]) ||
      PyList_Size(args[1]) != static_cast<Py_ssize_t>(call.values)) {
    PyErr_Format(PyExc_TypeError, "launch takes a stream and a list of %zu tensors", call.values);
    return nullptr;
  }
  const auto stream = reinterpret_cast<CUstream>(PyLong_AsVoidPtr(args[0]));
  if (PyErr_Occurred()) return nullptr;
  Addresses memory;
  for (std::size_t i = 0; i < call.values; ++i) {
    PyObject* value = PyList_GetItem(args[1], static_cast<Py_ssize_t>(i));
    memory[i] = 0;
    if (value == Py_None) continue;
    DLTensor t{};
    if (!read(value, &t)) return nullptr;
    memory[i] = address(t);
  }
  for (const Kernel& kernel : call.kernels) {
    if (!fits(kernel, memory)) Py_RETURN_FALSE;
  }
  CUresult status;
  Py_BEGIN_ALLOW_THREADS;  // a full queue makes the driver wait
  status = use_context(call.device);
  for (const Kernel& kernel : call.kernels) {
    if (status != kSuccess) break;
    status = launch_one(kernel, memory, stream);
  }
  Py_END_ALLOW_THREADS;
  if (status != kSuccess) {
    PyErr_Format(PyExc_RuntimeError, "fastseg: a kernel could not be launched: CUDA error %d, %s",
                 static_cast<int>(status), error_text(status));
    return nullptr;
  }
  Py_RETURN_TRUE;
}

template <typename Function>
PyCFunction method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef kernels_methods[] = {
    {"launch", method(launch), METH_FASTCALL,
     "launch(stream, values): launches all kernels; False if a tensor begins elsewhere."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot kernels_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(make)},
    {Py_tp_dealloc, reinterpret_cast<void*>(drop)},
    {Py_tp_methods, kernels_methods},
    {0, nullptr},
};

PyType_Spec kernels_spec = {"fastseg._launch.Kernels", sizeof(Object), 0, Py_TPFLAGS_DEFAULT,
                            kernels_slots};

PyMethodDef module_methods[] = {
    {"set_up", method(set_up), METH_FASTCALL, "set_up(capsule, classes): how tensors are read."},
    {"describe", method(describe), METH_FASTCALL,
     "describe(*tensors): what a choice of kernels may depend on, as bytes; None if it cannot."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "_launch",
                      "Launches of compiled kernels on a GPU.",
                      -1,
                      module_methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace
}  // namespace fastseg::launch

PyMODINIT_FUNC PyInit__launch() {
  using namespace fastseg::launch;
  PyObject* made = PyModule_Create(&module);
  if (made == nullptr) return nullptr;
  PyObject* type = PyType_FromSpec(&kernels_spec);
  if (type == nullptr || PyModule_AddObject(made, "Kernels", type) < 0) {
    Py_XDECREF(type);
    Py_DECREF(made);
    return nullptr;
  }
  return made;
}
