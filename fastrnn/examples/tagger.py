"""A tagger: embeddings, recurrent layers, a linear layer, log_softmax, a tag for each word.

``python -m fastrnn.examples.tagger [--data TRAIN.conllu --test TEST.conllu] [--labels bio]`` trains
a vanilla RNN and an LSTM, in one direction and in both, and a deep bidirectional LSTM on padded
sentences with their lengths, each several times from other random numbers, and prints the table of
their accuracies on other sentences. ``--labels bio`` tags the names instead, and scores whole
spans. It writes ``tagger-....json``, ``.png`` (accuracies, training curves) and ``.pt`` (the models
of the first repeat) to ``--out``.

The page with formulas and results: ``docs/tagger.md``, beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from ..nn import SymbolTable, pad
from .program import (
    batches_by_length,
    common_parser,
    execute,
    last_epoch_loss,
    library,
    parse_options,
    positive,
    positive_float,
    print_table,
    pyplot,
    read_checkpoint,
    run_layers,
    size_of,
    smooth,
    stem,
    train,
    write_checkpoint,
    write_results,
)
from .tagged import SCHEMES, Sentence, read_sentences, span_scores

#: Layers of each model of the table: class, number of layers, whether in both directions.
MODELS: dict[str, tuple[str, int, bool]] = {
    "vanilla RNN": ("RNN", 1, False),
    "LSTM": ("LSTM", 1, False),
    "bidirectional vanilla RNN": ("RNN", 1, True),
    "bidirectional LSTM": ("LSTM", 1, True),
    "deep bidirectional LSTM": ("LSTM", 2, True),
}
#: Target of padding: ``nll_loss`` ignores it.
IGNORED = -100
#: Words that occur less often in the training sentences are all one unknown word.
LEAST = 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(
        "tagger",
        "Accuracies of taggers: vanilla and LSTM, in one direction and both, deep.",
        data="CoNLL-U file to train on (default: sentences of a small grammar)",
    )
    parser.add_argument("--test", type=Path, help="CoNLL-U file to test on (default: part of data)")
    parser.add_argument(
        "--labels", choices=SCHEMES, default="pos", help="parts of speech, or names"
    )
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="trainings of each model")
    parser.add_argument("--epochs", type=positive, default=8, help="of each training")
    parser.add_argument("--sentences", type=positive, default=600, help="of the grammar")
    parser.add_argument("--batch", type=positive, default=16, help="sentences in a batch")
    parser.add_argument("--embedding", type=positive, default=64, help="features of a word")
    parser.add_argument("--hidden", type=positive, default=128, help="units of all directions")
    parser.add_argument("--rate", type=positive_float, default=5e-3, help="highest learning rate")
    parser.add_argument("--dropout", type=float, default=0.3, help="around the recurrent layers")
    return parse_options(parser, arguments)


class Batch(NamedTuple):
    words: Tensor  # (B, T)
    endings: Tensor  # (B, T)
    tags: Tensor  # (B, T), IGNORED beyond a sentence's length
    lengths: Tensor  # (B,)


def ending(word: str) -> str:
    """What an unknown word still tells: its last three letters, and whether it is capitalized."""
    return ("^" if word[:1].isupper() else "") + word[-3:].lower()


class Tables(NamedTuple):
    """Numbers of words, endings and tags; made from the training sentences only."""

    words: SymbolTable
    endings: SymbolTable
    tags: SymbolTable

    @classmethod
    def of(cls, sentences: Sequence[Sentence], scheme: str) -> Tables:
        specials = [SymbolTable.PAD, SymbolTable.UNKNOWN]
        words = [[word.lower() for word in sentence.words] for sentence in sentences]
        endings = [[ending(word) for word in sentence.words] for sentence in sentences]
        return cls(
            SymbolTable.of(words, specials, least=LEAST),
            SymbolTable.of(endings, specials, least=LEAST),
            SymbolTable.of(sentence.labels(scheme) for sentence in sentences),
        )

    def encode(self, sentence: Sentence, scheme: str) -> tuple[Tensor, Tensor, Tensor]:
        """Words, endings and tags of a sentence; a tag that training had not is ``IGNORED - 1``."""
        labels = sentence.labels(scheme)
        tags = [self.tags[tag] if tag in self.tags else IGNORED - 1 for tag in labels]
        return (
            self.words.encode(word.lower() for word in sentence.words),
            self.endings.encode(ending(word) for word in sentence.words),
            torch.tensor(tags),
        )


def collate(encoded: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Batch:
    words, endings, tags = zip(*encoded, strict=True)
    padded, lengths = pad(words)
    return Batch(padded, pad(endings)[0], pad(tags, IGNORED)[0], lengths)


class RNNTagger(nn.Module):
    """``(B, T)`` words to ``(B, T, K)`` log probabilities of their tags.

    A word enters as the embedding of itself beside that of its ending. ``hidden`` units in all:
    with both directions, each has half of them.
    """

    def __init__(
        self,
        layer_class: Callable[..., nn.Module],
        sizes: tuple[int, int, int],
        *,
        embedding: int,
        hidden: int,
        layers: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        words, endings, tags = sizes
        self.words = nn.Embedding(words, embedding, padding_idx=0)
        self.endings = nn.Embedding(endings, embedding // 2, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.rnn = layer_class(
            embedding + embedding // 2,
            hidden // 2 if bidirectional else hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.head = nn.Linear(hidden, tags)

    def forward(self, words: Tensor, endings: Tensor, lengths: Tensor) -> Tensor:
        embedded = self.dropout(torch.cat([self.words(words), self.endings(endings)], dim=-1))
        output, _ = run_layers(self.rnn, embedded, lengths)
        log_probs: Tensor = self.head(self.dropout(output)).log_softmax(-1)
        return log_probs

    def loss(self, batch: Batch) -> Tensor:
        log_probs = self(batch.words, batch.endings, batch.lengths)
        return nll_loss(log_probs.flatten(0, 1), batch.tags.flatten(), ignore_index=IGNORED)


@torch.inference_mode()
def predict(model: RNNTagger, batches: Sequence[Batch]) -> list[list[int]]:
    """The likeliest tag of each word, sentence by sentence."""
    model.eval()
    found = []
    for batch in batches:
        best = model(batch.words, batch.endings, batch.lengths).argmax(-1)
        found += [
            row[:length] for row, length in zip(best.tolist(), batch.lengths.tolist(), strict=True)
        ]
    return found


def evaluate(
    model: RNNTagger,
    batches: Sequence[Batch],
    sentences: Sequence[Sentence],
    tables: Tables,
    scheme: str,
) -> dict[str, float]:
    """Share of right tags, of all words and of unknown ones; for names also of whole spans."""
    tags = [tables.tags.decode(row) for row in predict(model, batches)]
    right = [
        (predicted == label, word.lower() in tables.words)
        for sentence, row in zip(sentences, tags, strict=True)
        for word, label, predicted in zip(sentence.words, sentence.labels(scheme), row, strict=True)
    ]
    unknown = [hit for hit, known in right if not known]
    scores = {"accuracy": statistics.mean(hit for hit, _ in right)}
    if unknown:
        scores["unknown_accuracy"] = statistics.mean(unknown)
    if scheme == "bio":
        truth = (sentence.bio for sentence in sentences)
        scores |= span_scores(truth, tags)
    return scores


def build(name: str, config: Mapping[str, Any], backend: str) -> RNNTagger:
    kind, layers, bidirectional = MODELS[name]
    return RNNTagger(
        getattr(library(backend), kind),
        (len(config["words"]), len(config["endings"]), len(config["tags"])),
        layers=layers,
        bidirectional=bidirectional,
        embedding=config["embedding"],
        hidden=config["hidden"],
        dropout=config["dropout"],
    )


def load(path: Path, backend: str = "auto") -> tuple[dict[str, RNNTagger], Tables]:
    """The models of a checkpoint, by name, on the layers of the library of one's choice."""
    checkpoint = read_checkpoint(path)
    models = {name: build(name, checkpoint, backend) for name in checkpoint["models"]}
    for name, model in models.items():
        model.load_state_dict(checkpoint["models"][name])
        model.eval()
    return models, Tables(*(SymbolTable(checkpoint[table]) for table in Tables._fields))


