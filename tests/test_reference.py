"""What the options torch lacks mean, told with torch.nn and closed forms only.

These hold for the reference, which the kernels are compared to everywhere else, and for every
fused backend.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from cases import BACKENDS, Arguments, Case, Outputs, arguments, check, results
from torch import Tensor

import fastrnn

SERVING = (*BACKENDS, "reference")


def segments_forward(a: Arguments) -> Outputs:
    """One layer by torch.nn alone: each row by itself up to its length, cut where it is reset."""
    case = a.case
    one_way = cases.torch_module(replace(case, bidirectional=False))
    steps = torch.arange(case.steps)
    ys: list[Tensor] = []
    last: list[list[Tensor]] = []
    for direction, suffix in enumerate(("", "_reverse")[: case.directions]):
        weights = {name: a.weights[name + suffix] for name, _ in one_way.named_parameters()}
        rows: list[Tensor] = []
        ends: list[Tensor] = []
        for b in range(case.batch):
            length = case.steps if a.lengths is None else int(a.lengths[b])
            order = steps[:length].flip(0) if direction else steps[:length]
            starts = [] if a.reset is None else [i for i, t in enumerate(order) if a.reset[t, b]]
            state = [s[direction, b][None, None] for s in (a.h0, a.c0) if s is not None]
            y = a.x.new_zeros(case.steps, case.output_size)
            for start, end in itertools.pairwise((0, *starts, length)):
                if start in starts:
                    state = [torch.zeros_like(s) for s in state]
                if start == end:
                    continue
                hx = tuple(state) if case.cell == "lstm" else state[0]
                segment = order[start:end]
                out, hx = torch.func.functional_call(
                    one_way, weights, (a.x[segment, b : b + 1], hx)
                )
                state = list(hx) if case.cell == "lstm" else [hx]
                y = y.index_copy(0, segment, out[:, 0])
            rows.append(y)
            ends.extend(s[0, 0] for s in state)
        ys.append(torch.stack(rows, 1))
        last.append(ends)
    per_row = 2 if case.cell == "lstm" else 1
    state = [torch.stack([torch.stack(e[k::per_row]) for e in last]) for k in range(per_row)]
    outputs = {"output": torch.cat(ys, -1), "h_n": state[0]}
    return outputs | ({"c_n": state[1]} if case.cell == "lstm" else {})


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("given", [{"lengths": "random"}, {"reset": "random"},
    {"lengths": "random", "reset": "random"}, {"reset": "always"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_lengths_and_resets_by_torch(
    cell: str, given: dict[str, Any], bidirectional: bool, backend: str
) -> None:
    """What lengths and resets mean, told with torch.nn only."""
    for proj_size in (0, 2) if cell == "lstm" else (0,):
        case = Case(cell, bidirectional=bidirectional, proj_size=proj_size, **given)
        a = arguments(case)
        check(results(a, backend=backend), results(a, segments_forward), case)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_cell_states_by_torch(bidirectional: bool, backend: str) -> None:
    """c_t is what torch.nn.LSTM gives as c_n of the sequence up to t."""
    case = Case("lstm", cell_states=True, bidirectional=bidirectional)
    a = arguments(case)
    actual = results(a, backend=backend)["cell_states_l0"]
    for t in range(case.steps):
        ahead = cases.torch_forward(a.with_tensors(a.differentiable() | {"x": a.x[: t + 1]}))["c_n"]
        behind = cases.torch_forward(a.with_tensors(a.differentiable() | {"x": a.x[t:]}))["c_n"]
        expected = torch.cat((ahead[0], behind[1]), -1) if bidirectional else ahead[0]
        check({"c_n": actual[t]}, {"c_n": expected}, case)


@pytest.mark.parametrize("backend", SERVING)
def test_sigmoid_by_torch(backend: str) -> None:
    """``sigmoid(a) = (tanh(a / 2) + 1) / 2`` carries the sigmoid cell over to torch.nn's tanh."""
    case = Case("rnn_sigmoid", bidirectional=True)
    a = arguments(case)

    def by_tanh(a: Arguments) -> Outputs:
        assert a.h0 is not None
        weights = {}
        for name, weight in a.weights.items():
            if name.startswith("weight_hh"):
                weights[name] = weight / 4
            elif name.startswith("bias_hh"):
                weights[name] = weight / 2 + a.weights[name.replace("bias", "weight")].sum(-1) / 4
            else:
                weights[name] = weight / 2
        tanh = replace(case, cell="rnn_tanh")
        outputs = cases.torch_forward(replace(a, case=tanh, h0=2 * a.h0 - 1, weights=weights))
        return {name: (output + 1) / 2 for name, output in outputs.items()}

    check(results(a, backend=backend), results(a, by_tanh), case)


