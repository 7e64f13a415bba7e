// What fastrnn._launches has beside the functions of fastrnn._cuda: its calls launch nothing, and
// here is how to learn what they would have launched.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../cuda/device.cuh"

namespace fastrnn {

// The launches of a call, and the memory of their arguments.
class Launches {
 public:
  explicit Launches(std::vector<Recorded> entries) : entries_(std::move(entries)) {}
  Launches(const Launches&) = delete;

  // In their order: (kernel, its argument's bytes, (grid), threads of a block, bytes of dynamic
  // shared memory, cooperative, address of the parameters).
  pybind11::list entries() const {
    pybind11::list result;
    for (const Recorded& entry : entries_) {
      const Launch& how = entry.how;
      result.append(pybind11::make_tuple(
          *entry.kernel, entry.argument_bytes,
          pybind11::make_tuple(how.grid[0], how.grid[1], how.grid[2]), how.threads,
          how.shared_bytes, how.cooperative, std::uintptr_t(entry.parameters.get())));
    }
    return result;
  }

 private:
  std::vector<Recorded> entries_;
};

inline void bind_launches(pybind11::module_& m) {
  pybind11::class_<Launches>(m, "Launches").def("entries", &Launches::entries);
  m.def("take_launches", [] { return std::make_unique<Launches>(std::exchange(recorded(), {})); });
  // Nobody waits for the recorder's mutex with the GIL: who has the one may need the other.
  m.def(
      "describe_device",
      [](int device, int capability, int processors, int shared_bytes) {
        DeviceProperties properties;
        properties.capability = capability, properties.processors = processors;
        properties.shared_bytes = shared_bytes;
        describe_device(device, properties);
      },
      pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("set_residency", &set_residency, pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace fastrnn
