#include "tensors.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace fastrnn {
namespace {

struct Names {
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* resolve_neg = PyUnicode_InternFromString("resolve_neg");
  PyObject* contiguous = PyUnicode_InternFromString("contiguous");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* element_size = PyUnicode_InternFromString("element_size");
  PyObject* is_floating_point = PyUnicode_InternFromString("is_floating_point");
  PyObject* stride = PyUnicode_InternFromString("stride");
};

const Names& names() {
  static const Names* instance = new Names;
  return *instance;
}

// For torch without the interface.
void view_by_methods(py::handle tensor, View& out) {
  const Names& name = names();
  const auto shape = tensor.attr("shape").cast<py::tuple>();
  const auto strides = call_method(tensor.ptr(), name.stride).cast<py::tuple>();
  out.ndim = int(shape.size());
  for (int i = 0; i < out.ndim; ++i) {
    out.shape[i] = shape[i].cast<int64_t>();
    out.strides[i] = strides[i].cast<int64_t>();
  }
  out.data = (void*)call_method(tensor.ptr(), name.data_ptr).cast<uintptr_t>();
  out.device.type = tensor.attr("is_cpu").cast<bool>() ? dlpack::kCpu : 0;
  out.dtype.lanes = 1;
  out.dtype.code = call_method(tensor.ptr(), name.is_floating_point).cast<bool>() ? dlpack::kFloat
                                                                                  : dlpack::kInt;
  out.dtype.bits = uint8_t(8 * call_method(tensor.ptr(), name.element_size).cast<int>());
  if (out.dtype.bits == 16 && out.dtype.code == dlpack::kFloat &&
      py::str(tensor.attr("dtype")).cast<std::string>() == "torch.bfloat16")
    out.dtype.code = dlpack::kBfloat;
}

// torch's words for a failed allocation, without the C++ frames that follow them.
void raise_as_torch(void*, const char*, const char* message) {
  const char* end = std::strstr(message, "\nException raised from");
  PyErr_SetString(PyExc_RuntimeError,
                  std::string(message, end ? end - message : std::strlen(message)).c_str());
}

}  // namespace

py::object call_method(PyObject* tensor, PyObject* name) {
  PyObject* result = PyObject_CallMethodNoArgs(tensor, name);
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

Tensors::Tensors(py::handle exchange) {
  if (exchange.is_none()) return;
  auto* api = (dlpack::ExchangeApi*)PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api");
  if (!api) throw py::error_already_set();
  if (api->version.major != 1 || !api->view_object)
    throw py::value_error("exchange: expected version 1 of DLPack's interface, with views");
  api_ = api;
}

bool Tensors::view(PyObject* object, View& out) const {
  if (!api_) {
    try {
      view_by_methods(object, out);
      return out.ndim <= View::kMaxDims;
    } catch (const py::builtin_exception&) {
    } catch (const py::error_already_set&) {
    }
    return false;
  }
  dlpack::Tensor tensor;
  if (api_->view_object(object, &tensor) != 0) return PyErr_Clear(), false;
  if (tensor.ndim > View::kMaxDims) return false;
  out.data = (char*)tensor.data + tensor.byte_offset;
  out.ndim = tensor.ndim;
  for (int i = 0; i < tensor.ndim; ++i)
    out.shape[i] = tensor.shape[i], out.strides[i] = tensor.strides[i];
  out.device = tensor.device, out.dtype = tensor.dtype;
  return true;
}

py::object Tensors::make(PyObject* like, const View& view, std::initializer_list<int64_t> shape,
                         void** data) const {
  py::object made;
  View own;
  if (!api_) {
    py::tuple sizes(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) sizes[i] = shape.begin()[i];
    made = py::handle(like).attr("new_empty")(sizes);
    const int bits = 8 * call_method(made.ptr(), names().element_size).cast<int>();
    if (view.dtype.bits != bits) made = made.attr("float")();
  } else {
    int64_t sizes[View::kMaxDims];
    for (size_t i = 0; i < shape.size(); ++i) sizes[i] = shape.begin()[i];
    dlpack::Tensor prototype{};
    prototype.device = view.device, prototype.dtype = view.dtype;
    prototype.ndim = int32_t(shape.size()), prototype.shape = sizes;
    dlpack::ManagedTensor* managed = nullptr;
    void* object = nullptr;
    if (api_->allocate(&prototype, &managed, nullptr, raise_as_torch) != 0 ||
        api_->object_from_managed(managed, &object) != 0) {
      if (!PyErr_Occurred()) PyErr_NoMemory();
      throw py::error_already_set();
    }
    made = py::reinterpret_steal<py::object>((PyObject*)object);
  }
  if (!this->view(made.ptr(), own)) throw std::bad_alloc();
  *data = own.data;
  return made;
}

Plain::Plain(const Tensors& tensors, py::handle tensor, bool features_only) {
  if (tensor.is_none()) return;
  const Names& name = names();
  object_ = py::reinterpret_borrow<py::object>(tensor);
  if (call_method(object_.ptr(), name.is_neg).is(py::handle(Py_True)))
    object_ = call_method(object_.ptr(), name.resolve_neg);
  const auto read = [&] {
    if (!tensors.view(object_.ptr(), view_))
      throw py::type_error("fastrnn: expected a tensor with memory of its own");
    if (!view_.data && view_.size() > 0)
      throw std::runtime_error("fastrnn: expected a tensor with memory, its storage is empty");
  };
  read();
  const bool adjacent = view_.ndim > 0 && view_.strides[view_.ndim - 1] == 1;
  if (features_only ? adjacent : view_.contiguous()) return;
  object_ = call_method(object_.ptr(), name.contiguous);
  read();
}

}  // namespace fastrnn
