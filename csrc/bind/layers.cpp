#include "layers.h"

#include <vector>

#include "tables.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

// Places in the tuple Problem.
enum Field {
  kSteps = 3,
  kBatch,
  kRows,
  kInput,
  kHidden,
  kOutput,
  kDirections,
  kBias,
  kPacked,
  kKeepCellStates = 14,
  kTraining,
};

PyObject* item(py::handle tuple, int i) {
  if (!PyTuple_Check(tuple.ptr()) || PyTuple_GET_SIZE(tuple.ptr()) <= i)
    throw py::type_error("fastrnn: expected the tuples of fastrnn/problem.py");
  return PyTuple_GET_ITEM(tuple.ptr(), i);
}
int64_t field(py::handle problem, Field which) {
  const int64_t value = PyLong_AsLongLong(item(problem, which));
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}
bool truth(PyObject* object) {
  const int value = PyObject_IsTrue(object);
  if (value < 0) throw py::error_already_set();
  return value != 0;
}

// The tensors of LayerInputs, and the sizes.
struct Inputs {
  Plain x, h0, c0, lengths, batch_sizes, reset;
  PyObject* first;  // the input as it came, to make tensors like it
  std::vector<Plain> weights;
  int64_t each;  // weights of a direction
  bool bias, projected;

  Inputs(const Tensors& tensors, py::handle problem, py::handle inputs, Sizes& a) {
    a.steps = field(problem, kSteps), a.batch = field(problem, kBatch);
    a.rows = field(problem, kRows), a.input = field(problem, kInput);
    a.hidden = field(problem, kHidden), a.output = field(problem, kOutput);
    a.directions = int(field(problem, kDirections));
    bias = field(problem, kBias) != 0, projected = a.output != a.hidden;
    each = 2 + 2 * bias + projected;

    first = item(inputs, 0);
    x = Plain(tensors, first, !field(problem, kPacked));
    h0 = Plain(tensors, item(inputs, 1));
    c0 = Plain(tensors, item(inputs, 2));
    const auto list = py::reinterpret_borrow<py::sequence>(item(inputs, 3));
    weights.reserve(list.size());
    for (py::handle weight : list) weights.emplace_back(tensors, weight);
    if (int64_t(weights.size()) != each * a.directions)
      throw py::value_error("fastrnn: weights do not fit the problem");
    lengths = Plain(tensors, item(inputs, 4));
    batch_sizes = Plain(tensors, item(inputs, 5));
    reset = Plain(tensors, item(inputs, 6));
    a.lengths = lengths.data<const int64_t>();
    a.batch_sizes = batch_sizes.data<const int64_t>();
    a.reset = reset.data<const uint8_t>();
    if (reset) a.reset_step = a.batch, a.reset_row = 1;
  }

  // x and the weights, for Forward and Backward alike.
  template <class T, class Arguments>
  void fill(Arguments& a) const {
    a.x = x.data<const T>();
    if (a.batch_sizes) {
      a.x_step = a.input;
    } else {
      a.x_step = x.view().strides[0], a.x_row = x.view().strides[1];
    }
    a.h0 = h0.data<const T>(), a.c0 = c0.data<const T>();
    for (int d = 0; d < a.directions; ++d) {
      const Plain* own = weights.data() + d * each;
      const bool given = own[0].view().shape[1] == 0 && a.input > 0;  // W_ih x, as x
      a.weights[d] = {given ? nullptr : own[0].data<const T>(), own[1].data<const T>(),
                      bias ? own[2].data<const T>() : nullptr,
                      bias ? own[3].data<const T>() : nullptr,
                      projected ? own[each - 1].data<const T>() : nullptr};
    }
  }
};

template <class T>
py::tuple run_forward(const Tensors& tensors, int cell, int threads, py::handle problem,
                      py::handle inputs) {
  const CellKernels<T>& table = kernels_of<T>(cell);
  Forward<T> a;
  const Inputs in(tensors, problem, inputs, a);
  in.fill<T>(a);
  const bool training = field(problem, kTraining), packed = field(problem, kPacked);
  const int64_t d = a.directions, h = a.hidden, r = a.output;
  const auto make = [&](std::initializer_list<int64_t> shape, T*& data) {
    return tensors.make(in.first, in.x.view(), shape, (void**)&data);
  };
  const auto make_sequence = [&](int64_t features, const View& like, void* data) {
    return packed ? tensors.make(in.first, like, {a.rows, features}, (void**)data)
                  : tensors.make(in.first, like, {a.steps, a.batch, features}, (void**)data);
  };
  py::object y = make_sequence(d * r, in.x.view(), &a.y), h_n = make({d, a.batch, r}, a.h_n);
  py::object c_n = py::none(), cell_states = py::none(), reserve = py::none();
  if (table.has_cell_state) {
    c_n = make({d, a.batch, h}, a.c_n);
    if (training || field(problem, kKeepCellStates)) {
      View like = in.x.view();
      like.dtype.code = dlpack::kFloat, like.dtype.bits = 8 * sizeof(Compute<T>);
      cell_states = make_sequence(d * h, like, &a.cell_states);
    }
  }
  if (training) reserve = make({d, a.rows, table.saved * h + (in.projected ? r : 0)}, a.reserve);
  bool done;
  {
    py::gil_scoped_release release;
    done = table.forward(&a, 1, usable_threads(threads));
  }
  check_memory(done, "forward");
  return py::make_tuple(y, h_n, c_n, cell_states, reserve);
}