@pytest.mark.parametrize("backend", SERVING)
def test_identity_in_closed_form(backend: str) -> None:
    """``h_t = U^t h_0 + sum over s <= t of U^(t - s) (W x_s + b)``."""
    case = Case("rnn_identity")
    a = arguments(case)

    def closed_form(a: Arguments) -> Outputs:
        assert a.h0 is not None
        w, u, b_ih, b_hh = a.weights.values()
        powers = [torch.linalg.matrix_power(u, k) for k in range(case.steps + 1)]
        inputs = [x @ w.T + b_ih + b_hh for x in a.x]
        ys = [
            a.h0[0] @ powers[t + 1].T + sum(inputs[s] @ powers[t - s].T for s in range(t + 1))
            for t in range(case.steps)
        ]
        return {"output": torch.stack(ys), "h_n": ys[-1][None]}

    check(results(a, backend=backend), results(a, closed_form), case)


@pytest.mark.parametrize("backend", SERVING)
def test_reset_before_by_torch(backend: str) -> None:
    """Where W_hn is diagonal and b_hn is 0, ``W_hn (r h) = r (W_hn h + b_hn)``: both GRUs agree."""
    case = Case("gru_reset_before", bidirectional=True)
    a = arguments(case)
    units = case.hidden_size

    def commuting(a: Arguments) -> Arguments:
        weights = {}
        for name, weight in a.weights.items():
            rz, n = weight.split([2 * units, units])
            if name.startswith("weight_hh"):
                n = n.diag().diag()
            elif name.startswith("bias_hh"):
                n = torch.zeros_like(n)
            weights[name] = torch.cat((rz, n))
        return replace(a, weights=weights)

    def by_torch(a: Arguments) -> Outputs:
        return cases.torch_forward(replace(a, case=replace(case, cell="gru")))

    ours = results(a, lambda a: cases.fastrnn_forward(commuting(a)), backend=backend)
    check(ours, results(a, lambda a: by_torch(commuting(a))), case)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("cell", ["gru", "gru_reset_before"])
def test_other_sign_of_z(cell: str, backend: str) -> None:
    """Texts with ``h' = (1 - z) h + z n`` are this cell with the rows of z negated."""
    a = arguments(Case(cell, layers=1))
    units = a.case.hidden_size
    negate = torch.ones(3 * units, dtype=torch.float64)
    negate[units : 2 * units] = -1
    theirs = {
        name: (weight.mT * negate).mT if weight.dim() > 1 else weight * negate
        for name, weight in a.weights.items()
    }
    w_ih, w_hh, b_ih, b_hh = theirs.values()
    assert a.h0 is not None
    h, ys = a.h0[0], []
    for x in a.x:
        x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, -1)
        r = torch.sigmoid(x_r + h @ w_hh[:units].T + b_hh[:units])
        z = torch.sigmoid(x_z + h @ w_hh[units : 2 * units].T + b_hh[units : 2 * units])
        w_n, b_n = w_hh[2 * units :], b_hh[2 * units :]
        candidate = r * (h @ w_n.T + b_n) if cell == "gru" else (r * h) @ w_n.T + b_n
        h = (1 - z) * h + z * torch.tanh(x_n + candidate)
        ys.append(h)
    with fastrnn.use_backend(backend):
        actual = cases.fastrnn_forward(a)
    check(actual, {"output": torch.stack(ys), "h_n": h[None]}, a.case)
