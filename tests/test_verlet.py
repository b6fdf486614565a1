"""A Verlet list gives the bits of a new search at every step, and searches when a pair could be missed."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from neighbor_oracle import brute_force, edges_of
from test_neighbors_interface import CUTOFFS, SKEWED, NoReads
from torch import Tensor

import glassconv
from glassconv import Graph, VerletList, neighbor_list

BOX = torch.tensor([4.0, 4.2, 3.9], dtype=torch.float64)
CUTOFF, SKIN = 1.3, 0.3


@pytest.fixture(autouse=True)
def filter_of_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind CPU tensors, where the CPU's own operator would filter, go the way that tensors on a GPU go."""
    if "backend" in request.fixturenames and request.getfixturevalue("backend") in ("emulated", "cuda"):
        monkeypatch.setattr("glassconv.neighbors.filters_natively", lambda _: False)


in_each_way = pytest.mark.parametrize("capacity", [None, 4000])


def assert_same(graph: Graph, expected: Graph) -> None:
    """The same bits; whatever room a capacity leaves holds -1."""
    n = expected.n_edges
    if graph.n_found is not None:
        graph.check()
        assert int(graph.n_found) == n
    for name in ("edge_index", "shifts", "reverse", "row_source", "transpose_slots"):
        values, dim = getattr(graph, name), int(name == "edge_index")
        assert torch.equal(values.narrow(dim, 0, n), getattr(expected, name)), name
        assert bool((values.narrow(dim, n, graph.n_edges - n) == -1).all()), name
    for name in ("row_ptr", "transpose_ptr", "batch"):
        value, wanted = getattr(graph, name), getattr(expected, name)
        assert (value is None and wanted is None) or torch.equal(value, wanted), name
    assert (graph.n_systems, graph.cutoff) == (expected.n_systems, expected.cutoff)
    assert graph.has_shifts == expected.has_shifts
    assert edges_of(graph).dtype == edges_of(expected).dtype


def start(n: int, cell: Any, *, dtype: torch.dtype = torch.float64, seed: int = 40) -> Tensor:
    rng = np.random.default_rng(seed)
    cell = np.asarray(cell)
    positions = rng.uniform(-0.5, 1.5, (n, 3)) @ (np.diag(cell) if cell.ndim == 1 else cell)
    return torch.from_numpy(positions).to(dtype)


def walk(positions: Tensor, step: float, n_steps: int, seed: int = 41) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        yield positions
        noise = torch.randn(positions.shape, generator=generator, dtype=torch.float64)
        positions = positions + (step * noise).to(positions.dtype)


# The bits of a new search


@in_each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pbc", [True, (True, False, True), False], ids=str)
def test_random_walk(backend: str, pbc: Any, dtype: torch.dtype, capacity: int | None) -> None:
    neighbors = VerletList(CUTOFF, SKIN, capacity=capacity)
    for positions in walk(start(30, SKEWED, dtype=dtype), 0.03, 12):
        assert_same(neighbors.update(positions, SKEWED, pbc), neighbor_list(positions, CUTOFF, SKEWED, pbc))
    assert neighbors.n_updates == 12
    assert 1 < neighbors.n_builds < 10


@in_each_way
def test_open_system(backend: str, capacity: int | None) -> None:
    neighbors = VerletList(CUTOFF, SKIN, capacity=capacity)
    for positions in walk(start(30, BOX), 0.03, 12):
        assert_same(neighbors.update(positions), neighbor_list(positions, CUTOFF))
    assert 1 < neighbors.n_builds < 10


@in_each_way
@pytest.mark.parametrize("pbc", [True, (True, False, True)], ids=str)
def test_cells_that_swell_and_shear(backend: str, pbc: Any, capacity: int | None) -> None:
    """As under a barostat: particles go with the cell and move on top. Open axes hold anything."""
    neighbors, cell = VerletList(CUTOFF, SKIN, capacity=capacity), torch.from_numpy(SKEWED)
    generator = torch.Generator().manual_seed(42)
    positions = start(30, SKEWED)
    for _ in range(15):
        strain = 0.01 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        noise = 0.01 * torch.randn(30, 3, generator=generator, dtype=torch.float64)
        positions, cell = positions + positions @ strain + noise, cell + cell @ strain
        if pbc is not True:
            cell[1] = torch.randn(3, generator=generator)
        assert_same(neighbors.update(positions, cell, pbc), neighbor_list(positions, CUTOFF, cell, pbc))
    assert 1 < neighbors.n_builds < 10


