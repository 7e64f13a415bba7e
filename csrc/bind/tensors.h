// Tensors of Python as plain views, and new ones, without torch's headers.
//
// Through DLPack's exchange interface for C (github.com/dmlc/dlpack, version 1.3), which torch has
// from 2.10 on as torch.Tensor.__dlpack_c_exchange_api__: reading a tensor takes 60 ns, a third of
// asking it for its address and shape from Python. The declarations below are that interface's.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>

namespace fastrnn {
namespace dlpack {

struct Device {
  int32_t type, id;
};
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;

  bool operator==(const DataType& other) const {
    return code == other.code && bits == other.bits && lanes == other.lanes;
  }
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
constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4;

}  // namespace dlpack

// What a tensor's memory holds.
struct View {
  static constexpr int kMaxDims = 4;

  void* data = nullptr;
  int ndim = 0;
  int64_t shape[kMaxDims], strides[kMaxDims];
  dlpack::Device device{};
  dlpack::DataType dtype{};

  int64_t size() const {
    int64_t product = 1;
    for (int i = 0; i < ndim; ++i) product *= shape[i];
    return product;
  }
  bool contiguous() const {
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }
};

// Reads and makes tensors. Everything needs the GIL.
class Tensors {
 public:
  // From torch.Tensor.__dlpack_c_exchange_api__, or None where torch is older: views and new
  // tensors then come from the methods of tensors. Raises ValueError for a version of the interface
  // that this file does not know.
  explicit Tensors(pybind11::handle exchange);

  bool fast() const { return api_ != nullptr; }

  // False, with no error set, for what cannot be viewed.
  bool view(PyObject* object, View& out) const;

  // A new contiguous tensor, uninitialised, on the device of `like` and of the dtype of `view`,
  // which is a view of it, or one whose dtype was changed to float32.
  pybind11::object make(PyObject* like, const View& view, std::initializer_list<int64_t> shape,
                        void** data) const;

 private:
  const dlpack::ExchangeApi* api_ = nullptr;
};

// A tensor as kernels read it, kept alive: contiguous, or with adjacent features only; its values
// those of its memory (torch negates and copies lazily).
class Plain {
 public:
  Plain() = default;
  // None gives an empty one.
  Plain(const Tensors& tensors, pybind11::handle tensor, bool features_only = false);

  explicit operator bool() const { return bool(object_); }
  const View& view() const { return view_; }
  template <class T>
  T* data() const {
    return (T*)view_.data;
  }

 private:
  pybind11::object object_;
  View view_;
};

// The call of a tensor's method without arguments; raises what it raises.
pybind11::object call_method(PyObject* tensor, PyObject* name);

}  // namespace fastrnn
