"""Particle systems that are hard for a neighbor search, random ones and named ones, and their comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from neighbor_oracle import brute_force, check_well_formed, edges_of

import glassconv

Pbc = tuple[bool, bool, bool]
Search = Callable[["System"], np.ndarray]

# Where to leave each case before it is searched, for the one that ends the process.
TRACE = os.environ.get("GLASSCONV_NEIGHBOR_TRACE")
MAX_IMAGES, MAX_EDGES = 10_000, 8_000  # of one random system, about


@dataclass(frozen=True, eq=False)
class System:
    """Positions (N, 3) float32 or float64, a cutoff, a cell (None, lengths or vectors), its periodic axes."""

    positions: np.ndarray
    cutoff: float
    cell: np.ndarray | None = None
    pbc: Pbc = (True, True, True)

    def expected(self) -> np.ndarray:
        return brute_force(self.positions, self.cutoff, self.cell, self.pbc)

    @property
    def vectors(self) -> np.ndarray:
        """The periodic lattice vectors (P, 3)."""
        if self.cell is None:
            return np.zeros((0, 3))
        return (np.diag(self.cell) if self.cell.ndim == 1 else self.cell)[list(self.pbc)]

    def __repr__(self) -> str:
        positions = f"np.array({self.positions.tolist()}, dtype=np.{self.positions.dtype}).reshape(-1, 3)"
        cell = None if self.cell is None else f"np.array({self.cell.tolist()})"
        return f"({positions}, {self.cutoff!r}, {cell}, {self.pbc})"


def search(system: System) -> np.ndarray:
    """The edges that the package finds."""
    if TRACE:
        Path(TRACE).write_text(snippet(system))
    graph = glassconv.neighbor_list(system.positions, system.cutoff, system.cell, system.pbc)
    check_well_formed(graph)
    return edges_of(graph)


def snippet(system: System) -> str:
    """A program that searches this system alone, its numbers exact."""
    return (
        "import numpy as np, glassconv\n"
        f"graph = glassconv.neighbor_list(*{system!r})\n"
        "print(graph.edge_index, graph.shifts)\n"
    )


def difference(found: np.ndarray, expected: np.ndarray) -> str:
    """Which edges (receiver, source, shift) are missing or too many; nothing where the lists are equal."""
    if np.array_equal(found, expected):
        return ""
    ours, theirs = (set(map(tuple, edges.tolist())) for edges in (found, expected))
    missing, extra = sorted(theirs - ours), sorted(ours - theirs)
    return f"{len(missing)} missing {missing[:5]}, {len(extra)} too many {extra[:5]}, or in another order"


def compare(system: System, find: Search = search) -> np.ndarray:
    """Fails where `find` does not give the edges of the definition; says so with a small system."""
    expected = system.expected()
    if not difference(find(system), expected):
        return expected
    system = smallest_wrong(system, find)
    wrong = difference(find(system), system.expected())
    raise AssertionError(f"{wrong}; edges are (receiver, source, shift) in\n{snippet(system)}")


def smallest_wrong(system: System, find: Search) -> System:
    """The same system without the particles that a wrong result does not need."""
    chunk = len(system.positions) // 2
    while chunk:
        for first in range(0, len(system.positions), chunk):
            fewer = replace(
                system, positions=np.delete(system.positions, slice(first, first + chunk), axis=0)
            )
            if difference(find(fewer), fewer.expected()):
                system = fewer
                break
        else:
            chunk //= 2
    return system


def for_random_cases(
    n_cases: int,
    strategy: st.SearchStrategy[Any],
    check: Callable[[Any], object],
    first_seed: int = 0,
    phases: Sequence[Phase] = (Phase.generate, Phase.shrink),
) -> None:
    """Check so many cases, always the same ones; Hypothesis shortens the first that fails."""
    profile = settings(
        max_examples=min(n_cases, 500),
        deadline=None,
        database=None,
        print_blob=False,
        phases=phases,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    for chunk in range(-(-n_cases // 500)):

        @seed(first_seed + chunk)
        @profile
        @given(strategy)
        def run(case: Any) -> None:
            check(case)

        run()


# --- random systems ---

UNIT_SHIFTS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [0, -0.6, 0.8], [2 / 3, -1 / 3, 2 / 3]]
)
CELLS = (
    "none",
    "cube",
    "lengths",
    "lattice",
    "triclinic",
    "rotated",
    "left-handed",
    "skewed",
    "skewed",
    "flat",
    "needle",
    "huge",
    "huge",
    "one huge",
    "tiny",
)
PLACES = ("inside", "around", "lattice", "faces", "clusters", "plane", "bins")
CHANGES = ("coincident", "at the cutoff", "on a face", "near a face", "wrapped", "negative zero")


def make_cell(kind: str, rng: np.random.Generator) -> np.ndarray | None:
    """A cell of lengths around 1, half of the times multiples of 1/8, changed as the kind says."""
    if kind == "none":
        return None
    lengths = rng.uniform(0.5, 3.0, 3)
    if rng.integers(2):
        lengths = np.ceil(lengths * 8) / 8
    if kind == "cube":
        return np.full(3, lengths[0])
    if kind == "lengths":
        return lengths
    if kind == "flat":
        return lengths * rng.permutation([1.0, 1.0, 10.0 ** rng.uniform(-3, -1)])
    if kind == "needle":
        return lengths * rng.permutation([1.0, 1.0, 10.0 ** rng.uniform(1, 3)])
    if kind == "huge":
        return lengths * 10.0 ** rng.uniform(3, 9)
    if kind == "one huge":
        return lengths * rng.permutation([1.0, 1.0, 10.0 ** rng.uniform(3, 8)])
    if kind == "tiny":
        return lengths * rng.uniform(0.1, 0.4)
    tilt = np.tril(rng.integers(-8, 9, (3, 3)) / 8 * lengths[0], -1)
    cell = np.diag(lengths) + (tilt if rng.integers(2) else rng.uniform(-2.0, 2.0) * tilt)
    if kind == "lattice":  # primitive vectors of fcc or bcc
        return lengths[0] * ((np.ones((3, 3)) - np.eye(3)) if rng.integers(2) else 1.0 - 2.0 * np.eye(3)) / 2
    if kind == "left-handed":
        return cell[[1, 0, 2]]
    if kind == "rotated":
        return cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if kind == "skewed":  # another basis of the same lattice
        most = rng.choice([4, 12, 30])
        basis = np.tril(rng.integers(-most, most + 1, (3, 3)), -1) + np.eye(3)
        return (basis @ cell)[rng.permutation(3)]
    return cell


def make_places(
    kind: str, n: int, cutoff: float, periods: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Fractional coordinates (n, 3); `periods` is the length of the three axes."""
    if kind == "around":
        return rng.uniform(-1.0, 2.0, (n, 3))
    if kind == "lattice":
        per_axis = rng.integers(1, 6)
        sites = np.indices((per_axis,) * 3).reshape(3, -1).T
        return rng.permutation(np.resize(sites, (max(n, 1), 3)))[:n] / per_axis + rng.choice([0.0, 0.0, 0.1])
    if kind == "faces":
        return rng.choice([0.0, 1.0, 0.5, np.nextafter(1.0, 0.0), 0.25, -1.0], (n, 3))
    if kind == "clusters":
        centers = rng.uniform(0.0, 1.0, (rng.integers(1, 4), 3))
        spread = rng.choice([0.05, 0.3, 1.0]) * cutoff / periods
        return rng.permutation(np.resize(centers, (max(n, 1), 3)))[:n] + rng.normal(size=(n, 3)) * spread
    if kind == "plane":
        return rng.uniform(0.0, 1.0, (n, 3)) * (rng.permutation(3) < rng.integers(1, 3))
    if kind == "bins":  # multiples of the cutoff, where a grid of bins would be cut
        return np.floor(rng.uniform(0.0, 1.0, (n, 3)) * periods / cutoff) * cutoff / periods
    return rng.uniform(0.0, 1.0, (n, 3))


