// Packed weights that stay from call to call: what fastrnn.prepacked puts into a module's dict.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "../cpu/memory.h"
#include "tensors.h"

namespace fastrnn {

struct Target;

// The packed weights of all layers and directions of a module, and what they were packed from. The
// tensors are held, so that no other can take their place in memory unnoticed.
struct Panels {
  const Target* target;
  int cell;
  dlpack::DataType dtype;
  std::vector<pybind11::object> tensors;
  std::vector<const void*> data;
  std::vector<int64_t> versions;
  std::vector<std::unique_ptr<Block>> blocks;  // one for each layer and direction

  // Whether they are those of these tensors, as far as torch counts.
  bool fresh(const Target* active, int of_cell, dlpack::DataType of_dtype,
             const std::vector<pybind11::object>& of_tensors,
             const std::vector<const void*>& of_data) const;
};

class Prepacked {
 public:
  // Panels of these weights: those of an earlier call, unless a weight is another tensor now, lies
  // elsewhere, or was written to in a way that torch counts. count: layers times directions.
  // pack(i, out) writes the i-th block to out, or returns its size in bytes if out is null.
  template <class Pack>
  std::shared_ptr<const Panels> panels(const Target* target, int cell, dlpack::DataType dtype,
                                       const std::vector<pybind11::object>& tensors,
                                       const std::vector<const void*>& data, int64_t count,
                                       const Pack& pack) {
    // A copy: torch's methods release the GIL, and another thread may replace the panels.
    std::shared_ptr<const Panels> last = panels_;
    if (last && last->fresh(target, cell, dtype, tensors, data)) return last;
    Panels now{target, cell, dtype, tensors, data, versions(tensors), {}};
    for (int64_t i = 0; i < count; ++i) {
      now.blocks.push_back(std::make_unique<Block>(pack(i, nullptr)));
      if (!now.blocks.back()->data()) return nullptr;
      pack(i, now.blocks.back()->data());
    }
    return panels_ = std::make_shared<const Panels>(std::move(now));
  }

 private:
  // The writes to each that torch has counted; -1 where it counts none (inference tensors).
  static std::vector<int64_t> versions(const std::vector<pybind11::object>& tensors);

  std::shared_ptr<const Panels> panels_;
};

}  // namespace fastrnn
