"""What every program shares: options, choice of the library, training loop, files it writes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset

import fastrnn

from ..nn import LengthBuckets

BACKENDS = ("auto", "cpu", "numba", "reference", "torch")
#: Packages that the programs need and the library does not.
PACKAGES = ("tqdm", "matplotlib")


# Options.


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {value}")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Help that ends in the default, but for a None, which the text explains itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def common_parser(
    name: str, description: str, *, data: str, aliases: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A parser with the options that every program has.

    Args:
        data: what ``--data`` takes.
        aliases: other names of that option.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m fastrnn.examples.{name}",
        description=description,
        formatter_class=HelpWithDefaults,
    )
    parser.set_defaults(program=name)
    parser.add_argument("--data", *aliases, type=Path, help=data)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="who computes: torch for the layers of torch.nn, others for fastrnn's",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and samples")
    parser.add_argument("--threads", type=positive, help="threads (default: as torch chooses)")
    return parser


def parse_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """The options, and the arguments they were read from (None: those of this process)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    options.arguments = words
    return options


def optional(module: str) -> Any:
    """Import what only the programs need, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SystemExit(f"the demo needs {module}: pip install 'fastrnn[demo]'") from None


def execute(options: argparse.Namespace, run: Callable[[argparse.Namespace], list[str]]) -> int:
    """Run a program with its threads and its backend.

    ``run`` returns what is wrong, as sentences. The exit status: 0; 1 if something is wrong; 2 if
    the program could not run as asked (no such file, a text too short, a backend that cannot).
    """
    for package in PACKAGES:  # before the training, not after it
        optional(package)
    threads = torch.get_num_threads()
    try:
        if options.threads:
            torch.set_num_threads(options.threads)
        with fastrnn.use_backend(None if options.backend == "auto" else options.backend):
            wrong = run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if options.backend == "auto":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
    for sentence in wrong:
        print(f"FAILED: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


# Layers of either library.


def library(backend: str) -> Any:
    """``torch.nn`` for ``'torch'``, else ``fastrnn``: both have RNN, LSTM, GRU and their cells."""
    return nn if backend == "torch" else fastrnn


def run_layers(layers: nn.Module, x: Tensor, lengths: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """Outputs and last states for a padded batch ``x (B, T, I)``, of layers with ``batch_first``.

    What ``lengths`` is to fastrnn's modules is a ``PackedSequence`` to torch.nn's. Outputs beyond
    a row's length are 0.
    """
    if type(layers).__module__.startswith("fastrnn"):
        output, states = layers(x, hx, lengths=lengths)
        return output, states
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, states = layers(packed, hx)
    padded, _ = pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])
    return padded, states


def last_hidden(states: Any, directions: int) -> Tensor:
    """Last hidden states of the top layer, of all directions side by side, ``(B, D*H)``."""
    h_n: Tensor = states[0] if isinstance(states, tuple) else states
    return torch.cat(list(h_n[-directions:]), dim=-1)


def size_of(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


# Training.


def batches_by_length(
    dataset: Sequence[Any],
    lengths: Sequence[int],
    batch_size: int,
    generator: torch.Generator,
    collate: Callable[[Any], Any],
) -> DataLoader[Any]:
    """Batches of items of like length, in another order in each epoch."""
    buckets = LengthBuckets(lengths, batch_size, generator)
    return DataLoader(cast(Dataset[Any], dataset), batch_sampler=buckets, collate_fn=collate)


class Training(NamedTuple):
    losses: list[float]  # of each step
    seconds: float


def train(
    model: nn.Module,
    batches: Iterable[Any],
    loss_of: Callable[[Any], Tensor],
    *,
    steps: int,
    learning_rate: float,
    label: str,
    max_gradient_norm: float = 1.0,
) -> Training:
    """Adam with clipped gradients, warmed up and annealed over all steps (Smith and Topin 2018).

    Args:
        model: in training mode during the steps, in evaluation mode afterwards.
        batches: gone through again and again; a ``DataLoader`` shuffles each time.
        loss_of: the loss of one batch.
        steps: of the optimizer.
        learning_rate: the highest.
        label: of the progress bar.
        max_gradient_norm: of all gradients together.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    # The schedule divides by the steps of its warm-up but one: fewer than 20 do not come to an end.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(steps, 20), pct_start=0.1, cycle_momentum=False
    )
    losses: list[float] = []
    model.train()
    start = time.perf_counter()
    # disable=None: only on a terminal
    with optional("tqdm").tqdm(total=steps, desc=label, unit="step", disable=None) as bar:
        while len(losses) < steps:
            for batch in batches:
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(batch)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), max_gradient_norm)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                bar.update()
                if len(losses) == steps:
                    break
    model.eval()
    return Training(losses, time.perf_counter() - start)


