"""Encoder and decoder, with and without attention: one sequence into another of another length.

``python -m fastrnn.examples.seq2seq [--data PAIRS]`` learns to write dates as ISO 8601 does, or
what a file of pairs has (``cmudict.dict``: letters to phonemes), with an encoder whose last state
is all that the decoder sees, and with attention by additive, dot and general scores. It prints the
error rates of greedy and of beam search, in all and by the length of the source, and writes
``seq2seq....json``, ``.png`` (attention as a heat map, error rates by length) and ``.pt`` (all
models) to ``--out``.

The page with formulas and results: ``docs/seq2seq.md``, beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..nn import SymbolTable
from . import pictures
from .encoder_decoder import NO_ATTENTION, SCORES, SPECIALS, EncoderDecoder, collate
from .pairs import Pair, error_rates, make_pairs
from .program import (
    batches_by_length,
    common_parser,
    duration,
    execute,
    last_epoch_loss,
    library,
    parse_options,
    positive,
    positive_float,
    print_table,
    read_checkpoint,
    size_of,
    span_label,
    stem,
    train,
    write_checkpoint,
    write_results,
)

MODELS = (NO_ATTENTION, *SCORES)
#: Sources are told apart by their length in this many groups of about one size.
GROUPS = 5


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(
        "seq2seq",
        "Error rates of an encoder and a decoder, with and without attention.",
        data="pairs, as cmudict.dict or 'source<TAB>target' (default: dates)",
    )
    parser.add_argument(
        "--scores", nargs="+", choices=MODELS, default=list(MODELS), help="of attention"
    )
    parser.add_argument("--pairs", type=positive, default=4000, help="pairs to train on, at most")
    parser.add_argument("--test-pairs", type=positive, default=500, help="pairs to test on")
    parser.add_argument("--epochs", type=positive, default=6, help="of each training")
    parser.add_argument("--batch", type=positive, default=64, help="pairs in a batch")
    parser.add_argument("--embedding", type=positive, default=32, help="features of a symbol")
    parser.add_argument("--hidden", type=positive, default=128, help="units of the decoder")
    parser.add_argument("--rate", type=positive_float, default=4e-3, help="highest learning rate")
    parser.add_argument("--beam", type=positive, default=5, help="width of the beam")
    parser.add_argument("--show", help="source of the heat map (default: one of the test pairs)")
    return parse_options(parser, arguments)


Tables = tuple[SymbolTable, SymbolTable]


def build(score: str, config: Mapping[str, Any], backend: str) -> EncoderDecoder:
    return EncoderDecoder(
        library(backend),
        score,
        len(config["source"]),
        len(config["target"]),
        embedding=config["embedding"],
        hidden=config["hidden"],
    )


def load(path: Path, backend: str = "auto") -> tuple[dict[str, EncoderDecoder], Tables]:
    """The models of a checkpoint, by score, on the layers of the library of one's choice."""
    checkpoint = read_checkpoint(path)
    models = {score: build(score, checkpoint, backend) for score in checkpoint["models"]}
    for score, model in models.items():
        model.load_state_dict(checkpoint["models"][score])
        model.eval()
    return models, (SymbolTable(checkpoint["source"]), SymbolTable(checkpoint["target"]))


def translate(
    model: EncoderDecoder, tables: Tables, sources: Sequence[list[str]], width: int, limit: int
) -> list[list[str]]:
    """Targets of some sources, in batches of sources of like length."""
    order = sorted(range(len(sources)), key=lambda k: len(sources[k]))
    found: list[list[str]] = [[] for _ in sources]
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        batch = collate([(tables[0].encode(sources[k]), tables[1].encode([])) for k in rows])
        best = model.translate(batch.source, batch.source_lengths, width=width, max_length=limit)
        for k, hypothesis in zip(rows, best, strict=True):
            found[k] = tables[1].decode(hypothesis.tokens)
    return found