template <class T>
py::tuple run_backward(const Tensors& tensors, int cell, int threads, py::handle problem,
                       py::handle inputs, py::handle cell_states, py::handle reserve, bool donated,
                       py::handle above, py::handle needs) {
  const CellKernels<T>& table = kernels_of<T>(cell);
  Backward<T> a;
  const Inputs in(tensors, problem, inputs, a);
  in.fill<T>(a);
  const Plain c(tensors, cell_states), saved(tensors, reserve);
  const Plain grad_y(tensors, item(above, 0)), grad_h_n(tensors, item(above, 1)),
      grad_c_n(tensors, item(above, 2)), grad_c(tensors, item(above, 3));
  a.cell_states = c.data<const Compute<T>>(), a.reserve = saved.data<T>(), a.donated = donated;
  a.grad_y = grad_y.data<const T>(), a.grad_h_n = grad_h_n.data<const T>();
  a.grad_c_n = grad_c_n.data<const T>(), a.grad_cell_states = grad_c.data<const Compute<T>>();

  const int64_t d = a.directions;
  const auto make = [&](bool wanted, std::initializer_list<int64_t> shape, T*& data) {
    return wanted ? tensors.make(in.first, in.x.view(), shape, (void**)&data) : py::none();
  };
  const bool wants_x = truth(item(needs, 0));
  py::object grad_x = field(problem, kPacked)
                          ? make(wants_x, {a.rows, a.input}, a.grad_x)
                          : make(wants_x, {a.steps, a.batch, a.input}, a.grad_x);
  py::object grad_h0 = make(truth(item(needs, 1)), {d, a.batch, a.output}, a.grad_h0);
  py::object grad_c0 = make(truth(item(needs, 2)), {d, a.batch, a.hidden}, a.grad_c0);
  const auto wants = py::reinterpret_borrow<py::sequence>(item(needs, 3));
  py::list grads(in.weights.size());
  for (size_t i = 0; i < in.weights.size(); ++i) {
    const View& weight = in.weights[i].view();
    const size_t place = i % in.each;
    WeightGrads<T>& own = a.grads[i / in.each];
    T*& data = place == 0              ? own.w_ih
               : place == 1            ? own.w_hh
               : place == 2 && in.bias ? own.b_ih
               : place == 3            ? own.b_hh
                                       : own.w_hr;
    const bool wanted = truth(py::object(wants[i]).ptr());
    grads[i] = weight.ndim == 2 ? make(wanted, {weight.shape[0], weight.shape[1]}, data)
                                : make(wanted, {weight.shape[0]}, data);
  }
  bool done;
  {
    py::gil_scoped_release release;
    done = table.backward(a, usable_threads(threads));
  }
  check_memory(done, "backward");
  return py::make_tuple(grad_x, grad_h0, grad_c0, grads);
}

View view_of_x(const Tensors& tensors, py::handle inputs) {
  View view;
  if (!tensors.view(item(inputs, 0), view)) throw py::type_error("fastrnn: expected a tensor");
  return view;
}

}  // namespace

py::tuple Layers::forward(int cell, int threads, py::handle problem, py::handle inputs) const {
  return with_type_of(view_of_x(tensors_, inputs), [&](auto value) {
    return run_forward<decltype(value)>(tensors_, cell, threads, problem, inputs);
  });
}

py::tuple Layers::backward(int cell, int threads, py::handle problem, py::handle inputs,
                           py::handle cell_states, py::handle reserve, bool donated,
                           py::handle above, py::handle needs) const {
  return with_type_of(view_of_x(tensors_, inputs), [&](auto value) {
    return run_backward<decltype(value)>(tensors_, cell, threads, problem, inputs, cell_states,
                                         reserve, donated, above, needs);
  });
}

py::dict problem_fields() {
  py::dict fields;
  fields["steps"] = int(kSteps), fields["batch"] = int(kBatch), fields["rows"] = int(kRows);
  fields["input_size"] = int(kInput), fields["hidden_size"] = int(kHidden);
  fields["output_size"] = int(kOutput), fields["directions"] = int(kDirections);
  fields["bias"] = int(kBias), fields["packed"] = int(kPacked);
  fields["keep_cell_states"] = int(kKeepCellStates), fields["training"] = int(kTraining);
  return fields;
}

}  // namespace fastrnn