def last_epoch_loss(losses: Sequence[float], epochs: int) -> float:
    """Mean loss over the last of so many epochs."""
    last = losses[-(len(losses) // epochs) :]
    return round(sum(last) / len(last), 4)


# Files.


def stem(options: argparse.Namespace, *more: str) -> str:
    """Name of the files of a run, by program and data: ``tagger-en_ewt-ud-dev``."""
    data = [options.data.stem.replace(".", "_")] if options.data else []  # a suffix is to come
    return "-".join([options.program, *data, *more])


def write_checkpoint(path: Path, models: Mapping[str, nn.Module], **rest: Any) -> None:
    """Weights by the names of their models, and what it takes to build those again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    states = {name: model.state_dict() for name, model in models.items()}
    torch.save({"models": states, **rest}, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What ``write_checkpoint`` wrote; nothing but tensors and plain values is unpickled."""
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def command_line(arguments: Sequence[str], options: argparse.Namespace) -> str:
    """The command as it would be typed beside the data, without the folders of this machine."""
    words = ["python", "-m", f"fastrnn.examples.{options.program}"]
    skip = False
    for argument in arguments:
        if skip or argument.startswith("--out="):
            skip = False
        elif argument == "--out":
            skip = True
        else:
            words.append(Path(argument).name if os.sep in argument else argument)
    return " ".join(words)


def processor() -> str:
    """What the maker of the CPU calls it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def write_results(
    path: Path, options: argparse.Namespace, results: Mapping[str, Any], *, started: float
) -> dict[str, Any]:
    """What was measured, as JSON, beside the command and what it ran on.

    Args:
        started: ``time.perf_counter()`` at the start of the program.

    Returns:
        What the file holds, as one reads it.
    """
    content = {
        "command": command_line(options.arguments, options),
        "layers": library(options.backend).__name__,
        "fastrnn": fastrnn.__version__,
        "torch": str(torch.__version__),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started, 1),
        **results,
    }
    text = json.dumps(content, indent=1)
    # Rows of a curve, of a matrix: a line each, not one for every number.
    text = re.sub(r"\[\n[\s\d.,e+-]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def pyplot() -> Any:
    """matplotlib without a window."""
    optional("matplotlib").use("Agg")
    return optional("matplotlib.pyplot")


def smooth(values: Sequence[float], pieces: int = 200) -> list[list[float]]:
    """Steps and means of up to so many pieces of a curve, for drawing."""
    size = max(1, len(values) // pieces)
    means = [
        sum(piece) / len(piece)
        for piece in (values[k : k + size] for k in range(0, len(values), size))
    ]
    steps = [size * (k + 0.5) for k in range(len(means))]
    return [steps, [round(mean, 4) for mean in means]]


def span_label(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def duration(seconds: float) -> str:
    """As exact as anybody would say it."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need, the first aligned left, the others right."""
    widths = [max(len(line[k]) for line in (header, *rows)) for k in range(len(header))]
    for line in (header, *rows):
        first, *rest = (
            cell.ljust(widths[0]) if not k else cell.rjust(widths[k]) for k, cell in enumerate(line)
        )
        print("  ".join([first, *rest]))
