"""What the tests of conversions share: models to convert, and all that there is to see of one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class OwnLSTM(nn.LSTM):
    """A subclass, whose forward might be anything."""


class Decoder(nn.Module):
    """Recurrent modules at several depths, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(OrderedDict(embed=nn.Linear(3, 3), rnn=nn.LSTM(3, 4)))
        self.cells = nn.ModuleList([nn.GRUCell(4, 4), nn.LSTMCell(4, 4), nn.RNNCell(4, 4)])
        self.shared = self.cells[0]
        self.last = nn.RNN(4, 4, nonlinearity="relu")
        self.own = OwnLSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder.rnn(self.encoder.embed(x))[0]
        x = torch.stack([self.cells[2](self.cells[1](self.shared(row))[0]) for row in x])
        return self.own(self.last(x)[0])[0]


def module_state(module: nn.Module) -> dict[str, Any]:
    """Everything a module is, objects by identity: class, attributes, what its containers hold."""

    def seen(value: Any) -> Any:
        if isinstance(value, dict):
            return id(value), [(key, id(item)) for key, item in value.items()]
        if isinstance(value, list | set):
            return id(value), [id(item) for item in value]
        return id(value)

    attributes = [(name, seen(value)) for name, value in vars(module).items()]
    properties = [(name, id(value)) for name, value in vars(type(module)).items()]
    return {
        "module": id(module),
        "class": id(type(module)),
        "attributes": attributes,
        "members of the class": properties,
        "repr": repr(module),
        "state_dict": [(k, v.data_ptr(), v.dtype) for k, v in module.state_dict().items()],
    }


def snapshot(model: nn.Module) -> dict[str, dict[str, Any]]:
    everywhere = model.named_modules(remove_duplicate=False)
    return {name: module_state(module) for name, module in everywhere}
