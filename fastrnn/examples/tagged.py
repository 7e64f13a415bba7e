"""Tagged sentences: from files, from a grammar of our own, as tags or as named spans."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

#: A label for each token of a sentence, in one of two schemes: its part of speech, or its place in
#: a name (begin, inside, outside).
SCHEMES = ("pos", "bio")


@dataclass(frozen=True)
class Sentence:
    words: list[str]
    pos: list[str]
    bio: list[str]

    def labels(self, scheme: str) -> list[str]:
        return self.pos if scheme == "pos" else self.bio


# Named spans.


class Span(NamedTuple):
    begin: int
    end: int  # not included
    kind: str


def spans(bio: Sequence[str]) -> set[Span]:
    """The spans that B-, I- and O labels mark.

    An I- that continues nothing of its kind begins a span, as in the evaluation of CoNLL-2000.
    """
    found: set[Span] = set()
    begin, kind = 0, ""
    for place, label in enumerate([*bio, "O"]):
        prefix, _, name = label.partition("-")
        if kind and (prefix != "I" or name != kind):
            found.add(Span(begin, place, kind))
            kind = ""
        if prefix != "O" and not kind:
            begin, kind = place, name
    return found


def span_scores(truth: Iterable[Sequence[str]], found: Iterable[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole spans: beginning, end and kind must be right."""
    right = true = claimed = 0
    for labels, predicted in zip(truth, found, strict=True):
        a, b = spans(labels), spans(predicted)
        right, true, claimed = right + len(a & b), true + len(a), claimed + len(b)
    precision, recall = right / max(claimed, 1), right / max(true, 1)
    f1 = 2 * right / max(true + claimed, 1)
    return {"precision": precision, "recall": recall, "f1": f1}


# Universal Dependencies.


def proper_name_spans(pos: Sequence[str]) -> list[str]:
    """B-NAME and I-NAME for each maximal run of proper nouns, O elsewhere."""
    labels = []
    for previous, tag in zip(["", *pos], pos, strict=False):
        labels.append("O" if tag != "PROPN" else "I-NAME" if previous == "PROPN" else "B-NAME")
    return labels


