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
from . import pictures
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
    run_layers,
    size_of,
    smooth,
    stem,
    train,
    write_checkpoint,
    write_results,
)
from .tagged import SCHEMES, Sentence, read_sentences, span_scores


class Layers(NamedTuple):
    kind: str
    number: int
    bidirectional: bool
    rate: float  # the highest learning rate


#: The models of the table. Rates were doubled for as long as that raised the mean accuracy on three
#: parts of the page's training file, a fifth each, that were held out for this.
MODELS = {
    "vanilla RNN": Layers("RNN", 1, False, 0.01),
    "LSTM": Layers("LSTM", 1, False, 0.02),
    "bidirectional vanilla RNN": Layers("RNN", 1, True, 0.01),
    "bidirectional LSTM": Layers("LSTM", 1, True, 0.02),
    "deep bidirectional LSTM": Layers("LSTM", 2, True, 0.01),
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
        "--models",
        nargs="+",
        choices=MODELS,
        default=list(MODELS),
        metavar="MODEL",
        help="rows of the table",
    )
    parser.add_argument("--repeats", type=positive, default=3, help="trainings of each model")
    parser.add_argument("--epochs", type=positive, default=8, help="of each training")
    parser.add_argument("--sentences", type=positive, default=600, help="of the grammar")
    parser.add_argument("--batch", type=positive, default=16, help="sentences in a batch")
    parser.add_argument("--embedding", type=positive, default=64, help="features of a word")
    parser.add_argument("--hidden", type=positive, default=128, help="units of all directions")
    parser.add_argument(
        "--rate", type=positive_float, help="highest learning rate (default: each model's own)"
    )
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
    layers = MODELS[name]
    return RNNTagger(
        getattr(library(backend), layers.kind),
        (len(config["words"]), len(config["endings"]), len(config["tags"])),
        layers=layers.number,
        bidirectional=layers.bidirectional,
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
    rows = []
    score = "accuracy" if options.labels == "pos" else "f1"
    for name in options.models:
        scores: list[dict[str, float]] = []
        curve: list[list[float]] = []
        for repeat in range(options.repeats):
            torch.manual_seed(options.seed + repeat)
            generator = torch.Generator().manual_seed(options.seed + repeat)
            batches = batches_by_length(
                encoded, [len(w) for w, _, _ in encoded], options.batch, generator, collate
            )
            model = build(name, config, options.backend)
            trained = train(
                model,
                batches,
                model.loss,
                steps=options.epochs * len(batches),
                learning_rate=options.rate or MODELS[name].rate,
                label=f"{name}, {repeat + 1} of {options.repeats}",
            )
            scores.append(evaluate(model, test_batches, test, tables, options.labels))
            if repeat == 0:
                columns = list(scores[0])
                models[name], curve = model, smooth(trained.losses, 60)
            scores[-1]["last_epoch_loss"] = last_epoch_loss(trained.losses, options.epochs)
            scores[-1]["seconds"] = trained.seconds
        means = {key: statistics.mean(s[key] for s in scores) for key in scores[0]}
        spread = statistics.stdev(s[score] for s in scores) if len(scores) > 1 else 0.0
        rows.append(
            {
                "model": name,
                "size": size_of(models[name]),
                "rate": options.rate or MODELS[name].rate,
                **{key: round(mean, 5) for key, mean in means.items()},
                "scores": [round(s[score], 5) for s in scores],
                "spread": round(spread, 5),
                "curve": curve,
            }
        )

    print_table(
        ("model", "parameters", *columns, f"spread of {score}", "learned in"),
        [
            (
                row["model"],
                f"{row['size']:,}",
                *(f"{100 * row[c]:.2f} %" for c in columns),
                f"{100 * row['spread']:.2f} %",
                duration(row["seconds"]),
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
        "score": score,
        "columns": columns,
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