def change(
    kind: str, positions: np.ndarray, cutoff: float, vectors: np.ndarray, rng: np.random.Generator
) -> None:
    """Move some of the particles, in place."""
    n = len(positions)
    some = np.flatnonzero(rng.random(n) < rng.choice([0.1, 0.5]))
    others = rng.integers(0, max(n, 1), len(some))
    if kind == "coincident":
        positions[some] = positions[others]
    elif kind == "at the cutoff":
        signs = rng.choice([-1.0, 1.0], (len(some), 1))
        positions[some] = positions[others] + signs * cutoff * UNIT_SHIFTS[rng.integers(0, 6, len(some))]
    elif kind in ("on a face", "near a face"):
        axis = rng.integers(3)
        at = rng.integers(0, 3) * np.abs(vectors).sum(axis=0)[axis]
        positions[some, axis] = (
            at if kind == "on a face" else np.nextafter(at, rng.choice([-1.0, 1.0]) * np.inf)
        )
    elif kind == "wrapped" and len(vectors):
        reach = 10 ** rng.integers(0, 5)
        positions[some] += rng.integers(-reach, reach + 1, (len(some), len(vectors))) @ vectors
    elif kind == "negative zero":
        positions[some] = -0.0


def with_an_edge_at_the_cutoff(system: System, rng: np.random.Generator) -> System:
    """The same with a smaller cutoff, such that the last bit of one of its squared distances decides."""
    edges = system.expected()
    if not len(edges):
        return system
    receiver, source, *shift = edges[rng.integers(len(edges))]
    positions, vectors = system.positions.astype(np.float64), np.zeros((3, 3))
    if system.cell is not None:
        vectors = np.diag(system.cell) if system.cell.ndim == 1 else system.cell
    a, b, c = np.array(shift, dtype=np.float64)
    x, y, z = (positions[receiver] - positions[source]) + ((a * vectors[0] + b * vectors[1]) + c * vectors[2])
    cutoff = np.sqrt((x * x + y * y) + z * z)
    return (
        replace(system, cutoff=float(np.nextafter(cutoff, rng.choice([0.0, cutoff, np.inf]))))
        if cutoff
        else system
    )