def draw(
    path: Path, rows: Sequence[dict[str, Any]], curves: Mapping[str, Sequence[float]], score: str
) -> None:
    """Scores with the spread of the repeats, and training curves."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    names = [row["model"] for row in rows]
    means = [100 * row[score] for row in rows]
    spreads = [100 * row["spread"] for row in rows]
    # Points, not bars: the axis does not begin at 0.
    left.errorbar(means, names, xerr=spreads, fmt="o", capsize=4)
    for mean, name in zip(means, names, strict=True):
        left.annotate(f"{mean:.2f}", (mean, name), (0, 8), textcoords="offset points", ha="center")
    left.invert_yaxis()
    left.margins(x=0.2, y=0.15)
    left.grid(axis="x", alpha=0.3)
    left.set(xlabel=f"{score.replace('_', ' ')} on other sentences, %")
    for name, losses in curves.items():
        right.plot(*smooth(losses, 60), label=name)
    right.set(title="Training loss, first repeat", xlabel="step", ylabel="nats per word")
    right.set_yscale("log")
    right.legend()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def run(options: argparse.Namespace) -> list[str]:
    started = time.perf_counter()
    training, test = read_sentences(
        options.data, options.test, options.seed, generated=options.sentences
    )
    tables = Tables.of(training, options.labels)
    encoded = [tables.encode(sentence, options.labels) for sentence in training]
    test_batches = [
        collate([tables.encode(sentence, options.labels) for sentence in test[k : k + 64]])
        for k in range(0, len(test), 64)
    ]
    config = {
        **{name: table.symbols for name, table in tables._asdict().items()},
        "embedding": options.embedding,
        "hidden": options.hidden,
        "dropout": options.dropout,
    }

    models: dict[str, RNNTagger] = {}
    curves: dict[str, list[float]] = {}
    rows = []
    score = "accuracy" if options.labels == "pos" else "f1"
    for name in options.models:
        scores: list[dict[str, float]] = []
        for repeat in range(options.repeats):
            torch.manual_seed(options.seed + repeat)
            generator = torch.Generator().manual_seed(options.seed + repeat)
            batches = batches_by_length(
                encoded, [len(w) for w, _, _ in encoded], options.batch, generator, collate
            )
            model = build(name, config, options.backend)
            losses = train(
                model,
                batches,
                model.loss,
                steps=options.epochs * len(batches),
                learning_rate=options.rate,
                label=f"{name}, {repeat + 1} of {options.repeats}",
            )
            scores.append(evaluate(model, test_batches, test, tables, options.labels))
            scores[-1]["last_epoch_loss"] = last_epoch_loss(losses, options.epochs)
            if repeat == 0:
                models[name], curves[name] = model, losses
        means = {key: statistics.mean(s[key] for s in scores) for key in scores[0]}
        spread = statistics.stdev(s[score] for s in scores) if len(scores) > 1 else 0.0
        rows.append(
            {
                "model": name,
                "size": size_of(models[name]),
                **{key: round(mean, 5) for key, mean in means.items()},
                "spread": round(spread, 5),
            }
        )

    columns = [key for key in rows[0] if key not in ("model", "size", "spread", "last_epoch_loss")]
    print_table(
        ("model", "parameters", *columns, f"spread of {score}"),
        [
            (
                row["model"],
                f"{row['size']:,}",
                *(f"{100 * row[c]:.2f} %" for c in columns),
                f"{100 * row['spread']:.2f} %",
            )
            for row in rows
        ],
    )
    best = max(rows, key=lambda row: row[score])["model"]
    tags = tables.tags.decode(predict(models[best], test_batches)[0])
    print(f"\n{best}:", " ".join(map("/".join, zip(test[0].words, tags, strict=True))))

    path = options.out / stem(options, options.labels)
    results = {
        "labels": options.labels,
        "sentences": {"trained": len(training), "tested": len(test)},
        "words": {
            "trained": sum(len(sentence.words) for sentence in training),
            "tested": sum(len(sentence.words) for sentence in test),
        },
        "kinds_of_labels": len(tables.tags),
        "epochs": options.epochs,
        "repeats": options.repeats,
        "rows": rows,
    }
    write_results(path.with_suffix(".json"), options, results, started=started)
    write_checkpoint(path.with_suffix(".pt"), models, **config)
    draw(path.with_suffix(".png"), rows, curves, score)
    print(f"written: {path}.json, .pt, .png")
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
