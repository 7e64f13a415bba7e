"""The table of cells: what every layer above the arithmetic needs to know about one.

A cell's name is the same everywhere: here, in the operator's ``cell`` argument, in the C++
dispatch table, in the test cases and in the benchmark. Its arithmetic and the derivation of its
backward pass are in ``csrc/core/cells/``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """Static facts of one recurrent cell.

    Attributes:
        name: name of the cell through all layers of the library.
        gates: ``weight_ih`` and ``weight_hh`` have ``gates * hidden_size`` rows.
        saved: names of the per-unit values forward keeps for backward, in the order they have in
            the reserve (``reserve[direction, row, slot * hidden_size + unit]``).
        has_cell_state: whether the cell carries ``c`` beside ``h``.
        torch_name: name of the equivalent function in ``torch._VF``, or None.
        torch_mode: the ``mode`` of the module, torch's spelling where torch has the cell.
    """

    name: str
    gates: int
    saved: tuple[str, ...]
    has_cell_state: bool
    torch_name: str | None
    torch_mode: str


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("rnn_tanh", 1, ("h",), False, "rnn_tanh", "RNN_TANH"),
        Cell("rnn_relu", 1, ("h",), False, "rnn_relu", "RNN_RELU"),
        Cell("rnn_sigmoid", 1, ("h",), False, None, "RNN_SIGMOID"),
        Cell("rnn_identity", 1, ("h",), False, None, "RNN_IDENTITY"),
        Cell("lstm", 4, ("i", "f", "g", "o"), True, "lstm", "LSTM"),
        # hn is W_hn h + b_hn, the part of the candidate that the reset gate scales; it stands
        # before n so that the three values that meet W_hh in backward are contiguous.
        Cell("gru", 3, ("r", "z", "hn", "n"), False, "gru", "GRU"),
        Cell("gru_reset_before", 3, ("r", "z", "n"), False, None, "GRU_RESET_BEFORE"),
    )
}

NONLINEARITIES: tuple[str, ...] = ("tanh", "relu", "sigmoid", "identity")
