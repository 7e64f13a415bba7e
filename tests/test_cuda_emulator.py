"""The emulator of CUDA kernels: what it computes, and which devices it stands for."""

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
from emulator_kernels import CHECKED, load, run

if runner.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

# ---- What device.cuh's functions compute


@CHECKED
def test_every_thread_of_the_grid_runs_once_and_knows_its_place(checked: bool) -> None:
    seen = np.zeros((3, 2, 4, 64, 8), np.int32)
    run(load("primitives", checked=checked), "places", Launch((4, 2, 3), 64, cluster=2), seen)
    z, y, x, thread = np.indices(seen.shape[:4])
    expected = np.stack([np.ones_like(x), thread, x, y, z, 0 * x + 64, x % 2, 0 * x + 2], -1)
    np.testing.assert_array_equal(seen, expected)


@CHECKED
@pytest.mark.parametrize("mask", [1, 2, 4, 8, 16, 31])
def test_exchanges_within_a_warp(checked: bool, mask: int) -> None:
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


def test_conversions_are_those_of_the_hardware() -> None:
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
def test_matrix_products(checked: bool, dtype: str) -> None:
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
def test_shared_memory_and_barriers(checked: bool) -> None:
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
def test_copies_beside_the_threads(checked: bool) -> None:
    rows = np.random.default_rng(0).integers(-99, 99, (7, 2, 64, 4)).astype(np.float32)
    expected = np.roll(rows.sum(0), -1, 1)
    for seed in range(5):
        sums = np.full((2, 64, 4), np.nan, np.float32)
        emulated = load("primitives", checked=checked, seed=seed)
        run(emulated, "pipeline", Launch(2, 64, shared_bytes=3 * 64 * 16), rows, len(rows), sums)
        np.testing.assert_array_equal(sums, expected)


@CHECKED
def test_shared_memory_begins_as_nan(checked: bool) -> None:
    out = np.zeros((40, 64), np.uint16)
    emulated = load("primitives", checked=checked)
    run(emulated, "fresh", Launch(40, 32, shared_bytes=128), out, 64)
    assert np.isnan(out.view(np.float32)).all()
    assert np.isnan(out.view(np.float64)).all()
    assert np.isnan(out.view(np.float16)).all()


@CHECKED
def test_locals_begin_as_garbage(checked: bool) -> None:
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
def test_blocks_exchange_the_same_bits_in_every_order(checked: bool, kernel: str) -> None:
    for seed in range(10):
        result = exchange(load("exchange", checked=checked, seed=seed), kernel)
        np.testing.assert_array_equal(result, exchanged())


GLOBAL_MISTAKES = pytest.mark.parametrize(
    "mistake", ["no acquire", "early release", "no block barrier", "one copy"]
)


@GLOBAL_MISTAKES
def test_a_mistake_in_the_exchange_changes_results(mistake: str) -> None:
    """Also without the race detector: orders differ widely enough between seeds."""
    wrong = 0
    for seed in range(20):
        emulated = load("exchange", checked=False, seed=seed)
        wrong += not np.array_equal(exchange(emulated, "through_global", mistake), exchanged())
    assert wrong >= 10


@GLOBAL_MISTAKES
def test_a_mistake_in_the_exchange_is_a_race(mistake: str) -> None:
    for seed in range(5):
        with pytest.raises(EmulatorFault, match=r"through_global.*race: block .* thread .*copies"):
            exchange(load("exchange", checked=True, seed=seed), "through_global", mistake)


def test_no_cluster_barrier() -> None:
    with pytest.raises(EmulatorFault, match=r"race: .* of its cluster.* shared memory of block"):
        exchange(load("exchange", checked=True), "through_cluster", "no cluster barrier")
    results = [
        exchange(load("exchange", checked=False, seed=s), "through_cluster", "no cluster barrier")
        for s in range(20)
    ]
    assert sum(not np.array_equal(result, exchanged()) for result in results) >= 10


def test_shared_memory_of_a_block_that_has_returned() -> None:
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


def test_a_seed_gives_one_order() -> None:
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


def test_threads_of_the_host_do_not_meet() -> None:
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
def test_launches_that_the_device_refuses(checked: bool, why: str) -> None:
    launch, message = REFUSED[why]
    with pytest.raises(EmulatorFault, match=message):
        run(load("faults", checked=checked), "returns_before_barrier", launch, np.zeros(1), 0)


def test_a_kernel_must_have_been_allowed_what_is_rare() -> None:
    """These kernels are launched without allow_most()."""
    places = np.zeros(1, np.int32)
    for launch, message in (
        (Launch(1, 32, shared_bytes=48 * 1024 + 1), "the kernel may have 49152"),
        (Launch(16, 32, cluster=16), "cluster misconfiguration: 16 blocks, the kernel may have 8"),
    ):
        with pytest.raises(EmulatorFault, match=message):
            run(load("primitives", checked=False, cluster_limit=16), "places", launch, places)


def test_occupancy() -> None:
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


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells mappings there")
def test_stacks_are_given_back() -> None:
    """Each is two mappings of the process, of which there may be 65530."""
    emulated = load("primitives", checked=False, multiprocessors=1024)
    threads, seen = 1024, np.zeros((1, 1, 8, 1024, 8), np.int32)
    launch = Launch(8, threads, cooperative=True)
    emulated.release()
    before = mappings()
    run(emulated, "places", launch, seen)
    assert mappings() > before + 8 * threads
    emulated.release()
    assert mappings() <= before + 64
    run(emulated, "places", launch, seen)
    assert (seen[..., 0] == 2).all()
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    assert most < 2 * 1024 * threads, "the next launch would begin"
    with pytest.raises(EmulatorFault, match=r"no stacks for 1048576 threads: .*vm\.max_map_count"):
        run(emulated, "places", Launch(1024, threads, cooperative=True), seen)
    assert mappings() <= before + 64


def test_the_device_is_what_the_test_describes() -> None:
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


def test_a_source_that_does_not_compile_is_reported(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cpp"
    source.write_text("this is no program;\n")
    with pytest.raises(RuntimeError, match="this is no program"):
        runner.build([source], checked=False)
