#include "direct.h"

#include "call.h"

namespace py = pybind11;

namespace fastrnn {

Direct::Direct(py::handle exchange, py::handle tensor, py::handle parameter)
    : tensors_(exchange),
      tensor_((PyTypeObject*)tensor.inc_ref().ptr()),
      parameter_((PyTypeObject*)parameter.inc_ref().ptr()) {}

py::object Direct::sequence(py::handle dict, py::handle input, py::handle hx, py::handle lengths,
                            int cell, int gates, bool has_cell_state, int threads) const {
  static PyObject* const batch_first_name = PyUnicode_InternFromString("batch_first");
  static PyObject* const transpose = PyUnicode_InternFromString("transpose");
  Call call(tensors_, tensor_, parameter_, {cell, gates, has_cell_state});
  bool batch_first;
  if (!call.read_input(input.ptr()) || !read_flag(dict.ptr(), batch_first_name, batch_first) ||
      !call.read_padded_shape(batch_first) || !call.read_layers(dict.ptr()) ||
      !call.read_lengths(lengths.ptr()))
    return py::none();
  const bool batched = call.input().ndim == 3;
  if (!call.read_states(hx.ptr(), call.states(), batched)) return py::none();

  void* y;
  const int64_t steps = call.steps(), batch = call.batch(), width = call.width();
  // One step or one row: both layouts are the same memory.
  const bool swap = batched && batch_first, same = steps == 1 || batch == 1;
  py::object output = !batched       ? call.make(&y, {steps, width})
                      : swap && same ? call.make(&y, {batch, steps, width})
                                     : call.make(&y, {steps, batch, width});
  py::object last = call.make_states(call.states(), batched);
  call.run(dict.ptr(), threads, y);
  if (swap && !same) output = output.attr(transpose)(0, 1);
  return py::make_tuple(output, last);
}

py::object Direct::packed(py::handle dict, py::handle sequence, py::handle hx, int cell, int gates,
                          bool has_cell_state, int threads) const {
  Call call(tensors_, tensor_, parameter_, {cell, gates, has_cell_state});
  PyObject* parts = sequence.ptr();
  if (!PyTuple_Check(parts) || PyTuple_GET_SIZE(parts) != 4) return py::none();
  if (!call.read_input(PyTuple_GET_ITEM(parts, 0)) ||
      !call.read_packing(PyTuple_GET_ITEM(parts, 1), PyTuple_GET_ITEM(parts, 2),
                         PyTuple_GET_ITEM(parts, 3)) ||
      !call.read_layers(dict.ptr()) || !call.read_states(hx.ptr(), call.states(), true))
    return py::none();
  void* y;
  py::object output = call.make(&y, {call.input().shape[0], call.width()});
  py::object last = call.make_states(call.states(), true);
  call.run(dict.ptr(), threads, y);
  return py::make_tuple(output, last);
}

py::object Direct::step(py::handle dict, py::handle input, py::handle hx, int cell, int gates,
                        bool has_cell_state, int threads) const {
  Call call(tensors_, tensor_, parameter_, {cell, gates, has_cell_state});
  if (!call.read_input(input.ptr()) || !call.read_cell(dict.ptr())) return py::none();
  const bool batched = call.input().ndim == 2;
  if (!call.read_states(hx.ptr(), 0, batched)) return py::none();
  py::object last = call.make_states(0, batched);
  call.run(dict.ptr(), threads, nullptr);
  return last;
}

}  // namespace fastrnn
