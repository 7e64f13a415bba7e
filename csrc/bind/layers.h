// One layer forward and backward, from the tensors of fastrnn/problem.py.
#pragma once

#include "tensors.h"

namespace fastrnn {

// The arguments are the tuples of that file, already validated: Problem, LayerInputs, Gradients,
// Needs; cell is the index of the problem's cell in fastrnn/cells.py.
class Layers {
 public:
  explicit Layers(pybind11::handle exchange) : tensors_(exchange) {}

  // The items of LayerOutputs.
  pybind11::tuple forward(int cell, int threads, pybind11::handle problem,
                          pybind11::handle inputs) const;

  // The items of LayerGrads. donated: the reserve may be overwritten.
  pybind11::tuple backward(int cell, int threads, pybind11::handle problem, pybind11::handle inputs,
                           pybind11::handle cell_states, pybind11::handle reserve, bool donated,
                           pybind11::handle above, pybind11::handle needs) const;

 private:
  Tensors tensors_;
};

// The fields of Problem that are read here, with their places.
pybind11::dict problem_fields();

}  // namespace fastrnn