@in_each_way
def test_batch_of_systems_of_different_kinds(backend: str, capacity: int | None) -> None:
    neighbors, sizes = VerletList(CUTOFF, SKIN, capacity=capacity), [12, 0, 15, 1]
    cells = torch.stack([torch.from_numpy(SKEWED), torch.eye(3), torch.diag(BOX), torch.eye(3)]).double()
    pbc = torch.tensor([[True, False, True], [True] * 3, [True] * 3, [False] * 3])
    batch = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    first = torch.cat([start(n, cell) for n, cell in zip(sizes, cells, strict=True)])
    for positions in walk(first, 0.03, 12):
        cells = cells * 1.001
        graph = neighbors.update(positions, cells, pbc, batch)
        assert_same(graph, neighbor_list(positions, CUTOFF, cells, pbc, batch))
    assert 1 < neighbors.n_builds < 10


@pytest.mark.parametrize("cell", [None, BOX], ids=["open", "shared"])
def test_batch_with_one_cell_or_none(backend: str, cell: Tensor | None) -> None:
    neighbors, batch = VerletList(CUTOFF, SKIN), torch.tensor([1, 5]).repeat_interleave(12)
    for positions in walk(start(24, BOX), 0.03, 8):
        expected = neighbor_list(positions, CUTOFF, cell, True, batch)
        assert_same(neighbors.update(positions, cell, True, batch), expected)
    assert 1 < neighbors.n_builds < 7


@in_each_way
def test_cutoffs_of_pairs(backend: str, capacity: int | None) -> None:
    neighbors = VerletList(CUTOFFS, SKIN, capacity=capacity)
    types = torch.arange(30) % 3
    for positions in walk(start(30, SKEWED), 0.03, 12):
        graph = neighbors.update(positions, SKEWED, types=types)
        assert_same(graph, neighbor_list(positions, CUTOFFS, SKEWED, types=types))
    assert 1 < neighbors.n_builds < 10


@in_each_way
def test_another_type_for_some_particles(backend: str, capacity: int | None) -> None:
    neighbors = VerletList(CUTOFFS, SKIN, capacity=capacity)
    positions, types = start(30, SKEWED), torch.arange(30, dtype=torch.int32) % 3
    for _ in range(2):
        graph = neighbors.update(positions, SKEWED, types=types)
        assert_same(graph, neighbor_list(positions, CUTOFFS, SKEWED, types=types))
        types[::4] = 1  # in place
    assert neighbors.n_builds == 2


@in_each_way
def test_types_that_never_are_neighbors(backend: str, capacity: int | None) -> None:
    """Not even within the skin."""
    neighbors, types = VerletList(CUTOFFS, SKIN, filtered=False, capacity=capacity), torch.arange(30) % 3
    positions = start(30, SKEWED)
    positions[2] = positions[0] + 0.1  # of types 0 and 2
    graph = neighbors.update(positions, SKEWED, types=types)
    source, receiver = types[graph.edge_index[:, graph.edge_mask]]
    found = {tuple(sorted(pair)) for pair in torch.stack([source, receiver], 1).tolist()}
    assert found == {(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)}


def test_arrays_of_numpy(backend: str) -> None:
    neighbors, positions = VerletList(CUTOFF, SKIN), start(30, BOX).numpy()
    for _ in range(2):
        graph = neighbors.update(positions, BOX.numpy())
        assert isinstance(graph.edge_index, np.ndarray)
        np.testing.assert_array_equal(
            edges_of(graph), edges_of(neighbor_list(positions, CUTOFF, BOX.numpy()))
        )
        positions[::3] += 0.3  # in place: the list keeps a copy
    assert neighbors.n_builds == 2


# When it searches


@in_each_way
def test_drift_is_no_motion(backend: str, capacity: int | None) -> None:
    neighbors, positions = VerletList(CUTOFF, SKIN, capacity=capacity), start(30, BOX)
    for step in range(10):
        moved = positions + step * torch.tensor([0.7, -0.4, 0.9])
        assert_same(neighbors.update(moved, BOX), neighbor_list(moved, CUTOFF, BOX))
    assert neighbors.n_builds == 1


