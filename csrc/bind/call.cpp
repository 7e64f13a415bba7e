#include "call.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

struct Names {
  PyObject* parameters = PyUnicode_InternFromString("_parameters");
  PyObject* flat_names = PyUnicode_InternFromString("_flat_weights_names");
  PyObject* flat_weights = PyUnicode_InternFromString("_flat_weights");
  PyObject* input_size = PyUnicode_InternFromString("input_size");
  PyObject* hidden_size = PyUnicode_InternFromString("hidden_size");
  PyObject* proj_size = PyUnicode_InternFromString("proj_size");
  PyObject* num_layers = PyUnicode_InternFromString("num_layers");
  PyObject* bidirectional = PyUnicode_InternFromString("bidirectional");
  PyObject* bias = PyUnicode_InternFromString("bias");
  PyObject* dropout = PyUnicode_InternFromString("dropout");
  PyObject* training = PyUnicode_InternFromString("training");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  // Methods of torch's modules that an instance may replace, to check calls its own way.
  PyObject* checks[6] = {PyUnicode_InternFromString("check_input"),
                         PyUnicode_InternFromString("check_forward_args"),
                         PyUnicode_InternFromString("check_hidden_size"),
                         PyUnicode_InternFromString("get_expected_hidden_size"),
                         PyUnicode_InternFromString("get_expected_cell_size"),
                         PyUnicode_InternFromString("permute_hidden")};
  PyObject* of_cell[4] = {
      PyUnicode_InternFromString("weight_ih"), PyUnicode_InternFromString("weight_hh"),
      PyUnicode_InternFromString("bias_ih"), PyUnicode_InternFromString("bias_hh")};
};

const Names& names() {
  static const Names* instance = new Names;
  return *instance;
}

// The value of an int or bool in a module's dict; -1 for anything else.
int64_t number(PyObject* dict, PyObject* name) {
  PyObject* value = PyDict_GetItem(dict, name);
  if (!value || !PyLong_Check(value)) return -1;
  const int64_t result = PyLong_AsLongLong(value);
  if (result == -1 && PyErr_Occurred()) PyErr_Clear();
  return result;
}

bool same_kind(const View& a, const View& b) {
  return a.device.type == b.device.type && a.dtype == b.dtype;
}

}  // namespace

bool read_flag(PyObject* dict, PyObject* name, bool& out) {
  PyObject* value = PyDict_GetItem(dict, name);
  out = value == Py_True;
  return out || value == Py_False;
}

// A tensor of exactly that type, with the values that its memory holds.
bool Call::view_plain(PyObject* object, PyTypeObject* type, View& out) const {
  if (Py_TYPE(object) != type || !tensors_.view(object, out) || !out.data) return false;
  PyObject* negated = PyObject_CallMethodNoArgs(object, names().is_neg);
  const bool plain = negated == Py_False;
  Py_XDECREF(negated);
  return plain || (PyErr_Clear(), false);
}

bool Call::read_input(PyObject* input) {
  like_ = input;
  if (!view_plain(input, tensor_, x_) || x_.device.type != dlpack::kCpu || x_.dtype.lanes != 1)
    return false;
  const uint8_t code = x_.dtype.code, bits = x_.dtype.bits;
  if (bits == 16) return (code == dlpack::kFloat || code == dlpack::kBfloat) && serves_16_bits();
  return code == dlpack::kFloat && (bits == 32 || bits == 64);
}

bool Call::read_padded_shape(bool batch_first) {
  if (x_.ndim != 2 && x_.ndim != 3) return false;
  const bool batched = x_.ndim == 3;
  const int time = batched && batch_first, row = !time;
  steps_ = x_.shape[time], x_step_ = x_.strides[time];
  if (batched) batch_ = x_.shape[row], x_row_ = x_.strides[row];
  rows_ = steps_ * batch_;
  return steps_ > 0 && batch_ > 0 && (x_.shape[x_.ndim - 1] == 1 || x_.strides[x_.ndim - 1] == 1);
}

// Takes hold of a weight; false if there is none.
bool Call::keep(PyObject* weight) {
  if (weight) kept_.push_back(py::reinterpret_borrow<py::object>(weight));
  return weight != nullptr;
}

