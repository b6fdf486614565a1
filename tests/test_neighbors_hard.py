"""The cases that a neighbor search must get right, row by row; each against the brute-force list.

Rows: no particles, one, isolated ones; cells shorter than the cutoff; distances at the cutoff; positions on
faces, far outside, a billion cells away; cells of any shape; open axes; sparse systems; crowded ones; errors;
counts beyond 2**31; batches.
"""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from neighbor_oracle import check_well_formed, edges_of, sort_edges
from neighbor_systems import System, compare, for_random_cases, search, systems

from glassconv import Graph, neighbor_list

TESTS = Path(__file__).resolve().parent
NONE = np.zeros((0, 3))
ONE = np.array([[7.3, -0.1, 0.2]])
CUBE = np.array([3.0, 3.0, 3.0])
SKEWED = np.array([[4.0, 0.0, 0.0], [3.5, 2.0, 0.0], [-2.5, 3.0, 3.0]])
LEFT_HANDED = np.array([[0.0, 3.0, 0.2], [3.0, 0.0, 0.0], [0.3, 0.4, 3.5]])
ALL, SLAB, OPEN = (True, True, True), (True, True, False), (False, False, False)
MIXED = [pbc for pbc in itertools.product([False, True], repeat=3) if pbc not in (ALL, OPEN)]
SITES = np.indices((5, 5, 5)).reshape(3, -1).T - 1.0


