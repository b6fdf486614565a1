"""The neighbor search finds exactly the pairs of the definition, in the promised order, on every backend."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from neighbor_oracle import brute_force, check_well_formed, edges_of, sort_edges

import glassconv
from glassconv import neighbor_list

ALL = (True, True, True)
SKEWED = np.array([[4.0, 0.0, 0.0], [3.5, 2.0, 0.0], [-2.5, 3.0, 3.0]])
LEFT_HANDED = np.array([[0.0, 3.0, 0.2], [3.0, 0.0, 0.0], [0.3, 0.4, 3.5]])
SHEARED = np.array([[2.0, 0.0, 0.0], [2.5, 2.0, 0.0], [-1.5, 2.0, 2.0]])


@st.composite
def systems(draw: st.DrawFn) -> tuple[np.ndarray, float, np.ndarray, tuple[bool, ...]]:
    """Positions, cutoff, cell, periodicity: a few particles in small cells, some outside, some equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cell = np.diag(rng.uniform(0.8, 6.0, 3))
    if draw(st.booleans()):
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        cell = (cell + np.tril(rng.uniform(-3.0, 3.0, (3, 3)), -1)) @ rotation
    pbc = tuple(draw(st.lists(st.booleans(), min_size=3, max_size=3)))
    n = draw(st.integers(0, 12))
    fractional = rng.uniform(-1.0, 2.0, (n, 3)) if draw(st.booleans()) else rng.integers(-2, 4, (n, 3)) / 4.0
    cell[[axis for axis in range(3) if not pbc[axis] and draw(st.booleans())]] = 0.0
    return fractional @ cell, draw(st.sampled_from([0.7, 1.0, 1.9])), cell, pbc


@given(system=systems())
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture
    ],  # the backend stays the same for all examples
)
def test_random_systems_against_brute_force(backend: str, system) -> None:
    positions, cutoff, cell, pbc = system
    graph = neighbor_list(positions, cutoff, cell, pbc)
    np.testing.assert_array_equal(edges_of(graph), brute_force(positions, cutoff, cell, pbc))
    check_well_formed(graph)


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


@pytest.mark.parametrize(("length", "n_images"), [(1.0, 0), (0.8, 6), (0.5, 26), (0.4, 80)])
def test_one_particle_and_its_images(backend: str, length: float, n_images: int) -> None:
    """Images at distances below the cutoff 1: lattice points within a sphere of radius 1, 1.25, 2 and 2.5."""
    graph = neighbor_list([[7.3, -0.1, 0.2]], 1.0, [length] * 3)
    assert graph.n_edges == n_images
    np.testing.assert_array_equal(
        edges_of(graph), brute_force([[7.3, -0.1, 0.2]], 1.0, np.eye(3) * length, ALL)
    )
    check_well_formed(graph)


@pytest.mark.parametrize("pbc", [False, True])
@pytest.mark.parametrize("cell", [None, [5.0, 5.0, 5.0]])
def test_no_particles(backend: str, cell: list[float] | None, pbc: bool) -> None:
    graph = neighbor_list(np.zeros((0, 3)), 1.0, cell, pbc)
    assert (graph.n_nodes, graph.n_edges, graph.row_ptr.tolist()) == (0, 0, [0])
    check_well_formed(graph)
    assert graph.vectors(torch.zeros(0, 3), torch.ones(3)).shape == (0, 3)


def test_isolated_and_coincident_particles(backend: str) -> None:
    graph = neighbor_list([[0.0, 0, 0], [50.0, 0, 0], [90.0, 0, 0], [90.0, 0, 0]], 1.0)
    assert edges_of(graph).tolist() == [[2, 3, 0, 0, 0], [3, 2, 0, 0, 0]]
    assert graph.row_ptr.tolist() == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("spacing", [1.0, 0.1, 1.0 / 3.0])
