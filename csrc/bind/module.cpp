// fastrnn._C: the CPU kernels for Python.
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "direct.h"
#include "layers.h"
#include "prepacked.h"
#include "tables.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// The activations as the kernels use them, for tests of their accuracy.
template <class T>
void elementwise(const std::string& name, Address in, Address out, int64_t count) {
  const Kernels<T>* table = kernels<T>();
  const Elementwise<T> function = name == "exp"       ? table->exp
                                  : name == "sigmoid" ? table->sigmoid
                                  : name == "tanh"    ? table->tanh
                                                      : nullptr;
  if (!function) throw py::value_error("name: expected exp, sigmoid or tanh, got " + name);
  function(pointer<const T>(in), pointer<T>(out), count);
}

std::vector<std::string> targets() {
  const Target* usable[kTargets];
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
      .def("packed", &Direct::packed)
      .def("step", &Direct::step);
  py::class_<Prepacked>(m, "Prepacked").def(py::init<>());
  m.attr("__version__") = FASTRNN_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("openmp") = openmp();
  py::class_<Layers>(m, "Layers")
      .def(py::init<py::handle>())
      .def("forward", &Layers::forward)
      .def("backward", &Layers::backward);
  m.attr("problem_fields") = problem_fields();
  m.def("elementwise_float32", &elementwise<float>);
  m.def("elementwise_float64", &elementwise<double>);
  m.def("targets", &targets, "CPU targets that were built and run here, best last.");
  m.def("active_target", [] { return active_target().name; });
  m.def("serves_16_bits", &serves_16_bits,
        "Whether the target in use has kernels for bfloat16 and float16.");
  m.def(
      "select_target",
      [](const std::string& name) { return select_target(name.c_str()) != nullptr; },
      "Use that target; False if it was not built or cannot run here.");
}
