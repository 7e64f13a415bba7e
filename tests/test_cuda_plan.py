"""Which regime serves which size: the planner, which needs no GPU."""

from __future__ import annotations

from typing import Any

import pytest
from cuda_emulator import runner

if runner.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

from cuda_emulated import extension

H200 = {"processors": 132, "shared_bytes": 232448, "max_cluster": 8, "clusters": 120}
ANY = (-1, -1, -1, -1)
STEPWISE, PROCESSOR, CLUSTER, GRID, TILED = ((place, -1, -1, -1) for place in range(5))
WARPS = 8


def stage(units: int, gates: int, values: int, itemsize: int = 2) -> tuple[int, int, int, int]:
    """A product of ``gates * units`` rows with states of ``values`` values."""
    bricks = -(-values * itemsize // 64)
    return units, gates, bricks, (bricks | 1) * 64


def plan(
    stages: list[tuple[int, int, int, int]],
    batch: int,
    choice: tuple[int, int, int, int] = ANY,
    directions: int = 1,
    matrix: bool = True,
    itemsize: int = 2,
    **device: int,
) -> dict[str, Any]:
    numbers = H200 | device
    found: dict[str, Any] = extension().plan(
        len(stages), stages, 100, batch, directions, matrix, itemsize, *numbers.values(), choice
    )
    return found


def forward(hidden: int, gates: int = 4, itemsize: int = 2) -> list[tuple[int, int, int, int]]:
    return [stage(hidden, gates, hidden, itemsize)]


def backward(hidden: int, gates: int = 4, itemsize: int = 2) -> list[tuple[int, int, int, int]]:
    return [stage(hidden, 1, gates * hidden, itemsize)]


SIZES = [1, 8, 31, 64, 100, 128, 160, 200, 256, 300, 384, 512, 650, 768, 1024, 1536, 2048, 4096]
BATCHES = [1, 4, 8, 16, 17, 20, 32, 64, 128, 1000]


@pytest.mark.parametrize("choice", [ANY, STEPWISE, PROCESSOR, CLUSTER, GRID, TILED])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("passes", [forward, backward])
def test_every_unit_and_place_has_its_block(
    passes: Any, directions: int, choice: tuple[int, int, int, int]
) -> None:
    for hidden in SIZES:
        for batch in BATCHES:
            found = plan(passes(hidden), batch, choice, directions)
            if not found:
                assert choice in (PROCESSOR, CLUSTER, GRID)
                continue
            units = found["blocks"] * found["per_block"][0] * 8 * found["unit_blocks"][0]
            assert units >= hidden
            assert found["tiles"] * found["tile_places"] >= batch
            assert 1 <= found["teams"] <= found["tiles"]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("passes", [forward, backward])
def test_blocks_that_wait_for_each_other_are_resident(passes: Any, directions: int) -> None:
    for hidden in SIZES:
        for batch in BATCHES:
            found = plan(passes(hidden), batch, GRID, directions)
            if not found:
                continue
            blocks = found["blocks"] * found["teams"] * directions
            assert blocks <= H200["processors"]
            assert found["shared_bytes"] <= H200["shared_bytes"]
            assert found["blocks"] % found["cluster"] == 0
            assert WARPS % found["cluster"] == 0
            if found["cluster"] > 1:
                assert blocks <= H200["clusters"]


def test_stepwise_serves_everything() -> None:
    for hidden in (1, 5000, 20000):
        for batch in (1, 100000):
            assert plan(forward(hidden), batch)
            found = plan(forward(hidden), batch, STEPWISE, processors=1, shared_bytes=49152)
            assert found["regime"] == "stepwise"
            assert found["shared_bytes"] <= 49152


def test_regimes_follow_what_fits() -> None:
    """Of a 16-bit LSTM on an H200: one multiprocessor, one cluster, all of them, none."""
    fits = {
        hidden: [bool(plan(forward(hidden), 8, choice)) for choice in (PROCESSOR, CLUSTER, GRID)]
        for hidden in (64, 128, 200, 384, 768, 1024, 1536, 4096)
    }
    assert fits[64] == fits[128] == [True, True, True]
    assert fits[200] == fits[384] == [False, True, True]
    assert fits[768] == fits[1024] == fits[1536] == [False, False, True]
    assert fits[4096] == [False, False, False]
    assert plan(forward(1024), 16)["regime"] == "grid"
    assert plan(forward(4096), 16)["regime"] == "stepwise"


def test_backward_shares_k() -> None:
    """A block reads four times as much of states as forward: too much for one block alone."""
    found = plan(backward(768), 16)
    assert found["regime"] == "grid"
    assert found["cluster"] > 1
    assert found["step"] < plan(backward(768), 16, (3, 1, -1, -1))["step"]


def test_a_team_of_a_grid_needs_no_second() -> None:
    """Blocks of clusters of 8: 132 multiprocessors would do for two teams of 64, but 15 clusters
    are resident and not 16. One team then, rather than another regime."""
    for stages, batch, itemsize, steps in (
        (backward(1024), 32, 2, 3.3e-6),
        (backward(512, itemsize=4), 64, 4, 3.3e-6),
    ):
        found = plan(stages, batch, itemsize=itemsize)
        assert found["regime"] == "grid"
        assert found["cluster"] == 8
        assert found["blocks"] * found["teams"] == 64
        assert found["step"] < steps
        more = plan(stages, batch, itemsize=itemsize, clusters=128)
        assert more["blocks"] * more["teams"] == 128
        assert more["step"] < found["step"]


def test_teams_queue_where_shared_memory_lacks_room_for_their_states() -> None:
    few, many = (plan(forward(64), batch, PROCESSOR) for batch in (20_000, 100_000))
    assert few["teams"] <= H200["processors"] < many["teams"]
    assert many["step"] >= 5 * few["step"]
    assert not plan(forward(64), 10**9, PROCESSOR)  # more teams than a grid has rows


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("passes", [forward, backward])
def test_a_smaller_device_is_never_faster(passes: Any, directions: int) -> None:
    for hidden in SIZES:
        for batch in BATCHES:
            stages, before = passes(hidden), 0.0
            for processors, clusters in ((132, 132), (132, 120), (108, 96), (60, 48), (20, 16)):
                device = {"processors": processors, "clusters": clusters, "max_cluster": 16}
                step = plan(stages, batch, directions=directions, **device)["step"]
                assert step >= before
                before = step


def test_the_device_is_asked_only_about_what_may_win() -> None:
    """A question takes longer than a launch and, with CuPy, a compilation."""
    for choice in (STEPWISE, PROCESSOR, (4, 1, -1, -1)):  # whose blocks wait for nobody
        assert plan(forward(128), 16, choice)["asked"] == 0
    assert plan(forward(512), 16, (3, 1, 1, 16))["asked"] == 1
    found = plan(forward(512), 16)
    assert found["regime"] == "grid"
    assert found["asked"] == 1
    alone = {"max_cluster": 1, "clusters": 0}
    assert plan(forward(64), 4, **alone)["asked"] == 0
    for hidden in SIZES:
        for batch in BATCHES:
            assert plan(forward(hidden), batch, **alone)["asked"] <= 2


def test_no_clusters_before_hopper() -> None:
    ampere = {"processors": 108, "shared_bytes": 166912, "max_cluster": 1, "clusters": 0}
    for hidden in SIZES:
        for batch in BATCHES:
            for passes in (forward, backward):
                found = plan(passes(hidden), batch, **ampere)
                assert found["regime"] != "cluster"
                assert found["cluster"] == 1
                assert found["shared_bytes"] <= ampere["shared_bytes"]


def test_two_stages() -> None:
    for hidden, output in ((512, 128), (1024, 1000), (40, 3)):
        stages = [stage(hidden, 4, output), stage(output, 1, hidden)]
        found = plan(stages, 16, GRID)
        for (units, *_), each, blocks in zip(
            stages, found["per_block"], found["unit_blocks"], strict=True
        ):
            assert found["blocks"] * each * 8 * blocks >= units


@pytest.mark.parametrize(("matrix", "itemsize"), [(True, 2), (True, 4), (False, 4), (False, 8)])
@pytest.mark.parametrize("passes", [forward, backward])
def test_large_batches_are_tiled(passes: Any, matrix: bool, itemsize: int) -> None:
    """Where a step's arithmetic outweighs a launch, and only where the prediction says so."""
    numbers: dict[str, Any] = {"matrix": matrix, "itemsize": itemsize}
    for hidden in (64, 256, 1024, 2048, 4096):
        for batch in (1, 16, 64, 256, 1024):
            stages = passes(hidden, itemsize=itemsize)
            found, tiled = plan(stages, batch, **numbers), plan(stages, batch, TILED, **numbers)
            assert tiled["shared_bytes"] <= 99 << 10  # what every device from Ampere on has
            assert found["step"] <= tiled["step"]
            if hidden == 64 or (batch == 1 and hidden <= 1024):
                assert found["regime"] != "tiled"
            if batch >= 256 and hidden >= (2048 if itemsize == 2 else 1024):
                assert found["regime"] == "tiled"
                # Weights are read for 64 places instead of 16 or 8.
                assert tiled["step"] < 0.5 * plan(stages, batch, STEPWISE, **numbers)["step"]


def test_tiled_blocks_share_k_where_there_are_few() -> None:
    """Backward has four times the k of forward, and a fourth of its rows of weights."""
    assert plan(forward(1024), 256, TILED)["cluster"] == 1
    found = plan(backward(1024), 256, TILED)
    assert found["cluster"] > 1
    assert found["step"] < plan(backward(1024), 256, (4, 1, -1, -1))["step"]
    for cluster in (1, 2, 4, 8):
        assert plan(backward(1024), 256, (4, cluster, -1, -1))["cluster"] == cluster
    assert not plan(backward(1024), 256, (4, 16, -1, -1), max_cluster=16)


def test_wide_tiles_need_several() -> None:
    """32 places at a time read weights once for two tiles of 16, but hide no exchange behind the
    other's arithmetic."""
    tf32: dict[str, Any] = {"matrix": True, "itemsize": 4}
    stages = forward(768, itemsize=4)
    steps = {
        batch: [plan(stages, batch, (3, -1, -1, places), **tf32)["step"] for places in (16, 32)]
        for batch in (8, 16, 64, 128)
    }
    assert [wide < narrow for narrow, wide in steps.values()] == [False, False, True, True]
    found = plan(stages, 64, **tf32)
    assert (found["regime"], found["tile_places"]) == ("grid", 32)
    # They are compiled for the grid, groups of 8 units, three gates and more, matrix instructions.
    for other in ((3, -1, 2, 32), (2, -1, 1, 32), (0, -1, 1, 32)):
        assert not plan(forward(256), 64, other)
    assert not plan(backward(256), 64, (3, -1, 1, 32))
    assert not plan(forward(256, itemsize=4), 64, (3, -1, 1, 32), matrix=False, itemsize=4)


def test_clusters_of_sixteen_where_they_are_resident() -> None:
    """A 16-bit LSTM of 512 units needs more shared memory than eight blocks have."""
    assert not plan(forward(512), 16, CLUSTER)
    found = plan(forward(512), 16, CLUSTER, max_cluster=16)
    assert found["cluster"] == found["blocks"] == 16
    # The device knows such clusters, but holds none.
    assert not plan(forward(512), 16, CLUSTER, max_cluster=16, clusters=15)
    assert plan(forward(512), 16, max_cluster=16, clusters=15)["cluster"] <= 8


@pytest.mark.parametrize("place", [0, 1, 4])
def test_sizes_that_kernels_cannot_count(place: int) -> None:
    """steps, batch, hidden_size: refused before anything is launched."""
    sizes = [3, 5, 15, 7, 9, 9, 1]
    sizes[place] = 1 << 30
    with pytest.raises(
        RuntimeError, match=r"fewer than 2\^30 steps, rows and units, got 1073741824"
    ):
        extension().planned(False, 2, 4, 0, sizes, ANY)
