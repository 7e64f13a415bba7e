// One layer, forward and backward: the functions of the table in kernels.h.
#pragma once

#include "schedule.cuh"

FASTRNN_NAMESPACE_BEGIN

template <class Cell, class Math, bool kProjected>
int64_t cuda_forward(const CudaForward& p, const CudaCall& call) {
  using Pass = ForwardPass<Cell, Math, kProjected>;
  using S = typename Math::Storage;
  constexpr bool kKeepsState = Cell::kCellState || Cell::kDirect;
  const char* const what = "layer_forward";
  const DeviceGuard guard(call.device, what);
  const int64_t H = p.hidden, R = p.output, D = p.directions;

  StageSource sources[kMaxStages];
  StageSource& gates = sources[0];
  gates.gate = H * R, gates.unit = R, gates.value = 1;
  gates.gates = Pass::First::kIn, gates.units = H, gates.values = R;
  StageSource& second = sources[1];
  second.unit = H, second.value = 1;
  second.units = R, second.values = H;
  for (int d = 0; d < D; ++d) {
    gates.weights[d] = p.weights[d].w_hh;
    second.weights[d] =
        kProjected ? p.weights[d].w_hr : (const S*)p.weights[d].w_hh + Pass::First::kIn * H * H;
  }

  Schedule<Pass> schedule(p, call, sources, what);
  Arena arena((char*)call.workspace);
  const HostTimeline time(p, call, arena, what);
  typename Pass::Args args;
  schedule.allocate(arena, args);
  using N = typename Math::Number;
  if (kKeepsState) args.state = arena.take<N>(D * p.batch * H);
  if (Cell::kTwoStage) args.update = arena.take<N>(D * p.batch * H);
  if (arena.used() > call.workspace_bytes) return arena.used();

  args.time = time.on_device();
  for (int d = 0; d < D; ++d) {
    args.gates[d] = (const S*)p.gates[d];
    args.b_ih[d] = (const S*)p.weights[d].b_ih, args.b_hh[d] = (const S*)p.weights[d].b_hh;
  }
  args.y = (S*)p.y, args.h_n = (S*)p.h_n, args.c_n = (S*)p.c_n;
  args.cell_states = (N*)p.cell_states, args.reserve = (S*)p.reserve;
  args.rows = p.rows, args.reserve_width = Cell::kSaved * H + (kProjected ? R : 0);
  StartArgs<Math> starting;
  int64_t warps = schedule.prepare(args, starting);
  starting.h0 = (const S*)p.h0, starting.c0 = (const S*)p.c0;
  starting.cell_state = Cell::kCellState, starting.state = args.state;
  starting.exchange = args.exchanges[0], starting.places = args.work.places;
  starting.y = args.y, starting.h_n = args.h_n, starting.c_n = args.c_n;
  starting.cell_states = args.cell_states;
  warps = std::max({warps, warps_for(D * p.batch, H), warps_for(starting.exchange_rows(), R),
                    warps_for(starting.padding(), D * H)});
  launch(prepare_forward_kernel<Math>(), over_warps(warps, call.stream), starting, what);
  schedule.run(args, time);
  return arena.used();
}

