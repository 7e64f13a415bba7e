"""The five shapes of a recurrent network: a model, a task and a function for each.

Every function trains its model and measures it on what it was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from ..nn import NGramModel, SymbolTable, pad
from . import encoder_decoder
from .encoder_decoder import EncoderDecoder
from .names import BEGIN, END, PAD, WAVES, Names, majority, make_signals
from .pairs import error_rates, generated_dates
from .program import Training, batches_by_length, last_hidden, run_layers, train

EMBEDDING = 32
IGNORED = -100


class Task(NamedTuple):
    """What the five functions have in common."""

    names: Names
    library: Any  # fastrnn or torch.nn
    epochs: int
    hidden: int
    seed: int = 0
    signals: int = 400
    dates: int = 3000

    def generator(self) -> torch.Generator:
        torch.manual_seed(self.seed)  # of the weights
        return torch.Generator().manual_seed(self.seed)  # of the batches


class Outcome(NamedTuple):
    """A trained model, the arguments after its library, and how well it does."""

    model: nn.Module
    arguments: tuple[int, ...]
    row: dict[str, Any]
    training: Training
    more: Any = None  # for the page and its picture


def as_row(
    shape: str, task: str, measure: str, value: float, baseline: str, of_baseline: float
) -> dict[str, Any]:
    return {
        "shape": shape,
        "task": task,
        "measure": measure,
        "value": round(value, 4),
        "baseline": baseline,
        "of_baseline": round(of_baseline, 4),
    }


# One to one.


class NextLetter(nn.Module):
    """A vanilla RNN over a single step: ``(B,)`` letters to ``(B, V)`` scores of the next."""

    def __init__(self, library: Any, letters: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, EMBEDDING)
        self.rnn = library.RNN(EMBEDDING, hidden)
        self.head = nn.Linear(hidden, letters)

    def forward(self, letters: Tensor) -> Tensor:
        output, _ = self.rnn(self.embedding(letters)[None])  # T = 1, and no state is kept
        scores: Tensor = self.head(output[0])
        return scores


def with_ends(name: str, letters: SymbolTable) -> Tensor:
    """Letters of a name, between begin and end."""
    return torch.cat([torch.tensor([BEGIN]), letters.encode(name), torch.tensor([END])])


def letter_pairs(names: Sequence[tuple[str, int]], letters: SymbolTable) -> Tensor:
    """Each letter and the next, ``(N, 2)``, with the begin and the end of every name."""
    return torch.cat([with_ends(name, letters).unfold(0, 2, 1) for name, _ in names])


def bigram_loss(names: Names) -> float:
    """Nats per letter of counted bigrams, on the names held out."""
    text = torch.cat([with_ends(name, names.letters) for name, _ in names.training])
    model = NGramModel(text, len(names.letters), 2, "witten-bell")
    return -model.log_prob(letter_pairs(names.held_out, names.letters))[:, 1].mean().item()


def one_to_one(task: Task) -> Outcome:
    """A letter in, the next letter out: a network without memory is a bigram model."""
    generator = task.generator()
    letters = task.names.letters
    pairs = letter_pairs(task.names.training, letters)
    test = letter_pairs(task.names.held_out, letters)
    arguments = (len(letters), task.hidden)
    model = NextLetter(task.library, *arguments)
    batches = DataLoader(TensorDataset(pairs), 256, shuffle=True, generator=generator)
    training = train(
        model,
        batches,
        lambda batch: cross_entropy(model(batch[0][:, 0]), batch[0][:, 1]),
        steps=task.epochs * len(batches),
        learning_rate=1e-2,
        label="one to one",
    )
    with torch.inference_mode():
        loss = cross_entropy(model(test[:, 0]), test[:, 1]).item()
    row = as_row(
        "one to one", "next letter", "nats/letter", loss, "bigram counts", bigram_loss(task.names)
    )
    return Outcome(model, arguments, row, training)


# One to many.


class NameWriter(nn.Module):
    """A language sets the first state; from there on each letter follows from those before it.

    :math:`h_0 = \\tanh(W e_{language} + b)`; then a GRU reads the letters it has written.
    """

    def __init__(self, library: Any, letters: int, languages: int, hidden: int) -> None:
        super().__init__()
        self.language = nn.Embedding(languages, EMBEDDING)
        self.first = nn.Linear(EMBEDDING, hidden)
        self.letters = nn.Embedding(letters, EMBEDDING, padding_idx=PAD)
        self.rnn = library.GRU(EMBEDDING, hidden, batch_first=True)
        self.head = nn.Linear(hidden, letters)

    def first_state(self, languages: Tensor) -> Tensor:
        return torch.tanh(self.first(self.language(languages)))[None]

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(B, T, V)`` after ``inputs (B, T)`` from ``state (1, B, H)``; the last state."""
        output, state = self.rnn(self.letters(inputs), state)
        return self.head(output), state

    @torch.inference_mode()
    def write(
        self, languages: Tensor, generator: torch.Generator, *, temperature: float, longest: int
    ) -> list[list[int]]:
        """A name for each language of ``(B,)``, drawn letter by letter, all at once."""
        state = self.first_state(languages)
        last = torch.full_like(languages, BEGIN)
        names: list[list[int]] = [[] for _ in languages]
        ended = torch.zeros_like(languages, dtype=torch.bool)
        for _ in range(longest):
            scores, state = self(last[:, None], state)
            p = (scores[:, 0] / temperature).softmax(-1)
            last = torch.multinomial(p, 1, generator=generator).squeeze(1)
            ended |= last == END
            if bool(ended.all()):
                break
            for name, letter, over in zip(names, last.tolist(), ended.tolist(), strict=True):
                if not over:
                    name.append(letter)
        return names