@st.composite
def systems(draw: st.DrawFn, max_particles: int = 400) -> System:
    """One system of any kind; the arrays are drawn from a seed, for speed."""
    kind = draw(st.sampled_from(CELLS))
    pbc = draw(
        st.sampled_from(
            [(True, True, True)] * 4 + [(bool(k & 1), bool(k & 2), bool(k & 4)) for k in range(8)]
        )
    )
    most = [limit for limit in (3, 20, 80) if limit < max_particles] + [max_particles]
    n = draw(st.sampled_from(most).flatmap(lambda limit: st.integers(limit // 4, limit)))
    place, changes = draw(st.sampled_from(PLACES)), draw(st.lists(st.sampled_from(CHANGES), max_size=2))
    border = draw(st.sampled_from([None, None, None, 0.5, 1.0, 1.5, 2.0]))
    step = draw(st.sampled_from([0.0, 0.0, 1e-7, -1e-7, np.inf, -np.inf]))
    single, origin = (
        draw(st.sampled_from([False, False, True])),
        draw(st.sampled_from([0.0] * 3 + [0.5, 1e3])),
    )
    is_close = draw(st.sampled_from([False, True]))
    scale = draw(st.sampled_from([1.0, 1.0, 1.0, 0.1, 3.7, 2.0**-20, 1e6]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    cell = make_cell(kind, rng)
    system = System(np.zeros((n, 3)), 1.0, cell, pbc)
    periods = np.ones(3) * 3.0 if cell is None else np.abs(np.atleast_2d(cell)).max(axis=0)
    cutoff = rng.choice([0.1, 0.25, 0.4, 0.75, 1.0, 1.25, rng.uniform(0.05, 2.5)])
    if border is not None and len(system.vectors):  # where one more image comes into reach
        cutoff = border * np.linalg.norm(system.vectors, axis=1).min()
    if kind in ("huge", "one huge"):  # near ones, besides
        cutoff = cutoff if rng.integers(2) else cutoff * 10.0 ** rng.uniform(0, 2)
    n_images = images_within(cutoff, system.vectors)
    while n_images > MAX_IMAGES:
        cutoff *= 0.5
        n_images = images_within(cutoff, system.vectors)
    cutoff = float(np.nextafter(cutoff, step) if np.isinf(step) else cutoff + step) * scale
    per_pair = (
        np.prod(
            [2 * cutoff / scale / length if axis else 1 for length, axis in zip(periods, pbc, strict=True)]
        )
        / 2
    )
    crowded = place in ("faces", "clusters", "plane") or bool(changes)
    n = min(n, max(2, int((MAX_EDGES / max(per_pair, n_images / 200, 0.5 if crowded else 0.0)) ** 0.5)))

    basis = np.diag(periods) if cell is None or cell.ndim == 1 else cell
    place_near = kind in ("huge", "one huge") and bool(rng.integers(2))
    fractional = make_places(place, n, cutoff / scale, np.linalg.norm(basis, axis=1), rng)
    positions = fractional @ (np.sign(basis) * np.minimum(np.abs(basis), 3.0) if place_near else basis)
    positions, cell = positions * scale, None if cell is None else cell * scale
    system = System(positions, cutoff, cell, pbc)
    for each in changes:
        change(each, positions, cutoff, system.vectors, rng)
    positions += origin * scale * rng.uniform(-1.0, 1.0, 3) if origin else 0.0
    if cell is not None and cell.ndim == 2 and rng.integers(2):
        cell[~np.array(pbc)] = 0.0
    system = System(positions.astype(np.float32) if single else positions, cutoff, cell, pbc)
    return with_an_edge_at_the_cutoff(system, rng) if is_close else system


def images_within(cutoff: float, vectors: np.ndarray) -> float:
    """About how many images the oracle looks at."""
    if not len(vectors):
        return 1.0
    lengths = np.linalg.norm(vectors, axis=1)
    dual = np.linalg.pinv(vectors / lengths[:, None]) / lengths
    return float(np.prod(2 * np.ceil(cutoff * np.linalg.norm(dual, axis=0) + 0.5) + 1))


@st.composite
def batches(draw: st.DrawFn) -> list[System]:
    """Up to five systems, some empty, with one cutoff, one dtype and a cell each, or none of them one."""
    parts = draw(st.lists(systems(max_particles=25), min_size=1, max_size=5))
    cutoff, dtype = parts[0].cutoff, parts[0].positions.dtype
    is_open = draw(st.sampled_from([False] * 4 + [True]))
    found = []
    for part in parts:
        cell = np.zeros(3) if part.cell is None else part.cell
        pbc = part.pbc if part.cell is not None else (False, False, False)
        few = images_within(cutoff, part.vectors) < MAX_IMAGES // 100
        positions = part.positions[: 25 if few else 0].astype(dtype)
        with_vectors = np.diag(cell) if cell.ndim == 1 else cell
        found.append(System(positions, cutoff, None if is_open else with_vectors, pbc))
    return found
