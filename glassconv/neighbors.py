"""The periodic neighbor search: choice of the backend, and the `Graph` it makes."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glassconv import _neighbor_checks as checks
from glassconv._compile import constant_when_compiled
from glassconv._lattice import spatial_order
from glassconv._native import runs_on
from glassconv._neighbor_checks import Cutoff, Given, Search, Systems
from glassconv.graph import Graph
from glassconv.reference.neighbors import Edges, Packing, filter_edges, pad_edges, search_neighbors

__all__ = ["Graph", "neighbor_list"]

_MAX_CAPACITY = 1 << 48  # beyond any memory, and sizes in bytes fit 64 bits


@torch.inference_mode(False)  # training may use what was made under inference mode
def neighbor_list(
    positions: Any,
    cutoff: Any,
    cell: Any = None,
    pbc: bool | Sequence[bool] | Any = True,
    batch: Any = None,
    *,
    types: Any = None,
    half: bool = False,
    order: str = "receiver",
    capacity: int | None = None,
) -> Graph:
    """All pairs closer than ``cutoff``, every periodic image included.

    The edges are all (source j, receiver i, shift S) with ``|r_i - r_j + S @ cell| < cutoff``, except a
    particle with itself at S = 0; images of a particle are its neighbors when the cell is shorter than the
    cutoff. The set is exactly the one that float64 arithmetic gives on the positions as given, on every
    backend. Sorted by receiver, then source, then shift: the same input gives the same bits.

    With ``order="spatial"`` the nodes of the graph are the particles in the order of cells of about one
    cutoff, so that neighbors in space are neighbors in memory, which makes large graphs faster. Node ``k`` is
    particle ``graph.node_order[k]``, so whatever the graph is used with is brought into that order first, and
    results back afterwards:

        x = x[graph.node_order]                            # and positions, for graph.vectors
        restored = torch.empty_like(x)
        restored[graph.node_order] = x

    With a ``capacity`` the arrays of the graph have that fixed size, padded with -1, and on a GPU nothing
    waits for the device: for CUDA graphs and ``torch.compile(fullgraph=True)``. The number of edges is
    ``graph.n_found``, a tensor; if it exceeds the capacity, ``graph.overflow`` holds true, the graph has no
    edges, and ``n_found`` says which capacity would do. See `Graph` for the rest. In what ``torch.compile``
    compiles as a whole, positions, ``cell``, ``batch`` and ``types`` are tensors, ``pbc`` is one or bools,
    and the cutoff is a Python number that stays the same, or nested lists of such numbers for types.

    Args:
        positions: (N, 3) float32 or float64, in or outside the cell, up to 1e140; a tensor, a NumPy array,
            nested lists (float64) or anything with ``__dlpack__``, like the other arrays.
        cutoff: from 1e-140 to 1e140, the range where squares are ordinary numbers; unit of the positions.
            With ``types``: a symmetric (T, T) array, the cutoff of each two types; 0 for those that never are
            neighbors. Its values are read by the host.
        cell: None (open), (3,) box lengths, or (3, 3) with lattice vectors in rows, of any shape and
            handedness. With ``batch``: (B, 3) or (B, 3, 3), or (3,) for all systems.
        pbc: which cell vectors are periodic: bool or 3 bools; with ``batch`` also (B, 3). Ignored without a
            cell. Vectors that are not periodic do not matter and may be zero; periodic ones have a largest
            component from 1e-140 to 1e140.
        batch: (N,) integers, the system of each particle, non-decreasing from 0 and below 2**31 - 1; pairs
            do not cross systems. Systems may be empty: ``n_systems`` of the graph is B, or the last system
            plus one without cells of their own, and time and memory go by the systems with particles.
        types: (N,) integers from 0 to T - 1, the type of each particle, for a ``cutoff`` of pairs of types.
        half: keep each pair once (from the lower to the higher index or, between images of one particle, with
            a shift whose first nonzero number is positive); such a graph has no ``reverse``. It is for sums
            over pairs: `glassconv.conv` sums over the edges there are, so only one particle of a pair would
            hear of the other.
        order: "receiver", nodes are particles, or "spatial", as above.
        capacity: the number of edges to make room for (of the half list, with ``half``), or None for as many
            as there are. With ``batch`` it needs a cell for each system, (B, 3) or (B, 3, 3). A GPU is not
            waited for when ``cell``, ``batch``, ``types`` and a ``pbc`` beyond bools are tensors on it.

    Returns:
        Graph of arrays of the kind of ``positions``, on their device: NumPy arrays for NumPy arrays, tensors
        for tensors and lists. They carry no gradient: see `Graph.vectors`.

    Raises:
        ValueError: wrong shapes, dtypes or devices; sparse tensors or tensors without values; NaN or
            infinity; a cutoff not above zero, or one of pairs that is negative or not symmetric; types
            without such a cutoff or it without types; types out of range; lengths out of range; periodic cell
            vectors that are (nearly) linearly dependent; ``batch`` decreasing or out of range; positions more
            than 1e9 cells away; more than 2**24 periodic images, or 1e6 along one axis, within the cutoff, or
            within its rounding error relative to the largest position and cell vector; another ``order``; a
            capacity below zero or above 2**48.
            With a capacity on a GPU, only what can be seen without reading values: what is wrong with those
            leaves a graph without edges and a negative ``n_found``, and `Graph.check` raises it.

    >>> positions = np.array([[0.1, 0.5, 0.5], [0.9, 0.5, 0.5], [0.5, 0.5, 0.5]])
    >>> graph = neighbor_list(positions, cutoff=0.3, cell=[1.0, 1.0, 1.0])
    >>> source, receiver = graph.edge_index
    >>> print(source, receiver, graph.shifts[:, 0])
    [1 0] [0 1] [ 1 -1]
    >>> graph.distances(positions, [1.0, 1.0, 1.0]).round(3)
    array([0.2, 0.2])
    """
    given = Given(positions, cell, pbc, batch, types)
    radius = checks.check_cutoff(cutoff, types)
    if order not in ("receiver", "spatial"):
        raise ValueError(f"order: expected 'receiver' or 'spatial', got {order!r}")
    capacity = check_capacity(capacity)
    search = prepare(given, radius, fixed=capacity is not None)
    node_order = None
    if order == "spatial":
        systems = search.systems
        node_order = spatial_order(search.positions, search.cell, search.pbc, systems.indices, search.cutoff)
        search = search._replace(
            positions=search.positions.index_select(0, node_order),
            types=None if search.types is None else search.types.index_select(0, node_order),
        )
    try:
        if capacity is not None:
            *edges, n_found = find_fixed(search, 2 * capacity if half else capacity)
            graph = make_graph(search, edges, n_found)
        elif half and search.positions.device.type == "cpu" and runs_natively("cpu"):
            graph = _find_half(search)
        else:
            graph = make_graph(search, find_edges(search))
    except ValueError:
        explain(given, radius)
        raise
    if half and graph.reverse is not None:
        graph = _half(graph)
    return dataclasses.replace(graph, node_order=node_order).like(positions)


def prepare(given: Given, cutoff: Cutoff, *, fixed: bool, systems: Systems | None = None) -> Search:
    """The arguments of the search, checked.

    Values are not read for a ``fixed`` capacity, where the operators do without, nor for ``systems`` that are
    known already. What the operators refuse by themselves is left to them.
    """
    r = checks.check_positions(given.positions)
    is_native = runs_natively(r.device.type)
    reads = systems is None and not (fixed and is_native)
    types = None
    if given.types is not None and cutoff.matrix is not None:
        types = checks.check_types(given.types, r, len(cutoff.matrix))
        if reads and not is_native:
            checks.check_range(given.types, len(cutoff.matrix))
    if reads and not is_native:
        checks.check_finite(r)
    if systems is None:
        batch = checks.check_batch(given.batch, r)
        if fixed:
            systems = checks.count_systems(batch, given.cell, r)
            if reads:
                systems = systems._replace(n_named=checks.read_systems(batch, r).n_named)
        else:
            systems = checks.read_systems(batch, r)
    lattice, periodic, systems = checks.check_cells(given.cell, given.pbc, systems, r.device, reads=reads)
    matrix = cutoff.to(r.device).matrix
    return Search(r, lattice, periodic, systems, cutoff.largest, types, matrix, is_open=given.cell is None)


def explain(given: Given, cutoff: Cutoff) -> None:
    """Raise what is wrong with values that the search refused, in the words of the caller's arguments."""
    checks.check_finite(checks.check_positions(given.positions))
    if cutoff.matrix is not None:
        checks.check_range(given.types, len(cutoff.matrix))
    find_edges(prepare(given, cutoff, fixed=False))  # with the particles in the caller's order


