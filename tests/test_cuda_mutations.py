"""That the emulator would notice: kernels with one barrier, wait or buffer less must fail."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import Case, arguments, errors, reference, results
from cuda_emulator import runner

if runner.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

from cuda_emulated import CSRC, registered

from fastrnn.cells import CELLS

pytestmark = [pytest.mark.slow, pytest.mark.cuda]

#: By name: file, text that occurs once, what takes its place, regime that must notice.
MUTATIONS = {
    "nothing": ("exchange.cuh", "#pragma once", "#pragma once", "grid-2-1"),
    "no wait for flags": (
        "sequence.cuh",
        "if (g == 0 && fed_here)",
        "if (g < 0 && fed_here)",
        "grid-1-1",
    ),
    "flag set before all have stored": (
        "exchange.cuh",
        "    sync_block();\n    if (p_.work.flags && threadIdx.x == 0)",
        "    if (p_.work.flags && threadIdx.x == 0)",
        "grid-1-1",
    ),
    "flag of the step before": (
        "sequence.cuh",
        "part.writers, unsigned(step.index + kStage))",
        "part.writers, unsigned(step.index + kStage - 1))",
        "grid-1-1",
    ),
    "no barrier before sums are taken": (
        "sequence.cuh",
        "      else\n        sync_block();",
        "",
        "stepwise-1-1",
    ),
    "sums of two turns in one place": ("sequence.cuh", "turn_ ^= 1;", "", "grid-2-1"),
    "no barrier of a block before sums are taken": (
        "sequence.cuh",
        "      else\n        sync_block();",
        "",
        "cluster-2-1",
    ),
    "sums of two turns of a block in one place": (
        "sequence.cuh",
        "turn_ ^= 1;",
        "",
        "cluster-2-1",
    ),
    "no barrier of the cluster for sums": (
        "sequence.cuh",
        "      if (split_ > 1)\n        cluster_arrive(), cluster_wait();\n      else",
        "",
        "grid-2-1",
    ),
    "one copy of the states": ("exchange.cuh", "(step % 2) * of_team", "0 * step", "cluster-2-1"),
    "stages do not end with a barrier": (
        "exchange.cuh",
        "{ cluster_arrive(); }\n  FASTRNN_DEVICE void wait_for_all() const { cluster_wait(); }",
        "{}\n  FASTRNN_DEVICE void wait_for_all() const {}",
        "cluster-2-1",
    ),
    "arrived before the states have gone out": (
        "sequence.cuh",
        "      N values[Stage::kOut ? Stage::kOut : 1] = {};",
        "      if (last && g + 1 == turns) exchange_.arrive();\n"
        "      last = last && g + 1 != turns;\n"
        "      N values[Stage::kOut ? Stage::kOut : 1] = {};",
        "cluster-2-1",
    ),
    "the place of the first tile": (
        "sequence.cuh",
        "if (tile.index == visited_) return;",
        "if (visited_ >= 0) return;",
        "grid-8-1",
    ),
    "pieces are read before they are there": (
        "tiled.cuh",
        "wait_copies<kPieces - 2>();",
        "wait_copies<kPieces - 1>();",
        "tiled-1",
    ),
    "no barrier between pieces": (
        "tiled.cuh",
        "      sync_block();  // the piece is there",
        "      // the piece is there",
        "tiled-1",
    ),
    "one piece too many on its way": (
        "tiled.cuh",
        "      fetch(piece + kPieces - 1, bricks",
        "      fetch(piece + kPieces, bricks",
        "tiled-1",
    ),
    "sums put over pieces that others multiply": (
        "tiled.cuh",
        "      synchronize();\n      put(tile);",
        "      put(tile);",
        "tiled-1",
    ),
    "no barrier before tiled sums are taken": (
        "tiled.cuh",
        "    synchronize();\n    finish(s, now);",
        "    finish(s, now);",
        "tiled-1",
    ),
    "a block's barrier for sums of a cluster": (
        "tiled.cuh",
        "    if (split_ > 1)\n      cluster_arrive(), cluster_wait();\n    else\n",
        "",
        "tiled-2",
    ),
}


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def mutated(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """The sources with other texts in them, by file."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    for file, old, new in changes:
        source = csrc / "cuda" / file
        assert source.read_text().count(old) == 1, f"the text to change has moved: {old}"
        source.write_text(source.read_text().replace(old, new))
    # One arithmetic and one cell compile faster.
    table = csrc / "cuda" / "layer.cuh"
    text, others = re.subn(r"entry<[\w<>]+>\(\)", "{}", table.read_text())
    assert others == len(CELLS) - 1
    table.write_text(text)
    for math in ("float16", "bfloat16", "tf32", "float64"):
        (csrc / "cuda" / f"math_{math}.cu").write_text(
            '#include "kernels.h"\nnamespace fastrnn {\n'
            f"const CudaKernels* cuda_kernels_{math}() {{ return nullptr; }}\n}}\n"
        )
    return csrc


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_noticed(name: str, tmp_path: Path) -> None:
    *change, regime = MUTATIONS[name]
    csrc = mutated(tmp_path, tuple(change))
    case = Case("lstm", torch.float32, steps=5, hidden_size=37, batch=20)
    a = arguments(case)
    noticed = False
    for seed in range(1, 6):
        if noticed:
            break
        with registered(regime, checked=True, csrc=csrc, seed=seed, multiprocessors=16) as backend:
            try:
                found = errors(results(a, backend=backend), reference(a), case)
                noticed = noticed or not all(error <= 1 for error in found.values())
            except RuntimeError:
                noticed = True
    assert noticed == (name != "nothing")


def test_a_debug_build_ends_a_wait_for_what_never_comes(tmp_path: Path) -> None:
    """As FASTRNN_CUDA_DEBUG builds it, with fewer spins than the emulator calls a deadlock."""
    never = "    if (p_.work.flags && threadIdx.x == 0) store_release("
    csrc = mutated(
        tmp_path,
        ("exchange.cuh", never, never.replace("== 0", "== kThreads")),
        (
            "exchange.cuh",
            "#define FASTRNN_MOST_SPINS \\\n  0",
            "#define FASTRNN_MOST_SPINS \\\n  50",
        ),
    )
    case = Case("lstm", torch.float32, steps=3, hidden_size=37, batch=3)
    with (
        registered("grid-1", csrc=csrc, multiprocessors=16) as backend,
        pytest.raises(RuntimeError, match=r"fastrnn: layer_forward: .* calls trap\(\)"),
    ):
        results(arguments(case), backend=backend)
