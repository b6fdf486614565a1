"""The emulator of CUDA kernels computes what a GPU would, and reports what a GPU would leave undefined.

The kernels, right ones and wrong ones, are in tests/emulated/selftest.cu.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import backends
import numpy as np
import pytest
import torch
from emulated import run_sanitized as sanitized

REPOSITORY = Path(__file__).resolve().parent.parent
SEEDS = range(5)
WARP = 32


@pytest.fixture
def selftest() -> ModuleType:
    module = backends.emulated_module("_selftest")
    if module is None:
        pytest.skip("emulated kernels not built (make emulated)")
    module.restart_random()
    return module


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("GLASSCONV_EMULATED_SEED", str(request.param))
    return request.param


# Barriers


@pytest.mark.parametrize("n_threads", [WARP, 2 * WARP, 256, 1024])
def test_a_removed_block_barrier_gives_wrong_results(selftest: ModuleType, seed: int, n_threads: int) -> None:
    values = np.arange(n_threads, dtype=float)
    assert selftest.reverse(values, selftest.Barrier.block) == list(values[::-1])
    found = np.array(selftest.reverse(values, selftest.Barrier.none))
    wrong = found != values[::-1]
    assert wrong.any()
    assert np.isnan(found[wrong]).all()  # what nobody had written yet


def test_a_removed_warp_barrier_gives_wrong_results(selftest: ModuleType, seed: int) -> None:
    values = np.arange(WARP, dtype=float)
    assert selftest.reverse(values, selftest.Barrier.warp) == list(values[::-1])
    assert selftest.reverse(values, selftest.Barrier.none) != list(values[::-1])
    # a barrier of warps is none between warps
    values = np.arange(4 * WARP, dtype=float)
    found = [selftest.reverse(values, selftest.Barrier.warp) for _ in range(4)]
    assert any(each != list(values[::-1]) for each in found)  # sometimes the warps happen to keep step


def test_a_removed_barrier_before_overwriting_gives_wrong_results(selftest: ModuleType, seed: int) -> None:
    values = list(range(2 * WARP))
    shifted = values[7:] + values[:7]
    assert selftest.shift(values, 7, selftest.Barrier.block) == shifted
    assert selftest.shift(values, 7, selftest.Barrier.warp) != shifted
    assert selftest.shift(values, 7, selftest.Barrier.none) != shifted


@pytest.mark.parametrize(
    ("divergence", "n_threads", "message"),
    [
        ("branch_of_block", 64, r"threads 32-63 have exited; threads 0-31 wait at __syncthreads \(of 64\)"),
        ("branch_of_block", 32, r"threads 16-31 have exited; threads 0-15 wait at __syncthreads \(of 32\)"),
        ("return_before_block", 64, r"threads 5 have exited; threads 0-4, 6-63 wait at __syncthreads"),
        ("branch_of_warp", 32, r"threads 1, 3, 5.* have exited; .* wait at __syncwarp with mask 0xffffffff"),
        ("return_before_shuffle", 32, r"threads 31 have exited; threads 0-30 wait at __shfl_xor_sync with"),
        # a last warp that is not full lacks lanes of the mask
        ("branch_of_warp", 40, r"divergent barrier: .* wait at __syncwarp with mask 0xffffffff \(of 40\)"),
        ("two_collectives", 32, r"__a(ny|ll)_sync with mask 0xffffffff: other lanes of the mask wait at __a"),
        ("not_in_mask", 32, r"thread 31 at __shfl_sync with mask 0x7fffffff: the mask lacks its own lane"),
        ("source_not_in_mask", 32, r"__shfl_xor_sync with mask 0x.*: reads lane \d+, which the mask lacks"),
    ],
)
def test_divergence_is_an_error(
    selftest: ModuleType, seed: int, divergence: str, n_threads: int, message: str
) -> None:
    kind = getattr(selftest.Divergence, divergence)
    with pytest.raises(
        RuntimeError, match=r"divergent_kernel: cudaErrorLaunchFailure \(block \(0, 0, 0\): "
    ) as info:
        selftest.divergent(kind, n_threads)
    info.match(message)
    # the threads that were given up leave nothing behind
    values = np.arange(n_threads, dtype=float)
    assert selftest.reverse(values, selftest.Barrier.block) == list(values[::-1])


def test_parts_of_a_warp_may_work_on_their_own(selftest: ModuleType, seed: int) -> None:
    expected = [(lane ^ 1) + (2 if lane < 16 else 4) for lane in range(WARP)]
    assert selftest.divergent(selftest.Divergence.sub_masks, WARP) == expected
    assert selftest.divergent(selftest.Divergence.none, 64) == [-1] * 64


# Memory


def test_shared_memory_starts_as_nan(selftest: ModuleType) -> None:
    selftest.reverse(np.zeros(64), selftest.Barrier.block)  # another block's numbers do not stay
    as_double, as_float = selftest.read_shared(64)
    assert all(map(math.isnan, as_double + as_float))


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 100, 48 * 1024, 227 * 1024])
def test_writes_behind_the_shared_memory_are_errors(selftest: ModuleType, n_bytes: int) -> None:
    for inside in {0, n_bytes - 1} if n_bytes > 0 else ():
        selftest.write_shared(n_bytes, inside)
    for beyond in (0, 1, 16, 500):
        message = rf"write_shared_kernel: .*write to byte {n_bytes + beyond} of {n_bytes} bytes of shared"
        with pytest.raises(RuntimeError, match=message):
            selftest.write_shared(n_bytes, n_bytes + beyond)


def test_threads_have_stacks(selftest: ModuleType) -> None:
    assert selftest.deep(30, 1024) == [30] * 1024


# Order


def test_order_of_threads_and_blocks_depends_on_the_seed(
    selftest: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_blocks, n_threads = 13, 64
    orders = set()
    for seed in SEEDS:
        monkeypatch.setenv("GLASSCONV_EMULATED_SEED", str(seed))
        order = np.array(selftest.arrivals(n_blocks, n_threads))
        assert sorted(order) == list(range(n_blocks * n_threads))
        blocks = order.reshape(n_blocks, n_threads) // n_threads
        assert (blocks == blocks[:, :1]).all()  # one after the other
        assert (blocks[:, 0] != np.arange(n_blocks)).any()
        assert (order.reshape(n_blocks, n_threads) % n_threads != np.arange(n_threads)).any(axis=1).all()
        orders.add(tuple(order))
    assert len(orders) == len(SEEDS)


def test_order_changes_at_each_launch_and_at_each_barrier(selftest: ModuleType) -> None:
    assert selftest.arrivals(1, 64) != selftest.arrivals(1, 64)
    order = selftest.before_and_after(64)
    before, after = order[:64], order[64:]
    assert sorted(before) == sorted(after) == list(range(64))
    assert before != after


def test_the_same_seed_gives_the_same_order(selftest: ModuleType) -> None:
    orders = []
    for _ in range(2):
        selftest.restart_random()
        orders.append([selftest.arrivals(3, 32), selftest.arrivals(5, 64)])
    assert orders[0] == orders[1]


# Warp collectives, atomics, indices


def shuffled(values: np.ndarray, sources: np.ndarray, width: int) -> np.ndarray:
    """values[sources], where a source outside of its lane's group of `width` stands for the own lane."""
    lanes = np.arange(WARP)
    inside = sources // width == lanes // width
    return values.reshape(-1, WARP)[:, np.where(inside, sources, lanes)].reshape(-1)