def check_capacity(capacity: Any) -> int | None:
    """The capacity as an int that is at least zero, or None."""
    if capacity is None:
        return None
    if isinstance(capacity, bool) or not isinstance(capacity, numbers.Integral):
        raise ValueError(f"capacity: expected an integer, got {capacity!r}")
    size = int(capacity)
    if size < 0:
        raise ValueError(f"capacity: expected at least 0, got {size}")
    if size > _MAX_CAPACITY:
        raise ValueError(f"capacity: expected at most {_MAX_CAPACITY}, got {size}")
    return size


@constant_when_compiled
def runs_natively(device_type: str) -> bool:
    """Whether the operators serve this device; a constant for torch.compile."""
    return runs_on(device_type)


def find_edges(search: Search) -> Edges:
    """``edge_index (2, E)``, ``shifts (E, 3)``, ``row_ptr (N + 1)``, ``reverse (E)``."""
    if not runs_natively(search.positions.device.type):
        return search_neighbors(*search.arguments(), *search.of_pairs())
    found: Edges = torch.ops.glassconv.neighbor_list(*search.arguments(), *search.of_pairs())
    return found


def find_fixed(search: Search, capacity: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same with E = capacity, and ``n_found (1)``."""
    if not runs_natively(search.positions.device.type):
        return pad_edges(*find_edges(search), capacity=capacity)
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = torch.ops.glassconv.neighbor_list_fixed(
        *search.arguments(), capacity, *search.of_pairs()
    )
    return found


def update_fixed(needed: Tensor, search: Search, edges: Edges, n_found: Tensor) -> None:
    """Write what `find_fixed` returns to what it returned before, where ``needed (1)`` bool holds."""
    if runs_natively(search.positions.device.type):
        torch.ops.glassconv.neighbor_list_update(
            needed, *search.arguments(), *edges, n_found, *search.of_pairs()
        )
    elif bool(needed):
        for old, new in zip((*edges, n_found), find_fixed(search, edges[0].shape[1]), strict=True):
            old.copy_(new)


def filter_list(search: Search, edges: Edges, *, fixed: bool = False) -> Edges:
    """Of a list made with larger cutoffs, the edges there are; ``fixed`` for one with a capacity."""
    positions, cell, _, indices, cutoff = search.arguments()
    if not filters_natively(positions.device.type):
        return filter_edges(positions, cell, indices, cutoff, *edges, *search.of_pairs(), fixed=fixed)
    edge_index, shifts, row_ptr, reverse = edges
    capacity = edge_index.shape[1]
    if fixed:  # the host may look at what lies in its own memory
        n = int(row_ptr[-1])
        edges = edge_index[:, :n], shifts[:n], row_ptr, reverse[:n]
    kept: Edges = torch.ops.glassconv.neighbor_list_filter(
        positions, cell, indices, cutoff, *edges, *search.of_pairs()
    )
    return pad_edges(*kept, capacity=capacity)[:4] if fixed else kept


def filters_natively(device_type: str) -> bool:
    """Whether there is an operator that filters on this device."""
    return device_type == "cpu" and runs_natively("cpu")


def make_graph(search: Search, edges: Sequence[Tensor], n_found: Tensor | None = None) -> Graph:
    """The graph of what a search found; ``n_found (1)`` where it had a capacity."""
    edge_index, shifts, row_ptr, reverse = edges
    if n_found is not None:
        n_found = n_found[0]
        # No row points beyond what was written: no edges at all are better than some.
        row_ptr = row_ptr.masked_fill(n_found > edge_index.shape[1], 0)
    return Graph(
        edge_index=edge_index,
        shifts=shifts,
        row_ptr=row_ptr,
        reverse=reverse,
        perm=None,
        n_nodes=len(search.positions),
        row_source=edge_index[0],
        # Slot k holds the edge j -> i; the slots with source i are therefore the opposites of row i.
        transpose_ptr=row_ptr,
        transpose_slots=reverse,
        cutoff=search.cutoff,
        batch=search.systems.batch,
        n_systems=search.systems.n_systems,
        n_found=n_found,
        _has_shifts=False if search.is_open else None,
    )


def _find_half(search: Search) -> Graph:
    """The half list, by the operator that there is for it on the CPU."""
    edge_index, shifts, row_ptr, transpose_ptr, transpose_slots = torch.ops.glassconv.neighbor_list_half(
        *search.arguments(), *search.of_pairs()
    )
    full = make_graph(search, (edge_index, shifts, row_ptr, transpose_slots))
    return dataclasses.replace(
        full, reverse=None, transpose_ptr=transpose_ptr, transpose_slots=transpose_slots
    )


def _half(graph: Graph) -> Graph:
    """One edge of each pair of a full list, in half the capacity."""
    assert graph.reverse is not None
    source, receiver = graph.edge_index[0], graph.edge_index[1]
    a, b, c = graph.shifts.unbind(1)
    positive = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c > 0))))
    keep = (source < receiver) | ((source == receiver) & positive)
    rest, size, n_found = ~keep, None, graph.n_found
    if n_found is not None:
        is_edge = graph.edge_mask
        keep, rest, size = keep & is_edge, rest & is_edge, graph.n_edges // 2
        n_found = torch.where(n_found < 0, n_found, n_found // 2)
    kept, opposites = Packing(keep, size), Packing(rest, size)
    edge_index = kept.pack(graph.edge_index, 1)
    return dataclasses.replace(
        graph,
        edge_index=edge_index,
        shifts=kept.pack(graph.shifts),
        row_ptr=kept.renumber(graph.row_ptr),
        reverse=None,
        row_source=edge_index[0],
        # of each two opposites one is kept
        transpose_ptr=opposites.renumber(graph.row_ptr),
        transpose_slots=opposites.pack(kept.renumber(graph.reverse)),
        n_found=n_found,
    )
