"""The emulator of CUDA kernels: what it computes, and that it reports what kernels do wrong."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_emulator import runner
from cuda_emulator.runner import Emulated, EmulatorFault, Launch

if runner.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

Load = Callable[..., Emulated]
CHECKED = pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])


@pytest.fixture(scope="session")
def libraries(pytestconfig: pytest.Config) -> Path:
    """Where compiled kernels are kept from one run to the next."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("cuda_emulator")


@pytest.fixture(scope="session")
def load(libraries: Path) -> Load:
    """Gives the emulator with one of the kernel files, compiled when it has changed."""

    def compiled(name: str, *, checked: bool, **configuration: int) -> Emulated:
        source = runner.HERE / "kernels" / f"{name}.cpp"
        emulated = Emulated(runner.build([source], checked=checked, cache=libraries))
        emulated.configure(**configuration)
        return emulated

    return compiled


def run(emulated: Emulated, kernel: str, launch: Launch, *arguments: object) -> None:
    """Start a kernel whose argument is a struct of pointers, given as arrays, and ints."""
    kinds = [ctypes.c_int if isinstance(a, int) else ctypes.c_void_p for a in arguments]
    struct = type(
        "Args", (ctypes.Structure,), {"_fields_": [(f"_{i}", k) for i, k in enumerate(kinds)]}
    )
    values = [a if isinstance(a, int) else runner.pointer(a) for a in arguments]
    emulated.call(f"run_{kernel}", ctypes.byref(launch), ctypes.byref(struct(*values)))


# ---- What device.cuh's functions compute


@CHECKED
def test_every_thread_of_the_grid_runs_once_and_knows_its_place(load: Load, checked: bool) -> None:
    seen = np.zeros((3, 2, 4, 64, 8), np.int32)
    run(load("primitives", checked=checked), "places", Launch((4, 2, 3), 64, cluster=2), seen)
    z, y, x, thread = np.indices(seen.shape[:4])
    expected = np.stack([np.ones_like(x), thread, x, y, z, 0 * x + 64, x % 2, 0 * x + 2], -1)
    np.testing.assert_array_equal(seen, expected)


@CHECKED
@pytest.mark.parametrize("mask", [1, 2, 4, 8, 16, 31])
def test_exchanges_within_a_warp(load: Load, checked: bool, mask: int) -> None:
    generator = np.random.default_rng(mask)
    value, source = np.arange(32) + 0.5, generator.integers(0, 32, 32).astype(np.int32)
    out = np.zeros((6, 32))
    run(load("primitives", checked=checked), "lanes", Launch(), value, source, mask, out)
    np.testing.assert_array_equal(out[0], value[source])
    np.testing.assert_array_equal(out[1], value[np.arange(32) ^ mask])
    np.testing.assert_array_equal(out[4:], [value[source]] * 2)  # halves, bfloat16
    assert out[2].all()  # one lane of them has more than 30
    assert out[3].all()
    value[7] = -1
    run(load("primitives", checked=checked), "lanes", Launch(), value, source, mask, out)
    assert not out[3].any()


