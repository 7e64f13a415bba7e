// The call of a module on its way to the kernels: its sizes and tensors, read step by step.
//
// Each step returns false for what is unusual in any way; the call is then declined.
#pragma once

#include <memory>
#include <vector>

#include "prepacked.h"
#include "tables.h"

namespace fastrnn {

// What the cell of a module is, see fastrnn/cells.py.
struct CellTraits {
  int index, gates;
  bool has_cell_state;
};

// Whether an entry of a module's dict is a bool, and which. What else may be true (an int, NumPy's
// bool) the long way knows.
bool read_flag(PyObject* dict, PyObject* name, bool& out);

class Call {
 public:
  // tensor, parameter: the types that tensors must have exactly.
  Call(const Tensors& tensors, PyTypeObject* tensor, PyTypeObject* parameter, CellTraits cell)
      : tensors_(tensors), tensor_(tensor), parameter_(parameter), cell_(cell) {}

  // In this order: the input; sizes and weights, of layers or of a cell, from the module's dict;
  // what tells where rows end; the states.
  bool read_input(PyObject* input);
  bool read_padded_shape(bool batch_first);
  bool read_layers(PyObject* dict);
  bool read_cell(PyObject* dict);
  bool read_lengths(PyObject* lengths);
  bool read_packing(PyObject* batch_sizes, PyObject* sorted, PyObject* unsorted);
  // first: of a state's dimensions; batched: whether it has one for rows.
  bool read_states(PyObject* hx, int64_t first, bool batched);

  // Computes output and last states. y: null for a step, whose output is its state.
  void run(PyObject* dict, int threads, void* y);

  const View& input() const { return x_; }
  int64_t states() const { return layers_ * directions_; }
  int64_t width() const { return directions_ * output_; }
  int64_t steps() const { return steps_; }
  int64_t batch() const { return batch_; }

  // A new tensor of the input's kind.
  pybind11::object make(void** data, std::initializer_list<int64_t> shape) const {
    return tensors_.make(like_, x_, shape, data);
  }
  // New last states, of shape (first, batch, ...) or, not batched, (first, ...); (batch, ...) and
  // (...) where first is 0. run fills them.
  pybind11::object make_states(int64_t first, bool batched);

 private:
  bool view_plain(PyObject* object, PyTypeObject* type, View& out) const;
  bool view_state(PyObject* object, int64_t first, bool batched, int64_t width, View& out) const;
  bool view_indices(PyObject* object, int64_t count, View& out) const;
  bool keep(PyObject* weight);
  bool add_weight(PyObject* object, int64_t rows, int64_t columns);
  template <class T>
  Forward<T> layer_arguments(int64_t layer) const;
  template <class T>
  void keep_packed(Prepacked& prepacked);
  template <class T>
  bool run_layers(int threads, void* y, void* h_n, void* c_n) const;
  // Copies rows of states, which are `bytes` large: row order[b] to place b.
  void reorder(const int64_t* order, const void* from, void* to, int64_t bytes) const;

  const Tensors& tensors_;
  PyTypeObject* tensor_;
  PyTypeObject* parameter_;
  const CellTraits cell_;

  PyObject* like_ = nullptr;  // the input, to make tensors like it
  View x_, h0_, c0_;
  bool has_states_ = false;
  int64_t steps_ = 1, batch_ = 1, rows_ = 1, x_step_ = 0, x_row_ = 0;
  int64_t input_ = 0, hidden_ = 0, output_ = 0, layers_ = 1;
  int directions_ = 1;
  bool bias_ = true, projected_ = false;
  const int64_t* lengths_ = nullptr;
  const int64_t* batch_sizes_ = nullptr;
  const int64_t* sorted_ = nullptr;    // rows of the states in the order of the packed data
  const int64_t* unsorted_ = nullptr;  // and the way back
  std::vector<int64_t> listed_;        // lengths that came as a list
  std::vector<const void*> weights_;   // 5 per layer and direction, as in struct Weights
  // The weights' tensors, all held before torch is asked anything: its methods release the GIL, and
  // so does the kernel, and another thread may give the module other weights meanwhile.
  std::vector<pybind11::object> kept_;
  std::shared_ptr<const Panels> panels_;  // packed weights, if they stay from call to call
  void *h_n_ = nullptr, *c_n_ = nullptr;
};

}  // namespace fastrnn
