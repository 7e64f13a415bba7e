"""Training of a character model by several LSTMs side by side, and the yardstick between them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .text import Streams, Vocabulary

#: None before the first character; a pair of tensors for an LSTM.
State = Tensor | tuple[Tensor, ...] | None

LEARNING_RATE = 2e-3
MAX_GRADIENT_NORM = 1.0
#: Steps one learner makes before it is the next one's turn.
BLOCK = 5
#: Windows of the held-out text that are looked at.
HELD_OUT_WINDOWS = 40
#: Two trainings may lie this many times further apart than the control from its twin.
MARGIN = 4.0


class CharModel(nn.Module):
    """Embedding, recurrent layers, linear layer: ``(T, B)`` characters to ``(T, B, V)`` scores.

    ``layer_class`` is RNN, LSTM or GRU of ``fastrnn`` or ``torch.nn``; of one kind, the state_dict
    is the same with either library.
    """

    def __init__(
        self, layer_class: Callable[..., nn.Module], vocabulary: int, hidden: int, layers: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.rnn = layer_class(hidden, hidden, layers)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, characters: Tensor, state: State = None) -> tuple[Tensor, State]:
        output, state = self.rnn(self.embedding(characters), state)
        return self.head(output), state

    def loss(self, window: tuple[Tensor, Tensor], state: State) -> tuple[Tensor, State]:
        """Mean cross entropy of a window in nats per character, and the state after it."""
        inputs, targets = window
        scores, state = self(inputs, state)
        return cross_entropy(scores.flatten(0, 1), targets.flatten()), state


def detached(state: State) -> State:
    """The same state, with nothing before it to go back to: where backpropagation is truncated."""
    if isinstance(state, tuple):
        return tuple(tensor.detach() for tensor in state)
    return None if state is None else state.detach()


class Learner:
    """A model in training: its optimizer, the state it carries, its losses and its times."""

    def __init__(self, name: str, model: CharModel) -> None:
        self.name = name
        self.model = model
        self.losses: list[float] = []
        self.step_seconds: list[float] = []  # of a step, one mean for each block
        self._optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        self._state: State = None

    def before_step(self) -> None:
        """Hook for the control."""

    def train(self, streams: Streams, steps: int) -> None:
        """Make some steps, timed together, and remember the loss of each."""
        start = time.perf_counter()
        for index in range(len(self.losses), len(self.losses) + steps):
            if index % len(streams) == 0:
                self._state = None
            self.before_step()
            self._optimizer.zero_grad(set_to_none=True)
            loss, state = self.model.loss(streams.window(index), self._state)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
            self._optimizer.step()
            self._state = detached(state)
            self.losses.append(loss.item())
        self.step_seconds.append((time.perf_counter() - start) / steps)

    def characters_per_second(self, streams: Streams) -> float:
        """Characters learned from per second, median over the blocks."""
        batch: int = streams.numbers.shape[0]
        return streams.steps * batch / statistics.median(self.step_seconds)


class Control(Learner):
    """Shows how far rounding alone takes two trainings apart.

    The sum of K products in floating point with unit roundoff u is off by about ``u sqrt(K)`` of
    the size of its terms, whatever adds them up. So the weights that enter such sums are moved at
    random by up to that much before every step, and the distance to an undisturbed twin is what
    two correct implementations may show, at this learning rate, on this text, after this many
    steps.
    """

    def __init__(self, name: str, model: CharModel, seed: int) -> None:
        super().__init__(name, model)
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def before_step(self) -> None:
        for weight in self.model.rnn.parameters():
            size = roundoff(weight.shape[-1] if weight.dim() == 2 else 1)
            factor = torch.empty_like(weight)
            weight.mul_(factor.uniform_(1 - size, 1 + size, generator=self._generator))


def roundoff(terms: int) -> float:
    """Typical relative error of a float32 sum of so many products."""
    unit: float = torch.finfo(torch.float32).eps / 2
    return unit * math.sqrt(terms)


def allowed_differences(
    losses: Sequence[float], control: Sequence[float], hidden: int
) -> list[float]:
    """How far a loss curve may lie from ``losses``, step by step.

    The roundoff of the loss itself, and a multiple of the greatest distance that the control has
    shown up to that step.
    """
    allowed = []
    greatest = 0.0
    for loss, other in zip(losses, control, strict=True):
        greatest = max(greatest, abs(loss - other))
        allowed.append(roundoff(2 * hidden) * loss + MARGIN * greatest)
    return allowed


@torch.inference_mode()
def held_out_loss(model: CharModel, streams: Streams) -> float:
    """Mean cross entropy on text that was not trained on, in nats per character."""
    total, state = 0.0, None
    windows = min(len(streams), HELD_OUT_WINDOWS)
    for index in range(windows):
        loss, state = model.loss(streams.window(index), state)
        total += loss.item()
    return total / windows


@torch.inference_mode()
def sample(
    model: CharModel,
    vocabulary: Vocabulary,
    prompt: str,
    length: int,
    temperature: float,
    seed: int,
) -> str:
    """Continue ``prompt`` by ``length`` characters drawn one at a time, T = B = 1."""
    generator = torch.Generator().manual_seed(seed)
    numbers = vocabulary.encode(prompt)
    scores, state = model(numbers[:, None])
    drawn = []
    for _ in range(length):
        probabilities = torch.softmax(scores[-1, 0] / temperature, dim=0)
        drawn.append(torch.multinomial(probabilities, 1, generator=generator))
        scores, state = model(drawn[-1][:, None], state)
    return prompt + vocabulary.decode(torch.cat(drawn))


def save_checkpoint(path: Any, model: CharModel, vocabulary: Vocabulary) -> None:
    """Write what it takes to build the model again, with either library's LSTM."""
    torch.save(
        {
            "model": model.state_dict(),
            "vocabulary": vocabulary.characters,
            "hidden": model.head.in_features,
            "layers": model.rnn.num_layers,
        },
        path,
    )


def load_checkpoint(
    path: Any, layer_class: Callable[..., nn.Module]
) -> tuple[CharModel, Vocabulary]:
    """The model of a checkpoint, on an LSTM of the library of one's choice."""
    checkpoint = torch.load(path, weights_only=True)
    vocabulary = Vocabulary(checkpoint["vocabulary"])
    model = CharModel(layer_class, len(vocabulary), checkpoint["hidden"], checkpoint["layers"])
    model.load_state_dict(checkpoint["model"])
    return model, vocabulary