def length_groups(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Ranges of source lengths, first and last, that hold about as many pairs each."""
    lengths = sorted(len(source) for source, _ in pairs)
    cuts = sorted({lengths[len(lengths) * k // GROUPS] for k in range(GROUPS)})
    return [
        (first, after - 1) for first, after in zip(cuts, [*cuts[1:], lengths[-1] + 1], strict=True)
    ]


def evaluate(
    model: EncoderDecoder, tables: Tables, pairs: Sequence[Pair], beam: int, limit: int
) -> dict[str, Any]:
    """Error rates of both searches, and those of the beam by the length of the source."""
    sources = [source for source, _ in pairs]
    truth = [target for _, target in pairs]
    rates = {}
    for name, width in (("greedy", 1), ("beam", beam)):
        found = translate(model, tables, sources, width, limit)
        rates[name] = error_rates(truth, found)
    by_length = []
    for first, last in length_groups(pairs):
        chosen = [k for k, source in enumerate(sources) if first <= len(source) <= last]
        group = error_rates([truth[k] for k in chosen], [found[k] for k in chosen])
        by_length.append(
            {
                "first": first,
                "last": last,
                "pairs": len(chosen),
                "error_rate": round(group["error_rate"], 5),
            }
        )
    return {
        **{name: {key: round(rate, 5) for key, rate in r.items()} for name, r in rates.items()},
        "by_length": by_length,
    }


@torch.inference_mode()
def attention_map(
    model: EncoderDecoder, tables: Tables, source: list[str], limit: int
) -> dict[str, Any] | None:
    """The symbols a model writes for a source, with its end, and the weights of each."""
    batch = collate([(tables[0].encode(source), tables[1].encode([]))])
    (best,) = model.translate(batch.source, batch.source_lengths, max_length=limit)
    written = torch.tensor(best.tokens, dtype=torch.int64)
    batch = collate([(tables[0].encode(source), written)])
    _, weights = model(batch.source, batch.source_lengths, batch.inputs)
    if weights is None:
        return None
    rounded = [[round(weight, 4) for weight in row] for row in weights[0].tolist()]
    return {"written": [*tables[1].decode(written), "end"], "weights": rounded}


def run(options: argparse.Namespace) -> list[str]:
    started = time.perf_counter()
    pairs = make_pairs(options.data, options.seed, training=options.pairs, test=options.test_pairs)
    tables = (
        SymbolTable.of((source for source, _ in pairs.training), SPECIALS),
        SymbolTable.of((target for _, target in pairs.training), SPECIALS),
    )
    encoded = [(tables[0].encode(s), tables[1].encode(t)) for s, t in pairs.training]
    limit = max(len(target) for _, target in pairs.training) + 5
    config = {
        "source": tables[0].symbols,
        "target": tables[1].symbols,
        "embedding": options.embedding,
        "hidden": options.hidden,
    }
    models: dict[str, EncoderDecoder] = {}
    rows = []
    for score in options.scores:
        torch.manual_seed(options.seed)
        generator = torch.Generator().manual_seed(options.seed)
        batches = batches_by_length(
            encoded, [len(s) for s, _ in encoded], options.batch, generator, collate
        )
        model = models[score] = build(score, config, options.backend)
        trained = train(
            model,
            batches,
            model.loss,
            steps=options.epochs * len(batches),
            learning_rate=options.rate,
            label=f"attention: {score}",
        )
        scores = evaluate(model, tables, pairs.test, options.beam, limit)
        rows.append(
            {
                "score": score,
                "size": size_of(model),
                "last_epoch_loss": last_epoch_loss(trained.losses, options.epochs),
                "seconds": round(trained.seconds, 2),
                **scores,
            }
        )

    print_table(
        (
            "attention",
            "parameters",
            "greedy",
            f"beam {options.beam}",
            "wrong sequences",
            "learned in",
            *(span_label(g["first"], g["last"]) for g in rows[0]["by_length"]),
        ),
        [
            (
                row["score"],
                f"{row['size']:,}",
                *(
                    f"{100 * rate:.2f} %"
                    for rate in (
                        row["greedy"]["error_rate"],
                        row["beam"]["error_rate"],
                        row["beam"]["wrong"],
                    )
                ),
                duration(row["seconds"]),
                *(f"{100 * g['error_rate']:.2f} %" for g in row["by_length"]),
            )
            for row in rows
        ],
    )
    print(f"errors per {pairs.unit} of the target; the last columns: by symbols of the source\n")
    best = min(rows, key=lambda row: row["beam"]["error_rate"])["score"]
    sources = [source for source, _ in pairs.test[:5]]
    found = translate(models[best], tables, sources, options.beam, limit)
    for (source, target), written in zip(pairs.test, found, strict=False):
        mark = "" if written == target else f"   (right: {' '.join(target)})"
        print(f"  {''.join(source)}: {' '.join(written)}{mark}")

    path = options.out / stem(options)
    shown = list(options.show) if options.show else max(sources, key=len)
    maps = {score: attention_map(model, tables, shown, limit) for score, model in models.items()}
    results = {
        "pairs": {"trained": len(pairs.training), "tested": len(pairs.test)},
        "unit": pairs.unit,
        "epochs": options.epochs,
        "beam": options.beam,
        "shown": "".join(shown),
        "attention": {score: found for score, found in maps.items() if found},
        "rows": rows,
    }
    content = write_results(path.with_suffix(".json"), options, results, started=started)
    write_checkpoint(path.with_suffix(".pt"), models, **config)
    pictures.draw(options.program, path.with_suffix(".png"), content)
    print(f"written: {path}.json, .pt, .png")
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
