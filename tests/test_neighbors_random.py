"""Random systems of every kind against the brute-force list, and proof that the comparison finds faults.

GLASSCONV_NEIGHBOR_CASES: how many systems the long tests search on a CPU or GPU (default 20,000). Batches and
other arguments get a quarter of that; so do all with the reference, and an eighth with the emulator.
GLASSCONV_NEIGHBOR_SEED: a number that makes them other cases.
GLASSCONV_NEIGHBOR_TRACE: a file that keeps the case being run, for one that ends the process.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from neighbor_oracle import brute_force, brute_force_batch, check_well_formed, edges_of, half_of, sort_edges
from neighbor_systems import (
    System,
    batches,
    compare,
    difference,
    for_random_cases,
    images_within,
    search,
    systems,
)

from glassconv import neighbor_list

LONG = int(os.environ.get("GLASSCONV_NEIGHBOR_CASES", "20000"))
SEED = 1000 + 1_000_000 * int(os.environ.get("GLASSCONV_NEIGHBOR_SEED", "0"))


def count(backend: str, n_cases: int, **slower: int) -> int:
    """How many cases to run: fewer with the backends that are so many times slower."""
    return n_cases // (slower or {"emulated": 4}).get(backend, 1)


def compare_batch(parts: list[System]) -> None:
    """The graph of several systems is that of each, without an edge between them."""
    cutoff, sizes = parts[0].cutoff, [len(part.positions) for part in parts]
    is_open = any(part.cell is None for part in parts)
    graph = neighbor_list(
        np.concatenate([part.positions for part in parts]),
        cutoff,
        None if is_open else np.stack([part.cell for part in parts]),
        [part.pbc for part in parts],
        np.repeat(np.arange(len(parts)), sizes),
    )
    expected = brute_force_batch([(part.positions, part.cell, part.pbc) for part in parts], cutoff)
    wrong = difference(edges_of(graph), expected)
    assert not wrong, f"{wrong}; systems of a batch:\n{parts}"
    check_well_formed(graph)
    batch = np.asarray(graph.batch)[np.asarray(graph.edge_index)]
    np.testing.assert_array_equal(batch[0], batch[1])


@st.composite
def interfaces(draw: st.DrawFn) -> tuple[System, dict[str, object]]:
    """A system and other arguments of the search: cutoffs of types, half lists, order, capacity."""
    system, rng = draw(systems(60)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    options: dict[str, object] = {"order": draw(st.sampled_from(["receiver", "spatial"]))}
    options["half"] = draw(st.booleans())
    n_types = draw(st.integers(0, 4))
    if n_types:
        options["types"] = rng.integers(0, n_types, len(system.positions))
        cutoffs = system.cutoff * rng.choice([0.0, 0.25, 0.5, 1.0, rng.random()], (n_types, n_types))
        cutoffs[0, 0] = system.cutoff
        options["cutoff"] = np.maximum(cutoffs, cutoffs.T)
    if draw(st.booleans()):
        options["capacity"] = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])), draw(st.integers(-2, 2))
    return system, options


def compare_interface(case: tuple[System, dict[str, object]]) -> None:
    system, options = case[0], dict(case[1])
    cutoff, types = options.pop("cutoff", system.cutoff), options.get("types")
    full = brute_force(system.positions, cutoff, system.cell, system.pbc, types)
    n_found = len(half_of(full)) if options["half"] else len(full)
    if "capacity" in options:
        share, more = options["capacity"]
        options["capacity"] = max(0, round(share * n_found) + more)
    capacity = options.get("capacity")
    graph = neighbor_list(system.positions, cutoff, system.cell, system.pbc, **options)
    assert (graph.n_found is None) == (capacity is None)
    assert n_found == (graph.n_edges if capacity is None else int(graph.n_found))
    rows, edges = np.asarray(graph.row_ptr), edges_of(graph)
    if capacity is not None:
        assert graph.n_edges == capacity
        assert bool(graph.overflow) == (n_found > capacity)
        assert (edges[n_found:] == -1).all()
        if n_found > capacity:
            assert not rows.any()
            assert not np.asarray(graph.edge_mask).any()
            return
        np.testing.assert_array_equal(np.asarray(graph.edge_mask), np.arange(capacity) < n_found)
    edges = edges[:n_found]
    np.testing.assert_array_equal(edges, sort_edges(edges))
    np.testing.assert_array_equal(rows, np.searchsorted(edges[:, 0], np.arange(graph.n_nodes + 1)))
    if options["half"]:
        np.testing.assert_array_equal(edges, half_of(edges))
        edges = np.concatenate([edges, np.column_stack([edges[:, 1::-1], -edges[:, 2:]])])
    else:
        reverse = np.asarray(graph.reverse)
        np.testing.assert_array_equal(
            edges[reverse[:n_found]], np.column_stack([edges[:, 1::-1], -edges[:, 2:]])
        )
        assert (reverse[n_found:] == -1).all()
    if options["order"] == "spatial":
        order = np.asarray(graph.node_order)
        np.testing.assert_array_equal(np.sort(order), np.arange(len(order)))
        edges[:, :2] = order[edges[:, :2]]
    wrong = difference(sort_edges(edges), full)
    assert not wrong, f"{wrong}; {options} with cutoff {cutoff!r}, system\n{system}"


def compare_moved(case: tuple[System, int]) -> None:
    """Another numbering of the particles gives the same edges, renumbered."""
    system, number = case
    order = np.random.default_rng(number).permutation(len(system.positions))
    edges = search(replace(system, positions=system.positions[order]))
    edges[:, :2] = order[edges[:, :2]]
    np.testing.assert_array_equal(sort_edges(edges), system.expected())


def test_systems(backend: str) -> None:
    for_random_cases(count(backend, 300), systems(), compare)


def test_batches(backend: str) -> None:
    for_random_cases(count(backend, 60), batches(), compare_batch)


def test_types_half_lists_orders_and_capacities(backend: str) -> None:
    for_random_cases(count(backend, 150), interfaces(), compare_interface)


@pytest.mark.slow
def test_many_systems(backend: str) -> None:
    for_random_cases(count(backend, LONG, reference=4, emulated=8), systems(), compare, SEED)


@pytest.mark.slow
def test_many_batches(backend: str) -> None:
    for_random_cases(count(backend, LONG // 4, reference=4, emulated=8), batches(), compare_batch, SEED)


@pytest.mark.slow
def test_many_types_half_lists_orders_and_capacities(backend: str) -> None:
    for_random_cases(
        count(backend, LONG // 4, reference=4, emulated=8), interfaces(), compare_interface, SEED
    )


def test_any_order_of_the_particles(backend: str) -> None:
    for_random_cases(count(backend, 60), st.tuples(systems(60), st.integers(0, 2**32 - 1)), compare_moved)


def traits(system: System) -> set[str]:
    """What a random case is, of what the strategy claims to reach."""
    vectors, cutoff, n = system.vectors, system.cutoff, len(system.positions)
    edges, found = system.expected(), set()
    lengths = np.linalg.norm(vectors, axis=1)
    if len(vectors) == 3:
        dual = np.linalg.inv(vectors)
        skew = (lengths * np.linalg.norm(dual, axis=0)).max()
        found |= {name for name, least in (("skewed", 10.0), ("tilted", 1.01)) if skew > least}
        found |= {"left-handed"} if np.linalg.det(vectors / lengths[:, None]) < 0 else set()
        found |= {"lengths differ by 1000"} if lengths.max() > 1000 * lengths.min() else set()
        inside = system.positions @ dual
        found |= {"outside"} if ((inside < 0) | (inside >= 1)).any() else {"inside"}
        found |= {"on a face"} if (inside == np.rint(inside)).any() else set()
    if len(vectors) and np.abs(system.positions).max(initial=0.0) > 100 * lengths.max():
        found |= {"far outside"}
    found |= {("no", "one", "two", "three")[len(vectors)] + " periodic axes"}
    found |= {"several images"} if images_within(cutoff, vectors) > 27 else set()
    found |= {"cutoff above the cell"} if len(vectors) and cutoff > lengths.min() else set()
    found |= {"huge cell"} if len(vectors) and lengths.min() > 100 * cutoff else set()
    found |= {"edges"} if len(edges) else set()
    found |= {"N = 0"} if n == 0 else {"N = 1"} if n == 1 else {"N > 50"} if n > 50 else set()
    found |= {"float32"} if system.positions.dtype == np.float32 else set()
    found |= {"own image"} if (edges[:, 0] == edges[:, 1]).any() else set()
    found |= {"coincident"} if n > len(np.unique(system.positions, axis=0)) else set()
    found |= {"distance at the cutoff up to rounding"} if shells(system) else set()
    pairs = np.unique(edges[:, :2], axis=0)
    return found | ({"pair with several edges"} if len(pairs) < len(edges) else set())


def shells(system: System) -> bool:
    """Whether the last bits of the cutoff matter."""
    less, more = (system.cutoff * (1 + step) for step in (-1e-13, 1e-13))
    return len(replace(system, cutoff=less).expected()) != len(replace(system, cutoff=more).expected())


LEAST_SHARES = {
    "edges": 0.6,
    "several images": 0.3,
    "cutoff above the cell": 0.2,
    "own image": 0.2,
    "pair with several edges": 0.2,
    "no periodic axes": 0.04,
    "one periodic axes": 0.05,
    "two periodic axes": 0.05,
    "three periodic axes": 0.4,
    "skewed": 0.015,
    "tilted": 0.08,
    "left-handed": 0.03,
    "lengths differ by 1000": 0.02,
    "huge cell": 0.03,
    "N = 0": 0.01,
    "N = 1": 0.01,
    "N > 50": 0.1,
    "float32": 0.1,
    "inside": 0.08,
    "outside": 0.2,
    "far outside": 0.02,
    "on a face": 0.1,
    "coincident": 0.2,
    "distance at the cutoff up to rounding": 0.1,
}


def test_random_systems_reach_what_they_claim() -> None:
    counts: Counter[str] = Counter()
    for_random_cases(500, systems(), lambda system: counts.update(traits(system)))
    rare = {name: counts[name] for name, share in LEAST_SHARES.items() if counts[name] < share * 500}
    assert not rare


# --- faults that a search may have, each of which the random systems must find ---


def drop(chosen: np.ndarray) -> np.ndarray:
    """All rows but the last chosen one."""
    keep = np.ones(len(chosen), dtype=bool)
    keep[np.flatnonzero(chosen)[-1:]] = False
    return keep


def one_edge_missing(system: System) -> np.ndarray:
    edges = system.expected()
    return edges[drop(edges[:, 0] >= 0)]


def one_own_image_missing(system: System) -> np.ndarray:
    edges = system.expected()
    return edges[drop(edges[:, 0] == edges[:, 1])]


def image_shifted(system: System) -> np.ndarray:
    edges = system.expected()
    edges[:1, 4] += 1
    return edges


def at_the_cutoff_as_well(system: System) -> np.ndarray:
    return replace(system, cutoff=float(np.nextafter(system.cutoff, np.inf))).expected()


def decided_in_float32(system: System) -> np.ndarray:
    vectors = None if system.cell is None else system.cell.astype(np.float32)
    return System(
        system.positions.astype(np.float32), float(np.float32(system.cutoff)), vectors, system.pbc
    ).expected()


def decided_on_wrapped_positions(system: System) -> np.ndarray:
    """The same list, were it not for rounding."""
    if len(system.vectors) < 3 or not len(system.positions):
        return system.expected()
    cells = np.floor(system.positions @ np.linalg.inv(system.vectors))
    edges = replace(system, positions=system.positions - cells @ system.vectors).expected()
    edges[:, 2:] += (cells[edges[:, 1]] - cells[edges[:, 0]]).astype(np.int64)
    return sort_edges(edges)


def squares_in_another_order(system: System) -> np.ndarray:
    """The definition with x x + (y y + z z), as rounding would have it, of the pairs that it is about."""
    turn = [1, 2, 0]
    cell = (
        None
        if system.cell is None
        else (np.diag(system.cell) if system.cell.ndim == 1 else system.cell)[:, turn]
    )
    return replace(system, positions=system.positions[:, turn], cell=cell).expected()


def shifts_in_another_order(system: System) -> np.ndarray:
    """The definition with a + (b + c)."""
    if system.cell is None or system.cell.ndim == 1:
        return system.expected()
    turn = [1, 2, 0]
    pbc = tuple(system.pbc[k] for k in turn)
    edges = replace(system, cell=system.cell[turn], pbc=pbc).expected()
    edges[:, [3, 4, 2]] = edges[:, 2:]
    return sort_edges(edges)


def nearest_image_only(system: System) -> np.ndarray:
    edges = system.expected()
    return edges[np.unique(edges[:, :2], axis=0, return_index=True)[1]]


def five_images_at_most(system: System) -> np.ndarray:
    edges = system.expected()
    return edges[(np.abs(edges[:, 2:]) <= 5).all(axis=1)]


def coincident_ones_are_the_same(system: System) -> np.ndarray:
    edges = system.expected()
    same = (system.positions[edges[:, 0]] == system.positions[edges[:, 1]]).all(axis=1)
    return edges[~same | (edges[:, 0] == edges[:, 1]) | edges[:, 2:].any(axis=1)]


def open_axes_taken_for_periodic(system: System) -> np.ndarray:
    cell = system.cell
    if cell is None or cell.ndim == 2 or images_within(system.cutoff, np.diag(cell)) > 27:
        return system.expected()
    return replace(system, pbc=(True, True, True)).expected()


def rows_of_64_at_most(system: System) -> np.ndarray:
    edges = system.expected()
    place = np.arange(len(edges)) - np.searchsorted(edges[:, 0], edges[:, 0])
    return edges[place < 64]


def another_order(system: System) -> np.ndarray:
    edges = system.expected()
    return edges[np.lexsort((edges[:, 2], edges[:, 3], edges[:, 4], edges[:, 1], edges[:, 0]))]


FAULTS = [
    one_edge_missing,
    one_own_image_missing,
    image_shifted,
    at_the_cutoff_as_well,
    decided_in_float32,
    decided_on_wrapped_positions,
    squares_in_another_order,
    shifts_in_another_order,
    nearest_image_only,
    five_images_at_most,
    coincident_ones_are_the_same,
    open_axes_taken_for_periodic,
    rows_of_64_at_most,
    another_order,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_planted_faults_are_found(fault) -> None:
    """Within the cases of the short test, with a program in the message that shows the fault by itself."""
    with pytest.raises(AssertionError, match="graph = glassconv"):
        for_random_cases(300, systems(), lambda system: compare(system, fault), phases=[Phase.generate])
