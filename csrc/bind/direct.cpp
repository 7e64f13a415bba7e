#include "direct.h"

#include <cstdlib>
#include <memory>
#include <vector>

#include "prepacked.h"
#include "tables.h"

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
  PyObject* batch_first = PyUnicode_InternFromString("batch_first");
  PyObject* bias = PyUnicode_InternFromString("bias");
  PyObject* dropout = PyUnicode_InternFromString("dropout");
  PyObject* training = PyUnicode_InternFromString("training");
  PyObject* prepacked = PyUnicode_InternFromString("_prepacked");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* transpose = PyUnicode_InternFromString("transpose");
  // Methods of torch's modules that an instance may replace, to check calls its own way.
  PyObject* checks[6] = {PyUnicode_InternFromString("check_input"),
                         PyUnicode_InternFromString("check_forward_args"),
                         PyUnicode_InternFromString("check_hidden_size"),
                         PyUnicode_InternFromString("get_expected_hidden_size"),
                         PyUnicode_InternFromString("get_expected_cell_size"),
                         PyUnicode_InternFromString("permute_hidden")};
  PyObject* of_step[4] = {
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

// Whether an entry of a module's dict is a bool, and which. What else may be true (an int, NumPy's
// bool) the long way knows.
bool flag(PyObject* dict, PyObject* name, bool& out) {
  PyObject* value = PyDict_GetItem(dict, name);
  out = value == Py_True;
  return out || value == Py_False;
}

bool same_kind(const View& a, const View& b) {
  return a.device.type == b.device.type && a.dtype == b.dtype;
}

// Sizes and tensors of one call, filled in step by step; each step returns false to decline.
struct Call {
  Call(const Tensors& tensors, PyTypeObject* tensor, PyTypeObject* parameter, int gates,
       bool has_cell_state)
      : tensors(tensors),
        tensor(tensor),
        parameter(parameter),
        gates(gates),
        has_cell_state(has_cell_state) {}

  const Tensors& tensors;
  PyTypeObject* tensor;
  PyTypeObject* parameter;
  int gates;
  bool has_cell_state;

  PyObject* like = nullptr;  // the input, to make tensors like it
  View x, h0, c0;
  bool has_states = false;
  int64_t steps = 1, batch = 1, x_step = 0, x_row = 0;
  int64_t input = 0, hidden = 0, output = 0, layers = 1;
  int directions = 1;
  bool bias = true, projected = false;
  std::vector<const void*> weights;  // 5 per layer and direction, as in struct Weights
  // The weights' tensors, all held before torch is asked anything: its methods release the GIL, and
  // so does the kernel, and another thread may give the module other weights meanwhile.
  std::vector<py::object> kept;
  std::shared_ptr<const Panels> panels;  // packed weights, if they stay from call to call

  // A tensor of exactly that type, with the values that its memory holds.
  bool view_plain(PyObject* object, PyTypeObject* type, View& out) const {
    if (Py_TYPE(object) != type || !tensors.view(object, out) || !out.data) return false;
    PyObject* negated = PyObject_CallMethodNoArgs(object, names().is_neg);
    const bool plain = negated == Py_False;
    Py_XDECREF(negated);
    return plain || (PyErr_Clear(), false);
  }

  bool view_input(PyObject* object) {
    like = object;
    return view_plain(object, tensor, x) && x.device.type == dlpack::kCpu && x.dtype.lanes == 1 &&
           ((x.dtype.code == dlpack::kFloat && (x.dtype.bits == 32 || x.dtype.bits == 64)) ||
            ((x.dtype.code == dlpack::kFloat || x.dtype.code == dlpack::kBfloat) &&
             x.dtype.bits == 16 && serves_16_bits()));
  }

  // (first, batch, width), (first, width) or (width), contiguous, of the input's kind.
  bool view_state(PyObject* object, View& out, int ndim, int64_t first, int64_t width) const {
    return view_plain(object, tensor, out) && same_kind(out, x) && out.ndim == ndim &&
           out.contiguous() && out.shape[ndim - 1] == width &&
           (ndim < 2 || out.shape[0] == first) && (ndim < 3 || out.shape[1] == batch);
  }
  bool view_states(PyObject* hx, int ndim, int64_t first) {
    if (hx == Py_None) return true;
    has_states = true;
    if (!has_cell_state) return view_state(hx, h0, ndim, first, output);
    return PyTuple_CheckExact(hx) && PyTuple_GET_SIZE(hx) == 2 &&
           view_state(PyTuple_GET_ITEM(hx, 0), h0, ndim, first, output) &&
           view_state(PyTuple_GET_ITEM(hx, 1), c0, ndim, first, hidden);
  }

  // Takes hold of a weight; null if there is none.
  bool keep(PyObject* weight) {
    if (weight) kept.push_back(py::reinterpret_borrow<py::object>(weight));
    return weight != nullptr;
  }

  // object: of shape (rows, columns), or (rows) where columns is 0.
  bool add_weight(PyObject* object, int64_t rows, int64_t columns) {
    View view;
    if (!view_plain(object, parameter, view)) return false;
    if (!same_kind(view, x) || !view.contiguous() || view.ndim != (columns ? 2 : 1)) return false;
    if (view.shape[0] != rows || (columns && view.shape[1] != columns)) return false;
    weights.push_back(view.data);
    return true;
  }

  // Sizes and weights of a layer.
  template <class T>
  Forward<T> layer_arguments(int64_t layer) const {
    Forward<T> a;
    a.steps = steps, a.batch = batch, a.rows = steps * batch, a.directions = directions;
    a.input = layer ? directions * output : input, a.hidden = hidden, a.output = output;
    for (int d = 0; d < directions; ++d) {
      const int64_t index = layer * directions + d;
      const void* const* w = weights.data() + index * 5;
      a.weights[d] = {(const T*)w[0], (const T*)w[1], (const T*)w[2], (const T*)w[3],
                      (const T*)w[4]};
      if (panels) a.packed[d] = (const Compute<T>*)panels->blocks[index].get();
    }
    return a;
  }

  // Finds or packs the panels of a module that keeps them.
  template <class T>
  void keep_packed(Prepacked& prepacked, int cell) {
    const auto pack = [&](int64_t i, void* out) {
      const Forward<T> a = layer_arguments<T>(i / directions);
      return kernels_of<T>(cell).pack_weights(a, int(i % directions), (Compute<T>*)out);
    };
    panels =
        prepacked.panels(&active_target(), cell, x.dtype, kept, weights, layers * directions, pack);
    check_memory(panels != nullptr, "prepacked");
  }
  void keep_packed(PyObject* dict, int cell) {
    PyObject* prepacked = PyDict_GetItem(dict, names().prepacked);
    if (!prepacked) return;
    const py::object held = py::reinterpret_borrow<py::object>(prepacked);
    Prepacked& packed = held.cast<Prepacked&>();
    with_type_of(x, [&](auto value) { keep_packed<decltype(value)>(packed, cell); });
  }

  template <class T>
  void run(int cell, int threads, void* y, void* h_n, void* c_n) const {
    const CellKernels<T>& table = kernels_of<T>(cell);
    const int64_t h_values = directions * batch * output, c_values = directions * batch * hidden;
    std::vector<Forward<T>> arguments;
    for (int64_t layer = 0; layer < layers; ++layer) {
      Forward<T> a = layer_arguments<T>(layer);
      if (has_states) {
        a.h0 = (const T*)h0.data + layer * h_values;
        if (has_cell_state) a.c0 = (const T*)c0.data + layer * c_values;
      }
      a.h_n = (T*)h_n + layer * h_values;
      if (has_cell_state) a.c_n = (T*)c_n + layer * c_values;
      arguments.push_back(a);
    }
    Forward<T>& first = arguments.front();
    first.x = (const T*)x.data, first.x_step = x_step, first.x_row = x_row;
    arguments.back().y = (T*)y;
    bool done;
    {
      py::gil_scoped_release release;
      done = table.forward(arguments.data(), int(layers), usable_threads(threads));
    }
    check_memory(done, "forward");
  }

  void run(int cell, int threads, void* y, void* h_n, void* c_n) const {
    with_type_of(x, [&](auto value) { run<decltype(value)>(cell, threads, y, h_n, c_n); });
  }

  // A new tensor of the input's kind.
  py::object make(void** data, std::initializer_list<int64_t> shape) const {
    return tensors.make(like, x, shape, data);
  }
};

}  // namespace