def uniform(n: int, cell: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    fractional = np.random.default_rng([n, round(16 * (high - low))]).uniform(low, high, (n, 3))
    return fractional @ (np.diag(cell) if cell.ndim == 1 else cell)


def rotated(cell: np.ndarray) -> np.ndarray:
    """By an angle that leaves no component exact."""
    rotation, _ = np.linalg.qr(np.random.default_rng(16).normal(size=(3, 3)))
    return cell @ rotation


def on_faces(length: float) -> np.ndarray:
    faces = [0.0, -0.0, length, np.nextafter(length, 0.0), np.nextafter(0.0, -1.0), length / 2]
    return np.array(list(itertools.product(faces, [0.2, length], [-0.1, length / 3])))


def far_away(n: int, cell: np.ndarray, reach: int) -> np.ndarray:
    """Particles of one cell, each moved by up to so many cells along every vector."""
    return uniform(n, cell) + np.random.default_rng(reach).integers(-reach, reach + 1, (n, 3)) @ cell


ROTATED, ROTATED_CUBE = rotated(SKEWED), rotated(np.diag(CUBE))
SHARP = np.array([[3.0, 0.0, 0.0], [3.0, 0.1, 0.0], [0.0, 0.0, 3.0]])
FLAT, NEEDLE, LARGE = np.array([9.0, 9.0, 0.01]), np.array([2000.0, 1.0, 1.0]), np.full(3, 40.0)
ROTATED_NEEDLE = rotated(np.diag(NEEDLE))
CROWD = np.random.default_rng(4).normal(20.0, 0.3, (400, 3))


def pairs_at_a_distance(n: int, distance: float, cell: np.ndarray, reach: int) -> np.ndarray:
    """Such pairs in any direction, exact up to rounding; their particles up to so many cells away."""
    rng = np.random.default_rng([n, reach])
    first, direction = rng.uniform(0.0, 1.0, (n, 3)) @ cell, rng.normal(size=(n, 3))
    second = first + distance * direction / np.linalg.norm(direction, axis=1)[:, None]
    return np.concatenate([first, second]) + rng.integers(-reach, reach + 1, (2 * n, 3)) @ cell


# Row, name, system, and the number of edges where it is known beforehand.
# fmt: off
TABLE = [
    ("none", "no particles, open", System(NONE, 1.0), 0),
    ("none", "no particles, periodic", System(NONE, 1.0, CUBE), 0),
    ("none", "no particles, in a cell shorter than the cutoff", System(NONE, 9.0, CUBE), 0),
    ("none", "no particles, float32", System(NONE.astype(np.float32), 1.0, CUBE), 0),
    ("none", "one particle, open", System(ONE, 1.0), 0),
    ("none", "one particle, periodic", System(ONE, 1.0, CUBE), 0),
    ("none", "isolated", System(np.array([[0, 0, 0], [50, 0, 0], [90, 0, 0], [90, 0, 0.0]]), 1.0), 2),
    ("none", "isolated, periodic", System(uniform(20, CUBE), 0.01, CUBE), 0),
    ("none", "all in one place", System(np.ones((7, 3)), 0.1, CUBE), 42),
    # images closer than the cutoff 1: lattice points within a sphere of radius 1, 1.25, 2 and 2.5
    ("short", "L = cutoff", System(ONE, 1.0, CUBE / 3), 0),
    ("short", "L = 0.8 cutoff", System(ONE, 1.0, np.full(3, 0.8)), 6),
    ("short", "L = cutoff / 2", System(ONE, 1.0, np.full(3, 0.5)), 26),
    ("short", "80 images of one particle", System(ONE, 1.0, np.full(3, 0.4)), 80),
    ("short", "L = cutoff / 10", System(ONE, 1.0, np.full(3, 0.1)), None),
    ("short", "one axis", System(ONE, 1.0, np.array([0.01, 9.0, 9.0])), 198),
    ("short", "one axis of one", System(ONE, 1.0, np.array([0.01, 9, 9]), (True, False, False)), 198),
    ("short", "several particles", System(uniform(9, CUBE / 5, -1.0, 2.0), 1.7, CUBE / 5), None),
    ("short", "a skewed cell", System(uniform(5, SKEWED, -1.0, 2.0), 7.0, SKEWED), None),
    ("short", "L just above 2 cutoff", System(uniform(50, CUBE), 1.4999999, CUBE), None),
    ("short", "L = 2 cutoff", System(uniform(50, CUBE), 1.5, CUBE), None),
    ("short", "L just below 2 cutoff", System(uniform(50, CUBE), 1.5000001, CUBE), None),
    ("short", "L just above 3 cutoff", System(uniform(90, CUBE), 0.9999999, CUBE), None),
    ("short", "L = 3 cutoff", System(uniform(90, CUBE), 1.0, CUBE), None),
    # 125 sites with six neighbors each; lattice planes lie on the faces, and on those of bins
    ("at", "neighbors at the cutoff", System(SITES, 1.0, np.full(3, 5.0)), 0),
    ("at", "just above", System(SITES, float(np.nextafter(1, 2)), np.full(3, 5.0)), 750),
    ("at", "1e-7 above", System(SITES, 1.0 + 1e-7, np.full(3, 5.0)), 750),
    ("at", "1e-7 below", System(SITES, 1.0 - 1e-7, np.full(3, 5.0)), 0),
    ("at", "second neighbors, too", System(SITES, 2.0**0.5 + 1e-7, np.full(3, 5.0)), 2250),
    ("at", "float32", System(SITES.astype(np.float32), 1.0, np.full(3, 5.0)), 0),
    ("at", "float32, 1e-7 above", System(SITES.astype(np.float32), 1.0 + 1e-7, np.full(3, 5.0)), 750),
    ("at", "a pair 3-4-5", System(np.array([[0, 0, 0], [3, 4, 0.0]]), 5.0, np.full(3, 20.0)), 0),
    *(
        ("at", f"spacing {spacing:.3g}, {dtype}, cutoff {name}",
         System((SITES * spacing).astype(dtype), float(cutoff), np.full(3, 5 * spacing)), None)
        for spacing in (0.1, 1 / 3, 1.7)
        for dtype in ("float32", "float64")
        for name, cutoff in (
            ("of one", spacing), ("of two", 2 * spacing), ("just above", np.nextafter(spacing, 9)),
            ("1e-7 above", spacing + 1e-7),
        )
    ),
    *(
        ("at", f"100 pairs up to rounding, {name}, up to {reach} cells away",
         System(pairs_at_a_distance(100, 1.1, cell, reach), 1.1, cell), None)
        for name, cell in (("cubic", np.diag(CUBE)), ("skewed", SKEWED), ("rotated", ROTATED))
        for reach in (0, 1, 30)
    ),
    *(
        ("faces", f"at {offset:g} L", System(on_faces(3.0) + offset * 3.0, 1.4, CUBE), None)
        for offset in (0.0, 1e-9, 1.0, -1.0, 1e3, 1e6, -1e6)
    ),
    ("faces", "of no exact length", System(on_faces(2.7), 1.3, np.full(3, 2.7)), None),
    ("faces", "of a skewed cell", System(np.rint(uniform(40, CUBE, -1, 2)) / 2 @ SKEWED, 2.0, SKEWED), None),
    ("faces", "corners", System(np.array(list(itertools.product([0.0, 3.0], repeat=3))), 1.0, CUBE), 56),
    *(
        ("faces", f"{name}, up to {reach} cells away", System(far_away(60, cell, reach), 1.5, cell), None)
        for name, cell in (
            ("cubic", np.diag(CUBE)), ("skewed", SKEWED), ("left-handed", LEFT_HANDED), ("rotated", ROTATED),
        )
        for reach in (1, 1000, 10**6)
    ),
    ("shape", "triclinic", System(uniform(60, SKEWED, -1, 2), 1.9, SKEWED), None),
    ("shape", "left-handed", System(uniform(60, LEFT_HANDED, -1, 2), 1.9, LEFT_HANDED), None),
    ("shape", "negative lengths", System(uniform(60, -CUBE, -1, 2), 1.2, -CUBE), None),
    ("shape", "rotated", System(uniform(60, ROTATED, -1, 2), 1.9, ROTATED), None),
    ("shape", "rotated cube", System(uniform(90, ROTATED_CUBE, -1, 2), 1.1, ROTATED_CUBE), None),
    ("shape", "fcc", System(ONE, 1.1, (np.ones((3, 3)) - np.eye(3)) / 2**0.5), 12),
    ("shape", "two degrees between vectors", System(uniform(20, SHARP, -1, 2), 1.0, SHARP), None),
    ("shape", "flat", System(uniform(200, FLAT), 0.5, FLAT), None),
    ("shape", "2000 x 1 x 1", System(uniform(300, NEEDLE), 1.5, NEEDLE), None),
    ("shape", "1 x 1 x 2000, outside", System(uniform(300, NEEDLE[::-1], -1, 2), 1.5, NEEDLE[::-1]), None),
    ("shape", "2000 x 1 x 1, rotated", System(uniform(200, ROTATED_NEEDLE), 1.5, ROTATED_NEEDLE), None),
    *(
        ("open", f"{name} cell, pbc {pbc}", System(uniform(50, cell, -1, 2), 2.5, cell, pbc), None)
        for name, cell in (("orthorhombic", CUBE), ("skewed", SKEWED), ("rotated", ROTATED))
        for pbc in [*MIXED, OPEN]
    ),
    *(
        ("open", f"zero vectors, pbc {pbc}", System(
            uniform(50, SKEWED, -1, 2), 2.5, SKEWED * np.array(pbc)[:, None], pbc), None)
        for pbc in [*MIXED, OPEN]
    ),
    ("open", "nonsense along the open axis", System(
        uniform(30, CUBE), 1.0, np.array([[3, 0, 0], [0, 3, 0], [1e200, -1e-300, 7]]), SLAB), None),
    ("open", "open vector along a periodic one", System(
        uniform(30, CUBE), 1.0, np.array([[3, 0, 0], [0, 3, 0], [3, 3, 0.0]]), SLAB), None),
    ("open", "no cell, pbc without meaning", System(uniform(50, CUBE, -1, 2), 1.2, None, ALL), None),
    *(
        ("sparse", f"L = {length:g}, {name}", System(
            np.concatenate([uniform(50, CUBE * length / 3) + d for d in (0.0, [0.3, -0.9, 0.2])]), 2.0, cell),
         None)
        for length in (1e6, 1e9, 1e12)
        for name, cell in (("periodic", np.full(3, length)), ("open", None))
    ),
    ("sparse", "a cluster in a huge cell", System(uniform(90, CUBE) - 1.5, 1.0, np.full(3, 1e12)), None),
    ("sparse", "two clusters far apart", System(
        np.concatenate([uniform(40, CUBE), uniform(40, CUBE) + 1e12]), 1.0), None),
    ("sparse", "across the boundary", System(
        np.array([[0.25, 0, 0], [2.0**40 - 0.25, 0, 0]]), 1.0, np.full(3, 2.0**40)), 2),
    ("crowded", "400 within a bin", System(CROWD, 0.5, LARGE), None),
    ("crowded", "400 within a bin, 100 elsewhere", System(
        np.concatenate([CROWD, uniform(100, LARGE)]), 0.5, LARGE), None),
    ("crowded", "400 within a bin, open", System(CROWD, 0.5), None),
    ("crowded", "on a corner", System(CROWD - 20.0, 0.3, LARGE), None),
    ("crowded", "200 in one place", System(np.zeros((200, 3)), 1e-3, LARGE), 200 * 199),
]
# fmt: on
CASES = {f"{row}: {name}": (system, n_edges) for row, name, system, n_edges in TABLE}
SLOW_IN_EMULATOR = {"short: L = cutoff / 10", "short: a skewed cell"}


@pytest.mark.in_emulator(case=[case for case in CASES if case not in SLOW_IN_EMULATOR])
@pytest.mark.parametrize("case", list(CASES))
def test_system(backend: str, case: str) -> None:
    system, n_edges = CASES[case]
    assert len(compare(system)) == (len(system.expected()) if n_edges is None else n_edges)


def test_no_name_stands_for_two_systems() -> None:
    assert len(CASES) == len(TABLE)


# --- no particles, one, isolated ones ---


@pytest.mark.parametrize("pbc", [False, True])
@pytest.mark.parametrize("cell", [None, [5.0, 5.0, 5.0]])
def test_graph_without_particles(backend: str, cell: list[float] | None, pbc: bool) -> None:
    graph = neighbor_list(torch.zeros(0, 3), 1.0, cell, pbc)
    assert (graph.n_nodes, graph.n_edges, graph.row_ptr.tolist()) == (0, 0, [0])
    check_well_formed(graph)
    assert graph.vectors(torch.zeros(0, 3), torch.ones(3)).shape == (0, 3)


# --- positions far outside ---


def test_each_particle_in_another_cell(backend: str) -> None:
    """Moving particles by whole (integer, so exact) cells changes the shifts only."""
    rng = np.random.default_rng(5)
    cell = np.array([[4.0, 0.0, 0.0], [1.0, 5.0, 0.0], [-2.0, 1.0, 6.0]])
    inside = np.round(rng.uniform(0, 1, (40, 3)) @ cell * 1024) / 1024
    cells = rng.integers(-1000, 1000, (40, 3))
    expected = search(System(inside, 1.7, cell))
    expected[:, 2:] += cells[expected[:, 1]] - cells[expected[:, 0]]
    np.testing.assert_array_equal(search(System(inside + cells @ cell, 1.7, cell)), sort_edges(expected))


def test_positions_at_the_limit_of_a_billion_cells(backend: str) -> None:
    """Up to there shifts between any two particles fit 32 bits; beyond is an error, never a missing edge."""
    cell, inside = np.ones(3), np.array([[0.5, 0.25, 0.0], [0.0, 0.0, 0.25], [0.75, 0.5, 0.5]])
    expected = search(System(inside, 1.25, cell))
    limits = np.array([[1e9, 1e9, 1e9], [-1e9, -1e9, -1e9], [1e9, -1e9, 0.0]])
    moves = limits.astype(np.int64)
    expected[:, 2:] += moves[expected[:, 1]] - moves[expected[:, 0]]
    np.testing.assert_array_equal(search(System(inside + limits, 1.25, cell)), sort_edges(expected))
    assert abs(expected[:, 2:]).max() > 2e9
    for axis, beyond in ((0, 1e9 + 1), (1, float(np.nextafter(-1e9, -2e9))), (2, 1e10), (2, -1e139)):
        positions = inside.copy()
        positions[2, axis] = beyond
        with pytest.raises(ValueError, match=r"positions: expected within 1e9 cells .* at particle 2$"):
            neighbor_list(positions, 1.25, cell)
    positions[2] = 1e10  # along open axes it is but far away
    assert len(search(System(positions, 1.25, cell, OPEN))) == 2


@pytest.mark.parametrize(
    "cell", [np.full(3, 0.37), SKEWED, rotated(LEFT_HANDED)], ids=["cube", "skewed", "rotated"]
)
def test_positions_about_a_billion_cells_away(backend: str, cell: np.ndarray) -> None:
    """Where positions have but seven digits within the cell."""
    vectors = np.diag(cell) if cell.ndim == 1 else cell
    cells = np.random.default_rng(30).integers(-999_999_000, 999_999_000, (30, 3))
    compare(System(uniform(30, vectors) + cells @ vectors, 0.9, cell))


# --- cells of any shape ---


@pytest.mark.in_emulator(shear=[2])
@pytest.mark.parametrize("shear", [2, 40])
def test_another_basis_of_the_same_lattice(backend: str, shear: int) -> None:
    """A very skewed cell that spans the lattice of a cube; multiples of 1 / 1024 keep everything exact."""
    basis = np.array([[1, 0, 0], [shear, 1, 0], [-shear, 3, 1]])
    positions = np.random.default_rng(9).integers(-4096, 4096, (30, 3)) / 1024
    edges = search(System(positions, 1.5, 2.0 * basis))
    edges[:, 2:] = edges[:, 2:] @ basis
    np.testing.assert_array_equal(sort_edges(edges), search(System(positions, 1.5, np.full(3, 2.0))))


@pytest.mark.in_emulator(False)
def test_skewed_cell_and_far_wraps_at_the_edge_of_bins(backend: str) -> None:
    """Two nearly parallel long vectors and a short one across, rotated so that nothing is exact.

    Rounding of the reciprocal vectors, amplified by the skew (1e5), misplaces particles thousands of cells
    away by up to a fifth of the short vector, a thousand times what rounding of their positions does.
    """
    rng = np.random.default_rng(16)
    cell = rotated(np.array([[1e7, 0.0, 0.0], [1e7, 1e2, 0.0], [0.0, 0.0, 1.0]]))
    wraps = np.concatenate([rng.integers(-3000, 3000, (80, 2)), rng.integers(-3, 3, (80, 1))], axis=1)
    fractional = rng.uniform(0.0, 1.0, (80, 3)) * [1e-9, 1e-9, 1.0]  # apart along the short vector only
    # two bins on the short axis, hardly wider than this cutoff
    assert len(compare(System((wraps + fractional) @ cell, 0.49, cell))) > 6000


# --- sparse and crowded systems: memory ---

MEASURE = """
    import resource, sys
    from contextlib import nullcontext
    sys.path.insert(0, {tests!r})
    import backends, numpy as np
    from glassconv import _native, neighbor_list
    {preparation}
    emulated = backends.emulated_operators() if {backend!r} == "emulated" else nullcontext()
    with _native.use_backend("reference" if {backend!r} == "reference" else "native"), emulated:
        for call in calls:
            graph = call()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, graph.n_edges)
"""


def memory_of(backend: str, preparation: str) -> list[tuple[int, int]]:
    """Peak memory in MB after each of some `calls`, and the edges found, in a process of its own."""
    lines = textwrap.dedent(MEASURE).format(tests=str(TESTS), backend=backend, preparation=preparation)
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(int(peak) // 1024, int(edges)) for peak, edges in map(str.split, done.stdout.splitlines())]


on_this_machine = pytest.mark.parametrize("backend", ["reference", "cpu", "emulated"], indirect=True)


@on_this_machine
@pytest.mark.parametrize("pbc", [True, False])
def test_memory_does_not_grow_with_the_cell(backend: str, pbc: bool) -> None:
    """A grid of cutoff-sized bins would have up to 1e35 of them."""
    found = memory_of(
        backend,
        "near = np.random.default_rng(0).uniform(0, 1, (200, 3))\n"
        "positions = lambda length: np.concatenate([near * length, near * length + 0.5])\n"
        "calls = [lambda length=length: neighbor_list(positions(length), 1.0, [length] * 3, "
        f"{pbc}) for length in (1e2, 1e3, 1e4, 1e6, 1e9, 1e12)]",
    )
    assert [edges for _, edges in found[1:]] == [400] * 5
    assert found[-1][0] - found[0][0] < 8


@pytest.mark.in_emulator(False)
@on_this_machine
def test_memory_does_not_grow_with_pairs_of_particles_that_share_a_bin(backend: str) -> None:
    """20,000 in one of the bins of a huge cell: a bit for each of their pairs would take 50 MB."""
    found = memory_of(
        backend,
        "positions = np.random.default_rng(0).uniform(0, 60, (20_000, 3))\n"
        "calls = [lambda: neighbor_list(positions, 1.0), lambda: neighbor_list(positions, 1.0, [1e9] * 3)]",
    )
    (alone, n_edges), (in_a_huge_cell, n_edges_there) = found
    assert n_edges == n_edges_there > 5000
    assert in_a_huge_cell - alone < 40


# --- errors ---

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
        ((np.full((1, 3), 2e140), 1.0), r"positions: expected finite numbers up to 1e140, got .* particle 0"),
        ((GOOD, 2e140), r"cutoff: expected from 1e-140 to 1e\+140, got 2e\+140"),
        ((GOOD, 1e-141), r"cutoff: expected from 1e-140 to 1e\+140, got 1e-141"),
        ((GOOD, 5e-324), "cutoff: expected from 1e-140"),
        ((GOOD, 1.0, [1.0, 1e141, 1.0]), r"cell: expected periodic vectors between 1e-140 .* \(vector 1 of"),
        ((GOOD, 1.0, [1.0, 1.0, 1e-141]), r"cell: expected periodic vectors between 1e-140 .* \(vector 2 of"),
        ((GOOD, 1e140, [1e-140] * 3), "cutoff: expected at most 16777216 periodic images within reach"),
        ((GOOD, None), "cutoff: expected a positive finite number, got None"),
        ((GOOD, "1.0"), "cutoff: expected a positive finite number, got '1.0'"),
        ((GOOD, 1 + 0j), r"cutoff: expected a positive finite number, got \(1\+0j\)"),
        ((GOOD, np.complex64(1)), "cutoff: expected a positive finite number, got "),
        ((GOOD, True), "cutoff: expected a positive finite number, got True"),
        ((GOOD, 10**5000), "cutoff: expected a positive finite number, got one beyond float64"),
        (
            (GOOD, torch.ones(2)),
            r"cutoff: expected a positive finite number, got torch.float32 of shape \(2,\)",
        ),
        ((GOOD, torch.tensor(1j)), "cutoff: expected a positive finite number, got torch.complex64"),
        (
            (torch.zeros(2, 3, device="meta"), 1.0),
            "positions: expected a tensor with values, got one on the meta",
        ),
        ((torch.zeros(2, 3).to_sparse(), 1.0), "positions: expected a dense tensor, got torch.sparse_coo"),
        (
            (GOOD, 1.0, torch.ones(3, device="meta")),
            "cell: expected a tensor with values, got one on the meta",
        ),
        ((GOOD, 1.0, torch.eye(3).to_sparse()), "cell: expected a dense tensor, got torch.sparse_coo"),
        ((GOOD, 1.0, BOX, True, torch.zeros(2, device="meta")), "batch: expected a tensor with values"),
        ((GOOD, 1.0, [[1.0, 2.0], [3.0]]), "cell: expected an array, got list"),
        ((GOOD, 1.0, [10**400, 1, 1]), "cell: expected an array, got list"),
        (
            (GOOD, 1.0, None, True, [0, 10**15]),
            "batch: expected systems below 2147483647, got 1000000000000000 at particle 1",
        ),
        (
            (GOOD, 1.0, np.eye(3)[None] * [[[1.0]], [[1e-200]]], True, [0, 0]),
            r"\(vector 0 of system 1\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_argument_expected_and_got(backend: str, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighbor_list(*arguments)


bad_numbers = st.sampled_from([math.nan, math.inf, -math.inf, 1.1e140, -1.7e308])


def check_that_bad_positions_are_named(case: tuple[System, float, float, float]) -> None:
    system, bad, where, component = case
    n = len(system.positions)
    if not n:
        return
    first, axis = int(where * n), int(3 * component)
    positions = system.positions.astype(np.float64 if math.isfinite(bad) else system.positions.dtype)
    positions[first, axis] = bad
    positions[(first + n) // 2 + 1 :, 0] = np.nan  # later ones
    got = re.escape(str(positions[first].tolist()))
    with pytest.raises(ValueError, match=rf"^positions: expected finite .*, got {got} at particle {first}$"):
        neighbor_list(positions, system.cutoff, system.cell, system.pbc)


def test_bad_positions_are_named(backend: str) -> None:
    """Argument, value and index, for any system, any of its particles, and any number that is none."""
    share = st.floats(0.0, 1.0, exclude_max=True)
    for_random_cases(
        60, st.tuples(systems(60), bad_numbers, share, share), check_that_bad_positions_are_named
    )


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_cells_are_named(backend: str, axis: int, bad: float) -> None:
    cells = np.stack([SKEWED, SKEWED, SKEWED])
    cells[2, axis, 1] = cells[2, 2, 2] = bad
    with pytest.raises(ValueError, match=rf"^cell: expected finite numbers, got {bad} at \[{axis}, 1\]$"):
        neighbor_list(GOOD, 1.0, cells[2])
    with pytest.raises(ValueError, match=rf"^cell: expected finite numbers, got {bad} at \[2, {axis}, 1\]$"):
        neighbor_list(GOOD, 1.0, cells, batch=[0, 1])
    with pytest.raises(ValueError, match=rf"^cell: expected finite numbers, got {bad} at \[1\]$"):
        neighbor_list(GOOD, 1.0, [1.0, bad, 1.0])


# --- counts beyond 2**31 ---


@pytest.mark.parametrize(
    ("exponent", "n_axes"),
    [
        (k, n)
        for k in (8, 11, 16, 21, 22, 24, 31, 32, 33, 43, 63, 64, 65, 200)
        for n in (1, 2, 3)
        if n * k > 23
    ],
)
def test_numbers_of_images_beyond_integers(backend: str, exponent: int, n_axes: int) -> None:
    """Images of an axis and their products pass 2**31, 2**32, 2**63 and 2**64; none is taken for fewer."""
    with pytest.raises(
        ValueError, match="cutoff: expected at most 16777216 periodic images within reach, got "
    ):
        neighbor_list(np.zeros((1, 3)), 2.0**exponent, np.ones(3), np.arange(3) < n_axes)


@pytest.mark.in_emulator(False)
def test_number_of_images_along_one_axis(backend: str) -> None:
    """A million are refused, though in one direction alone they are fewer than may be in all."""
    with pytest.raises(ValueError, match=r"cutoff: .* or 1000000 along one axis \(the cell .* too small"):
        neighbor_list(np.zeros((1, 3)), 1_000_100.0, np.ones(3), (True, False, False))
    assert neighbor_list(np.zeros((1, 3)), 999_900.5, np.ones(3), (True, False, False)).n_edges == 1_999_800


@pytest.mark.slow
@on_this_machine
@pytest.mark.in_emulator(False)
def test_more_edges_than_memory_holds(backend: str) -> None:
    """2.4e9 edges: an error that says what is short, not a crash and not a list of fewer."""
    program = """
        import resource
        import glassconv, torch
        used = 4096 * int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)
        try:
            with glassconv.use_backend("NAME"):
                glassconv.neighbor_list(torch.zeros(1000, 3), 8.3, [1.0, 1.0, 1.0])
        except (MemoryError, RuntimeError) as error:
            print(error)
    """.replace("NAME", "reference" if backend == "reference" else "native")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search("memory", done.stdout)


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_more_edges_than_2_to_31_are_counted(backend: str) -> None:
    """Only a capacity makes them fit; 1000 particles in one place, all within 8.3 of 2420 lattice points."""
    cell, pbc = torch.eye(3, dtype=torch.float64)[None], torch.ones(1, 3, dtype=torch.bool)
    batch = torch.zeros(1000, dtype=torch.int64)
    found = torch.ops.glassconv.neighbor_list_fixed(torch.zeros(1000, 3), cell, pbc, batch, 8.3, 5)
    n_points = (np.square(np.indices((19, 19, 19)) - 9).sum(axis=0) < 8.3**2).sum()
    assert found[4].tolist() == [1000 * (1000 * n_points - 1)]
    assert 1000 * (1000 * n_points - 1) > 2**31
    assert found[2].diff().unique().tolist() == [1000 * n_points - 1]


# --- batches ---


def test_batch_is_the_concatenation_of_its_systems(backend: str) -> None:
    rng = np.random.default_rng(6)
    sizes, cells = [30, 0, 1, 25, 0], [SKEWED, np.eye(3), np.eye(3) * 0.7, LEFT_HANDED, np.eye(3)]
    pbc = [(True, False, True), ALL, ALL, ALL, (False,) * 3]
    parts = [rng.uniform(-1.0, 2.0, (n, 3)) @ cell for n, cell in zip(sizes, cells, strict=True)]
    batch = np.repeat(np.arange(5), sizes)
    graph = neighbor_list(np.concatenate(parts), 1.2, np.stack(cells), pbc, batch)
    single = [neighbor_list(*args) for args in zip(parts, [1.2] * 5, cells, pbc, strict=True)]
    joined = Graph.concatenate(single)
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


def test_memory_goes_by_the_systems_with_particles(backend: str) -> None:
    """A cell for each of the 2**31 - 1 systems named here would take 150 GB."""
    positions = np.random.default_rng(18).uniform(0.0, 1.0, (9, 3))
    near, far = np.repeat([0, 1, 2], 3), np.repeat([0, 5_000_000, 2**31 - 2], 3)
    for cell in (None, [1.1, 1.2, 1.3]):
        graph, expected = (neighbor_list(positions, 0.9, cell, batch=batch) for batch in (far, near))
        np.testing.assert_array_equal(edges_of(graph), edges_of(expected))
        assert graph.n_systems == 2**31 - 1
        np.testing.assert_array_equal(graph.batch, far)


def test_empty_systems_among_given_cells(backend: str) -> None:
    positions, batch = np.random.default_rng(19).uniform(0.0, 1.0, (9, 3)), np.repeat([1, 3, 4], 3)
    lengths = np.arange(1.0, 7.0)[:, None] * [0.3, 0.31, 0.32]
    pbc = np.arange(18).reshape(6, 3) % 4 > 0
    graph = neighbor_list(positions, 0.9, lengths, pbc, batch)
    single = [
        neighbor_list(positions[batch == system], 0.9, lengths[system], pbc[system]) for system in range(6)
    ]
    np.testing.assert_array_equal(edges_of(graph), edges_of(Graph.concatenate(single)))
    assert graph.n_systems == 6
    shared = neighbor_list(positions, 0.9, lengths[0], pbc[:5], batch)
    repeated = neighbor_list(positions, 0.9, np.tile(lengths[:1], (5, 1)), pbc[:5], batch)
    np.testing.assert_array_equal(edges_of(shared), edges_of(repeated))
