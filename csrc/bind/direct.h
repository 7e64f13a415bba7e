// The call of a module that nobody but its caller looks at: no gradients, modes or tracing.
//
// Through Python and its checks a call of one step takes several times as long as its arithmetic,
// so here everything happens at once, from the module's own dict to the tuple of results. What is
// unusual in any way is declined with None, and goes the long way, which serves it or knows how to
// refuse it.
#pragma once

#include "tensors.h"

namespace fastrnn {

class Direct {
 public:
  // exchange: torch.Tensor.__dlpack_c_exchange_api__; tensor, parameter: the types that tensors
  // must have exactly. Raises ValueError for an interface that this build does not know.
  Direct(pybind11::handle exchange, pybind11::handle tensor, pybind11::handle parameter);

  // The call of an RNN, LSTM or GRU with that dict: (output, h_n) or (output, (h_n, c_n)).
  // cell, gates, has_cell_state: of its cell, see fastrnn/cells.py. hx: a tensor, a pair, or None.
  // lengths: a tensor or a list, or None.
  pybind11::object sequence(pybind11::handle dict, pybind11::handle input, pybind11::handle hx,
                            pybind11::handle lengths, int cell, int gates, bool has_cell_state,
                            int threads) const;

  // The same for the four parts of a PackedSequence; output are the rows of one like it.
  pybind11::object packed(pybind11::handle dict, pybind11::handle sequence, pybind11::handle hx,
                          int cell, int gates, bool has_cell_state, int threads) const;

  // The call of a cell with that dict: h or (h, c).
  pybind11::object step(pybind11::handle dict, pybind11::handle input, pybind11::handle hx,
                        int cell, int gates, bool has_cell_state, int threads) const;

 private:
  Tensors tensors_;
  PyTypeObject* tensor_;
  PyTypeObject* parameter_;
};

}  // namespace fastrnn