Direct::Direct(py::handle exchange, py::handle tensor, py::handle parameter)
    : tensors_(exchange),
      tensor_((PyTypeObject*)tensor.inc_ref().ptr()),
      parameter_((PyTypeObject*)parameter.inc_ref().ptr()) {}

py::object Direct::sequence(py::handle dict, py::handle input, py::handle hx, int cell, int gates,
                            bool has_cell_state, int threads) const {
  const Names& name = names();
  PyObject* own = dict.ptr();
  Call call(tensors_, tensor_, parameter_, gates, has_cell_state);
  if (!call.view_input(input.ptr())) return py::none();
  for (PyObject* check : name.checks)
    if (PyDict_GetItem(own, check)) return py::none();
  const View& x = call.x;
  if (x.ndim != 2 && x.ndim != 3) return py::none();
  bool batch_first, bidirectional;
  if (!flag(own, name.batch_first, batch_first) || !flag(own, name.bias, call.bias) ||
      !flag(own, name.bidirectional, bidirectional))
    return py::none();
  const bool batched = x.ndim == 3;
  const int time = batched && batch_first, row = !time;
  call.steps = x.shape[time], call.x_step = x.strides[time];
  if (batched) call.batch = x.shape[row], call.x_row = x.strides[row];
  call.input = x.shape[x.ndim - 1];
  call.hidden = number(own, name.hidden_size);
  call.layers = number(own, name.num_layers);
  call.directions = 1 + bidirectional;
  const int64_t projection = number(own, name.proj_size);
  call.projected = projection > 0;
  call.output = call.projected ? projection : call.hidden;
  if (call.steps < 1 || call.batch < 1 || call.input < 1 || call.hidden < 1 || call.layers < 1 ||
      call.input != number(own, name.input_size) || projection < 0 ||
      (call.input > 1 && x.strides[x.ndim - 1] != 1))
    return py::none();
  if (call.layers > 1 && number(own, name.training) != 0) {
    PyObject* dropout = PyDict_GetItem(own, name.dropout);
    if (!dropout || !PyFloat_Check(dropout) || PyFloat_AS_DOUBLE(dropout) != 0) return py::none();
  }
  const int64_t states = call.layers * call.directions;
  if (!call.view_states(hx.ptr(), batched ? 3 : 2, states)) return py::none();

  PyObject* parameters = PyDict_GetItem(own, name.parameters);
  PyObject* flat_names = PyDict_GetItem(own, name.flat_names);
  PyObject* flat = PyDict_GetItem(own, name.flat_weights);
  const int64_t each = 2 + 2 * call.bias + call.projected;
  if (!parameters || !PyDict_Check(parameters) || !flat_names || !PyList_CheckExact(flat_names) ||
      PyList_GET_SIZE(flat_names) / each != states || PyList_GET_SIZE(flat_names) % each != 0 ||
      !flat || !PyList_CheckExact(flat) || PyList_GET_SIZE(flat) != PyList_GET_SIZE(flat_names))
    return py::none();
  const int64_t rows = gates * call.hidden;
  call.weights.reserve(states * 5), call.kept.reserve(states * each);
  for (int64_t i = 0; i < states * each; ++i) {
    PyObject* weight = PyDict_GetItem(parameters, PyList_GET_ITEM(flat_names, i));
    // Where the list of weights has another tensor than the parameters, the long way knows why.
    if (weight != PyList_GET_ITEM(flat, i) || !call.keep(weight)) return py::none();
  }
  for (int64_t s = 0, next = 0; s < states; ++s) {
    const int64_t width = s < call.directions ? call.input : call.directions * call.output;
    const auto add = [&](int64_t count, int64_t columns) {
      return call.add_weight(call.kept[next++].ptr(), count, columns);
    };
    if (!add(rows, width) || !add(rows, call.output)) return py::none();
    if (!call.bias) {
      call.weights.insert(call.weights.end(), 2, nullptr);
    } else if (!add(rows, 0) || !add(rows, 0)) {
      return py::none();
    }
    if (!call.projected) {
      call.weights.push_back(nullptr);
    } else if (!add(call.output, call.hidden)) {
      return py::none();
    }
  }
  call.keep_packed(own, cell);

  void *y, *h_n, *c_n = nullptr;
  const int64_t width = call.directions * call.output;
  // One step or one row: both layouts are the same memory.
  const bool swap = batched && batch_first;
  const bool same = call.steps == 1 || call.batch == 1;
  py::object output = !batched       ? call.make(&y, {call.steps, width})
                      : swap && same ? call.make(&y, {call.batch, call.steps, width})
                                     : call.make(&y, {call.steps, call.batch, width});
  const auto make_state = [&](void** data, int64_t size) {
    return batched ? call.make(data, {states, call.batch, size}) : call.make(data, {states, size});
  };
  py::object last = make_state(&h_n, call.output);
  if (has_cell_state) last = py::make_tuple(last, make_state(&c_n, call.hidden));
  call.run(cell, threads, y, h_n, c_n);
  if (swap && !same) output = output.attr(name.transpose)(0, 1);
  return py::make_tuple(output, last);
}