// object: of shape (rows, columns), or (rows) where columns is 0.
bool Call::add_weight(PyObject* object, int64_t rows, int64_t columns) {
  View view;
  if (!view_plain(object, parameter_, view)) return false;
  if (!same_kind(view, x_) || !view.contiguous() || view.ndim != (columns ? 2 : 1)) return false;
  if (view.shape[0] != rows || (columns && view.shape[1] != columns)) return false;
  weights_.push_back(view.data);
  return true;
}

bool Call::read_layers(PyObject* dict) {
  const Names& name = names();
  for (PyObject* check : name.checks)
    if (PyDict_GetItem(dict, check)) return false;
  bool bidirectional;
  if (!read_flag(dict, name.bias, bias_) || !read_flag(dict, name.bidirectional, bidirectional))
    return false;
  input_ = x_.shape[x_.ndim - 1];
  hidden_ = number(dict, name.hidden_size);
  layers_ = number(dict, name.num_layers);
  directions_ = 1 + bidirectional;
  const int64_t projection = number(dict, name.proj_size);
  projected_ = projection > 0;
  output_ = projected_ ? projection : hidden_;
  if (input_ < 1 || hidden_ < 1 || layers_ < 1 || projection < 0 ||
      input_ != number(dict, name.input_size))
    return false;
  PyObject* dropout = PyDict_GetItem(dict, name.dropout);
  if (!dropout || !PyFloat_Check(dropout)) return false;
  if (layers_ > 1 && number(dict, name.training) != 0 && PyFloat_AS_DOUBLE(dropout) != 0)
    return false;

  PyObject* parameters = PyDict_GetItem(dict, name.parameters);
  PyObject* flat_names = PyDict_GetItem(dict, name.flat_names);
  PyObject* flat = PyDict_GetItem(dict, name.flat_weights);
  const int64_t each = 2 + 2 * bias_ + projected_, count = states() * each;
  if (!parameters || !PyDict_Check(parameters) || !flat_names || !PyList_CheckExact(flat_names) ||
      PyList_GET_SIZE(flat_names) / each != states() || PyList_GET_SIZE(flat_names) % each != 0 ||
      !flat || !PyList_CheckExact(flat) || PyList_GET_SIZE(flat) != count)
    return false;
  weights_.reserve(states() * 5), kept_.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    PyObject* weight = PyDict_GetItem(parameters, PyList_GET_ITEM(flat_names, i));
    // Where the list of weights has another tensor than the parameters, the long way knows why.
    if (weight != PyList_GET_ITEM(flat, i) || !keep(weight)) return false;
  }
  const int64_t rows = cell_.gates * hidden_;
  for (int64_t s = 0, next = 0; s < states(); ++s) {
    const auto add = [&](int64_t own_rows, int64_t columns) {
      return add_weight(kept_[next++].ptr(), own_rows, columns);
    };
    if (!add(rows, s < directions_ ? input_ : width()) || !add(rows, output_)) return false;
    if (!bias_) {
      weights_.insert(weights_.end(), 2, nullptr);
    } else if (!add(rows, 0) || !add(rows, 0)) {
      return false;
    }
    if (!projected_) {
      weights_.push_back(nullptr);
    } else if (!add(output_, hidden_)) {
      return false;
    }
  }
  return true;
}

bool Call::read_cell(PyObject* dict) {
  const Names& name = names();
  if (x_.ndim != 1 && x_.ndim != 2) return false;
  if (x_.ndim == 2) batch_ = x_.shape[0], x_row_ = x_.strides[0];
  rows_ = batch_;
  input_ = x_.shape[x_.ndim - 1];
  hidden_ = output_ = number(dict, name.hidden_size);
  if (batch_ < 1 || input_ < 1 || hidden_ < 1 || (input_ > 1 && x_.strides[x_.ndim - 1] != 1))
    return false;
  PyObject* parameters = PyDict_GetItem(dict, name.parameters);
  if (!parameters || !PyDict_Check(parameters)) return false;
  weights_.reserve(5), kept_.reserve(4);
  for (PyObject* weight : name.of_cell)
    if (!keep(PyDict_GetItem(parameters, weight))) return false;
  const int64_t rows = cell_.gates * hidden_;
  if (!add_weight(kept_[0].ptr(), rows, input_) || !add_weight(kept_[1].ptr(), rows, hidden_))
    return false;
  if (kept_[2].is_none() && kept_[3].is_none()) {
    weights_.insert(weights_.end(), 2, nullptr);
  } else if (!add_weight(kept_[2].ptr(), rows, 0) || !add_weight(kept_[3].ptr(), rows, 0)) {
    return false;
  }
  weights_.push_back(nullptr);
  return true;
}

