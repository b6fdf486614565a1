"""The graph of a configuration: edges with periodic shifts, in rows, and their differentiable vectors.

Convention, everywhere in the package: ``edge_index[0]`` is the source, ``edge_index[1]`` the receiver, and

    vector = positions[receiver] - positions[source] + shift @ cell

with the lattice vectors in the rows of ``cell``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassconv._arrays import Array, as_tensor, in_kind_of, kind_of
from glassconv._autocast import autocasts
from glassconv._compile import register_container
from glassconv._edges import check_edges, check_shifts, is_sorted, offsets_of, reverse_edges

__all__ = ["Graph"]

# Why a search on a GPU found nothing, when it says -1, -2, ... (csrc/core/neighbor_refusals.h)
_REFUSALS = (
    "cell: expected finite vectors, periodic ones between 1e-140 and 1e140, got others",
    "cell: expected linearly independent periodic vectors, got a singular cell",
    "batch: expected non-decreasing systems with a cell each, got others",
    "positions: expected finite numbers up to 1e140, got others",
    "positions: expected within 1e9 cells of the origin, got others",
    "cutoff: expected at most 16777216 periodic images within reach, got more, or 1000000 along one axis",
    "types: expected types that have cutoffs, got others",
)


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """Directed edges between nodes; immutable, made by `glassconv.neighbor_list` or `Graph.from_edge_index`.

    Its arrays are of the caller's kind: tensors, or those of NumPy, CuPy, JAX, in the same memory as tensors
    that `torch` gives. Do not write to them; the graph shares no memory with what it was made from.

    Per-edge arrays (``shifts``, ``reverse``, `vectors`, edge features) are in the order of ``edge_index``.
    The rows, one for each receiver, are contiguous *slots*: row ``i`` has the slots ``row_ptr[i]`` to
    ``row_ptr[i + 1] - 1``, and slot ``k`` holds edge ``perm[k]``.

    A graph made with a capacity has arrays of that fixed size: edges come first, and what is left holds -1.
    `edge_mask` tells them apart, `vectors` and `distances` are zero there, and `glassconv.conv` passes over
    whatever the per-edge tensors hold there. When the capacity did not suffice, or the input was refused,
    such a graph has no edges at all (rows are empty): look at ``overflow`` and `check`.

    Attributes:
        edge_index: (2, n_edges) int64, sources and receivers.
        shifts: (n_edges, 3) int32, lattice translations in units of the cell vectors.
        row_ptr: (n_nodes + 1) int64, where the row of each receiver begins.
        reverse: (n_edges) int64, the edge with source and receiver exchanged and the opposite shift; None
            when some edge has none.
        perm: (n_edges) int64, the edge in each slot; None when edges are sorted by receiver (slot = edge).
        n_nodes: number of nodes.
        row_source: (n_edges) int64, the source node of each slot.
        transpose_ptr: (n_nodes + 1) int64, where each source begins in ``transpose_slots``.
        transpose_slots: (n_edges) int64, the slots grouped by source node.
        cutoff: the search radius (the largest one, for radii that depend on types), or None for a graph that
            was given.
        batch: (n_nodes) int64 non-decreasing, the system of each node; None for a single system.
        n_systems: number of systems.
        node_order: (n_nodes) int64, for nodes in spatial order: node ``k`` is particle ``node_order[k]`` of
            the positions that were searched. ``x[graph.node_order]`` brings values of particles into the
            order of the nodes, and ``y[graph.node_order] = values`` those of nodes back. None: nodes are
            particles.
        n_found: () int64, for graphs with a capacity: how many edges there are, also when they do not fit;
            negative when a GPU was given what `glassconv.neighbor_list` refuses. None without a capacity.
    """

    edge_index: Array
    shifts: Array
    row_ptr: Array
    reverse: Array | None
    perm: Array | None
    n_nodes: int
    row_source: Array
    transpose_ptr: Array
    transpose_slots: Array
    cutoff: float | None = None
    batch: Array | None = None
    n_systems: int = 1
    node_order: Array | None = None
    n_found: Array | None = None
    _has_shifts: bool | None = None  # where that is known without looking
    _tensors: Graph | None = None  # the graph of tensors that this one shows as other arrays

    @property
    def n_edges(self) -> int:
        """Number of directed edges; for graphs with a capacity, that capacity."""
        n_edges: int = self.edge_index.shape[1]  # not int() of it, which torch.export takes for a constant
        return n_edges

    def _n_rows(self) -> int:
        """`n_nodes`; to a compiler the size of an array, which unlike a number can be marked as dynamic."""
        return self.row_ptr.shape[0] - 1 if torch.compiler.is_compiling() else self.n_nodes

    @cached_property
    def has_shifts(self) -> bool:
        """Whether some edge crosses a periodic boundary, so that `vectors` needs the cell."""
        if self._has_shifts is not None:
            return self._has_shifts
        graph = self.torch()
        shifts = graph.shifts if self.n_found is None else graph.shifts * graph._edge_mask()[:, None]
        return bool(shifts.any())

    @property
    def edge_mask(self) -> Array:
        """(n_edges) bool: False where an array with a capacity holds no edge. All True without a capacity."""
        return in_kind_of(self.edge_index, self.torch()._edge_mask())

    @property
    def overflow(self) -> Array | None:
        """() bool: whether there are more edges than the capacity has room for. None without a capacity."""
        return None if self.n_found is None else self.n_found > self.n_edges

    def check(self) -> None:
        """Wait for the device, and raise what is wrong with a graph made with a capacity.

        Raises:
            ValueError: more edges than the capacity (the message says how many), or input that was refused.
        """
        found = 0 if self.n_found is None else int(self.n_found)
        if found > self.n_edges:
            raise ValueError(f"capacity: expected at least {found} for these positions, got {self.n_edges}")
        if found < 0:
            reason = _REFUSALS[-1 - found]
            raise ValueError(f"{reason}; the search without a capacity says more about this input")

    @property
    def device(self) -> torch.device:
        """Device of every array of the graph."""
        tensor: Tensor = self.torch().edge_index
        return tensor.device

    def __repr__(self) -> str:
        order = "edges by receiver" if self.perm is None else "edges as given"
        symmetry = "symmetric" if self.reverse is not None else "not symmetric"
        size = "n_edges" if self.n_found is None else "capacity"
        kind = type(self.edge_index)
        return (
            f"Graph(n_nodes={self.n_nodes}, {size}={self.n_edges}, n_systems={self.n_systems}, "
            f"cutoff={self.cutoff}, {order}, {symmetry}, device={self.device}"
            + ("" if self._tensors is None else f", arrays={kind.__module__}.{kind.__qualname__}")
            + ")"
        )

    def vectors(self, positions: Any, cell: Any = None) -> Array:
        """Edge vectors, from source to receiver: ``positions[receiver] - positions[source] + shifts @ cell``.

        Differentiable any number of times in ``positions`` and ``cell``. If an energy ``E`` is a function of
        these vectors, the forces are ``-dE/dpositions``, and the Cauchy stress (energy per volume, positive
        under tension; the pressure is minus a third of its trace) is

            stress = (positions.T @ dE/dpositions + cell.T @ dE/dcell) / volume,

        for ``cell (3, 3)``; the term in ``positions`` is there because they strain with the cell. It equals
        the sum over edges of ``outer(vector, dE/dvector) / volume``.

        Args:
            positions: (n_nodes, 3) float32 or float64, on the device of the graph; a tensor, or what
                `glassconv.neighbor_list` takes in its place (without gradients then). Not necessarily of the
                kind of the graph's arrays. In the order of the nodes: for a graph with a ``node_order``,
                ``positions[graph.node_order]``.
            cell: (3, 3) lattice vectors in rows, or (3,) box lengths; with a batch (n_systems, 3, 3) or
                (n_systems, 3), or (3,) for all systems. None only for graphs without shifts. Used in the
                dtype and on the device of ``positions``.

        Returns:
            (n_edges, 3), kind, dtype and device of ``positions``, in the order of ``edge_index``.

        Raises:
            ValueError: wrong shapes, dtypes or devices, sparse tensors, or no cell although edges cross a
                boundary.
        """
        return in_kind_of(positions, self.torch()._vectors(positions, cell))

    def distances(self, positions: Any, cell: Any = None) -> Array:
        """Edge lengths (n_edges), as `vectors`; the gradient at zero length is zero rather than NaN.

        As there, positions are in the order of the nodes.

        >>> graph = Graph.from_edge_index([[0, 1], [1, 0]], n_nodes=2)
        >>> graph.distances(np.array([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]]))
        array([5., 5.])
        """
        squared = self.torch()._vectors(positions, cell).square().sum(dim=1)
        is_zero = squared == 0
        lengths = torch.where(is_zero, torch.ones_like(squared), squared).sqrt().masked_fill(is_zero, 0.0)
        return in_kind_of(positions, lengths)

    def _vectors(self, positions: Any, cell: Any) -> Tensor:
        r = as_tensor("positions", positions, self.device)
        if isinstance(positions, list | tuple) and r.dtype == torch.int64:  # as the search takes them
            r = r.to(torch.float64)
        n_nodes = self._n_rows()
        if r.shape != (n_nodes, 3):
            raise ValueError(f"positions: expected shape ({n_nodes}, 3), got {tuple(r.shape)}")
        if r.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"positions: expected float32 or float64, got {r.dtype}")
        if r.device != self.device:
            raise ValueError(f"positions: expected the device of the graph, {self.device}, got {r.device}")
        if self.n_found is None:
            return self._edge_vectors(r, cell, self.edge_index)
        if self.n_nodes == 0:
            return r.sum() + r.new_zeros(self.n_edges, 3)
        vectors = self._edge_vectors(r, cell, self.edge_index.clamp(min=0))
        return torch.where(self._edge_mask()[:, None], vectors, 0.0)

    def _edge_mask(self) -> Tensor:
        is_edge: Tensor = torch.arange(self.n_edges, device=self.device) < self.row_ptr[-1]
        return is_edge

    def _edge_vectors(self, r: Tensor, cell: Any, edge_index: Tensor) -> Tensor:
        source, receiver = edge_index[0], edge_index[1]
        vectors = r.index_select(0, receiver) - r.index_select(0, source)
        if cell is None:
            if self._has_shifts is not False and self.has_shifts:
                raise ValueError("cell: expected the cell of this periodic graph, got None")
            return vectors
        lattice = as_tensor("cell", cell)
        if lattice.is_complex() or lattice.dtype == torch.bool:
            raise ValueError(f"cell: expected real numbers, got {lattice.dtype}")
        if lattice.is_meta and not r.is_meta:
            raise ValueError("cell: expected a tensor with values, got one on the meta device")
        return vectors + self._shift_vectors(lattice.to(r), receiver)

    def _shift_vectors(self, cell: Tensor, receiver: Tensor) -> Tensor:
        n = self.n_systems
        shapes = [(3, 3), (3,)] if self.batch is None else [(n, 3, 3), (n, 3), (3,)]
        if cell.shape not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"cell: expected shape {expected}, got {tuple(cell.shape)}")
        shifts: Tensor = self.shifts.to(cell.dtype)
        if cell.ndim == 1:
            return shifts * cell
        if self.batch is None:
            return _times(shifts, cell)
        systems = self.batch.index_select(0, receiver)
        if self.n_found is not None:  # a batch that was refused is kept as it is
            systems = systems.clamp(0, n - 1)
        edge_cell = cell.index_select(0, systems)
        return _times(shifts, edge_cell) if cell.ndim == 3 else shifts * edge_cell

    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> Graph:
        """The same graph on ``device``.

        Raises:
            ValueError: another device, for arrays that are no tensors: take ``graph.torch().to(device)``.
        """
        if torch.empty(0, device=device).device == self.device:
            return self
        if self._tensors is not None:
            expected = f"{self.device}, where these arrays are (graph.torch() has tensors, which move)"
            raise ValueError(f"device: expected {expected}, got {device}")
        return self._map_tensors(lambda tensor: tensor.to(device))

    def _map_tensors(self, change: Callable[[Tensor], Array], tensors: Graph | None = None) -> Graph:
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **changed, _tensors=tensors)

    def like(self, array: Any) -> Graph:
        """The same graph with arrays of the library of ``array``: tensors, NumPy, CuPy, JAX.

        They are in the memory of the graph's tensors, where that library can share it.

        >>> graph = Graph.from_edge_index([[0, 1], [1, 0]], n_nodes=2)
        >>> graph.like(np.zeros(3)).row_ptr
        array([0, 1, 2])
        """
        tensors, convert = self.torch(), kind_of(array)
        return tensors if convert is None else tensors._map_tensors(convert, tensors)

    @classmethod
    def from_edge_index(cls, edge_index: Any, n_nodes: int, shifts: Any = None) -> Graph:
        """A graph from edges of any origin, in any order, symmetric or not, duplicates allowed.

        Args:
            edge_index: (2, n_edges) int64 or int32; row 0 the sources, row 1 the receivers. A tensor, or
                what `glassconv.neighbor_list` takes in its place; copied.
            n_nodes: number of nodes, below 2**31.
            shifts: (n_edges, 3) signed integers up to 2**31 - 1, lattice translations; zero when None.
                Copied as well.

        In what ``torch.compile`` and ``torch.export`` trace, edges and shifts are tensors, a node outside is
        a RuntimeError of the traced program, and the graph has a ``perm`` always, ``reverse`` never.

        Returns:
            A graph whose edges are in the caller's order; rows address them through ``perm``. Its arrays are
            of the kind of ``edge_index``: tensors for tensors and lists, NumPy arrays for NumPy arrays.

        Raises:
            ValueError: wrong shapes or dtypes, sparse tensors or tensors without values, a node outside
                ``0 .. n_nodes - 1``, or shifts too large.

        >>> graph = Graph.from_edge_index(np.array([[2, 0, 1], [0, 1, 0]]), n_nodes=3)
        >>> graph.row_ptr
        array([0, 2, 3, 3])
        """
        if torch.compiler.is_compiling():
            return cls._traced(edge_index, n_nodes, shifts)
        with torch.inference_mode(False):
            return cls._from_edges(edge_index, n_nodes, shifts)

    @classmethod
    def _traced(cls, edge_index: Tensor, n_nodes: int, shifts: Tensor | None) -> Graph:
        """`from_edge_index` without a look at the values, of which nothing is known yet."""
        edge_index, n_nodes = check_edges(edge_index, n_nodes)
        edge_index = edge_index.to(torch.int64)
        is_shifted = None if shifts is not None else False
        if shifts is None:
            shifts = torch.zeros(edge_index.shape[1], 3, dtype=torch.int32, device=edge_index.device)
        else:
            shifts = check_shifts(shifts, edge_index.shape[1]).to(edge_index.device, torch.int32)
        nodes = torch.arange(n_nodes + 1, device=edge_index.device)
        receiver, perm = torch.sort(edge_index[1], stable=True)
        row_source = edge_index[0].index_select(0, perm)
        source, transpose_slots = torch.sort(row_source, stable=True)
        return cls(
            edge_index=edge_index,
            shifts=shifts,
            row_ptr=torch.searchsorted(receiver, nodes),
            reverse=None,
            perm=perm,
            n_nodes=n_nodes,
            row_source=row_source,
            transpose_ptr=torch.searchsorted(source, nodes),
            transpose_slots=transpose_slots,
            _has_shifts=is_shifted,
        )

    @classmethod
    def _from_edges(cls, given: Any, n_nodes: int, shifts: Any) -> Graph:
        edge_index, n_nodes = check_edges(given, n_nodes)
        # A graph is immutable: none of its memory is the caller's.
        edge_index = edge_index.to(torch.int64, copy=True).contiguous()
        is_shifted = None if shifts is not None else False
        if shifts is None:
            shifts = torch.zeros(edge_index.shape[1], 3, dtype=torch.int32, device=edge_index.device)
        else:
            shifts = check_shifts(shifts, edge_index.shape[1])
            shifts = shifts.to(edge_index.device, torch.int32, copy=True).contiguous()
        source, receiver = edge_index[0], edge_index[1]
        perm = None if is_sorted(receiver) else torch.argsort(receiver, stable=True)
        row_source = source if perm is None else source[perm]
        graph = cls(
            edge_index=edge_index,
            shifts=shifts,
            row_ptr=offsets_of(receiver, n_nodes),
            reverse=reverse_edges(edge_index, shifts, n_nodes),
            perm=perm,
            n_nodes=n_nodes,
            row_source=row_source,
            transpose_ptr=offsets_of(source, n_nodes),
            transpose_slots=torch.argsort(row_source, stable=True),
            _has_shifts=is_shifted,
        )
        return graph.like(given)

    @classmethod
    @torch.inference_mode(False)
    def concatenate(cls, graphs: Iterable[Graph]) -> Graph:
        """One graph of several systems, in the order given; ``batch`` names the system of each node.

        ``cutoff`` and ``reverse`` survive when every graph has them (the same cutoff). Its arrays are of the
        kind of those of the first graph. Nodes in spatial order stay in it.

        Raises:
            ValueError: no graphs, something else, graphs with a capacity, or graphs on different devices.
        """
        given = _graphs(graphs)
        graphs = [graph.torch() for graph in given]
        devices = {graph.device for graph in graphs}
        if len(devices) > 1:
            raise ValueError(f"graphs: expected all on one device, got {sorted(map(str, devices))}")
        nodes, n_nodes = _offsets([graph.n_nodes for graph in graphs])
        edges, n_edges = _offsets([graph.n_edges for graph in graphs])
        systems, n_systems = _offsets([graph.n_systems for graph in graphs])
        device = graphs[0].device
        reverses = [graph.reverse for graph in graphs if graph.reverse is not None]

        def shifted(values: Sequence[Tensor], starts: list[int]) -> Tensor:
            return torch.cat([value + start for value, start in zip(values, starts, strict=True)], dim=-1)

        def pointers(values: Sequence[Tensor]) -> Tensor:
            ends = torch.tensor([n_edges], device=device)
            return torch.cat([shifted([value[:-1] for value in values], edges), ends])

        # Edges and slots of a graph have the same offset: rows never mix two graphs.
        perms = [
            torch.arange(graph.n_edges, device=device) if graph.perm is None else graph.perm
            for graph in graphs
        ]
        batches = [
            torch.zeros(graph.n_nodes, dtype=torch.int64, device=device)
            if graph.batch is None
            else graph.batch
            for graph in graphs
        ]
        orders = [graph.node_order for graph in graphs]
        in_order = [
            torch.arange(graph.n_nodes, device=device) if order is None else order
            for graph, order in zip(graphs, orders, strict=True)
        ]
        joined = cls(
            edge_index=shifted([graph.edge_index for graph in graphs], nodes),
            shifts=torch.cat([graph.shifts for graph in graphs]),
            row_ptr=pointers([graph.row_ptr for graph in graphs]),
            reverse=shifted(reverses, edges) if len(reverses) == len(graphs) else None,
            perm=None if all(graph.perm is None for graph in graphs) else shifted(perms, edges),
            n_nodes=n_nodes,
            row_source=shifted([graph.row_source for graph in graphs], nodes),
            transpose_ptr=pointers([graph.transpose_ptr for graph in graphs]),
            transpose_slots=shifted([graph.transpose_slots for graph in graphs], edges),
            cutoff=graphs[0].cutoff if len({graph.cutoff for graph in graphs}) == 1 else None,
            batch=shifted(batches, systems),
            n_systems=n_systems,
            node_order=None if all(order is None for order in orders) else shifted(in_order, nodes),
            _has_shifts=False if all(graph._has_shifts is False for graph in graphs) else None,
        )
        return joined.like(given[0].edge_index)

    def numpy(self) -> Graph:
        """The same graph with NumPy arrays, in the memory of its tensors; copied to the CPU from elsewhere.

        >>> graph = Graph.from_edge_index([[0, 1, 2], [1, 0, 1]], n_nodes=3).numpy()
        >>> np.bincount(graph.edge_index[1], minlength=graph.n_nodes)
        array([1, 2, 0])
        """
        return self.torch().to("cpu").like(np.empty(0))

    # Last, because it hides the module of this name from what follows in the body of the class.
    def torch(self) -> Graph:
        """The same graph with tensors: itself, or the tensors behind its arrays, without a copy.

        >>> graph = Graph.from_edge_index(np.array([[0, 1], [1, 0]]), n_nodes=2)
        >>> graph.torch().row_ptr
        tensor([0, 1, 2])
        """
        return self if self._tensors is None else self._tensors


def _times(shifts: Tensor, cell: Tensor) -> Tensor:
    """Each shift (n_edges, 3) times the cell (3, 3), or times its own of (n_edges, 3, 3)."""
    if autocasts(shifts):  # it would round the factors of a matrix product, in the backward pass as well
        return (shifts[:, :, None] * cell).sum(dim=1)
    return shifts @ cell if cell.ndim == 2 else torch.einsum("ea,eab->eb", shifts, cell)


def _offsets(counts: list[int]) -> tuple[list[int], int]:
    """Where each of several consecutive ranges begins, and the end of the last."""
    *starts, end = itertools.accumulate(counts, initial=0)
    return starts, end


def _graphs(graphs: Any) -> list[Graph]:
    if not isinstance(graphs, Iterable):
        raise ValueError(f"graphs: expected Graph objects, got {type(graphs).__name__}")
    listed = list(graphs)
    if not listed:
        raise ValueError("graphs: expected at least one Graph, got none")
    for index, graph in enumerate(listed):
        if not isinstance(graph, Graph):
            raise ValueError(f"graphs: expected Graph objects, got {type(graph).__name__} at index {index}")
        if graph.n_found is not None:
            raise ValueError(f"graphs: expected graphs without a capacity, got one with it at index {index}")
    return listed


def _n_nodes(fields: dict[str, Any]) -> Any:
    row_ptr = fields["row_ptr"]
    return row_ptr.shape[0] - 1 if hasattr(row_ptr, "shape") else 0  # anything may stand for a tensor


register_container(
    Graph,
    "glassconv.Graph",
    fixed=("_has_shifts",),
    free=("cutoff", "n_systems"),
    derived={"n_nodes": _n_nodes},
)