py::object Direct::step(py::handle dict, py::handle input, py::handle hx, int cell, int gates,
                        bool has_cell_state, int threads) const {
  const Names& name = names();
  PyObject* own = dict.ptr();
  Call call(tensors_, tensor_, parameter_, gates, has_cell_state);
  if (!call.view_input(input.ptr())) return py::none();
  const View& x = call.x;
  if (x.ndim != 1 && x.ndim != 2) return py::none();
  const bool batched = x.ndim == 2;
  if (batched) call.batch = x.shape[0], call.x_row = x.strides[0];
  call.input = x.shape[x.ndim - 1];
  call.hidden = call.output = number(own, name.hidden_size);
  if (call.batch < 1 || call.input < 1 || call.hidden < 1 ||
      (call.input > 1 && x.strides[x.ndim - 1] != 1) ||
      !call.view_states(hx.ptr(), x.ndim, call.batch))
    return py::none();
  PyObject* parameters = PyDict_GetItem(own, name.parameters);
  if (!parameters || !PyDict_Check(parameters)) return py::none();
  const int64_t rows = gates * call.hidden;
  call.weights.reserve(5), call.kept.reserve(4);
  for (PyObject* weight : name.of_step)
    if (!call.keep(PyDict_GetItem(parameters, weight))) return py::none();
  const auto add = [&](int i, int64_t columns) {
    return call.add_weight(call.kept[i].ptr(), rows, columns);
  };
  if (!add(0, call.input) || !add(1, call.hidden)) return py::none();
  if (call.kept[2].is_none() && call.kept[3].is_none()) {
    call.weights.insert(call.weights.end(), 2, nullptr);
  } else if (!add(2, 0) || !add(3, 0)) {
    return py::none();
  }
  call.weights.push_back(nullptr);
  call.keep_packed(own, cell);

  void *h, *c = nullptr;
  const auto make_state = [&](void** data) {
    return batched ? call.make(data, {call.batch, call.hidden}) : call.make(data, {call.hidden});
  };
  py::object result = make_state(&h);
  if (has_cell_state) result = py::make_tuple(result, make_state(&c));
  // The output of the step, which is h again.
  const std::unique_ptr<double[]> y(new double[call.batch * call.hidden]);
  call.run(cell, threads, y.get(), h, c);
  return result;
}

}  // namespace fastrnn