def read_conllu(path: Path) -> list[Sentence]:
    """Words and universal tags of a CoNLL-U file; its proper nouns make the named spans.

    Raises:
        ValueError: a line has not ten columns, or there is no sentence.
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    pos: list[str] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate([*lines, ""], start=1):
        if not line.strip():
            if words:
                sentences.append(Sentence(words, pos, proper_name_spans(pos)))
            words, pos = [], []
        elif not line.startswith("#"):
            columns = line.split("\t")
            if len(columns) != 10:
                raise ValueError(
                    f"{path}, line {number}: expected 10 columns between tabs, got {len(columns)}"
                )
            if columns[0].isdecimal():  # no range of a contraction, no word left out
                words.append(columns[1])
                pos.append(columns[3])
    if not sentences:
        raise ValueError(f"{path}: expected sentences in CoNLL-U, found none")
    return sentences


# A grammar, for whoever has no file.

DETERMINERS = ["the", "a", "this", "every", "some"]
ADJECTIVES = ["old", "young", "quick", "quiet", "famous", "green", "narrow"]
NOUNS = ["doctor", "river", "song", "teacher", "garden", "window", "engine", "story"]
#: Nouns, and verbs: only what stands around them tells.
AMBIGUOUS = ["watch", "play", "run", "fly", "cook", "guide", "paint", "plan"]
VERBS = ["sees", "likes", "finds", "visits", "hears", "follows"]
PREPOSITIONS = ["near", "under", "behind", "with", "from"]
ADVERBS = ["often", "never", "slowly", "today"]
FIRST_NAMES = ["Anna", "Boris", "Clara", "David", "Elena", "Felix"]
#: Families, and towns: "Anna Florence" is a person, "in Florence" a place.
SHARED_NAMES = ["Florence", "Lincoln", "Jackson", "Paris", "Austin", "Sydney"]
#: Words that follow the name of a company, and nothing else.
COMPANY_ENDINGS = ["Inc", "Ltd", "Group"]
FUNCTION_WORDS = {"who": "PRON", "and": "CCONJ", "that": "SCONJ", "will": "AUX", "to": "PART"}
PUNCTUATION = {".": "PUNCT", ",": "PUNCT", "?": "PUNCT"}

Token = tuple[str, str, str]  # word, part of speech, BIO label


class Grammar:
    """Random sentences whose tags follow from the rules that made them.

    Some words can only be tagged by what comes after them: the names of "Anna Paris" are those of
    a person, the same before "Ltd" those of a company; the second word of "the watch guide" is a
    noun if a verb follows, else a verb.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def sentences(self, count: int) -> list[Sentence]:
        found = []
        for _ in range(count):
            words, pos, bio = zip(*self._sentence(), strict=True)
            found.append(Sentence(list(words), list(pos), list(bio)))
        return found

    def _sentence(self) -> list[Token]:
        tokens = [*self._subject(depth=0), *self._predicate(depth=0)]
        if self._random.random() < 0.3:
            tokens += [self._word("and"), *self._subject(depth=1), *self._predicate(depth=1)]
        return [*tokens, (".", "PUNCT", "O")]

    def _word(self, word: str) -> Token:
        return word, FUNCTION_WORDS[word], "O"

    def _one_of(self, words: Sequence[str], pos: str) -> Token:
        return self._random.choice(words), pos, "O"

    def _subject(self, depth: int) -> Iterator[Token]:
        if self._random.random() < 0.45:
            yield from self._name()
            return
        yield self._one_of(DETERMINERS, "DET")
        for _ in range(self._random.choice((0, 0, 1, 2))):
            yield self._one_of(ADJECTIVES, "ADJ")
        if self._random.random() < 0.4:
            yield self._one_of(AMBIGUOUS, "NOUN")
        yield self._one_of(NOUNS if self._random.random() < 0.3 else AMBIGUOUS, "NOUN")
        if self._random.random() < 0.3 and depth < 2:
            yield self._one_of(PREPOSITIONS, "ADP")
            yield from self._place() if self._random.random() < 0.5 else self._subject(depth + 1)
        if self._random.random() < 0.25 and depth < 2:
            yield self._word("who")
            yield from self._predicate(depth + 1)

    def _predicate(self, depth: int) -> Iterator[Token]:
        if self._random.random() < 0.3:
            yield self._one_of(ADVERBS, "ADV")
        if self._random.random() < 0.35:
            yield self._word("will")
        yield self._one_of(VERBS if self._random.random() < 0.3 else AMBIGUOUS, "VERB")
        if depth < 2 and self._random.random() < 0.75:
            yield from self._subject(depth + 1)
        if self._random.random() < 0.3:
            yield self._one_of(PREPOSITIONS, "ADP")
            yield from self._place()

    def _place(self) -> Iterator[Token]:
        yield self._random.choice(SHARED_NAMES), "PROPN", "B-PLACE"

    def _name(self) -> Iterator[Token]:
        """A person, or a company whose last word alone tells that it is one."""
        words = [self._random.choice((*FIRST_NAMES, *SHARED_NAMES))]
        if self._random.random() < 0.6:
            words.append(self._random.choice(SHARED_NAMES))
        kind = "PERSON"
        if self._random.random() < 0.4:
            words.append(self._random.choice(COMPANY_ENDINGS))
            kind = "COMPANY"
        for place, word in enumerate(words):
            yield word, "PROPN", f"{'I' if place else 'B'}-{kind}"


def read_sentences(
    data: Path | None, test: Path | None, seed: int, *, generated: int
) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences to train on and to test on.

    Without a file, ``generated`` sentences of the grammar and half as many others; without a file
    to test on, the last tenth of the one to train on.

    Raises:
        ValueError: a file to test on without one to train on, or one that is not CoNLL-U.
    """
    if data is None:
        if test is not None:
            raise ValueError("--test: expected --data beside it")
        return Grammar(seed).sentences(generated), Grammar(seed + 1).sentences(generated // 2)
    sentences = read_conllu(data)
    if test is not None:
        return sentences, read_conllu(test)
    cut = len(sentences) - max(len(sentences) // 10, 1)
    if cut < 1:
        raise ValueError(f"{data}: expected 2 sentences or more, got {len(sentences)}")
    return sentences[:cut], sentences[cut:]