def _floats() -> np.ndarray:
    """Every half, the numbers next to and between halves, and floats of all sizes."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    middles = (finite[1:] + finite[:-1]) / 2
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    # Ties of bfloat16 and of TF32, among others.
    ties = np.concatenate([bits & 0xFFFF0000 | 0x8000, bits & 0xFFFFE000 | 0x1000])
    special = np.array([65519.996, 65520, 65536, 1e38, 3.4028235e38, np.inf], np.float32)
    every = np.concatenate(
        [halves, middles, bits.view(np.float32), ties.astype(np.uint32).view(np.float32), special]
    )
    with np.errstate(all="ignore"):
        near = [every, *(np.nextafter(every, np.float32(to)) for to in (np.inf, -np.inf))]
    return np.concatenate([*near, -every]).astype(np.float32)


def test_conversions_are_those_of_the_hardware(load: Load) -> None:
    """Bit for bit; numpy and torch round the same way, but keep other bits of a NaN."""
    x = _floats()
    half, bfloat16 = np.zeros((2, len(x)), np.uint16)
    tf32, of_half, of_bfloat16 = (np.zeros(n, np.float32) for n in (len(x), 65536, 65536))
    outputs = (half, bfloat16, tf32, of_half, of_bfloat16)
    run(load("primitives", checked=False), "conversions", Launch(1, 64), x, len(x), *outputs)

    nan = np.isnan(x)
    with np.errstate(over="ignore"):
        expected_half = x.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(half, np.where(nan, 0x7FFF, expected_half))
    expected = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bfloat16, np.where(nan, 0x7FFF, expected))

    # TF32: the nearest multiple of 2^(exponent - 10), ties away from zero, in exact arithmetic.
    wide = np.where(np.isfinite(x), x, 0).astype(np.float64)
    unit = np.exp2(np.maximum(np.frexp(wide)[1] - 1, -126) - 10.0)
    rounded = np.sign(wide) * np.floor(np.abs(wide) / unit + 0.5) * unit
    with np.errstate(over="ignore"):
        rounded = rounded.astype(np.float32)
    np.testing.assert_array_equal(tf32[np.isfinite(x)], rounded[np.isfinite(x)])
    np.testing.assert_array_equal(tf32[np.isinf(x)], x[np.isinf(x)])
    assert (tf32[nan].view(np.uint32) == 0x7FFFFFFF).all()

    every = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(of_half, every.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(of_bfloat16.view(np.uint32), every.astype(np.uint32) << 16)


# The PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type" and "for mma.m16n8k8":
# with groupID = lane >> 2 and threadID_in_group = lane % 4, element i of a lane's fragment.


def _place_in_d(group: int, thread: int, i: int) -> tuple[int, int]:
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def _place_in_a16(group: int, thread: int, i: int) -> tuple[int, int]:
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)


def _place_in_b16(group: int, thread: int, i: int) -> tuple[int, int]:
    return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group


def _place_in_a8(group: int, thread: int, i: int) -> tuple[int, int]:
    return (group if i in (0, 2) else group + 8), (thread if i < 2 else thread + 4)


def _place_in_b8(group: int, thread: int, i: int) -> tuple[int, int]:
    return (thread if i == 0 else thread + 4), group


def _fragments(matrix: np.ndarray, place: Callable[..., tuple[int, int]], count: int) -> np.ndarray:
    """(32, count): what each lane has of the matrix."""
    lanes = [[matrix[place(lane >> 2, lane % 4, i)] for i in range(count)] for lane in range(32)]
    return np.ascontiguousarray(np.array(lanes, matrix.dtype))


@CHECKED
@pytest.mark.parametrize("dtype", ["half", "bfloat16", "tf32"])
def test_matrix_products(load: Load, checked: bool, dtype: str) -> None:
    generator = np.random.default_rng(5)
    depth = 8 if dtype == "tf32" else 16
    # Whole numbers, so that sums are exact whatever their order.
    a, b, d = (
        generator.integers(-64, 65, size).astype(np.float32)
        for size in [(16, depth), (depth, 8), (16, 8)]
    )
    expected = d + a @ b
    if dtype == "tf32":
        # The 13 bits that TF32 lacks are not read.
        noise = generator.integers(0, 0x2000, a.shape).astype(np.uint32)
        a = (a.view(np.uint32) | np.where(a == 0, 0, noise)).view(np.float32)
        registers = _fragments(a, _place_in_a8, 4), _fragments(b, _place_in_b8, 2)
    else:
        narrow = getattr(torch, dtype)
        bits_a, bits_b = (torch.from_numpy(m).to(narrow).view(torch.int16).numpy() for m in (a, b))
        registers = _fragments(bits_a, _place_in_a16, 8), _fragments(bits_b, _place_in_b16, 4)
    result = _fragments(d, _place_in_d, 4)
    number = ["half", "bfloat16", "tf32"].index(dtype)
    emulated = load("primitives", checked=checked)
    run(emulated, "products", Launch(), number, *registers, result)
    np.testing.assert_array_equal(result, _fragments(expected, _place_in_d, 4))


@CHECKED
def test_shared_memory_and_barriers(load: Load, checked: bool) -> None:
    start = np.arange(5 * 128, dtype=np.float32).reshape(5, 128)
    expected = start.copy()
    for _ in range(4):
        expected += np.roll(expected, -33, 1)
    for seed in range(5):
        values = start.copy()
        emulated = load("primitives", checked=checked, seed=seed)
        run(emulated, "rotations", Launch(5, 128, shared_bytes=512), values, 4, 33)
        np.testing.assert_array_equal(values, expected)


@CHECKED
def test_shared_memory_begins_as_nan(load: Load, checked: bool) -> None:
    out = np.zeros((40, 64), np.uint16)
    emulated = load("primitives", checked=checked)
    run(emulated, "fresh", Launch(40, 32, shared_bytes=128), out, 64)
    assert np.isnan(out.view(np.float32)).all()
    assert np.isnan(out.view(np.float64)).all()
    assert np.isnan(out.view(np.float16)).all()


@CHECKED
def test_locals_begin_as_garbage(load: Load, checked: bool) -> None:
    data = np.zeros(4, np.float32)
    run(load("faults", checked=checked), "unset_local", Launch(), data, 4)
    assert (np.abs(data) > 1e38).all()


# ---- Blocks that exchange values

KERNELS = pytest.mark.parametrize("kernel", ["through_global", "through_cluster"])
MISTAKES = {
    name: i
    for i, name in enumerate(
        [
            "none",
            "no acquire",
            "early release",
            "no block barrier",
            "one copy",
            "no cluster barrier",
            "no last cluster barrier",
        ]
    )
}


def exchange(
    emulated: Emulated, kernel: str, mistake: str = "none", steps: int = 6, *, only: bool = True
) -> np.ndarray:
    """The values after some steps; `only` tells the emulator which memory that needs."""
    blocks, threads = 4, 64
    values = np.random.default_rng(3).standard_normal(blocks * threads).astype(np.float32)
    copies, flags = np.zeros((2, values.size), np.float32), np.zeros(blocks, np.uint32)
    buffers = {"values": values, "copies": copies, "flags": flags}
    launch = (
        Launch(blocks, threads, cooperative=True)
        if kernel == "through_global"
        else Launch(blocks, threads, cluster=blocks, shared_bytes=2 * 4 * threads)
    )
    with emulated.only(buffers if only else {}):
        run(emulated, kernel, launch, *buffers.values(), steps, 100, MISTAKES[mistake])
    return values


def exchanged(steps: int = 6) -> np.ndarray:
    values = np.random.default_rng(3).standard_normal(256).astype(np.float32)
    for _ in range(steps):
        values = (values + np.roll(values, -100)) / np.float32(2)
    return values


@CHECKED
@KERNELS
def test_blocks_exchange_the_same_bits_in_every_order(
    load: Load, checked: bool, kernel: str
) -> None:
    for seed in range(10):
        result = exchange(load("exchange", checked=checked, seed=seed), kernel)
        np.testing.assert_array_equal(result, exchanged())


GLOBAL_MISTAKES = pytest.mark.parametrize(
    "mistake", ["no acquire", "early release", "no block barrier", "one copy"]
)


@GLOBAL_MISTAKES
def test_a_mistake_in_the_exchange_changes_results(load: Load, mistake: str) -> None:
    """Also without the race detector: orders differ widely enough between seeds."""
    wrong = 0
    for seed in range(20):
        emulated = load("exchange", checked=False, seed=seed)
        wrong += not np.array_equal(exchange(emulated, "through_global", mistake), exchanged())
    assert wrong >= 10


@GLOBAL_MISTAKES
def test_a_mistake_in_the_exchange_is_a_race(load: Load, mistake: str) -> None:
    for seed in range(5):
        with pytest.raises(EmulatorFault, match=r"through_global.*race: block .* thread .*copies"):
            exchange(load("exchange", checked=True, seed=seed), "through_global", mistake)


def test_no_cluster_barrier(load: Load) -> None:
    with pytest.raises(EmulatorFault, match=r"race: .* of its cluster.* shared memory of block"):
        exchange(load("exchange", checked=True), "through_cluster", "no cluster barrier")
    results = [
        exchange(load("exchange", checked=False, seed=s), "through_cluster", "no cluster barrier")
        for s in range(20)
    ]
    assert sum(not np.array_equal(result, exchanged()) for result in results) >= 10


def test_shared_memory_of_a_block_that_has_returned(load: Load) -> None:
    faults = []
    for seed in range(20):
        try:
            exchange(
                load("exchange", checked=True, seed=seed),
                "through_cluster",
                "no last cluster barrier",
            )
        except EmulatorFault as fault:
            faults.append(str(fault))
    assert faults
    assert all("of a block that has returned" in fault for fault in faults)


def test_a_seed_gives_one_order(load: Load) -> None:
    """A fault can be looked at again: the same seed, the same wrong result."""
    results = [
        [
            exchange(load("exchange", checked=False, seed=seed), "through_global", "no acquire")
            for seed in range(6)
        ]
        for _ in range(2)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert any(not np.array_equal(results[0][0], other) for other in results[0])


def test_threads_of_the_host_do_not_meet(load: Load) -> None:
    emulated = load("exchange", checked=False)
    results: list[np.ndarray] = []

    def work() -> None:
        results.extend(exchange(emulated, "through_global", steps=60, only=False) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        np.testing.assert_array_equal(result, exchanged(60))


# ---- Faults

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
def test_divergence_is_reported(load: Load, checked: bool, kernel: str) -> None:
    launch, message = DIVERGENCE[kernel]
    for seed in range(5):
        with pytest.raises(EmulatorFault, match=message) as raised:
            run(load("faults", checked=checked, seed=seed), kernel, launch, np.zeros(1), 0)
        raised.match(WHERE.format(kernel))


@CHECKED
@pytest.mark.parametrize("kernel", ["nobody_stores", "nobody_stores_anywhere"])
def test_spins_that_cannot_end_are_reported(load: Load, checked: bool, kernel: str) -> None:
    flags = np.zeros(128, np.uint32)
    message = r"deadlock: no thread can go on(.*\n)+.*threads 0\.\.\d+ find 0 at (byte|0x)"
    with pytest.raises(EmulatorFault, match=message) as raised:
        run(load("faults", checked=checked), kernel, Launch(2, 64), flags, len(flags))
    raised.match(WHERE.format(kernel))


def test_only_a_cooperative_launch_may_wait_for_all_blocks(load: Load) -> None:
    flags = np.zeros(8, np.uint32)
    with pytest.raises(EmulatorFault, match="deadlock"):
        run(load("faults", checked=False), "waits_for_every_block", Launch(8, 32), flags, 8)
    flags[:] = 0
    launch = Launch(8, 32, cooperative=True)
    run(load("faults", checked=False), "waits_for_every_block", launch, flags, 8)
    assert flags.all()


def test_a_kernel_without_end_is_ended(load: Load) -> None:
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
def test_faults_of_memory_are_reported(load: Load, kernel: str) -> None:
    blocks = 2 if kernel == "two_blocks_write" else 1
    for seed in range(5):
        with pytest.raises(EmulatorFault, match=MEMORY[kernel]) as raised:
            run_on_data(load("faults", checked=True, seed=seed), kernel, blocks)
        raised.match(WHERE.format(kernel))


def test_reports_name_lines_of_the_source(load: Load) -> None:
    source = (runner.HERE / "kernels" / "faults.cpp").read_text().splitlines()
    write, read = (
        next(i for i, text in enumerate(source, 1) if statement in text)
        for statement in ("args.data[7] = 1;", "args.data[7] = 1;")
    )
    with pytest.raises(EmulatorFault) as raised:
        run_on_data(load("faults", checked=True), "two_blocks_write")
    raised.match(rf"writes \[faults.cpp:{write}.*\].* wrote \[faults.cpp:{read}.*\]")


@pytest.mark.parametrize("kernel", ["writes_beyond_shared", "writes_before_shared"])
def test_guard_zones(load: Load, kernel: str) -> None:
    with pytest.raises(EmulatorFault, match=r"written out of bounds, to byte (256|-4) of the 256"):
        run_on_data(load("faults", checked=False), kernel)


def test_neighbours_in_a_word_do_not_race(load: Load) -> None:
    data = run_on_data(load("faults", checked=True), "halves_of_a_word", blocks=1)
    np.testing.assert_array_equal(data[:32].view(np.float16), np.arange(64))


# ---- What the device holds

REFUSED = {
    "too many threads": (Launch(1, 1056), "invalid configuration argument"),
    "no blocks": (Launch(0, 32), "invalid configuration argument"),
    "part of a warp": (Launch(1, 33), "whole warps only"),
    "shared memory": (Launch(1, 32, shared_bytes=232449), "bytes of shared memory"),
    "large cluster": (Launch(16, 32, cluster=16), "cluster misconfiguration"),
    "grid of no clusters": (Launch(6, 32, cluster=4), "cluster misconfiguration"),
    "blocks": (Launch(9, 1024, cooperative=True, shared_bytes=130000), "the device holds 8"),
    "clusters": (Launch(10, 512, cluster=2, cooperative=True, shared_bytes=130000), "holds 4"),
}


@CHECKED
@pytest.mark.parametrize("why", REFUSED)
def test_launches_that_the_device_refuses(load: Load, checked: bool, why: str) -> None:
    launch, message = REFUSED[why]
    with pytest.raises(EmulatorFault, match=message):
        run(load("faults", checked=checked), "returns_before_barrier", launch, np.zeros(1), 0)


def test_occupancy(load: Load) -> None:
    def residency(launch: Launch, **device: int) -> tuple[int, int]:
        answers = (ctypes.c_int * 2)()
        load("faults", checked=False, **device).call("run_residency", ctypes.byref(launch), answers)
        return answers[0], answers[1]

    assert residency(Launch(1, 256)) == (2, 16)  # registers
    assert residency(Launch(1, 256), registers_per_thread=32) == (8, 64)  # threads
    assert residency(Launch(1, 32), registers_per_thread=32) == (32, 256)  # blocks
    assert residency(Launch(1, 1024)) == (1, 8)  # registers: what such a block can have
    assert residency(Launch(1, 256, shared_bytes=116000)) == (1, 8)  # shared memory
    # Clusters lie within groups: 10 multiprocessors in groups of 4, 4 and 2.
    wide = Launch(4, 512, cluster=4)
    assert residency(wide, multiprocessors=10) == (1, 2)
    assert residency(Launch(2, 512, cluster=2), multiprocessors=10) == (1, 5)


def test_the_device_is_what_the_test_describes(load: Load) -> None:
    answers = (ctypes.c_int * 4)()
    emulated = load(
        "faults",
        checked=False,
        compute_capability=80,
        multiprocessors=3,
        shared_per_block=1000,
        cluster_limit=1,
    )
    emulated.library.properties(answers)
    assert list(answers) == [80, 3, 1000, 1]
    with pytest.raises(EmulatorFault, match="cluster misconfiguration"):
        run(emulated, "stops", Launch(2, 32, cluster=2), np.zeros(1), 0)


def test_a_source_that_does_not_compile_is_reported(tmp_path: Path, libraries: Path) -> None:
    source = tmp_path / "wrong.cpp"
    source.write_text("this is no program;\n")
    with pytest.raises(RuntimeError, match="this is no program"):
        runner.build([source], checked=False, cache=libraries)
