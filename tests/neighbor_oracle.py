"""A brute-force neighbor list in NumPy, written from the definition and sharing nothing with the package."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from glassconv import Graph

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def brute_force(positions: Float, cutoff: float, cell: Float | None, pbc: tuple[bool, ...]) -> Int:
    """(E, 5) sorted rows (receiver, source, shift), from every image that could matter."""
    positions = np.asarray(positions, dtype=np.float64)
    cell = np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64)
    periodic = np.flatnonzero(pbc) if cell.any() else np.array([], dtype=np.int64)
    n_images = np.zeros(3, dtype=np.int64)
    if len(periodic) and len(positions):
        # Least-squares coordinates along the periodic vectors; the norms of the dual vectors bound the reach.
        dual = np.linalg.pinv(cell[periodic])
        spread = np.ptp(positions @ dual, axis=0)
        n_images[periodic] = np.ceil(spread + cutoff * np.linalg.norm(dual, axis=0) + 1e-6)
    found = []
    difference = positions[:, None] - positions[None]  # [receiver, source]
    for a, b, c in itertools.product(*(range(-n, n + 1) for n in n_images)):
        d = difference + ((a * cell[0] + b * cell[1]) + c * cell[2])
        near = (d[..., 0] * d[..., 0] + d[..., 1] * d[..., 1]) + d[..., 2] * d[..., 2] < cutoff * cutoff
        if a == b == c == 0:
            np.fill_diagonal(near, False)
        receiver, source = np.nonzero(near)
        found.append(np.stack([receiver, source, *(np.full_like(receiver, s) for s in (a, b, c))], axis=1))
    edges = np.concatenate(found)
    return edges[np.lexsort(edges.T[::-1])]


def edges_of(graph: Graph) -> Int:
    """(E, 5) rows (receiver, source, shift) of a graph, in its order."""
    columns = [graph.edge_index[1], graph.edge_index[0], *graph.shifts.unbind(1)]
    return np.stack([column.numpy().astype(np.int64) for column in columns], axis=1)


def sort_edges(edges: Int) -> Int:
    """Rows in lexicographic order."""
    return edges[np.lexsort(edges.T[::-1])]


def check_well_formed(graph: Graph) -> None:
    """Dtypes, order, rows and reverse edges of a graph made by `neighbor_list`."""
    edges, row_ptr = edges_of(graph), graph.row_ptr.numpy()
    assert [str(graph.edge_index.dtype), str(graph.shifts.dtype)] == ["torch.int64", "torch.int32"]
    np.testing.assert_array_equal(edges, sort_edges(edges))
    np.testing.assert_array_equal(row_ptr, np.searchsorted(edges[:, 0], np.arange(graph.n_nodes + 1)))
    assert graph.reverse is not None
    reverse = graph.reverse.numpy()
    np.testing.assert_array_equal(reverse[reverse], np.arange(graph.n_edges))
    np.testing.assert_array_equal(edges[reverse][:, [1, 0]], edges[:, :2])
    np.testing.assert_array_equal(edges[reverse][:, 2:], -edges[:, 2:])
