"""The neighbor search finds exactly the pairs of the definition, in the promised order, on every backend."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from neighbor_oracle import check_well_formed, edges_of, sort_edges
from torch.utils.data import DataLoader

import glassconv
from glassconv import Graph, neighbor_list

ALL = (True, True, True)
SKEWED = np.array([[4.0, 0.0, 0.0], [3.5, 2.0, 0.0], [-2.5, 3.0, 3.0]])
LEFT_HANDED = np.array([[0.0, 3.0, 0.2], [3.0, 0.0, 0.0], [0.3, 0.4, 3.5]])
SHEARED = np.array([[2.0, 0.0, 0.0], [2.5, 2.0, 0.0], [-1.5, 2.0, 2.0]])


@pytest.mark.parametrize("cell", [np.diag([9.0, 7.0, 8.0]), 2 * SKEWED, 2 * LEFT_HANDED, SHEARED])
@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)), ids=str)
def test_matches_matscipy_and_ase(backend: str, cell: np.ndarray, pbc: tuple[bool, bool, bool]) -> None:
    ase_search = pytest.importorskip("ase.neighborlist").primitive_neighbor_list
    matscipy_search = pytest.importorskip("matscipy.neighbours").neighbour_list
    rng = np.random.default_rng(3)
    positions = rng.uniform(-0.5, 1.5, (60, 3)) @ cell
    expected = edges_of(neighbor_list(positions, 2.0, cell, pbc))
    # their i is our source and their j our receiver
    i, j, shifts = ase_search("ijS", pbc, cell, positions, 2.0)
    np.testing.assert_array_equal(sort_edges(np.column_stack([j, i, shifts])), expected)
    if all(pbc):  # with open axes matscipy first shrinks or shifts the cell
        i, j, shifts = matscipy_search("ijS", positions=positions, cell=cell, pbc=np.array(pbc), cutoff=2.0)
        np.testing.assert_array_equal(sort_edges(np.column_stack([j, i, shifts])), expected)


@pytest.mark.parametrize("field", ["thermal", "inherent"])
def test_glass_matches_matscipy(backend: str, shared_data: Path, field: str) -> None:
    matscipy_search = pytest.importorskip("matscipy.neighbours").neighbour_list
    with np.load(shared_data / "ka3d_T0.44_tau_alpha_train10.npz") as data:
        positions, box = data[field][0], data["box"]
    graph = neighbor_list(positions, 2.0, box)
    i, j, shifts = matscipy_search(
        "ijS", positions=positions, cell=np.diag(box), pbc=np.array(ALL), cutoff=2.0
    )
    np.testing.assert_array_equal(edges_of(graph), sort_edges(np.column_stack([j, i, shifts])))
    check_well_formed(graph)


def test_half_keeps_every_pair_once(backend: str) -> None:
    positions = np.random.default_rng(7).uniform(0.0, 1.0, (12, 3)) @ SKEWED
    full, half = neighbor_list(positions, 2.5, SKEWED), neighbor_list(positions, 2.5, SKEWED, half=True)
    edges = edges_of(half)
    opposite = np.column_stack([edges[:, 1], edges[:, 0], -edges[:, 2:]])
    np.testing.assert_array_equal(sort_edges(np.concatenate([edges, opposite])), edges_of(full))
    assert half.reverse is None
    np.testing.assert_array_equal(half.row_ptr, np.searchsorted(edges[:, 0], np.arange(13)))
    slots_by_source = half.row_source[half.transpose_slots]
    np.testing.assert_array_equal(slots_by_source, np.sort(edges[:, 1]))


@pytest.fixture
def n_threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def large_systems() -> dict[str, tuple[object, ...]]:
    """Arguments of searches that are worth several threads."""
    rng = np.random.default_rng(11)
    crowd = np.concatenate([rng.normal(0.0, 0.5, (900, 3)), rng.uniform(-9.0, 9.0, (4000, 3))])
    batch = np.repeat([0, 2, 3], [2500, 1, 2500])
    return {
        "liquid": (rng.uniform(0.0, 16.0, (5000, 3)), 1.5, np.full(3, 16.0)),
        "skewed": (rng.uniform(-0.3, 1.3, (3000, 3)) @ (SKEWED * 4), 1.5, SKEWED * 4),
        "many images": (rng.uniform(-0.3, 1.3, (400, 3)) @ SKEWED, 1.9, SKEWED),
        "crowded": (crowd, 0.4, np.full(3, 18.0), (True, False, True)),
        "float32": (crowd.astype(np.float32), 0.4, np.full(3, 18.0)),
        "batch": (rng.uniform(0.0, 9.0, (5001, 3)), 1.1, np.full(3, 9.0), True, batch),
    }


def arrays_of(graph: Graph) -> list[np.ndarray]:
    names = ("edge_index", "shifts", "row_ptr", "reverse", "transpose_ptr", "transpose_slots")
    return [np.asarray(getattr(graph, name)) for name in names]


def assert_same_bits(ours: Graph, theirs: Graph) -> None:
    for found, expected in zip(arrays_of(ours), arrays_of(theirs), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", list(large_systems()))
def test_same_bits_for_any_number_of_threads(native_extension: None, n_threads: None, name: str) -> None:
    arguments = large_systems()[name]
    expected = glassconv.reference.neighbor_list(*arguments)
    with glassconv.use_backend("native"):
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            assert_same_bits(neighbor_list(*arguments), expected)


@pytest.mark.parametrize("backend", ["cpu", "cuda"], indirect=True)
def test_same_bits_from_several_python_threads(backend: str, n_threads: None) -> None:
    torch.set_num_threads(2)
    cases = list(large_systems().values())
    expected = [neighbor_list(*arguments) for arguments in cases]

    def run(k: int) -> Graph:
        with glassconv.use_backend("native"):
            return neighbor_list(*cases[k % len(cases)])

    with ThreadPoolExecutor(4) as pool:
        for k, graph in enumerate(pool.map(run, range(4 * len(cases)))):
            assert_same_bits(graph, expected[k % len(cases)])


class Searches(torch.utils.data.Dataset):
    """One of the large systems for each index."""

    def __len__(self) -> int:
        return len(large_systems())

    def __getitem__(self, index: int) -> list[np.ndarray]:
        return arrays_of(neighbor_list(*list(large_systems().values())[index]))


def test_same_bits_in_forked_workers(native_extension: None, n_threads: None) -> None:
    """The threads that searched before the fork do not exist after it."""
    torch.set_num_threads(3)
    here = list(Searches())
    workers = DataLoader(
        Searches(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=300
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        for found, expected in zip(workers, here, strict=True):
            for theirs, ours in zip(found, expected, strict=True):
                np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_for_any_layout(backend: str, dtype: torch.dtype) -> None:
    positions = torch.from_numpy(np.random.default_rng(12).uniform(-3.0, 9.0, (500, 3))).to(dtype)
    spread = torch.full((1000, 7), torch.nan, dtype=dtype)
    spread[::2, 1::2] = positions
    expected = neighbor_list(positions, 1.3, [6.0] * 3)
    for given in (
        spread[::2, 1::2],
        positions.T.contiguous().T,
        positions.double(),
        positions.expand(2, -1, -1)[1],
    ):
        assert_same_bits(neighbor_list(given, 1.3, [6.0] * 3), expected)
    assert torch.equal(spread[::2, 1::2], positions)
    turned = neighbor_list(positions.flip(0), 1.3, [6.0] * 3)  # another order: other bits
    assert not torch.equal(turned.edge_index, expected.edge_index)


def test_accepts_what_holds_numbers(backend: str) -> None:
    class OnlyDlpack:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **options: object) -> object:
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self) -> object:
            return self.tensor.__dlpack_device__()

    positions = torch.rand(20, 3, dtype=torch.float64)
    expected = edges_of(neighbor_list(positions, 0.4, torch.ones(3)))
    transposed = positions.T.contiguous().T  # not contiguous
    for given_positions in (
        positions.numpy(),
        OnlyDlpack(positions),
        transposed,
        positions.clone().requires_grad_(),
    ):
        graph = neighbor_list(given_positions, 0.4, np.eye(3, dtype=np.float32), np.array(ALL))
        np.testing.assert_array_equal(edges_of(graph), expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("positions", torch.zeros(2, 4), r"positions: expected shape \[2, 3\], got \[2, 4\]"),
        (
            "positions",
            torch.zeros(2, 3, dtype=torch.int32),
            "positions: expected float32 or float64, got Int",
        ),
        ("positions", torch.full((2, 3), torch.nan), "positions: expected finite numbers .* at particle 0"),
        ("cell", torch.zeros(1, 3, 3), "cell: expected Double, got Float"),
        ("cell", torch.zeros(1, 3, 3, dtype=torch.float64), "cell: expected linearly independent"),
        ("pbc", torch.ones(2, 3, dtype=torch.bool), r"pbc: expected shape \[1, 3\], got \[2, 3\]"),
        (
            "batch",
            torch.tensor([0, 1]),
            "batch: expected non-decreasing systems from 0 to 0, got 1 at particle 1",
        ),
        ("cutoff", 0.0, "cutoff: expected a positive finite number, got 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operator_checks_its_arguments(
    native_extension: None, name: str, value: object, message: str
) -> None:
    arguments = {
        "positions": torch.zeros(2, 3),
        "cell": torch.eye(3, dtype=torch.float64)[None],
        "pbc": torch.ones(1, 3, dtype=torch.bool),
        "batch": torch.zeros(2, dtype=torch.int64),
        "cutoff": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        torch.ops.glassconv.neighbor_list(*(arguments | {name: value}).values())


def test_operator_follows_the_rules_of_operators(native_extension: None) -> None:
    positions, cell = torch.rand(30, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[None]
    arguments = (positions, cell, torch.ones(1, 3, dtype=torch.bool), torch.zeros(30, dtype=torch.int64), 0.6)
    torch.library.opcheck(torch.ops.glassconv.neighbor_list, arguments)


def test_results_keep_their_memory(native_extension: None) -> None:
    """Large results get memory that earlier ones gave back, in any thread, and never that of one in use."""
    positions = torch.rand(4000, 3, dtype=torch.float64) * 15.0
    expected = neighbor_list(positions, 2.0, np.full(3, 15.0))
    assert expected.edge_index.nbytes > 2 << 20

    def search(seed: int) -> None:
        rng = random.Random(seed)
        kept: list[tuple[Graph, float]] = []
        for _ in range(30):
            cutoff = rng.choice([1.2, 1.6, 2.0])
            kept.append((neighbor_list(positions, cutoff, np.full(3, 15.0)), cutoff))
            if len(kept) > 3:
                graph, of_graph = kept.pop(rng.randrange(3))
                squared = graph.vectors(positions, np.full(3, 15.0)).square().sum(1)
                assert bool((squared < of_graph**2 + 1e-9).all())
                if of_graph == 2.0:
                    assert torch.equal(graph.edge_index, expected.edge_index)
                    assert torch.equal(graph.reverse, expected.reverse)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(search, range(3)))


def test_same_error_for_any_number_of_threads(native_extension: None) -> None:
    """The first particle that is refused is named, not the one that a thread meets first."""
    positions = np.random.default_rng(31).uniform(0.0, 50.0, (60_000, 3))
    positions[[29_000, 33_000, 59_000]] = 6e12
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3, 8):
            torch.set_num_threads(n_threads)
            for _ in range(3):
                with pytest.raises(ValueError, match=r"at particle 29000$"):
                    neighbor_list(positions, 1.0, np.full(3, 50.0))
    finally:
        torch.set_num_threads(before)


def test_what_is_kept_is_given_up_when_addresses_are_short(native_extension: None) -> None:
    """Under a limit on addresses a larger search after a smaller one fits as it does alone."""
    program = """
        import resource, sys
        import glassconv, torch
        used = 4096 * int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
        for n in (90_000, 110_000):
            length = (n / 1.2) ** (1 / 3)
            print(glassconv.neighbor_list(torch.rand(n, 3) * length, 2.0, [length] * 3).n_edges > 40 * n)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "True"], done.stderr