// A vector of int64, of `count` values unless that is -1.
bool Call::view_indices(PyObject* object, int64_t count, View& out) const {
  return view_plain(object, tensor_, out) && out.device.type == dlpack::kCpu && out.ndim == 1 &&
         out.dtype == dlpack::DataType{dlpack::kInt, 64, 1} && out.contiguous() &&
         (count == -1 || out.shape[0] == count);
}

bool Call::read_lengths(PyObject* lengths) {
  if (lengths == Py_None) return true;
  if (PyList_CheckExact(lengths)) {
    for (Py_ssize_t b = 0; b < PyList_GET_SIZE(lengths); ++b) {
      PyObject* length = PyList_GET_ITEM(lengths, b);
      if (!PyLong_CheckExact(length)) return false;
      listed_.push_back(PyLong_AsLongLong(length));
      if (listed_.back() == -1 && PyErr_Occurred()) return PyErr_Clear(), false;
    }
    if (int64_t(listed_.size()) != batch_) return false;
    lengths_ = listed_.data();
  } else {
    View view;
    if (!view_indices(lengths, batch_, view)) return false;
    lengths_ = (const int64_t*)view.data;
  }
  for (int64_t b = 0; b < batch_; ++b)
    if (lengths_[b] < 0 || lengths_[b] > steps_) return false;
  return x_.ndim == 3;
}

bool Call::read_packing(PyObject* batch_sizes, PyObject* sorted, PyObject* unsorted) {
  View view;
  if (x_.ndim != 2 || !x_.contiguous() || !view_indices(batch_sizes, -1, view)) return false;
  batch_sizes_ = (const int64_t*)view.data;
  steps_ = view.shape[0], batch_ = batch_sizes_[0], rows_ = 0;
  for (int64_t t = 0; t < steps_; ++t) {
    if (batch_sizes_[t] < 1 || batch_sizes_[t] > (t ? batch_sizes_[t - 1] : x_.shape[0]))
      return false;
    rows_ += batch_sizes_[t];
  }
  if (rows_ != x_.shape[0]) return false;
  const auto read_order = [&](PyObject* order, const int64_t*& out) {
    if (order == Py_None) return true;
    if (!view_indices(order, batch_, view)) return false;
    out = (const int64_t*)view.data;
    for (int64_t b = 0; b < batch_; ++b)
      if (out[b] < 0 || out[b] >= batch_) return false;
    return true;
  };
  // torch makes up for a way back that is missing.
  return read_order(sorted, sorted_) && read_order(unsorted, unsorted_) && (!sorted_ || unsorted_);
}

// Contiguous, of the input's kind, of shape (first, batch, width) without what a call lacks.
bool Call::view_state(PyObject* object, int64_t first, bool batched, int64_t width,
                      View& out) const {
  const int ndim = (first > 0) + batched + 1;
  return view_plain(object, tensor_, out) && same_kind(out, x_) && out.ndim == ndim &&
         out.contiguous() && out.shape[ndim - 1] == width && (!first || out.shape[0] == first) &&
         (!batched || out.shape[ndim - 2] == batch_);
}

bool Call::read_states(PyObject* hx, int64_t first, bool batched) {
  if (hx == Py_None) return true;
  has_states_ = true;
  if (!cell_.has_cell_state) return view_state(hx, first, batched, output_, h0_);
  return PyTuple_CheckExact(hx) && PyTuple_GET_SIZE(hx) == 2 &&
         view_state(PyTuple_GET_ITEM(hx, 0), first, batched, output_, h0_) &&
         view_state(PyTuple_GET_ITEM(hx, 1), first, batched, hidden_, c0_);
}

}  // namespace fastrnn