@in_each_way
@pytest.mark.parametrize("drift", [0.0, 1.7])
def test_two_particles_that_approach(backend: str, drift: float, capacity: int | None) -> None:
    """From just outside the list: each by half the skin, a little less, and a little more."""
    apart = (CUTOFF + SKIN) * (1 + 1e-12)
    positions = torch.tensor([[0.0, 0.0, 0.0], [apart, 0.0, 0.0]], dtype=torch.float64)
    for fraction, n_builds in ((1 - 1e-5, 1), (1 + 1e-5, 2)):
        neighbors = VerletList(CUTOFF, SKIN, capacity=capacity)
        neighbors.update(positions, BOX, False)
        assert VerletList(CUTOFF, SKIN, filtered=False).update(positions, BOX, False).n_edges == 0
        step = fraction * SKIN / 2 * torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64)
        graph = neighbors.update(positions + step + drift, BOX, False)
        assert_same(graph, neighbor_list(positions + step + drift, CUTOFF, BOX, False))
        assert neighbors.n_builds == n_builds
        assert int(graph.edge_mask.sum()) == 2 * (n_builds - 1)


@in_each_way
def test_a_cell_that_changes_in_place(backend: str, capacity: int | None) -> None:
    neighbors, positions, cell = VerletList(CUTOFF, SKIN, capacity=capacity), start(30, BOX), torch.diag(BOX)
    for scale in (1.0, 0.8, 0.999):
        cell *= scale
        assert_same(neighbors.update(positions, cell), neighbor_list(positions, CUTOFF, cell))
    assert neighbors.n_builds == 2


@in_each_way
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cell_that_shrinks_along_one_axis(backend: str, axis: int, capacity: int | None) -> None:
    """By what brings a pair from just outside the list to the cutoff, a little less, and a little more."""
    apart = (CUTOFF + SKIN) * (1 + 1e-12)
    positions = torch.zeros(2, 3, dtype=torch.float64)
    positions[:, axis] = torch.tensor([-0.2, apart - 0.2])
    for distance, n_builds in ((CUTOFF + 1e-5, 1), (CUTOFF - 1e-5, 2)):
        neighbors = VerletList(CUTOFF, SKIN, capacity=capacity)
        neighbors.update(positions, BOX)
        scale = torch.ones(3, dtype=torch.float64)
        scale[axis] = distance / apart
        graph = neighbors.update(positions * scale, BOX * scale)
        assert_same(graph, neighbor_list(positions * scale, CUTOFF, BOX * scale))
        assert neighbors.n_builds == n_builds


@pytest.mark.parametrize("seed", range(6))
def test_adversaries_do_not_make_it_miss_a_pair(backend: str, seed: int) -> None:
    """Every particle goes for one that is just out of reach, as far as the criterion lets it, or farther."""
    rng = np.random.default_rng([43, seed])
    positions, cell = start(40, SKEWED, seed=seed).numpy(), SKEWED.copy()
    neighbors = VerletList(CUTOFF, SKIN)
    for _ in range(6):
        neighbors.update(positions, cell)
        outside = edges_of(neighbor_list(positions, CUTOFF + 2 * SKIN, cell))
        receiver, source, shifts = outside[:, 0], outside[:, 1], outside[:, 2:]
        d = positions[receiver] - positions[source] + shifts @ cell
        lengths = np.linalg.norm(d, axis=1)
        aims = np.zeros_like(positions)
        for edge in np.flatnonzero(lengths > CUTOFF + SKIN)[np.argsort(lengths[lengths > CUTOFF + SKIN])][
            ::-1
        ]:
            aims[receiver[edge]] = -d[edge] / lengths[edge]
        strain = rng.choice([0.0, 0.1]) * rng.normal(size=(3, 3)) * SKIN / CUTOFF
        positions = positions + rng.uniform(0.3, 1.1) * SKIN / 2 * aims
        positions, cell = positions + positions @ strain + rng.normal(size=3), cell + cell @ strain
        found = edges_of(neighbors.update(positions, cell))
        np.testing.assert_array_equal(found, brute_force(positions, CUTOFF, cell))
    assert neighbors.n_builds > 1


