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
  const HostTimeline time(p, arena, what);
  typename Pass::Args args;
  schedule.prepare(arena, args);
  using N = typename Math::Number;
  if (kKeepsState) args.state = arena.take<N>(D * p.batch * H);
  if (Cell::kTwoStage) args.update = arena.take<N>(D * p.batch * H);
  if (!call.workspace) return arena.used();

  args.time = time.on_device(call.stream);
  for (int d = 0; d < D; ++d) {
    args.gates[d] = (const S*)p.gates[d];
    args.b_ih[d] = (const S*)p.weights[d].b_ih, args.b_hh[d] = (const S*)p.weights[d].b_hh;
  }
  args.y = (S*)p.y, args.h_n = (S*)p.h_n, args.c_n = (S*)p.c_n;
  args.cell_states = (N*)p.cell_states, args.reserve = (S*)p.reserve;
  args.rows = p.rows, args.reserve_width = Cell::kSaved * H + (kProjected ? R : 0);
  schedule.pack_weights(args);
  StartArgs<Math> starting = {args.time,
                              H,
                              R,
                              int(D),
                              Cell::kCellState,
                              (const S*)p.h0,
                              (const S*)p.c0,
                              args.state,
                              args.exchanges[0],
                              args.work.places,
                              args.y,
                              args.h_n,
                              args.c_n,
                              args.cell_states};
  const int64_t padding = p.lengths ? p.steps * p.batch * D * (R > H ? R : H) : 0;
  const int64_t states = D * p.batch * H;
  launch(start_kernel<Math>(), over(states > padding ? states : padding, call.stream), starting,
         what);
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
  const HostTimeline time(p, arena, what);
  typename Pass::Args args;
  schedule.prepare(arena, args);
  if (Cell::kDirect) args.carry = arena.take<N>(D * p.batch * R);
  if (Cell::kCellState) args.dc = arena.take<N>(D * p.batch * H);
  if (p.grad_h0) args.first = args.exchanges[0];
  if (p.grad_h0) args.first.rows = arena.take<unsigned char>(schedule.exchange_bytes(0));
  if (!call.workspace) return arena.used();

  args.time = time.on_device(call.stream);
  args.rows = p.rows, args.reserve_width = Cell::kSaved * H + (kProjected ? R : 0);
  args.c0 = (const S*)p.c0, args.cell_states = (const N*)p.cell_states;
  args.reserve = (const S*)p.reserve;
  args.grad_y = (const S*)p.grad_y, args.grad_h_n = (const S*)p.grad_h_n;
  args.grad_c_n = (const S*)p.grad_c_n, args.grad_cell_states = (const N*)p.grad_cell_states;
  RestoreArgs<Math> restoring = {
      args.time,        H,  R, p.rows, args.reserve_width, int(D), (const S*)p.h0, args.reserve,
      args.cell_states, {}, {}};
  bool restores = false;
  for (int d = 0; d < D; ++d) {
    restoring.h_prev[d] = (S*)p.h_prev[d], restoring.mid[d] = (S*)p.mid[d];
    restores = restores || p.h_prev[d] || p.mid[d];
    args.h_prev[d] = (const S*)p.h_prev[d];
    args.da[d] = (S*)p.da[d], args.dh[d] = (S*)p.dh[d];
  }
  if (restores) {
    const int64_t each = (Cell::kDirect ? 1 : p.steps) * D * p.batch * H;
    launch(restore_kernel<Cell, Math, kProjected>(), over(each, call.stream), restoring, what);
  }
  schedule.pack_weights(args);
  if (p.grad_h0) set_to_zero(args.first.rows, schedule.exchange_bytes(0), call.stream, what);
  schedule.run(args, time);

  if (p.grad_c0) {
    FinishArgs<Math> finishing = {args.time, H, int(D), args.grad_c_n, args.dc, (S*)p.grad_c0};
    launch(finish_kernel<Math>(), over(D * p.batch * H, call.stream), finishing, what);
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
    work.resident = false, work.flags = nullptr, work.weight_bytes = 0, work.split = 1;
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
