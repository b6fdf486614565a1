"""A brute-force neighbor list in NumPy, written from the definition and sharing nothing with the package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glassconv import Graph

Float = NDArray[np.float64]
Int = NDArray[np.int64]

_CANDIDATES_AT_ONCE = 1 << 22


def brute_force(
    positions: ArrayLike,
    cutoff: ArrayLike,
    cell: ArrayLike | None = None,
    pbc: bool | Sequence[bool] = True,
    types: ArrayLike | None = None,
) -> Int:
    """(E, 5) sorted rows (receiver, source, shift) of one system, from every image that could matter.

    The numbers are taken as given, in float64, and every distance is computed in the order of operations that
    defines the edge set. `cutoff` is a number, or with `types` (N,) a matrix over pairs of types.
    """
    positions = np.asarray(positions).astype(np.float64)
    vectors, periodic = _lattice(cell, pbc)
    types = np.zeros(len(positions), dtype=np.int64) if types is None else np.asarray(types)
    cutoffs = np.asarray(cutoff, dtype=np.float64)
    cutoffs = cutoffs if cutoffs.ndim == 2 else np.full((types.max(initial=0) + 1,) * 2, cutoffs)
    found = [np.zeros((0, 5), dtype=np.int64)]
    for receiver, source, along_periodic in _candidates(positions, cutoffs.max(), vectors[periodic]):
        shift = np.zeros((len(receiver), 3))
        shift[:, periodic] = along_periodic
        a, b, c = shift.T[:, :, None]
        d = (positions[receiver] - positions[source]) + ((a * vectors[0] + b * vectors[1]) + c * vectors[2])
        x, y, z = d.T
        reach = cutoffs[types[receiver], types[source]]
        near = ((x * x + y * y) + z * z < reach * reach) & ((receiver != source) | shift.any(axis=1))
        found.append(np.column_stack([receiver, source, shift])[near].astype(np.int64))
    return sort_edges(np.concatenate(found))


def _lattice(cell: ArrayLike | None, pbc: bool | Sequence[bool]) -> tuple[Float, NDArray[np.bool_]]:
    if cell is None:
        return np.zeros((3, 3)), np.zeros(3, dtype=bool)
    vectors = np.asarray(cell).astype(np.float64)
    return np.diag(vectors) if vectors.ndim == 1 else vectors, np.broadcast_to(np.asarray(pbc), 3)


def _candidates(positions: Float, cutoff: float, vectors: Float) -> Iterator[tuple[Int, Int, Float]]:
    """Receivers, sources and shifts along the periodic vectors, of all pairs that could be near, and more.

    In coordinates along these vectors a distance is at least its length over the norm of the dual vector.
    """
    if not len(positions):
        return
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / lengths[:, None]
    dual = np.linalg.pinv(units, rcond=1e-14) / lengths if len(vectors) else np.zeros((3, 0))
    fractional = (positions[:, None] - positions[None]) @ dual  # [receiver, source, axis]
    home = -np.rint(fractional)
    rounding = 64 * 2.0**-52 * (np.linalg.cond(units) if len(vectors) else 0.0)
    slack = 1e-6 + rounding * (1.0 + np.abs(fractional).max(initial=0.0))
    assert slack < 0.5, "the oracle cannot tell which images are near"
    reach = cutoff * np.linalg.norm(dual, axis=0) + slack
    most = np.ceil(0.5 + reach).astype(int)
    near = [
        np.abs((fractional + home)[None, :, :, k] + np.arange(-m, m + 1)[:, None, None]) <= reach[k]
        for k, m in enumerate(most)
    ]
    images = (
        np.indices(2 * most + 1).reshape(len(most), -1).T if len(vectors) else np.zeros((1, 0), dtype=int)
    )
    step = max(1, _CANDIDATES_AT_ONCE // len(positions) ** 2)
    for some in (images[first : first + step] for first in range(0, len(images), step)):
        chosen = np.ones((len(some), *home.shape[:2]), dtype=bool)
        for k in range(len(vectors)):
            chosen &= near[k][some[:, k]]
        image, receiver, source = np.nonzero(chosen)
        yield receiver, source, home[receiver, source] + (some - most)[image]


def brute_force_batch(
    systems: Sequence[tuple[ArrayLike, ArrayLike | None, Any]], cutoff: ArrayLike, types: Any = None
) -> Int:
    """The edges of several systems (positions, cell, pbc), their particles counted on."""
    found, first = [np.zeros((0, 5), dtype=np.int64)], 0
    for positions, cell, pbc in systems:
        end = first + len(np.asarray(positions))
        edges = brute_force(positions, cutoff, cell, pbc, None if types is None else types[first:end])
        edges[:, :2] += first
        found.append(edges)
        first = end
    return np.concatenate(found)


def half_of(edges: Int) -> Int:
    """Each pair once: the lower index is the source, between images the first nonzero shift is positive."""
    first_shift = np.take_along_axis(edges[:, 2:], np.argmax(edges[:, 2:] != 0, axis=1)[:, None], axis=1)
    keep = (edges[:, 1] < edges[:, 0]) | ((edges[:, 1] == edges[:, 0]) & (first_shift[:, 0] > 0))
    return edges[keep]


def edges_of(graph: Graph) -> Int:
    """(E, 5) rows (receiver, source, shift) of a graph, in its order."""
    pairs, shifts = np.asarray(graph.edge_index), np.asarray(graph.shifts)
    return np.column_stack([pairs[1], pairs[0], shifts]).astype(np.int64)


def sort_edges(edges: Int) -> Int:
    """Rows in lexicographic order."""
    return edges[np.lexsort(edges.T[::-1])]


def check_well_formed(graph: Graph) -> None:
    """Dtypes, order, rows and reverse edges of a graph made by `neighbor_list`."""
    edges, row_ptr = edges_of(graph), np.asarray(graph.row_ptr)
    names = ("edge_index", "shifts", "row_ptr", "reverse")
    dtypes = [str(np.asarray(getattr(graph, name)).dtype) for name in names]
    assert dtypes == ["int64", "int32", "int64", "int64"]
    np.testing.assert_array_equal(edges, sort_edges(edges))
    np.testing.assert_array_equal(row_ptr, np.searchsorted(edges[:, 0], np.arange(graph.n_nodes + 1)))
    reverse = np.asarray(graph.reverse)
    np.testing.assert_array_equal(reverse[reverse], np.arange(graph.n_edges))
    np.testing.assert_array_equal(edges[reverse][:, [1, 0]], edges[:, :2])
    np.testing.assert_array_equal(edges[reverse][:, 2:], -edges[:, 2:])
