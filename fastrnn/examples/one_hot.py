"""One-hot vectors, the same by their numbers, and embeddings: equal results, and what each costs.

``python -m fastrnn.examples.one_hot`` gives an LSTM the same characters as one-hot vectors and as
integers, checks that outputs and gradients agree, and times a step of training of both and of an
embedding in front of the LSTM, for growing numbers of symbols. It writes ``one_hot.json``, ``.png``
and ``.pt`` to ``--out``. ``--data`` takes a text for the characters.

The page with formulas and results: ``docs/one_hot.md``, beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import FEW_COLUMNS
from . import pictures
from .program import (
    common_parser,
    execute,
    library,
    optional,
    parse_options,
    positive,
    print_table,
    read_checkpoint,
    stem,
    write_checkpoint,
    write_results,
)

#: Outputs and gradients of both forms may differ by this part of their largest value: products of
#: one-hot vectors add zeros in another order than there is nothing to add.
AGREEMENT = 1e-5


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(
        "one_hot",
        "One-hot vectors, the same by their numbers, and embeddings.",
        data="text whose characters are the symbols (default: random ones)",
    )
    parser.add_argument(
        "--symbols",
        nargs="+",
        type=positive,
        default=[32, 64, 128, 512, 2048, 8192],
        metavar="N",
        help="sizes to time",
    )
    parser.add_argument("--hidden", type=positive, default=128, help="units")
    parser.add_argument("--batch", type=positive, default=32, help="sequences")
    parser.add_argument("--length", type=positive, default=50, help="steps")
    parser.add_argument("--repeats", type=positive, default=15, help="timed steps of each form")
    return parse_options(parser, arguments)


def characters(options: argparse.Namespace, symbols: int) -> Tensor:
    """``(T, B)`` numbers from 0 to symbols - 1, of the text or random."""
    count = options.length * options.batch
    if options.data is None:
        generator = torch.Generator().manual_seed(options.seed)
        return torch.randint(symbols, (options.length, options.batch), generator=generator)
    text = options.data.read_text(encoding="utf-8")
    if len(text) < count:
        raise ValueError(f"data: expected {count} characters or more, got {len(text)}")
    kinds = {character: k for k, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([kinds[character] % symbols for character in text[:count]])
    return numbers.view(options.batch, options.length).t().contiguous()


def modules(lstm_class: Callable[..., nn.Module], symbols: int, hidden: int) -> dict[str, Any]:
    """An LSTM on symbols; an embedding, and the LSTM behind it."""
    return {
        "lstm": lstm_class(symbols, hidden),
        "embedding": nn.Embedding(symbols, hidden),
        "embedded_lstm": lstm_class(hidden, hidden),
    }


class Forms:
    """One LSTM and its symbols in three forms; each makes a step of training but the last part."""

    def __init__(self, options: argparse.Namespace, symbols: int) -> None:
        torch.manual_seed(options.seed)
        self.indices = characters(options, symbols)
        self.symbols = symbols
        self.modules = modules(library(options.backend).LSTM, symbols, options.hidden)
        self.lstm, self.embedding, self.embedded_lstm = self.modules.values()
        self.takes_numbers = not type(self.lstm).__module__.startswith("torch.")

    def one_hot(self) -> Tensor:
        """Vectors are made in every step: nobody keeps a text in so many times its size."""
        x = nn.functional.one_hot(self.indices, self.symbols).to(self.lstm.weight_ih_l0.dtype)
        return self._step(self.lstm, x)

    def numbers(self) -> Tensor:
        return self._step(self.lstm, self.indices)

    def embeddings(self) -> Tensor:
        return self._step(self.embedded_lstm, self.embedding(self.indices))

    def _step(self, lstm: nn.Module, x: Tensor) -> Tensor:
        for module in (lstm, self.embedding):
            module.zero_grad(set_to_none=True)
        output: Tensor = lstm(x)[0]
        output.square().mean().backward()
        return output

    def all(self) -> dict[str, Callable[[], Tensor]]:
        found = {"one-hot vectors": self.one_hot, "embeddings": self.embeddings}
        return {"numbers": self.numbers, **found} if self.takes_numbers else found

    def difference(self) -> float:
        """Largest difference of outputs and gradients, as a part of the largest value of each."""
        worst = 0.0
        expected = [self.one_hot(), *(p.grad for p in self.lstm.parameters())]
        expected = [tensor.detach().clone() for tensor in expected]
        actual = [self.numbers().detach(), *(p.grad for p in self.lstm.parameters())]
        for a, e in zip(actual, expected, strict=True):
            worst = max(worst, float((a - e).abs().max() / e.abs().max()))
        return worst


def times(forms: Mapping[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Median seconds of each form, timed in turns."""
    measured: dict[str, list[float]] = {name: [] for name in forms}
    for repeat in range(repeats + 1):
        for name, step in forms.items():
            start = time.perf_counter()
            step()
            if repeat:  # the first one warms up
                measured[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in measured.items()}


def load(path: Path, backend: str = "auto") -> dict[str, nn.Module]:
    """The modules of a checkpoint, see ``modules``, on the LSTM of the library of one's choice."""
    checkpoint = read_checkpoint(path)
    symbols, hidden = checkpoint["symbols"], checkpoint["hidden"]
    models = modules(library(backend).LSTM, symbols, hidden)
    for name, model in models.items():
        model.load_state_dict(checkpoint["models"][name])
        model.eval()
    return models


def run(options: argparse.Namespace) -> list[str]:
    started = time.perf_counter()
    rows: dict[int, dict[str, float]] = {}
    differences: dict[int, float] = {}
    wrong: list[str] = []
    for symbols in optional("tqdm").tqdm(options.symbols, unit="size", disable=None):
        forms = Forms(options, symbols)
        if forms.takes_numbers:
            differences[symbols] = forms.difference()
            if not differences[symbols] <= AGREEMENT:
                wrong.append(f"{symbols} symbols: results differ by {differences[symbols]:.1e}")
        rows[symbols] = times(forms.all(), options.repeats)
    print_table(
        ["symbols", *next(iter(rows.values()))],
        [[f"{n}", *(f"{1e3 * s:.2f} ms" for s in row.values())] for n, row in rows.items()],
    )
    path = options.out / stem(options)
    results = {
        "hidden": options.hidden,
        "batch": options.batch,
        "length": options.length,
        "multiplied_up_to": FEW_COLUMNS,
        "step_seconds": {str(symbols): row for symbols, row in rows.items()},
        "differences": {str(symbols): each for symbols, each in differences.items()},
    }
    content = write_results(path.with_suffix(".json"), options, results, started=started)
    write_checkpoint(
        path.with_suffix(".pt"), forms.modules, symbols=forms.symbols, hidden=options.hidden
    )
    pictures.draw(options.program, path.with_suffix(".png"), content)
    print(f"written: {path}.json, .pt, .png")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
