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

import torch
from torch import Tensor, nn

from .program import (
    common_parser,
    execute,
    library,
    optional,
    parse_options,
    positive,
    print_table,
    pyplot,
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
        "--symbols", nargs="+", type=positive, default=[32, 128, 512, 2048, 8192], metavar="N"
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


class Forms:
    """One LSTM and its symbols in three forms; each makes a step of training but the last part."""

    def __init__(self, options: argparse.Namespace, symbols: int) -> None:
        torch.manual_seed(options.seed)
        lstm_class = library(options.backend).LSTM
        self.indices = characters(options, symbols)
        self.lstm = lstm_class(symbols, options.hidden)
        self.embedding = nn.Embedding(symbols, options.hidden)
        self.embedded_lstm = lstm_class(options.hidden, options.hidden)
        self.symbols = symbols
        self.takes_numbers = not type(self.lstm).__module__.startswith("torch.")

    def one_hot(self) -> Tensor:
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


def draw(path: Path, rows: Mapping[int, Mapping[str, float]]) -> None:
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in next(iter(rows.values())):
        axis.plot(list(rows), [1e3 * row[name] for row in rows.values()], "o-", label=name)
    axis.set(xscale="log", yscale="log", xlabel="symbols", ylabel="ms, forward and backward")
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


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
    name = stem(options)
    draw(options.out / f"{name}.png", rows)
    write_checkpoint(options.out / f"{name}.pt", {"lstm": forms.lstm, "embedding": forms.embedding})
    write_results(
        options.out / f"{name}.json",
        options,
        {
            "hidden": options.hidden,
            "batch": options.batch,
            "length": options.length,
            "step_seconds": {str(symbols): row for symbols, row in rows.items()},
            "differences": {str(symbols): each for symbols, each in differences.items()},
        },
        started=started,
    )
    print(f"written to {options.out}/: {name}.json, {name}.png, {name}.pt")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
