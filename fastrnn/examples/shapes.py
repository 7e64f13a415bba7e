"""The five shapes of a recurrent network, a small task for each.

===================== =================================== =====================================
one to one            a letter, the next letter           ``one_to_one``
one to many           a language, a name                  ``one_to_many``
many to one           a name, its language                ``many_to_one``
many to many, aligned a signal, a label for each frame    ``many_to_many_aligned`` (and the tagger)
... unaligned         a date as people write it, as ISO   ``many_to_many_unaligned`` (and seq2seq)
===================== =================================== =====================================

``python -m fastrnn.examples.shapes [--data FOLDER]`` runs all of them, on made-up names or on the
files ``LANGUAGE.txt`` of a folder, and writes ``shapes....json``, ``.png`` (which language is taken
for which, a labelled signal) and ``.pt`` (all models) to ``--out``.

The page with formulas and results: ``docs/shapes.md``, beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from . import pictures
from .names import make_names
from .program import (
    common_parser,
    duration,
    execute,
    last_epoch_loss,
    library,
    parse_options,
    positive,
    print_table,
    read_checkpoint,
    stem,
    write_checkpoint,
    write_results,
)
from .shape_tasks import (
    FrameLabeller,
    NameReader,
    NameWriter,
    NextLetter,
    Outcome,
    Task,
    date_translator,
    many_to_many_aligned,
    many_to_many_unaligned,
    many_to_one,
    one_to_many,
    one_to_one,
)

SHAPES: dict[str, Callable[[Task], Outcome]] = {
    "one_to_one": one_to_one,
    "one_to_many": one_to_many,
    "many_to_one": many_to_one,
    "many_to_many_aligned": many_to_many_aligned,
    "many_to_many_unaligned": many_to_many_unaligned,
}
MODELS: dict[str, Callable[..., nn.Module]] = {
    "one_to_one": NextLetter,
    "one_to_many": NameWriter,
    "many_to_one": NameReader,
    "many_to_many_aligned": FrameLabeller,
    "many_to_many_unaligned": date_translator,
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(
        "shapes",
        "One to one, one to many, many to one, many to many: a small task for each.",
        data="folder of files LANGUAGE.txt with a name a line (default: made-up names)",
    )
    parser.add_argument("--epochs", type=positive, default=8, help="of each training")
    parser.add_argument("--hidden", type=positive, default=64, help="units of all directions")
    parser.add_argument("--signals", type=positive, default=400, help="to label frame by frame")
    parser.add_argument("--dates", type=positive, default=3000, help="to learn to rewrite")
    return parse_options(parser, arguments)


def load(path: Path, backend: str = "auto") -> dict[str, nn.Module]:
    """The models of a checkpoint, by shape, on the layers of the library of one's choice."""
    checkpoint = read_checkpoint(path)
    models = {}
    for shape, weights in checkpoint["models"].items():
        model = MODELS[shape](library(backend), *checkpoint["arguments"][shape])
        model.load_state_dict(weights)
        models[shape] = model.eval()
    return models


def run(options: argparse.Namespace) -> list[str]:
    started = time.perf_counter()
    names = make_names(options.data, options.seed)
    task = Task(
        names,
        library(options.backend),
        options.epochs,
        options.hidden,
        options.seed,
        options.signals,
        options.dates,
    )
    outcomes = {shape: function(task) for shape, function in SHAPES.items()}
    rows = [
        {
            **outcome.row,
            "last_epoch_loss": last_epoch_loss(outcome.training.losses, options.epochs),
            "seconds": round(outcome.training.seconds, 2),
        }
        for outcome in outcomes.values()
    ]
    print_table(
        ("shape", "task", "measure", "network", "baseline", "of the baseline", "learned in"),
        [
            (
                r["shape"],
                r["task"],
                r["measure"],
                f"{r['value']:.3f}",
                r["baseline"],
                f"{r['of_baseline']:.3f}",
                duration(r["seconds"]),
            )
            for r in rows
        ],
    )
    written = outcomes["one_to_many"].more
    print("\nwritten, by language:")
    for language, some in written.items():
        print(f"  {language}: {', '.join(some)}")

    path = options.out / stem(options)
    results = {
        "names": {"trained": len(names.training), "held_out": len(names.held_out)},
        "languages": names.languages,
        "epochs": options.epochs,
        "rows": rows,
        "written": written,
        "taken_for": outcomes["many_to_one"].more,
        "signal": outcomes["many_to_many_aligned"].more,
        "date": outcomes["many_to_many_unaligned"].more,
    }
    content = write_results(path.with_suffix(".json"), options, results, started=started)
    write_checkpoint(
        path.with_suffix(".pt"),
        {shape: outcome.model for shape, outcome in outcomes.items()},
        arguments={shape: outcome.arguments for shape, outcome in outcomes.items()},
    )
    pictures.draw(options.program, path.with_suffix(".png"), content)
    print(f"written: {path}.json, .pt, .png")
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