@pytest.mark.parametrize("multiple", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lattice_with_neighbors_at_the_cutoff(
    backend: str, spacing: float, multiple: float, dtype: torch.dtype
) -> None:
    """Distances equal to the cutoff up to rounding: float64 arithmetic on the given numbers decides."""
    sites = torch.tensor(list(itertools.product(range(-1, 4), repeat=3)), dtype=torch.float64)
    positions = (sites * spacing).to(dtype)
    cutoff, cell = multiple * spacing, np.eye(3) * (5 * spacing)
    for given_cutoff in (cutoff, np.nextafter(cutoff, 9.0), cutoff + 1e-7):
        graph = neighbor_list(positions, float(given_cutoff), cell)
        expected = brute_force(positions.double().numpy(), given_cutoff, cell, ALL)
        np.testing.assert_array_equal(edges_of(graph), expected)


@pytest.mark.parametrize("offset", [0.0, 1e-9, 1e3, 1e6])
def test_positions_on_faces_and_far_outside(backend: str, offset: float) -> None:
    length = 3.0
    on_faces = [0.0, -0.0, length, np.nextafter(length, 0.0), np.nextafter(0.0, -1.0), 1.5]
    positions = np.array(list(itertools.product(on_faces, [0.2, length], [-0.1, 1.0]))) + offset * length
    cell = np.eye(3) * length
    graph = neighbor_list(positions, 1.4, cell)
    np.testing.assert_array_equal(edges_of(graph), brute_force(positions, 1.4, cell, ALL))
    check_well_formed(graph)


def test_each_particle_in_another_cell(backend: str) -> None:
    """Moving particles by whole (integer, so exact) cells changes the shifts only."""
    rng = np.random.default_rng(5)
    cell = np.array([[4.0, 0.0, 0.0], [1.0, 5.0, 0.0], [-2.0, 1.0, 6.0]])
    inside = np.round(rng.uniform(0, 1, (40, 3)) @ cell * 1024) / 1024
    cells = rng.integers(-1000, 1000, (40, 3))
    home, away = neighbor_list(inside, 1.7, cell), neighbor_list(inside + cells @ cell, 1.7, cell)
    expected = edges_of(home)
    expected[:, 2:] += cells[expected[:, 1]] - cells[expected[:, 0]]
    np.testing.assert_array_equal(edges_of(away), sort_edges(expected))
    check_well_formed(away)


@pytest.mark.in_emulator(shear=[2])
@pytest.mark.parametrize("shear", [2, 40])
def test_another_basis_of_the_same_lattice(backend: str, shear: int) -> None:
    """A very skewed cell that spans the lattice of a cube; multiples of 1 / 1024 keep everything exact."""
    basis = np.array([[1, 0, 0], [shear, 1, 0], [-shear, 3, 1]])
    positions = np.random.default_rng(9).integers(-4096, 4096, (30, 3)) / 1024
    cube, skewed = neighbor_list(positions, 1.5, [2.0] * 3), neighbor_list(positions, 1.5, 2.0 * basis)
    edges = edges_of(skewed)
    edges[:, 2:] = edges[:, 2:] @ basis
    np.testing.assert_array_equal(sort_edges(edges), edges_of(cube))
    check_well_formed(skewed)


def test_cells_one_particle_thick(backend: str) -> None:
    positions = np.random.default_rng(8).uniform(0.0, 1.0, (300, 3)) * [2000.0, 1.0, 1.0]
    graph = neighbor_list(positions, 1.5, [2000.0, 1.0, 1.0])
    chunk = positions[:, 0] < 20.0  # the far end is a neighbor as well, through the boundary
    chunk |= positions[:, 0] > 1980.0
    kept = np.flatnonzero(chunk)
    expected = brute_force(positions[kept], 1.5, np.diag([2000.0, 1.0, 1.0]), ALL)
    inner = np.flatnonzero((positions[kept][:, 0] < 18.0) | (positions[kept][:, 0] > 1982.0))
    found = edges_of(graph)
    expected = expected[np.isin(expected[:, 0], inner)]
    expected[:, :2] = kept[expected[:, :2]]
    np.testing.assert_array_equal(found[np.isin(found[:, 0], kept[inner])], expected)


@pytest.mark.parametrize("length", [1e6, 1e12])
@pytest.mark.parametrize("cell", [True, False])
def test_sparse_system(backend: str, length: float, cell: bool) -> None:
    """A grid of cutoff-sized bins would have 1e18 bins or more."""
    rng = np.random.default_rng(2)
    centers = rng.uniform(0.0, length, (50, 3))
    positions = np.concatenate([centers, centers + rng.uniform(-1.0, 1.0, (50, 3))])
    box = np.eye(3) * length if cell else None
    graph = neighbor_list(positions, 2.0, box)
    np.testing.assert_array_equal(edges_of(graph), brute_force(positions, 2.0, box, ALL))
    assert graph.n_edges >= 100


def test_dense_cluster_in_a_large_box(backend: str) -> None:
    rng = np.random.default_rng(4)
    positions = np.concatenate([rng.normal(20.0, 0.3, (400, 3)), rng.uniform(0.0, 40.0, (100, 3))])
    graph = neighbor_list(positions, 0.5, [40.0] * 3)
    np.testing.assert_array_equal(edges_of(graph), brute_force(positions, 0.5, np.eye(3) * 40.0, ALL))


def test_float32_positions_are_decided_in_float64(backend: str) -> None:
    positions = torch.rand(200, 3) * 5.0
    single, double = (
        neighbor_list(positions, 1.1, [5.0] * 3),
        neighbor_list(positions.double(), 1.1, [5.0] * 3),
    )
    np.testing.assert_array_equal(edges_of(single), edges_of(double))


def test_batch_is_the_concatenation_of_its_systems(backend: str) -> None:
    rng = np.random.default_rng(6)
    sizes, cells = [30, 0, 1, 25, 0], [SKEWED, np.eye(3), np.eye(3) * 0.7, LEFT_HANDED, np.eye(3)]
    pbc = [(True, False, True), ALL, ALL, ALL, (False,) * 3]
    parts = [rng.uniform(-1.0, 2.0, (n, 3)) @ cell for n, cell in zip(sizes, cells, strict=True)]
    batch = np.repeat(np.arange(5), sizes)
    graph = neighbor_list(np.concatenate(parts), 1.2, np.stack(cells), pbc, batch)
    single = [neighbor_list(*args) for args in zip(parts, [1.2] * 5, cells, pbc, strict=True)]
    joined = glassconv.Graph.concatenate(single)
    assert (graph.n_systems, joined.n_systems) == (5, 5)
    for name in ("edge_index", "shifts", "row_ptr", "reverse", "batch", "transpose_ptr", "transpose_slots"):
        torch.testing.assert_close(getattr(graph, name), getattr(joined, name), rtol=0, atol=0)
    check_well_formed(graph)


def test_batch_with_shared_or_per_system_box_lengths(backend: str) -> None:
    positions, batch = torch.rand(60, 3) * 3.0, torch.arange(3, dtype=torch.int32).repeat_interleave(20)
    shared = neighbor_list(positions, 0.9, [3.0] * 3, batch=batch)
    for cell in (torch.full((3, 3), 3.0), torch.eye(3).repeat(3, 1, 1) * 3.0):
        np.testing.assert_array_equal(
            edges_of(shared), edges_of(neighbor_list(positions, 0.9, cell, True, batch))
        )
    assert not torch.equal(shared.shifts, neighbor_list(positions, 0.9, None, True, batch).shifts)
    assert bool((shared.batch[shared.edge_index[0]] == shared.batch[shared.edge_index[1]]).all())


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


@pytest.mark.parametrize("scale", [1.0, 0.35])
def test_backends_and_thread_counts_give_the_same_bits(native_extension: None, scale: float) -> None:
    rng = np.random.default_rng(11)
    cell = SKEWED * 4 * scale
    positions = torch.from_numpy(rng.uniform(-0.3, 1.3, (1500, 3)) @ cell)
    threads = torch.get_num_threads()
    graphs = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            with glassconv.use_backend("native"):
                graphs.append(neighbor_list(positions, scale * 1.5, cell))
    finally:
        torch.set_num_threads(threads)
    graphs.append(glassconv.reference.neighbor_list(positions, scale * 1.5, cell))
    for graph in graphs[1:]:
        for name in ("edge_index", "shifts", "row_ptr", "reverse"):
            assert torch.equal(getattr(graph, name), getattr(graphs[0], name)), name


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


GOOD = np.zeros((2, 3))
BOX = [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 2)), 1.0), r"positions: expected shape \(N, 3\), got \(2, 2\)"),
        ((np.zeros((2, 3), dtype=np.int64), 1.0), "positions: expected float32 or float64, got torch.int64"),
        (
            (np.array([[0.0] * 3, [0, np.nan, 0]]), 1.0),
            r"positions: expected finite .* got .*nan.* at particle 1",
        ),
        ((torch.tensor([[0.0, 0.0, torch.inf]]), 1.0, BOX), r"positions: expected finite .* at particle 0"),
        (("atoms", 1.0), "positions: expected an array, got str"),
        ((GOOD, 0.0), "cutoff: expected a positive finite number, got 0.0"),
        ((GOOD, -1.0), "cutoff: expected a positive finite number, got -1.0"),
        ((GOOD, np.nan), "cutoff: expected a positive finite number, got nan"),
        ((GOOD, np.inf), "cutoff: expected a positive finite number, got inf"),
        ((GOOD, 1.0, np.ones(2)), r"cell: expected shape \(3,\) or \(3, 3\), got \(2,\)"),
        ((GOOD, 1.0, [1.0, np.inf, 1.0]), r"cell: expected finite numbers, got inf at \[1\]"),
        ((GOOD, 1.0, np.ones(3, dtype=bool)), "cell: expected real numbers, got torch.bool"),
        ((GOOD, 1.0, [3.0, 0.0, 3.0]), "cell: expected linearly independent periodic vectors"),
        ((GOOD, 1.0, [[1.0, 2, 3], [2.0, 4, 6], [0, 0, 1]], (True, True, False)), "cell: expected linearly"),
        ((GOOD, 1.0, BOX, (True, False)), r"pbc: expected a shape among \[\(\), \(3,\)\], got \(2,\)"),
        ((GOOD, 1.0, BOX, (1, 1, 0)), "pbc: expected bool, got torch.int64"),
        ((GOOD, 1.0, BOX, True, [0]), r"batch: expected shape \(2,\), got \(1,\)"),
        ((GOOD, 1.0, BOX, True, [0.0, 1.0]), "batch: expected int64 or int32, got torch.float64"),
        (
            (GOOD, 1.0, BOX, True, [1, 0]),
            "batch: expected non-decreasing systems, got 0 after 1 at particle 1",
        ),
        ((GOOD, 1.0, BOX, True, [-1, 0]), "batch: expected systems counted from 0, got -1 at particle 0"),
        (
            (GOOD, 1.0, np.eye(3)[None], True, [0, 1]),
            r"cell: expected shape .* B >= 2 systems, got \(1, 3, 3\)",
        ),
        ((GOOD, 1.0, np.eye(3), True, [0, 3]), r"cell: expected shape .* B >= 4 systems, got \(3, 3\)"),
        (
            (np.array([[0.0, 0, 0], [0, 4e9, 0]]), 1.0, BOX),
            "positions: expected within 1e9 cells .* particle 1",
        ),
        ((GOOD, 1e4, BOX), "cutoff: expected at most 16777216 periodic images within reach"),
        ((GOOD, 1e12, BOX, (True, False, False)), "cutoff: expected at most 16777216 periodic images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_argument_expected_and_got(backend: str, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighbor_list(*arguments)


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
