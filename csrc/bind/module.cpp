// fastrnn._C: the CPU kernels for Python. Addresses and sizes come in as integers, already
// validated by fastrnn/problem.py; the order of the arguments is that of fastrnn/backends/cpu.py.
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "direct.h"
#include "tables.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// (T, B, rows, I, H, R, D, lengths, batch_sizes, reset, strides of reset)
using SizeList = std::array<int64_t, 12>;
// w_ih, w_hh, b_ih, b_hh, w_hr of each direction; 0 for one that is not there.
using WeightList = std::array<Address, 10>;

template <class Arguments>
void fill_sizes(Arguments& a, const SizeList& s) {
  a.steps = s[0], a.batch = s[1], a.rows = s[2];
  a.input = s[3], a.hidden = s[4], a.output = s[5], a.directions = int(s[6]);
  a.lengths = pointer<const int64_t>(Address(s[7]));
  a.batch_sizes = pointer<const int64_t>(Address(s[8]));
  a.reset = pointer<const uint8_t>(Address(s[9]));
  a.reset_step = s[10], a.reset_row = s[11];
}

// Weights or WeightGrads.
template <template <class> class W, class T>
void fill_weights(W<T>* weights, const WeightList& list) {
  for (int d = 0; d < 2; ++d) {
    const Address* w = list.data() + 5 * d;
    weights[d] = {pointer<T>(w[0]), pointer<T>(w[1]), pointer<T>(w[2]), pointer<T>(w[3]),
                  pointer<T>(w[4])};
  }
}

template <class T>
void layer_forward(int cell, int threads, const SizeList& sizes, const WeightList& weights,
                   Address x, int64_t x_step, int64_t x_row, Address h0, Address c0, Address y,
                   Address h_n, Address c_n, Address cell_states, Address reserve) {
  Forward<T> a;
  fill_sizes(a, sizes);
  fill_weights(a.weights, weights);
  a.x = pointer<const T>(x), a.x_step = x_step, a.x_row = x_row;
  a.h0 = pointer<const T>(h0), a.c0 = pointer<const T>(c0);
  a.y = pointer<T>(y), a.h_n = pointer<T>(h_n), a.c_n = pointer<T>(c_n);
  a.cell_states = pointer<T>(cell_states), a.reserve = pointer<T>(reserve);
  const CellKernels<T>& table = kernels_of<T>(cell);
  bool done;
  {
    py::gil_scoped_release release;
    done = table.forward(a, usable_threads(threads));
  }
  check_memory(done, "forward");
}

template <class T>
void layer_backward(int cell, int threads, const SizeList& sizes, const WeightList& weights,
                    Address x, int64_t x_step, int64_t x_row, Address h0, Address c0,
                    Address cell_states, Address reserve, bool donated,
                    const std::array<Address, 4>& above, Address grad_x, Address grad_h0,
                    Address grad_c0, const WeightList& grads) {
  Backward<T> a;
  fill_sizes(a, sizes);
  fill_weights(a.weights, weights);
  a.x = pointer<const T>(x), a.x_step = x_step, a.x_row = x_row;
  a.h0 = pointer<const T>(h0), a.c0 = pointer<const T>(c0);
  a.cell_states = pointer<const T>(cell_states);
  a.reserve = pointer<T>(reserve), a.donated = donated;
  a.grad_y = pointer<const T>(above[0]), a.grad_h_n = pointer<const T>(above[1]);
  a.grad_c_n = pointer<const T>(above[2]);
  a.grad_cell_states = pointer<const T>(above[3]);
  a.grad_x = pointer<T>(grad_x);
  a.grad_h0 = pointer<T>(grad_h0), a.grad_c0 = pointer<T>(grad_c0);
  fill_weights(a.grads, grads);
  const CellKernels<T>& table = kernels_of<T>(cell);
  bool done;
  {
    py::gil_scoped_release release;
    done = table.backward(a, usable_threads(threads));
  }
  check_memory(done, "backward");
}

// The activations as the kernels use them, for tests of their accuracy.
template <class T>
void elementwise(const std::string& name, Address in, Address out, int64_t count) {
  const Kernels<T>& table = kernels<T>();
  const Elementwise<T> function = name == "exp"       ? table.exp
                                  : name == "sigmoid" ? table.sigmoid
                                  : name == "tanh"    ? table.tanh
                                                      : nullptr;
  if (!function) throw py::value_error("name: expected exp, sigmoid or tanh, got " + name);
  function(pointer<const T>(in), pointer<T>(out), count);
}

std::vector<std::string> targets() {
  const Target* usable[3];
  const int count = usable_targets(usable);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.push_back(usable[i]->name);
  return names;
}

bool openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

}  // namespace
}  // namespace fastrnn

PYBIND11_MODULE(_C, m) {
  using namespace fastrnn;
  m.doc() = "Compiled CPU kernels of fastrnn.";
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  py::class_<Direct>(m, "Direct")
      .def(py::init<py::handle, py::handle, py::handle>())
      .def("sequence", &Direct::sequence)
      .def("step", &Direct::step);
  m.attr("__version__") = FASTRNN_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("openmp") = openmp();
  m.def("forward_float32", &layer_forward<float>);
  m.def("forward_float64", &layer_forward<double>);
  m.def("backward_float32", &layer_backward<float>);
  m.def("backward_float64", &layer_backward<double>);
  m.def("elementwise_float32", &elementwise<float>);
  m.def("elementwise_float64", &elementwise<double>);
  m.def("targets", &targets, "CPU targets that were built and run here, best last.");
  m.def("active_target", [] { return active_target().name; });
  m.def(
      "select_target",
      [](const std::string& name) { return select_target(name.c_str()) != nullptr; },
      "Use that target; False if it was not built or cannot run here.");
}