def name_loss(model: NameWriter, batch: Sequence[Tensor]) -> Tensor:
    inputs, targets, languages = batch
    scores, _ = model(inputs, model.first_state(languages))
    return cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def writing_batch(names: Sequence[tuple[str, int]], letters: SymbolTable) -> tuple[Tensor, ...]:
    encoded = [letters.encode(name) for name, _ in names]
    inputs, _ = pad([torch.cat([torch.tensor([BEGIN]), name]) for name in encoded], PAD)
    targets, _ = pad([torch.cat([name, torch.tensor([END])]) for name in encoded], IGNORED)
    return inputs, targets, torch.tensor([language for _, language in names])


def one_to_many(task: Task) -> Outcome:
    """A language in, a name out, letter by letter."""
    generator = task.generator()
    names, letters = task.names, task.names.letters
    arguments = (len(letters), len(names.languages), 2 * task.hidden)
    model = NameWriter(task.library, *arguments)
    batches = name_batches(names, generator, lambda part: writing_batch(part, letters))
    training = train(
        model,
        batches,
        lambda batch: name_loss(model, batch),
        steps=task.epochs * len(batches),
        learning_rate=1e-2,
        label="one to many",
    )
    with torch.inference_mode():
        loss = name_loss(model, writing_batch(names.held_out, letters)).item()
    baseline = bigram_loss(names)
    row = as_row(
        "one to many", "a language's names", "nats/letter", loss, "bigram counts", baseline
    )
    return Outcome(model, arguments, row, training, write_some(model, names, generator))


def write_some(
    model: NameWriter, names: Names, generator: torch.Generator, count: int = 4
) -> dict[str, list[str]]:
    """A few names of each language."""
    languages = torch.arange(len(names.languages)).repeat_interleave(count)
    longest = max(len(name) for name, _ in names.training)
    written = model.write(languages, generator, temperature=0.7, longest=longest)
    texts = ["".join(names.letters.decode(name)).capitalize() for name in written]
    return {
        language: texts[count * k : count * (k + 1)] for k, language in enumerate(names.languages)
    }


# Many to one.