@in_each_way
def test_unfiltered_list_holds_every_pair_below_the_cutoff(backend: str, capacity: int | None) -> None:
    neighbors = VerletList(CUTOFF, SKIN, filtered=False, capacity=capacity)
    sizes = set()
    for positions in walk(start(30, BOX), 0.03, 12):
        graph = neighbors.update(positions, BOX)
        assert graph.cutoff == CUTOFF + SKIN
        mask = np.asarray(graph.edge_mask)
        listed = {tuple(edge) for edge in edges_of(graph)[mask].tolist()}
        assert {tuple(edge) for edge in edges_of(neighbor_list(positions, CUTOFF, BOX)).tolist()} <= listed
        sizes.add(len(listed))
    assert len(sizes) <= neighbors.n_builds < 8


@in_each_way
@pytest.mark.parametrize(
    "change",
    [
        lambda r: {"positions": torch.cat([r, r[:1] + 0.4])},
        lambda r: {"positions": r[:-3]},
        lambda r: {"positions": r.float()},
        lambda _: {"pbc": (True, True, False)},
        lambda _: {"cell": None},
        lambda _: {"cell": BOX[None], "batch": torch.zeros(30, dtype=torch.int64)},
        lambda _: {"cell": torch.stack([BOX, BOX]), "batch": torch.arange(30) // 15},
        lambda r: {"positions": r.remainder(BOX)},
    ],
    ids=["more", "fewer", "float32", "pbc", "open", "batch", "batch of two", "wrapped"],
)
def test_any_other_change_is_a_new_search(backend: str, change: Any, capacity: int | None) -> None:
    neighbors, positions = VerletList(CUTOFF, SKIN, capacity=capacity), start(30, BOX)
    neighbors.update(positions, BOX)
    arguments = {"positions": positions, "cell": BOX, **change(positions)}
    graph = neighbors.update(**arguments)
    assert_same(graph, neighbor_list(arguments.pop("positions"), CUTOFF, **arguments))
    assert neighbors.n_builds == 2
    assert_same(neighbors.update(positions, BOX), neighbor_list(positions, CUTOFF, BOX))


@in_each_way
def test_another_division_into_systems(backend: str, capacity: int | None) -> None:
    neighbors, positions = VerletList(CUTOFF, SKIN, capacity=capacity), start(30, BOX)
    cells = torch.stack([BOX, BOX, BOX])
    graphs = []
    for batch in (torch.arange(30) // 15, torch.arange(30) // 10, torch.arange(30) // 10):
        graphs.append(neighbors.update(positions, cells, True, batch))
        assert_same(graphs[-1], neighbor_list(positions, CUTOFF, cells, True, batch))
    assert neighbors.n_builds == 2
    assert graphs[0].batch.tolist() == [0] * 15 + [1] * 15
    # fewer cells than before, and enough
    batch = torch.arange(30) // 15
    assert_same(
        neighbors.update(positions, cells[:2], True, batch),
        neighbor_list(positions, CUTOFF, cells[:2], True, batch),
    )


@in_each_way
@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_particles(backend: str, n: int, capacity: int | None) -> None:
    neighbors, positions = VerletList(CUTOFF, SKIN, capacity=capacity), torch.zeros(n, 3)
    for cell in (None, [1.0, 1.0, 1.0], [1.1, 1.0, 1.0]):
        for _ in range(2):
            assert_same(neighbors.update(positions, cell), neighbor_list(positions, CUTOFF, cell))


def test_far_from_the_origin_it_searches_always(backend: str) -> None:
    """Where rounding is as large as the skin, nothing can be said about distances."""
    neighbors, positions = VerletList(CUTOFF, 1e-3), start(20, BOX) + 1e12
    for step in range(3):
        moved = positions + 1e-3 * step
        assert_same(neighbors.update(moved), neighbor_list(moved, CUTOFF))
    assert neighbors.n_builds == 3


# Errors


@pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)
@in_each_way
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"positions": torch.tensor([[0.0, 0.0, torch.nan]] * 2)},
            "positions: expected finite .* particle 0",
        ),
        (
            {"positions": torch.tensor([[0.0, torch.inf, 0.0]] * 2)},
            "positions: expected finite .* particle 0",
        ),
        ({"positions": torch.zeros(2, 2)}, r"positions: expected shape \(N, 3\)"),
        ({"cell": [4.0, torch.nan, 4.0]}, r"cell: expected finite numbers, got nan at \[1\]"),
        ({"cell": [4.0, 0.0, 4.0]}, "cell: expected linearly independent"),
        ({"cell": [[4.0, 0.0, 0.0]] * 3}, "cell: expected linearly independent"),
        ({"pbc": 1}, "pbc: expected bool"),
        ({"types": [0, 0]}, "types: expected types exactly when the cutoff is an array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_never_a_kept_list(
    backend: str, built: bool, change: dict[str, Any], message: str, capacity: int | None
) -> None:
    neighbors = VerletList(CUTOFF, SKIN, capacity=capacity)
    good: dict[str, Any] = {"positions": torch.zeros(2, 3), "cell": [4.0, 4.0, 4.0]}
    if built:
        neighbors.update(**good)
    with pytest.raises(ValueError, match=message):
        neighbors.update(**(good | change))
    assert_same(neighbors.update(**good), neighbor_list(good["positions"], CUTOFF, good["cell"]))


@pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)
@in_each_way
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("pbc", [(True, False, True), False], ids=str)
def test_open_axes_are_finite_too(backend: str, pbc: Any, value: float, capacity: int | None) -> None:
    neighbors, positions = VerletList(CUTOFF, SKIN, capacity=capacity), start(30, BOX)
    expected = neighbor_list(positions, CUTOFF, BOX, pbc)
    assert_same(neighbors.update(positions, BOX, pbc), expected)
    with pytest.raises(ValueError, match=r"cell: expected finite numbers, got (nan|inf) at \[1\]"):
        neighbors.update(positions, [4.0, value, 3.9], pbc)
    assert_same(neighbors.update(positions, BOX, pbc), expected)


@pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)
@in_each_way
def test_bad_batches_and_types_are_never_a_kept_list(backend: str, capacity: int | None) -> None:
    neighbors = VerletList(CUTOFFS, SKIN, capacity=capacity)
    positions, cells = torch.zeros(3, 3), torch.ones(2, 3) * 4.0
    batch, types = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    neighbors.update(positions, cells, True, batch, types)
    with pytest.raises(ValueError, match="batch: expected non-decreasing systems"):
        neighbors.update(positions, cells, True, batch.flip(0), types)
    with pytest.raises(ValueError, match=r"types: expected types from 0 to 2, .* got 3 at particle 0"):
        neighbors.update(positions, cells, True, batch, types + 3)
    with pytest.raises(
        ValueError, match="types: expected types exactly when the cutoff is an array, got None"
    ):
        neighbors.update(positions, cells, True, batch)


@pytest.mark.parametrize("backend", ["emulated", "cuda"], indirect=True)
def test_bad_input_on_a_gpu_leaves_no_edges(backend: str) -> None:
    neighbors, positions = VerletList(CUTOFF, SKIN, capacity=4000), start(30, BOX)
    neighbors.update(positions, BOX)
    for _ in range(2):
        graph = neighbors.update(positions * torch.nan, BOX)
        assert not bool(graph.edge_mask.any())
        with pytest.raises(ValueError, match="positions: expected finite numbers"):
            graph.check()
    assert_same(neighbors.update(positions, BOX), neighbor_list(positions, CUTOFF, BOX))


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": torch.full((30,), 7)}, "batch: expected non-decreasing systems"),
        ({"batch": torch.full((30,), -1)}, "batch: expected non-decreasing systems"),
        ({"batch": torch.arange(30) % 2}, "batch: expected non-decreasing systems"),
        ({"types": torch.full((30,), 3)}, "types: expected types that have cutoffs"),
        ({"types": torch.full((30,), -(2**40))}, "types: expected types that have cutoffs"),
        ({"cell": torch.full((2, 3), torch.nan)}, "cell: expected finite vectors"),
        ({"cell": BOX * torch.tensor([[1.0, torch.inf, 1.0]] * 2)}, "cell: expected finite vectors"),
    ],
    ids=["beyond", "negative", "decreasing", "type", "huge type", "NaN", "open axis"],
)
@pytest.mark.parametrize("backend", ["emulated", "cuda"], indirect=True)
def test_refused_input_on_a_gpu_is_never_a_kept_list(
    backend: str, change: dict[str, Tensor], message: str, built: bool, filtered: bool
) -> None:
    neighbors = VerletList(CUTOFFS, SKIN, capacity=4000, filtered=filtered)
    good = {
        "positions": start(30, BOX),
        "cell": torch.stack([BOX, BOX]),
        "pbc": torch.tensor([[True, False, True]] * 2),
        "batch": torch.arange(30) // 15,
        "types": torch.arange(30) % 3,
    }
    if built:
        neighbors.update(**good)
    for _ in range(2):
        graph = neighbors.update(**(good | change))
        assert not bool(graph.edge_mask.any())
        assert not bool(graph.vectors(good["positions"], good["cell"]).any())
        with pytest.raises(ValueError, match=message):
            graph.check()
    for _ in range(2):
        graph = neighbors.update(**good)
        graph.check()
    assert neighbors.n_builds == built + 3
    found = VerletList(CUTOFFS, SKIN, filtered=filtered).update(**good)
    if filtered:
        found = neighbor_list(good.pop("positions"), CUTOFFS, **good)
    assert_same(graph, found)


