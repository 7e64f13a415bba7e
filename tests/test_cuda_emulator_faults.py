"""The emulator of CUDA kernels: for every mistake a kernel that makes it, and its report."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator import runner
from cuda_emulator.runner import Emulated, EmulatorFault, Launch
from emulator_kernels import CHECKED, load, run

if runner.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

# A kernel that is not exported is known by its place.
WHERE = (
    r"kernel (fastrnn::{}\(.*\)|\[faults.cpp:\d+\]): (\n|.)*"
    r"block \(\d,0,0\) (\(\d of its cluster\) )?thread"
)

# Of each kernel: its launch, and what both builds say.
DIVERGENCE = {
    "returns_before_barrier": (Launch(2, 64), r"return.* sync_block\(\)"),
    "half_the_block_at_the_barrier": (Launch(1, 64), r"sync_block\(\)"),
    "lane_returns_before_shuffle": (
        Launch(1, 64),
        r"return.* shuffle\(\)|shuffle\(\), .* returning",
    ),
    "lanes_in_different_functions": (
        Launch(1, 32),
        r"in (vote|sync_warp)\(\) while lane \d+ of its warp is in (vote|sync_warp)\(\)",
    ),
    "lane_at_the_barrier": (
        Launch(1, 32),
        r"deadlock(.*\n)+.*threads 7\.\.7 wait in sync_block\(\)\n"
        r".*threads 8\.\.31 wait in sync_warp\(\)",
    ),
    "waits_without_arriving": (Launch(1, 32), r"cluster_wait\(\) without cluster_arrive\(\)"),
    "arrives_twice": (Launch(1, 64), r"cluster_arrive\(\) again without cluster_wait\(\)"),
    "arrives_and_returns": (
        Launch(2, 32, cluster=2),
        r"returns between cluster_arrive\(\) and cluster_wait\(\)",
    ),
    "block_returns_before_the_cluster": (
        Launch(2, 32, cluster=2),
        r"returns while threads of its cluster|which threads of its cluster have left out",
    ),
    "stops": (Launch(1, 64), r"thread \(37,0,0\) calls trap\(\)"),
}


@CHECKED
@pytest.mark.parametrize("kernel", DIVERGENCE)
def test_divergence_is_reported(checked: bool, kernel: str) -> None:
    launch, message = DIVERGENCE[kernel]
    for seed in range(5):
        with pytest.raises(EmulatorFault, match=message) as raised:
            run(load("faults", checked=checked, seed=seed), kernel, launch, np.zeros(1), 0)
        raised.match(WHERE.format(kernel))


@CHECKED
@pytest.mark.parametrize("kernel", ["nobody_stores", "nobody_stores_anywhere"])
def test_spins_that_cannot_end_are_reported(checked: bool, kernel: str) -> None:
    flags = np.zeros(128, np.uint32)
    message = r"deadlock: no thread can go on(.*\n)+.*threads 0\.\.\d+ find 0 at (byte|0x)"
    with pytest.raises(EmulatorFault, match=message) as raised:
        run(load("faults", checked=checked), kernel, Launch(2, 64), flags, len(flags))
    raised.match(WHERE.format(kernel))


def test_only_a_cooperative_launch_may_wait_for_all_blocks() -> None:
    flags = np.zeros(8, np.uint32)
    with pytest.raises(EmulatorFault, match="deadlock"):
        run(load("faults", checked=False), "waits_for_every_block", Launch(8, 32), flags, 8)
    flags[:] = 0
    launch = Launch(8, 32, cooperative=True)
    run(load("faults", checked=False), "waits_for_every_block", launch, flags, 8)
    assert flags.all()


def test_a_kernel_without_end_is_ended() -> None:
    emulated = load("faults", checked=False, timeout_ms=200)
    with pytest.raises(EmulatorFault, match="no end after 200 ms"):
        run(emulated, "goes_on_forever", Launch(1, 64), np.zeros(1), 1)


# Of each kernel: what the checked build says.
MEMORY = {
    "no_block_barrier": r"race: .* of the 256 bytes of shared memory",
    "no_second_block_barrier": r"race: .* (writes .* read|reads .* wrote) .* of shared memory",
    "no_warp_barrier": r"race: .* of the 256 bytes of shared memory",
    "two_blocks_write": r"race: .* writes .* wrote .* byte 28 of data",
    "writes_beyond_shared": r"writes 4 bytes .* out of bounds: byte 256 of the 256 bytes of shared",
    "writes_before_shared": r"writes 4 bytes .* out of bounds: byte -4 of the 256 bytes of shared",
    "writes_far_beyond_shared": r"writes 4 bytes .* in shared memory that is not its cluster's",
    "reads_beyond_shared": r"reads 4 bytes .* out of bounds: byte 256 of the 256 bytes of shared",
    "writes_beyond_a_buffer": r"writes 4 bytes .* in no buffer",
    "reads_before_a_buffer": r"reads 4 bytes .* in no buffer",
    "misaligned": r"misaligned access: .* byte 4 of data",
    "copies_beyond_a_buffer": r"reads 32 bytes .* beyond the end of a buffer: byte 1008 of data",
    "copies_without_barrier": r"race: .* of the 256 bytes of shared memory",
    "misaligned_exchange": r"not a multiple of 16: byte 4 of data",
    "copy_not_waited_for": r"race: .* reads .* has a copy under way .* of shared memory",
    "copy_of_an_open_group": r"race: .* reads .* has a copy under way .* of shared memory",
    "one_copy_too_few": r"race: .* reads .* has a copy under way .* of shared memory",
    "copy_over_a_copy": r"race: .* writes .* has a copy under way .* of shared memory",
    "copy_without_barrier": r"race: .* (reads .* (wrote|has a copy)|writes .* read) .* of shared",
    "copy_over_what_others_read": r"race: .* (writes .* read|reads .* (wrote|has a copy))",
    "copy_to_global": r"begins a copy to what is not in its block's shared memory: byte 0 of data",
    "misaligned_copy": r"not a multiple of 16: byte 4 of data",
    "remote_of_global": r"remote\(\) for what is not in its shared memory: byte 0 of data",
    "remote_of_no_block": r"remote\(\) for block 2 of a cluster of 1",
}


def run_on_data(emulated: Emulated, kernel: str, blocks: int = 2) -> np.ndarray:
    data = np.zeros(256 + 4, np.float32)
    data = data[(-data.ctypes.data // 4) % 4 :][:256]
    with emulated.only({"data": data}):
        run(emulated, kernel, Launch(blocks, 64, shared_bytes=256), data, len(data))
    return data


@pytest.mark.parametrize("kernel", MEMORY)
def test_faults_of_memory_are_reported(kernel: str) -> None:
    blocks = 2 if kernel == "two_blocks_write" else 1
    for seed in range(5):
        with pytest.raises(EmulatorFault, match=MEMORY[kernel]) as raised:
            run_on_data(load("faults", checked=True, seed=seed), kernel, blocks)
        raised.match(WHERE.format(kernel))


def test_reports_name_lines_of_the_source() -> None:
    source = (runner.HERE / "kernels" / "faults.cpp").read_text().splitlines()
    write, read = (
        next(i for i, text in enumerate(source, 1) if statement in text)
        for statement in ("args.data[7] = 1;", "args.data[7] = 1;")
    )
    with pytest.raises(EmulatorFault) as raised:
        run_on_data(load("faults", checked=True), "two_blocks_write")
    raised.match(rf"writes \[faults.cpp:{write}.*\].* wrote \[faults.cpp:{read}.*\]")


@CHECKED
def test_copies_end_before_their_thread(checked: bool) -> None:
    with pytest.raises(EmulatorFault, match="returns without having waited for its copies"):
        run_on_data(load("faults", checked=checked), "returns_during_a_copy", blocks=1)


def test_what_is_copied_is_not_there_before_the_wait() -> None:
    """In the plain build too: it reads NaN."""
    data = run_on_data(load("faults", checked=False), "copy_not_waited_for", blocks=1)
    assert np.isnan(data[128:144]).all()
    assert not np.isnan(data[:128]).any()


@pytest.mark.parametrize("kernel", ["writes_beyond_shared", "writes_before_shared"])
def test_guard_zones(kernel: str) -> None:
    with pytest.raises(EmulatorFault, match=r"written out of bounds, to byte (256|-4) of the 256"):
        run_on_data(load("faults", checked=False), kernel)


def test_neighbours_in_a_word_do_not_race() -> None:
    data = run_on_data(load("faults", checked=True), "halves_of_a_word", blocks=1)
    np.testing.assert_array_equal(data[:32].view(np.float16), np.arange(64))