class NameReader(nn.Module):
    """Letters to scores of languages, from the last states of both directions."""

    def __init__(self, library: Any, letters: int, languages: int, hidden: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(letters, EMBEDDING, padding_idx=PAD)
        self.rnn = library.LSTM(EMBEDDING, hidden // 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(hidden, languages)

    def forward(self, letters: Tensor, lengths: Tensor) -> Tensor:
        """``(B, T)`` letters and ``(B,)`` lengths to ``(B, K)``."""
        _, states = run_layers(self.rnn, self.letters(letters), lengths)
        scores: Tensor = self.head(last_hidden(states, directions=2))
        return scores


def reading_batch(names: Sequence[tuple[str, int]], letters: SymbolTable) -> tuple[Tensor, ...]:
    padded, lengths = pad([letters.encode(name) for name, _ in names], PAD)
    return padded, lengths, torch.tensor([language for _, language in names])


def name_batches(
    names: Names,
    generator: torch.Generator,
    collate: Callable[[Sequence[tuple[str, int]]], tuple[Tensor, ...]],
) -> DataLoader[Any]:
    lengths = [len(name) for name, _ in names.training]
    return batches_by_length(names.training, lengths, 64, generator, collate)


def many_to_one(task: Task) -> Outcome:
    """A name in, its language out, once all of it has been read."""
    generator = task.generator()
    names, letters = task.names, task.names.letters
    arguments = (len(letters), len(names.languages), 2 * task.hidden)
    model = NameReader(task.library, *arguments)
    batches = name_batches(names, generator, lambda part: reading_batch(part, letters))
    training = train(
        model,
        batches,
        lambda batch: cross_entropy(model(batch[0], batch[1]), batch[2]),
        steps=task.epochs * len(batches),
        learning_rate=5e-3,
        label="many to one",
    )
    with torch.inference_mode():
        padded, lengths, languages = reading_batch(names.held_out, letters)
        found = model(padded, lengths).argmax(-1)
    accuracy = (found == languages).double().mean().item()
    count = len(names.languages)
    taken_for = torch.bincount(languages * count + found, minlength=count**2).view(count, count)
    row = as_row(
        "many to one",
        "a name's language",
        "accuracy",
        accuracy,
        "most frequent language",
        majority(languages.tolist()),
    )
    return Outcome(model, arguments, row, training, taken_for.tolist())


# Many to many, aligned.


class FrameLabeller(nn.Module):
    """A label for each frame of a signal, from what comes before and after it."""

    def __init__(self, library: Any, kinds: int, hidden: int) -> None:
        super().__init__()
        self.rnn = library.LSTM(1, hidden // 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(hidden, kinds)

    def forward(self, signals: Tensor) -> Tensor:
        """``(B, T, 1)`` to ``(B, T, K)``."""
        output, _ = self.rnn(signals)
        scores: Tensor = self.head(output)
        return scores


class FrameAlone(nn.Module):
    """The same from a frame alone: what a network without memory can do."""

    def __init__(self, kinds: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, kinds))

    def forward(self, signals: Tensor) -> Tensor:
        scores: Tensor = self.layers(signals)
        return scores


def many_to_many_aligned(task: Task) -> Outcome:
    """A signal in, the wave of each frame out."""
    signals, labels = make_signals(task.signals, 100, task.seed)
    test, truth = make_signals(max(task.signals // 4, 1), 100, task.seed + 1)
    arguments = (len(WAVES), task.hidden)
    accuracies = []
    models: list[nn.Module] = []
    for build in (lambda: FrameAlone(*arguments), lambda: FrameLabeller(task.library, *arguments)):
        generator = task.generator()
        model = build()
        dataset = TensorDataset(signals, labels)
        batches = DataLoader(dataset, 16, shuffle=True, generator=generator)

        def loss(batch: Sequence[Tensor], model: nn.Module = model) -> Tensor:
            return cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

        training = train(
            model,
            batches,
            loss,
            steps=task.epochs * len(batches),
            learning_rate=1e-2,
            label="many to many, aligned",
        )
        with torch.inference_mode():
            found = model(test).argmax(-1)
        accuracies.append((found == truth).double().mean().item())
        models.append(model)
    row = as_row(
        "many to many, aligned",
        "a signal's frames",
        "accuracy",
        accuracies[1],
        "from the frame alone",
        accuracies[0],
    )
    first = {
        "values": [round(value, 4) for value in test[0, :, 0].tolist()],
        "truth": truth[0].tolist(),
        "found": found[0].tolist(),
    }
    return Outcome(models[1], arguments, row, training, first)


# Many to many, unaligned.


def date_translator(library: Any, source: int, target: int, hidden: int) -> EncoderDecoder:
    return EncoderDecoder(library, "additive", source, target, embedding=EMBEDDING, hidden=hidden)


def many_to_many_unaligned(task: Task) -> Outcome:
    """A date as people write it in, the same as ISO 8601 has it out: other lengths, other order."""
    generator = task.generator()
    test_size = max(task.dates // 10, 1)
    pairs = generated_dates(task.dates + test_size, task.seed)
    trained, test = pairs[test_size:], pairs[:test_size]
    tables = [
        SymbolTable.of((p[side] for p in trained), encoder_decoder.SPECIALS) for side in (0, 1)
    ]
    encoded = [(tables[0].encode(s), tables[1].encode(t)) for s, t in trained]
    batches = batches_by_length(
        encoded, [len(source) for source, _ in encoded], 64, generator, encoder_decoder.collate
    )
    arguments = (len(tables[0]), len(tables[1]), 2 * task.hidden)
    model = date_translator(task.library, *arguments)
    training = train(
        model,
        batches,
        model.loss,
        steps=task.epochs * len(batches),
        learning_rate=5e-3,
        label="many to many, unaligned",
    )
    batch = encoder_decoder.collate([(tables[0].encode(s), tables[1].encode([])) for s, _ in test])
    found = model.translate(batch.source, batch.source_lengths, max_length=12)
    written = [tables[1].decode(hypothesis.tokens) for hypothesis in found]
    rates = error_rates([target for _, target in test], written)
    first = [trained[0][1]] * len(test)  # one right answer, whatever was asked
    row = as_row(
        "many to many, unaligned",
        "dates",
        "errors/letter",
        rates["error_rate"],
        "always the same date",
        error_rates([target for _, target in test], first)["error_rate"],
    )
    return Outcome(model, arguments, row, training, ("".join(test[0][0]), "".join(written[0])))
