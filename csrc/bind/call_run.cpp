// What a call does once everything is read: results, packed weights, the kernels.
#include <cstring>

#include "call.h"

namespace py = pybind11;

namespace fastrnn {

py::object Call::make_states(int64_t first, bool batched) {
  const auto make_state = [&](void** data, int64_t size) {
    if (!first) return batched ? make(data, {batch_, size}) : make(data, {size});
    return batched ? make(data, {first, batch_, size}) : make(data, {first, size});
  };
  py::object h_n = make_state(&h_n_, output_);
  if (!cell_.has_cell_state) return h_n;
  return py::make_tuple(h_n, make_state(&c_n_, hidden_));
}

// Sizes and weights of a layer.
template <class T>
Forward<T> Call::layer_arguments(int64_t layer) const {
  Forward<T> a;
  a.steps = steps_, a.batch = batch_, a.rows = rows_, a.directions = directions_;
  a.input = layer ? width() : input_, a.hidden = hidden_, a.output = output_;
  a.lengths = lengths_, a.batch_sizes = batch_sizes_;
  for (int d = 0; d < directions_; ++d) {
    const int64_t index = layer * directions_ + d;
    const void* const* w = weights_.data() + index * 5;
    a.weights[d] = {(const T*)w[0], (const T*)w[1], (const T*)w[2], (const T*)w[3], (const T*)w[4]};
    if (panels_) a.packed[d] = (const Compute<T>*)panels_->blocks[index]->data();
  }
  return a;
}

// Finds or packs the panels of a module that keeps them.
template <class T>
void Call::keep_packed(Prepacked& prepacked) {
  const auto pack = [&](int64_t i, void* out) {
    const Forward<T> a = layer_arguments<T>(i / directions_);
    return kernels_of<T>(cell_.index).pack_weights(a, int(i % directions_), (Compute<T>*)out);
  };
  panels_ =
      prepacked.panels(&active_target(), cell_.index, x_.dtype, kept_, weights_, states(), pack);
  check_memory(panels_ != nullptr, "prepacked");
}

template <class T>
bool Call::run_layers(int threads, void* y, void* h_n, void* c_n) const {
  const int64_t h_values = directions_ * batch_ * output_,
                c_values = directions_ * batch_ * hidden_;
  std::vector<Forward<T>> layers;
  for (int64_t layer = 0; layer < layers_; ++layer) {
    Forward<T> a = layer_arguments<T>(layer);
    if (has_states_) a.h0 = (const T*)h0_.data + layer * h_values;
    if (has_states_ && cell_.has_cell_state) a.c0 = (const T*)c0_.data + layer * c_values;
    a.h_n = (T*)h_n + layer * h_values;
    if (cell_.has_cell_state) a.c_n = (T*)c_n + layer * c_values;
    layers.push_back(a);
  }
  Forward<T>& first = layers.front();
  first.x = (const T*)x_.data, first.x_step = x_step_, first.x_row = x_row_;
  // The output of a single step is its state again.
  std::unique_ptr<T[]> output(y ? nullptr : new T[batch_ * output_]);
  layers.back().y = y ? (T*)y : output.get();
  const CellKernels<T>& table = kernels_of<T>(cell_.index);
  py::gil_scoped_release release;
  return table.forward(layers.data(), int(layers_), usable_threads(threads));
}

void Call::reorder(const int64_t* order, const void* from, void* to, int64_t bytes) const {
  for (int64_t s = 0; s < states(); ++s)
    for (int64_t b = 0; b < batch_; ++b)
      std::memcpy((char*)to + (s * batch_ + b) * bytes,
                  (const char*)from + (s * batch_ + order[b]) * bytes, bytes);
}

void Call::run(PyObject* dict, int threads, void* y) {
  static PyObject* const name = PyUnicode_InternFromString("_prepacked");
  if (PyObject* prepacked = PyDict_GetItem(dict, name)) {
    const py::object held = py::reinterpret_borrow<py::object>(prepacked);
    Prepacked& kept = held.cast<Prepacked&>();
    with_type_of(x_, [&](auto value) { keep_packed<decltype(value)>(kept); });
  }
  const int64_t item = x_.dtype.bits / 8, h_bytes = output_ * item;
  const int64_t c_bytes = cell_.has_cell_state ? hidden_ * item : 0;
  const int64_t h_size = states() * batch_ * h_bytes, c_size = states() * batch_ * c_bytes;
  void *h_n = h_n_, *c_n = c_n_;
  std::unique_ptr<char[]> before, after;
  if (sorted_ && has_states_) {
    before.reset(new char[h_size + c_size]);
    reorder(sorted_, h0_.data, before.get(), h_bytes);
    h0_.data = before.get();
    if (c_bytes) {
      reorder(sorted_, c0_.data, before.get() + h_size, c_bytes);
      c0_.data = before.get() + h_size;
    }
  }
  if (unsorted_) {
    after.reset(new char[h_size + c_size]);
    h_n = after.get(), c_n = after.get() + h_size;
  }
  const bool done = with_type_of(
      x_, [&](auto value) { return run_layers<decltype(value)>(threads, y, h_n, c_n); });
  check_memory(done, "forward");
  if (!unsorted_) return;
  reorder(unsorted_, h_n, h_n_, h_bytes);
  if (c_bytes) reorder(unsorted_, c_n, c_n_, c_bytes);
}

}  // namespace fastrnn