@pytest.mark.parametrize("filtered", [True, False])
def test_overflow_says_what_the_list_needs(backend: str, filtered: bool) -> None:
    positions = start(30, BOX)
    needed = neighbor_list(positions, CUTOFF + SKIN, BOX).n_edges
    neighbors = VerletList(CUTOFF, SKIN, capacity=needed - 1, filtered=filtered)
    for _ in range(2):
        graph = neighbors.update(positions, BOX)
        assert bool(graph.overflow)
        assert int(graph.n_found) == needed
        assert not bool(graph.edge_mask.any())
    neighbors = VerletList(CUTOFF, SKIN, capacity=needed, filtered=filtered)
    assert not bool(neighbors.update(positions, BOX).overflow)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.1), "cutoff: expected a positive finite number, got 0.0"),
        (("1", 0.1), "cutoff: expected a positive finite number, got '1'"),
        (([[1.0, 0.5], [0.4, 1.0]], 0.1), "cutoff: expected a symmetric matrix"),
        ((1.0, 0.0), "skin: expected a positive finite number, got 0.0"),
        ((1.0, -0.1), "skin: expected a positive finite number, got -0.1"),
        ((1.0, np.nan), "skin: expected a positive finite number, got nan"),
        ((1.0, None), "skin: expected a positive finite number, got None"),
        ((1e140, 1e139), "skin: expected from 1e-140"),
        ((1.0, np.ones((2, 2))), r"skin: expected a number, got an array of shape \(2, 2\)"),
        (([[1.0], [1.0, 2.0]], 0.1), "cutoff: expected an array, got list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_are_checked(arguments: tuple[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VerletList(*arguments)
    with pytest.raises(ValueError, match="capacity: expected at least 0, got -3"):
        VerletList(1.0, 0.1, capacity=-3)


def test_what_a_list_was_made_with_does_not_change() -> None:
    neighbors = VerletList(CUTOFF, SKIN, capacity=10)
    for name in ("cutoff", "skin", "filtered", "capacity"):
        with pytest.raises(AttributeError):
            setattr(neighbors, name, 1)


# On a GPU nothing waits


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("backend", ["emulated"], indirect=True)
def test_capacity_reads_no_values(backend: str, filtered: bool) -> None:
    neighbors = VerletList(CUTOFFS, SKIN, capacity=4000, filtered=filtered)
    types, batch, cells = (
        torch.arange(30) % 3,
        torch.zeros(30, dtype=torch.int64),
        torch.from_numpy(SKEWED)[None],
    )
    pbc = torch.ones(1, 3, dtype=torch.bool)
    with NoReads():
        for positions in walk(start(30, SKEWED), 0.03, 8):
            graph = neighbors.update(positions, cells, pbc, batch, types)
    assert neighbors.n_updates == 8
    assert 1 < neighbors.n_builds < 10
    if filtered:
        assert_same(graph, neighbor_list(positions, CUTOFFS, cells, pbc, batch, types=types))


@pytest.mark.parametrize("backend", ["emulated"], indirect=True)
def test_capacity_uses_the_same_memory_in_every_step(backend: str) -> None:
    neighbors = VerletList(CUTOFF, SKIN, capacity=4000, filtered=False)
    places = {
        tuple(
            getattr(neighbors.update(r, BOX), name).data_ptr() for name in ("edge_index", "shifts", "reverse")
        )
        for r in walk(start(30, BOX), 0.04, 6)
    }
    assert len(places) == 1
    assert neighbors.n_builds > 1


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_step_in_a_cuda_graph(backend: str) -> None:
    neighbors, cell = VerletList(CUTOFF, SKIN, capacity=4000), BOX.cuda()
    positions = start(30, BOX).cuda()
    neighbors.update(positions, cell)
    neighbors.update(positions, cell)  # loads what is loaded at first use
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        graph = neighbors.update(positions, cell)
    for moved in walk(start(30, BOX), 0.03, 8):
        positions.copy_(moved)
        captured.replay()
        assert_same(graph.to("cpu"), neighbor_list(moved, CUTOFF, BOX))
    assert 1 < neighbors.n_builds < 10


# Molecular dynamics

EPSILON = torch.tensor([[1.0, 1.5], [1.5, 0.5]], dtype=torch.float64)
SIGMA = torch.tensor([[1.0, 0.8], [0.8, 0.88]], dtype=torch.float64)


class KobAndersen:
    """108 particles of the Kob-Andersen liquid at density 1.2, from a lattice; cut at 2 sigma and shifted."""

    def __init__(self) -> None:
        n = 108
        self.length = float((n / 1.2) ** (1 / 3))
        basis = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
        sites = (np.indices((3, 3, 3)).reshape(3, -1).T[:, None] + basis).reshape(-1, 3) / 3
        rng = np.random.default_rng(44)
        self.positions = torch.from_numpy(sites * self.length)
        self.types = torch.from_numpy((rng.permutation(n) < n // 5).astype(np.int64))
        velocities = rng.normal(scale=1.2, size=(n, 3))
        self.velocities = torch.from_numpy(velocities - velocities.mean(axis=0))
        self.cell = torch.full((3,), self.length, dtype=torch.float64)
        self.cutoffs = 2.0 * SIGMA

    def energy_and_forces(self, graph: Graph, positions: Tensor) -> tuple[Tensor, Tensor]:
        source, receiver = graph.edge_index
        pair = self.types[receiver], self.types[source]
        vectors = graph.vectors(positions, self.cell)
        squared = vectors.square().sum(1)
        s6 = (SIGMA[pair].square() / squared) ** 3
        energy = 2.0 * (EPSILON[pair] * (s6 * s6 - s6 - (2.0**-12 - 2.0**-6))).sum()
        slope = 24.0 * EPSILON[pair] * (2.0 * s6 * s6 - s6) / squared
        forces = torch.zeros_like(positions).index_add(0, receiver, slope[:, None] * vectors)
        return energy, forces

    def run(self, update: Any, n_steps: int, timestep: float = 0.002) -> list[float]:
        """Total energies, by velocity Verlet at constant energy."""
        positions, velocities, energies = self.positions, self.velocities, []
        _, forces = self.energy_and_forces(update(positions), positions)
        for _ in range(n_steps):
            velocities = velocities + 0.5 * timestep * forces
            positions = positions + timestep * velocities
            potential, forces = self.energy_and_forces(update(positions), positions)
            velocities = velocities + 0.5 * timestep * forces
            energies.append(float(potential + 0.5 * velocities.square().sum()))
        return energies


@pytest.mark.parametrize("n_steps", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_constant_energy_has_the_same_bits(native_extension: None, n_steps: int) -> None:
    system = KobAndersen()
    neighbors = VerletList(system.cutoffs, 0.4)
    kept = system.run(lambda r: neighbors.update(r, system.cell, types=system.types), n_steps)
    searched = system.run(
        lambda r: neighbor_list(r, system.cutoffs, system.cell, types=system.types), n_steps
    )
    assert kept == searched
    assert neighbors.n_updates == n_steps + 1
    assert 1 < neighbors.n_builds < n_steps / 8
    # the cutoff leaves a jump of the force, which moves the energy a little
    assert np.ptp(kept) < 1e-3 * abs(kept[0]) + 1e-3 * n_steps**0.5


def test_documented_example() -> None:
    results = doctest.testmod(glassconv.verlet)
    assert (results.failed, results.attempted) == (0, 4)