@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("type_name", ["int", "float", "double", "int64"])
def test_collectives_against_plain_loops(selftest: ModuleType, seed: int, type_name: str, width: int) -> None:
    values = np.random.default_rng(seed).integers(-50, 50, 6 * 64)
    values[:WARP] = abs(values[:WARP])  # a warp where all agree
    scale = 2**33 if type_name == "int64" else 1
    found = getattr(selftest, f"collectives_{type_name}")(scale * values, 64, width)
    lanes = np.arange(WARP)
    xor = np.where((lanes ^ 5) < lanes // width * width + width, lanes ^ 5, lanes)
    by_warp = values.reshape(-1, WARP)
    expected = [
        scale * shuffled(values, lanes // width * width + (5 * lanes + 3) % width, width),
        scale * shuffled(values, lanes - 3, width),
        scale * shuffled(values, lanes + 3, width),
        scale * by_warp[:, xor].reshape(-1),
        np.repeat([sum(1 << i for i in range(WARP) if row[i] > 0) for row in by_warp], WARP),
        np.repeat((scale * by_warp > 40).any(axis=1), WARP),
        np.repeat((scale * by_warp > -40).all(axis=1), WARP),
        scale * np.repeat(values.reshape(-1, 16).sum(axis=1), 16),
    ]
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours == list(theirs), index


@pytest.mark.parametrize("type_name", ["int", "unsigned", "uint64"])
def test_atomics(selftest: ModuleType, seed: int, type_name: str) -> None:
    random = np.random.default_rng(seed)
    low = -1000 if type_name == "int" else 0
    high = 2**50 if type_name == "uint64" else 1000
    values = [int(value) for value in random.integers(low, high, 4 * 96)]
    found = getattr(selftest, f"atomics_{type_name}")(values, 96, [0, values[0], values[0], 0, 0])
    bits = 0
    for value in values:
        bits |= value
    assert found == [sum(values), min(values), max(values), bits, sum(values)]


@pytest.mark.parametrize(
    ("grid", "threads"), [((5, 1, 1), (64, 1, 1)), ((2, 3, 4), (4, 5, 6)), ((1, 7, 1), (1, 1, 64))]
)
def test_every_thread_of_every_block_runs_once(
    selftest: ModuleType, seed: int, grid: tuple[int, int, int], threads: tuple[int, int, int]
) -> None:
    count = selftest.indices(grid, threads)
    assert count == [1] * math.prod((*grid, *threads))


# Launches


@pytest.mark.parametrize(
    ("grid", "threads", "shared", "allowed", "expected"),
    [
        ((1, 1, 1), 32, 48 * 1024, -1, "cudaSuccess"),
        ((1, 1, 1), 1024, 227 * 1024, 227 * 1024, "cudaSuccess"),
        ((1, 1, 1), 32, 48 * 1024 + 1, 0, "cudaErrorInvalidValue"),  # nobody asked for it before
        ((1, 1, 1), 32, 100 * 1024, 99 * 1024, "cudaErrorInvalidValue"),
        ((1, 1, 1), 32, 0, 227 * 1024 + 1, "attribute: cudaErrorInvalidValue"),
        ((1, 1, 1), 1025, 0, -1, "cudaErrorInvalidConfiguration"),
        ((1, 1, 1), 0, 0, -1, "cudaErrorInvalidConfiguration"),
        ((0, 1, 1), 32, 0, -1, "cudaErrorInvalidConfiguration"),
        ((1, 65536, 1), 32, 0, -1, "cudaErrorInvalidConfiguration"),
    ],
)
def test_launches_beyond_the_limits_are_refused(
    selftest: ModuleType, grid: tuple[int, int, int], threads: int, shared: int, allowed: int, expected: str
) -> None:
    assert selftest.launch_error(grid, threads, shared, allowed) == expected


# Sanitizers


def run_sanitized(code: str) -> subprocess.CompletedProcess[str]:
    """Run a statement about `selftest`, compiled with sanitizers, in a Python of its own."""
    if not (backends.BUILD / "emulated-sanitized/_selftest.so").exists():
        pytest.skip("emulated kernels not built with sanitizers")
    return subprocess.run(
        [sys.executable, "-c", f"import backends; selftest = backends.emulated_module('_selftest'); {code}"],
        env=sanitized.environment() | {"PYTHONPATH": str(REPOSITORY / "tests")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("write_global(100, 100)", "AddressSanitizer: heap-buffer-overflow"),
        ("write_global(100, -1)", "AddressSanitizer: heap-buffer-overflow"),
        ("write_shared(100, 100)", "AddressSanitizer: use-after-poison"),
        ("write_shared(100, 50_000)", "AddressSanitizer: use-after-poison"),  # far beyond the guard
        ("add([2**31 - 1], 1)", "runtime error: signed integer overflow"),
    ],
)
def test_sanitizers_stop_at_the_first_error(wrong: str, message: str) -> None:
    done = run_sanitized(f"selftest.{wrong}")
    assert done.returncode != 0
    assert message in done.stderr


def test_sanitizers_accept_what_is_right() -> None:
    code = "selftest.write_global(100, 99); selftest.write_shared(100, 99); selftest.deep(30, 1024); "
    code += "selftest.reverse([1.0] * 1024, selftest.Barrier.block); selftest.arrivals(20, 256)"
    done = run_sanitized(code)
    assert done.returncode == 0, done.stderr
    # an error that the emulator reports is none of the sanitizers'
    done = run_sanitized("selftest.divergent(selftest.Divergence.branch_of_block, 64)")
    assert "RuntimeError: glassconv: divergent_kernel" in done.stderr


# The operators


@pytest.fixture
def emulated() -> ModuleType:
    module = backends.emulated_module()
    if module is None:
        pytest.skip("emulated kernels not built (make emulated)")
    return module


def operators() -> list[str]:
    names = set(torch._C._dispatch_get_registrations_for_dispatch_key("CPU"))
    names -= {"glassconv::neighbor_list_filter", "glassconv::neighbor_list_half"}  # no kernels for a GPU
    return sorted(name for name in names if name.startswith("glassconv::"))


def cpu_implementation(operator: str) -> str:
    """Where the running implementation of an operator on CPU tensors was registered."""
    (line,) = [line for line in torch._C._dispatch_dump(operator).splitlines() if line.startswith("CPU: ")]
    return line


def test_the_sources_are_those_of_the_gpu(emulated: ModuleType) -> None:
    compiled = emulated.sources()
    kernels = {f"csrc/cuda/{path.name}" for path in (REPOSITORY / "csrc/cuda").glob("*.cu")}
    bindings = {f"csrc/torch/{path.name}" for path in (REPOSITORY / "csrc/torch").glob("*_cuda.cpp")}
    assert kernels
    assert kernels | bindings - {"csrc/torch/library_cuda.cpp"} <= compiled.keys()
    for name, digest in compiled.items():
        path = REPOSITORY / name
        assert path.exists(), f"{name} is gone: make emulated"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, f"{name} has changed: make emulated"


def test_every_operator_is_emulated_and_given_back(emulated: ModuleType) -> None:
    before = {name: cpu_implementation(name) for name in operators()}
    assert before
    with backends.emulated_operators():
        for name in before:
            assert "tests/emulated/module.cpp" in cpu_implementation(name), name
    assert {name: cpu_implementation(name) for name in operators()} == before