template <class Cell, class Math, bool kProjected>
int64_t cuda_backward(const CudaBackward& p, const CudaCall& call) {
  using Pass = BackwardPass<Cell, Math, kProjected>;
  using S = typename Math::Storage;
  using N = typename Math::Number;
  constexpr int kThrough = Gradients<Cell>::kThrough;
  const char* const what = "layer_backward";
  const DeviceGuard guard(call.device, what);
  const int64_t H = p.hidden, R = p.output, D = p.directions;

  StageSource sources[kMaxStages];
  StageSource& through = sources[0];
  through.unit = 1, through.slot_step = H * R, through.value = R;
  through.width = kThrough, through.units = R, through.values = H;
  StageSource& second = sources[1];
  second.unit = 1, second.value = H;
  second.units = H, second.values = R;
  for (int d = 0; d < D; ++d) {
    through.weights[d] = p.weights[d].w_hh;
    second.weights[d] =
        kProjected ? p.weights[d].w_hr : (const S*)p.weights[d].w_hh + kThrough * H * H;
  }

  Schedule<Pass> schedule(p, call, sources, what);
  Arena arena((char*)call.workspace);
  const HostTimeline time(p, call, arena, what);
  typename Pass::Args args;
  schedule.allocate(arena, args);
  if (Cell::kDirect) args.carry = arena.take<N>(D * p.batch * R);
  if (Cell::kCellState) args.dc = arena.take<N>(D * p.batch * H);
  if (p.grad_h0) args.first = args.exchanges[0];
  if (p.grad_h0) args.first.rows = arena.take<unsigned char>(schedule.exchange_bytes(0));
  RestoreArgs<Math> restoring;
  restoring.part_steps = steps_of_part(p.steps);
  restoring.parts = (p.steps + restoring.part_steps - 1) / restoring.part_steps;
  if (Cell::kDirect) {
    const int64_t summaries = D * (restoring.parts - 1) * p.batch * H;
    restoring.scale = arena.take<N>(summaries), restoring.shift = arena.take<N>(summaries);
  }
  if (arena.used() > call.workspace_bytes) return arena.used();

  args.time = time.on_device();
  args.rows = p.rows, args.reserve_width = Cell::kSaved * H + (kProjected ? R : 0);
  args.c0 = (const S*)p.c0, args.cell_states = (const N*)p.cell_states;
  args.reserve = (const S*)p.reserve;
  args.grad_y = (const S*)p.grad_y, args.grad_h_n = (const S*)p.grad_h_n;
  args.grad_c_n = (const S*)p.grad_c_n, args.grad_cell_states = (const N*)p.grad_cell_states;
  args.da_width = p.da_width;
  for (int d = 0; d < 2; ++d) {
    restoring.h_prev[d] = (S*)p.h_prev[d], restoring.mid[d] = (S*)p.mid[d];
    args.h_prev[d] = (const S*)p.h_prev[d];
    args.da[d] = (S*)p.da[d], args.dh[d] = (S*)p.dh[d];
  }
  const int64_t warps = schedule.prepare(args, restoring);
  if (p.grad_h0) restoring.zeros[1] = {(Vector16*)args.first.rows, schedule.exchange_bytes(0) / 16};
  restoring.rows = p.rows, restoring.reserve_width = args.reserve_width;
  restoring.h0 = (const S*)p.h0, restoring.reserve = args.reserve;
  restoring.cell_states = args.cell_states;
  const int64_t restored = Cell::kDirect ? warps_for(D * restoring.parts * p.batch, H, 32)
                                         : warps_for(D * p.steps * p.batch, H);
  launch(prepare_backward_kernel<Cell, Math, kProjected>(),
         over_warps(restoring.needed() ? std::max(warps, restored) : warps, call.stream), restoring,
         what);
  if constexpr (Cell::kDirect)
    if (restoring.parts > 1)
      launch(finish_restoring_kernel<Cell, Math>(), over_warps(restored, call.stream), restoring,
             what);
  schedule.run(args, time);

  if (p.grad_c0) {
    FinishArgs<Math> finishing = {args.time, H, int(D), args.grad_c_n, args.dc, (S*)p.grad_c0};
    launch(finish_kernel<Math>(), over_warps(warps_for(D * p.batch, H), call.stream), finishing,
           what);
  }
  if (p.grad_h0) {
    InitialArgs<Math> initial;
    (Layer&)initial = args;
    initial.rows = args.time, initial.direct = Cell::kDirect;
    initial.grad_h_n = args.grad_h_n, initial.carry = args.carry;
    initial.grad_h0 = (S*)p.grad_h0;
    initial.time = Timeline();
    initial.time.steps = 1, initial.time.batch = p.batch;
    initial.stages = 1, initial.exchanges[0] = args.first;
    initial.products[0].per_block = 1;
    Work& work = initial.work;
    work.resident = false, work.flags = nullptr, work.weight_bytes = 0;
    work.first_step = 0, work.end_step = 1, work.first_stage = 0, work.end_stage = 1;
    schedule.run_initial(initial);
  }
  return arena.used();
}

template <class Math>
struct CudaTable {
  template <class Cell>
  static constexpr CudaKernels entry() {
    return {cuda_forward<Cell, Math, false>, cuda_backward<Cell, Math, false>};
  }
  static int64_t lstm_forward(const CudaForward& p, const CudaCall& call) {
    return p.weights[0].w_hr ? cuda_forward<Lstm, Math, true>(p, call)
                             : cuda_forward<Lstm, Math, false>(p, call);
  }
  static int64_t lstm_backward(const CudaBackward& p, const CudaCall& call) {
    return p.weights[0].w_hr ? cuda_backward<Lstm, Math, true>(p, call)
                             : cuda_backward<Lstm, Math, false>(p, call);
  }
  static constexpr CudaKernels kCells[kCellKinds] = {
      entry<Vanilla<Tanh>>(),     entry<Vanilla<Relu>>(),        entry<Vanilla<Sigmoid>>(),
      entry<Vanilla<Identity>>(), {lstm_forward, lstm_backward}, entry<Gru>(),
      entry<GruResetBefore>(),
  };
};

FASTRNN_NAMESPACE_END
