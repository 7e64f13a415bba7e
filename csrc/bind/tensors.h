// Tensors of Python as plain views, and new ones, without torch's headers.
//
// Through DLPack's exchange interface for C (github.com/dmlc/dlpack, version 1.3), which torch has
// from 2.10 on as torch.Tensor.__dlpack_c_exchange_api__: reading a tensor takes 60 ns, a third of
// asking it for its address and shape from Python. The declarations below are that interface's.
#pragma once

#include <Python.h>

#include <cstdint>

namespace fastrnn {
namespace dlpack {

struct Device {
  int32_t type, id;
};
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct ManagedTensor;
struct Version {
  uint32_t major, minor;
};
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  int (*allocate)(Tensor* prototype, ManagedTensor** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, ManagedTensor** out);
  int (*object_from_managed)(ManagedTensor* tensor, void** out);
  int (*view_object)(void* object, Tensor* out);
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2;

}  // namespace dlpack

// Reads and makes tensors. Everything needs the GIL.
class Tensors {
 public:
  // False if the capsule is not of an interface that this file knows.
  bool connect(PyObject* capsule) {
    auto* api = (dlpack::ExchangeApi*)PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    if (!api) return PyErr_Clear(), false;
    if (api->version.major != 1 || !api->view_object) return false;
    api_ = api;
    return true;
  }
  bool connected() const { return api_ != nullptr; }

  // False, with no error set, for what cannot be viewed.
  bool view(PyObject* object, dlpack::Tensor& out) const {
    if (api_->view_object(object, &out) != 0) return PyErr_Clear(), false;
    out.data = (char*)out.data + out.byte_offset;
    return true;
  }

  // A new contiguous tensor, uninitialised, like a prototype in all but its shape; null with an
  // error set where there is no memory.
  PyObject* make(const dlpack::Tensor& like, int ndim, int64_t* shape, void** data) const {
    dlpack::Tensor prototype = like;
    prototype.ndim = ndim, prototype.shape = shape, prototype.strides = nullptr;
    dlpack::ManagedTensor* managed = nullptr;
    void* object = nullptr;
    if (api_->allocate(&prototype, &managed, nullptr, ignore) != 0 ||
        api_->object_from_managed(managed, &object) != 0) {
      if (!PyErr_Occurred()) PyErr_NoMemory();
      return nullptr;
    }
    dlpack::Tensor made;
    if (!view((PyObject*)object, made)) return PyErr_NoMemory();
    *data = made.data;
    return (PyObject*)object;
  }

 private:
  static void ignore(void*, const char*, const char*) {}

  const dlpack::ExchangeApi* api_ = nullptr;
};

}  // namespace fastrnn
