"""The character language model, trained by several processes, each on its part of the batch.

``torchrun --nproc-per-node=2 -m fastrnn.examples.char_lm_parallel [--data TEXT]`` starts two; the
options of ``torchrun`` that name other machines spread them over those. Every process reads its own
streams of the text and carries their state; gradients are averaged by
``torch.nn.parallel.DistributedDataParallel``, or with ``--sharded`` by
``torch.distributed.fsdp.fully_shard``, which also splits weights and optimizer state among the
processes. The training is that of one process on the whole batch
(``python -m fastrnn.examples.char_lm_parallel``), but for rounding.

Nothing of this is fastrnn's own: its modules have ordinary parameters. Processes talk over gloo and
compute on CPUs. Written to ``--out``: ``char_lm_parallel.pt``, a checkpoint that loads with either
library's LSTM (``training.load_checkpoint``), and the loss of each step as
``char_lm_parallel.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from . import pictures
from .program import (
    common_parser,
    execute,
    library,
    optional,
    parse_options,
    positive,
    write_results,
)
from .text import Streams, Vocabulary, read_text, split
from .training import (
    HELD_OUT_WINDOWS,
    LEARNING_RATE,
    MAX_GRADIENT_NORM,
    CharModel,
    save_checkpoint,
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(
        "char_lm_parallel",
        "Train a character LSTM on several processes.",
        data="text to learn (default: the sources of the standard library)",
        aliases=["--text"],
    )
    parser.prog = "torchrun --nproc-per-node=2 -m fastrnn.examples.char_lm_parallel"
    parser.add_argument("--steps", type=positive, default=200, help="steps of training")
    parser.add_argument("--hidden", type=positive, default=256, help="hidden units of a layer")
    parser.add_argument("--layers", type=positive, default=1, help="layers of the LSTM")
    parser.add_argument("--batch", type=positive, default=32, help="streams of all processes")
    parser.add_argument("--window", type=positive, default=50, help="steps back through time")
    parser.add_argument("--sharded", action="store_true", help="split the weights as well")
    return parse_options(parser, arguments)


def join() -> None:
    """Become one of the processes that torchrun started, or the only one."""
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    else:
        store = dist.HashStore()  # type: ignore[attr-defined]  # documented, not declared
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)


def own_part(streams: Streams) -> Streams:
    """The streams of this process: every n-th of all, for n processes."""
    return Streams(streams.numbers[dist.get_rank() :: dist.get_world_size()], streams.steps)


class Loss(nn.Module):
    """The model and its loss in one forward, which is what the wrappers of torch want."""

    def __init__(self, model: CharModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, window: tuple[Tensor, Tensor], state: Any) -> tuple[Tensor, Any]:
        """Mean cross entropy of a window in nats per character, and the state after it."""
        return self.model.loss(window, state)


def parallel(loss: Loss, *, sharded: bool) -> nn.Module:
    """The same with gradients averaged over all processes."""
    if not sharded:
        return DistributedDataParallel(loss)
    fully_shard(loss, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return loss


def mean_of_all(loss: Tensor) -> float:
    """The loss on the whole batch: every process has as many characters of it."""
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def train(loss_of: nn.Module, streams: Streams, steps: int) -> list[float]:
    """Truncated backpropagation through time; the loss of each step."""
    optimizer = torch.optim.Adam(loss_of.parameters(), lr=LEARNING_RATE)
    losses: list[float] = []
    state = None
    hidden = None if dist.get_rank() == 0 else True  # None: on a terminal
    bar = optional("tqdm").tqdm(range(steps), unit="step", disable=hidden)
    for index in bar:
        if index % len(streams) == 0:
            state = None
        optimizer.zero_grad(set_to_none=True)
        loss, state = loss_of(streams.window(index), state)
        loss.backward()
        state = tuple(tensor.detach() for tensor in state)
        nn.utils.clip_grad_norm_(loss_of.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        losses.append(mean_of_all(loss))
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


@torch.no_grad()
def held_out_loss(loss_of: nn.Module, streams: Streams) -> float:
    """Mean cross entropy on text that was not trained on, in nats per character."""
    total, state = 0.0, None
    windows = min(len(streams), HELD_OUT_WINDOWS)
    for index in range(windows):
        loss, state = loss_of(streams.window(index), state)
        total += mean_of_all(loss)
    return total / windows


def run(options: argparse.Namespace) -> list[str]:
    started = time.perf_counter()
    processes = dist.get_world_size()
    if options.batch % processes:
        raise ValueError(f"--batch: expected a multiple of {processes} processes")
    text = read_text(options.data)
    vocabulary = Vocabulary.of(text)
    trained, held_out = map(own_part, split(vocabulary.encode(text), options.batch, options.window))
    lstm_class = library(options.backend).LSTM
    sizes = (len(vocabulary), options.hidden, options.layers)
    torch.manual_seed(options.seed)  # the same weights in every process
    loss_of = parallel(Loss(CharModel(lstm_class, *sizes)), sharded=options.sharded)
    start = time.perf_counter()
    losses = train(loss_of, trained, options.steps)
    seconds = time.perf_counter() - start
    loss = held_out_loss(loss_of, held_out)

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(loss_of, options=whole)  # all processes take part
    if dist.get_rank() == 0:
        complete = Loss(CharModel(lstm_class, *sizes))
        complete.load_state_dict(weights)
        path = options.out / options.program
        results = {"processes": processes, "losses": losses, "held_out": loss}
        content = write_results(path.with_suffix(".json"), options, results, started=started)
        save_checkpoint(path.with_suffix(".pt"), complete.model, vocabulary)
        pictures.draw(options.program, path.with_suffix(".png"), content)
        print(
            f"{processes} processes of {torch.get_num_threads()} threads, "
            f"{'sharded' if options.sharded else 'replicated'} weights, {options.steps} steps\n"
            f"held-out nats/char {loss:.6f}, training chars/s "
            f"{options.steps * options.batch * options.window / seconds:,.0f}\n"
            f"written: {path}.json, .pt, .png"
        )
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    join()
    try:
        return execute(options, run)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
