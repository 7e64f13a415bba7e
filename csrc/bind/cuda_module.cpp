// fastrnn._cuda: the CUDA kernels for Python. Addresses are integers, 0 for what is not there; who
// calls has checked everything, and keeps the tensors alive. And fastrnn._launches: the same module
// compiled without a CUDA compiler, which records its launches.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "../cuda/kernels.h"
#if defined(FASTRNN_CUDA_RECORDER)
#include "launches.h"
#endif

namespace py = pybind11;

// The emulator of the tests builds this file under another name, too.
#if !defined(FASTRNN_CUDA_MODULE)
#define FASTRNN_CUDA_MODULE _cuda
#endif

namespace fastrnn {
namespace {

using Address = std::uintptr_t;

// steps, batch, rows, input_size, hidden_size, output_size, directions
using SizeList = std::array<int64_t, 7>;
// lengths and batch_sizes on the host; reset (steps, batch)
using MaskList = std::array<Address, 3>;
// Of a direction: w_ih, w_hh, b_ih, b_hh, w_hr
using WeightList = std::vector<std::array<Address, 5>>;
// device, stream, workspace, its bytes, timeline; regime, cluster, unit_blocks, tile_places
// insisted on
using CallList = std::array<int64_t, 9>;
using Pair = std::array<Address, 2>;

Sizes sizes_of(const SizeList& sizes, const MaskList& masks) {
  Sizes result;
  result.steps = sizes[0], result.batch = sizes[1], result.rows = sizes[2];
  result.input = sizes[3], result.hidden = sizes[4], result.output = sizes[5];
  result.directions = int(sizes[6]);
  result.lengths = (const int64_t*)masks[0], result.batch_sizes = (const int64_t*)masks[1];
  result.reset = (const uint8_t*)masks[2];
  result.reset_step = result.batch, result.reset_row = 1;
  return result;
}

CudaCall call_of(const CallList& call) {
  return {int(call[0]), (void*)call[1], (void*)call[2],
          call[3],      (void*)call[4], {int(call[5]), int(call[6]), int(call[7]), int(call[8])}};
}

template <class Args>
Args arguments_of(const SizeList& sizes, const MaskList& masks, const WeightList& weights) {
  if (int64_t(weights.size()) != sizes[6] || sizes[6] > 2)
    throw py::value_error("fastrnn: weights do not fit the directions");
  Args args;
  static_cast<Sizes&>(args) = sizes_of(sizes, masks);
  for (size_t d = 0; d < weights.size(); ++d) {
    const auto& w = weights[d];
    args.weights[d] = {(void*)w[0], (void*)w[1], (void*)w[2], (void*)w[3], (void*)w[4]};
  }
  return args;
}

const CudaKernels& kernels_of(int math, int cell) {
  if (math < 0 || math >= kCudaMaths || cell < 0 || cell >= kCellKinds)
    throw py::index_error("fastrnn: no such kernel; is the extension of this version?");
  return cuda_kernels(CudaMath(math))[cell];
}

int64_t forward(int math, int cell, const CallList& call, const SizeList& sizes,
                const MaskList& masks, const WeightList& weights, Pair gates, Pair initial,
                const std::array<Address, 5>& outputs) {
  auto args = arguments_of<CudaForward>(sizes, masks, weights);
  for (int d = 0; d < 2; ++d) args.gates[d] = (void*)gates[d];
  args.h0 = (void*)initial[0], args.c0 = (void*)initial[1];
  args.y = (void*)outputs[0], args.h_n = (void*)outputs[1], args.c_n = (void*)outputs[2];
  args.cell_states = (void*)outputs[3], args.reserve = (void*)outputs[4];
  py::gil_scoped_release release;
  return kernels_of(math, cell).forward(args, call_of(call));
}

int64_t backward(int math, int cell, const CallList& call, const SizeList& sizes,
                 const MaskList& masks, const WeightList& weights, Pair initial, Pair kept,
                 const std::array<Address, 4>& above, Pair grads, Pair da, int64_t da_width,
                 Pair h_prev, Pair mid, Pair dh) {
  auto args = arguments_of<CudaBackward>(sizes, masks, weights);
  args.h0 = (void*)initial[0], args.c0 = (void*)initial[1];
  args.cell_states = (void*)kept[0], args.reserve = (void*)kept[1];
  args.grad_y = (void*)above[0], args.grad_h_n = (void*)above[1];
  args.grad_c_n = (void*)above[2], args.grad_cell_states = (void*)above[3];
  args.grad_h0 = (void*)grads[0], args.grad_c0 = (void*)grads[1];
  args.da_width = da_width;
  for (int d = 0; d < 2; ++d) {
    args.da[d] = (void*)da[d], args.h_prev[d] = (void*)h_prev[d];
    args.mid[d] = (void*)mid[d], args.dh[d] = (void*)dh[d];
  }
  py::gil_scoped_release release;
  return kernels_of(math, cell).backward(args, call_of(call));
}

int64_t dense_rows(const CallList& call, const SizeList& sizes, const MaskList& masks,
                   Address index) {
  const Sizes all = sizes_of(sizes, masks);
  py::gil_scoped_release release;
  return cuda_dense_rows(all, call_of(call), (int64_t*)index);
}

py::dict described(const Plan& plan, int stages) {
  py::dict result;
  result["regime"] = regime_name(plan.regime);
  result["cluster"] = plan.cluster, result["blocks"] = plan.blocks;
  result["unit_blocks"] = std::vector<int>(plan.unit_blocks, plan.unit_blocks + stages);
  result["tile_places"] = plan.tile_places;
  result["teams"] = plan.teams, result["tiles"] = plan.tiles;
  result["per_block"] = std::vector<int>(plan.per_block, plan.per_block + stages);
  result["shared_bytes"] = plan.shared_bytes, result["step"] = plan.step;
  return result;
}

// The plan of a pass on its device, as calls of these sizes find it; lists are of its first stage.
// There is no workspace, so nothing is launched, and no tensor is looked at.
py::dict planned(bool backward, int math, int cell, int device, const SizeList& sizes,
                 std::array<int, 4> choice) {
  Plan found;
  CudaCall call;
  call.device = device, call.plan = &found;
  call.choice = {choice[0], choice[1], choice[2], choice[3]};
  const WeightList weights(sizes[6]);
  const auto ahead = arguments_of<CudaForward>(sizes, {}, weights);
  const auto back = arguments_of<CudaBackward>(sizes, {}, weights);
  const CudaKernels& kernels = kernels_of(math, cell);
  {
    py::gil_scoped_release release;
    backward ? kernels.backward(back, call) : kernels.forward(ahead, call);
  }
  return described(found, 1);
}

// For tests: the plan for a device of those numbers, on which everything that fits is resident, and
// how often the device was asked.
py::dict plan(int stages, std::vector<std::array<int64_t, 4>> stage, int64_t steps, int64_t batch,
              int directions, bool matrix, int value_bytes, int processors, int shared_bytes,
              int max_cluster, int clusters, std::array<int, 4> choice) {
  PlanInput input;
  input.stages = stages, input.steps = steps, input.batch = batch, input.directions = directions;
  for (size_t s = 0; s < stage.size() && s < 2; ++s)
    input.stage[s] = {stage[s][0], int(stage[s][1]), int(stage[s][2]), stage[s][3]};
  input.matrix = matrix, input.value_bytes = value_bytes;
  input.number_bytes = value_bytes < 4 ? 4 : value_bytes, input.processors = processors;
  input.shared_bytes = shared_bytes, input.max_cluster = max_cluster;
  int asked = 0;
  input.resident_blocks = [&](const Plan&) { return ++asked, 1; };
  input.resident_clusters = [&](const Plan& plan) { return ++asked, clusters / plan.cluster; };
  Plan found;
  if (!make_plan(input, {choice[0], choice[1], choice[2], choice[3]}, found)) return {};
  py::dict result = described(found, stages);
  result["asked"] = asked;
  return result;
}

}  // namespace
}  // namespace fastrnn

PYBIND11_MODULE(FASTRNN_CUDA_MODULE, m) {
  using namespace fastrnn;
  m.doc() = "Compiled CUDA kernels of fastrnn.";
  m.attr("__version__") = FASTRNN_VERSION;
  m.def("device_count", &cuda_device_count);
  m.def("without_code", &cuda_without_code);
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("dense_rows", &dense_rows);
  m.def("planned", &planned);
  m.def("plan", &plan);
#if defined(FASTRNN_CUDA_RECORDER)
  bind_launches(m);
#endif
}
