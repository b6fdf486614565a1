"""The graph of a configuration: edges with periodic shifts, in rows, and their differentiable vectors.

Convention, everywhere in the package: ``edge_index[0]`` is the source, ``edge_index[1]`` the receiver, and

    vector = positions[receiver] - positions[source] + shift @ cell

with the lattice vectors in the rows of ``cell``.
"""

from __future__ import annotations

import dataclasses
import itertools
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Graph"]

_INT32_MAX = torch.iinfo(torch.int32).max
_DLPACK_CPU = 1  # kDLCPU of the DLPack standard


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """Directed edges between nodes; immutable, made by `glassconv.neighbor_list` or `Graph.from_edge_index`.

    Per-edge tensors (``shifts``, ``reverse``, `vectors`, edge features) are in the order of ``edge_index``.
    The rows, one for each receiver, are contiguous *slots*: row ``i`` has the slots ``row_ptr[i]`` to
    ``row_ptr[i + 1] - 1``, and slot ``k`` holds edge ``perm[k]``.

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
        has_shifts: whether some edge crosses a periodic boundary, so that `vectors` needs the cell.
        cutoff: the search radius, or None for a graph that was given.
        batch: (n_nodes) int64 non-decreasing, the system of each node; None for a single system.
        n_systems: number of systems.
    """

    edge_index: Tensor
    shifts: Tensor
    row_ptr: Tensor
    reverse: Tensor | None
    perm: Tensor | None
    n_nodes: int
    row_source: Tensor
    transpose_ptr: Tensor
    transpose_slots: Tensor
    has_shifts: bool
    cutoff: float | None = None
    batch: Tensor | None = None
    n_systems: int = 1

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return self.edge_index.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of every tensor of the graph."""
        return self.edge_index.device

    def __repr__(self) -> str:
        order = "edges by receiver" if self.perm is None else "edges as given"
        symmetry = "symmetric" if self.reverse is not None else "not symmetric"
        return (
            f"Graph(n_nodes={self.n_nodes}, n_edges={self.n_edges}, n_systems={self.n_systems}, "
            f"cutoff={self.cutoff}, {order}, {symmetry}, device={self.device})"
        )

    def vectors(self, positions: Any, cell: Any = None) -> Tensor:
        """Edge vectors, from source to receiver: ``positions[receiver] - positions[source] + shifts @ cell``.

        Differentiable any number of times in ``positions`` and ``cell``. If an energy ``E`` is a function of
        these vectors, the forces are ``-dE/dpositions``, and the Cauchy stress (energy per volume, positive
        under tension; the pressure is minus a third of its trace) is

            stress = (positions.T @ dE/dpositions + cell.T @ dE/dcell) / volume,

        for ``cell (3, 3)``; the term in ``positions`` is there because they strain with the cell. It equals
        the sum over edges of ``outer(vector, dE/dvector) / volume``.

        Args:
            positions: (n_nodes, 3) float32 or float64, on the device of the graph; a tensor, or what
                `glassconv.neighbor_list` takes in its place (without gradients then).
            cell: (3, 3) lattice vectors in rows, or (3,) box lengths; with a batch (n_systems, 3, 3) or
                (n_systems, 3), or (3,) for all systems. None only for graphs without shifts. Used in the
                dtype and on the device of ``positions``.

        Returns:
            (n_edges, 3), dtype and device of ``positions``, in the order of ``edge_index``.

        Raises:
            ValueError: wrong shapes, dtypes or devices, sparse tensors, or no cell although edges cross a
                boundary.
        """
        r = as_tensor("positions", positions, self.device)
        if r.shape != (self.n_nodes, 3):
            raise ValueError(f"positions: expected shape ({self.n_nodes}, 3), got {tuple(r.shape)}")
        if r.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"positions: expected float32 or float64, got {r.dtype}")
        if r.device != self.device:
            raise ValueError(f"positions: expected the device of the graph, {self.device}, got {r.device}")
        source, receiver = self.edge_index[0], self.edge_index[1]
        vectors = r.index_select(0, receiver) - r.index_select(0, source)
        if cell is None:
            if self.has_shifts:
                raise ValueError("cell: expected the cell of this periodic graph, got None")
            return vectors
        lattice = as_tensor("cell", cell)
        if lattice.is_complex() or lattice.dtype == torch.bool:
            raise ValueError(f"cell: expected real numbers, got {lattice.dtype}")
        if lattice.is_meta and not r.is_meta:
            raise ValueError("cell: expected a tensor with values, got one on the meta device")
        return vectors + self._shift_vectors(lattice.to(r))

    def distances(self, positions: Any, cell: Any = None) -> Tensor:
        """Edge lengths (n_edges), as `vectors`; the gradient at zero length is zero rather than NaN."""
        squared = self.vectors(positions, cell).square().sum(dim=1)
        is_zero = squared == 0
        return torch.where(is_zero, torch.ones_like(squared), squared).sqrt().masked_fill(is_zero, 0.0)

    def _shift_vectors(self, cell: Tensor) -> Tensor:
        n = self.n_systems
        shapes = [(3, 3), (3,)] if self.batch is None else [(n, 3, 3), (n, 3), (3,)]
        if cell.shape not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"cell: expected shape {expected}, got {tuple(cell.shape)}")
        shifts = self.shifts.to(cell.dtype)
        if cell.ndim == 1:
            return shifts * cell
        if self.batch is None:
            return shifts @ cell
        edge_cell = cell.index_select(0, self.batch.index_select(0, self.edge_index[1]))
        return torch.einsum("ea,eab->eb", shifts, edge_cell) if cell.ndim == 3 else shifts * edge_cell

    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> Graph:
        """The same graph on ``device``."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    @classmethod
    @torch.inference_mode(False)
    def from_edge_index(cls, edge_index: Any, n_nodes: int, shifts: Any = None) -> Graph:
        """A graph from edges of any origin, in any order, symmetric or not, duplicates allowed.

        Args:
            edge_index: (2, n_edges) int64 or int32; row 0 the sources, row 1 the receivers. A tensor, or
                what `glassconv.neighbor_list` takes in its place; copied.
            n_nodes: number of nodes, below 2**31.
            shifts: (n_edges, 3) signed integers up to 2**31 - 1, lattice translations; zero when None.
                Copied as well.

        Returns:
            A graph whose edges are in the caller's order; rows address them through ``perm``.

        Raises:
            ValueError: wrong shapes or dtypes, sparse tensors or tensors without values, a node outside
                ``0 .. n_nodes - 1``, or shifts too large.
        """
        edge_index, n_nodes = _check_edges(edge_index, n_nodes)
        # A graph is immutable: none of its memory is the caller's.
        edge_index = edge_index.to(torch.int64, copy=True).contiguous()
        if shifts is None:
            shifts = torch.zeros(edge_index.shape[1], 3, dtype=torch.int32, device=edge_index.device)
        else:
            shifts = _check_shifts(shifts, edge_index.shape[1])
            shifts = shifts.to(edge_index.device, torch.int32, copy=True).contiguous()
        source, receiver = edge_index[0], edge_index[1]
        perm = None if _is_sorted(receiver) else torch.argsort(receiver, stable=True)
        row_source = source if perm is None else source[perm]
        return cls(
            edge_index=edge_index,
            shifts=shifts,
            row_ptr=offsets_of(receiver, n_nodes),
            reverse=_reverse_edges(edge_index, shifts, n_nodes),
            perm=perm,
            n_nodes=n_nodes,
            row_source=row_source,
            transpose_ptr=offsets_of(source, n_nodes),
            transpose_slots=torch.argsort(row_source, stable=True),
            has_shifts=bool(shifts.any()),
        )

    @classmethod
    @torch.inference_mode(False)
    def concatenate(cls, graphs: Iterable[Graph]) -> Graph:
        """One graph of several systems, in the order given; ``batch`` names the system of each node.

        ``cutoff`` and ``reverse`` survive when every graph has them (the same cutoff).

        Raises:
            ValueError: no graphs, something else, or graphs on different devices.
        """
        graphs = _graphs(graphs)
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
        return cls(
            edge_index=shifted([graph.edge_index for graph in graphs], nodes),
            shifts=torch.cat([graph.shifts for graph in graphs]),
            row_ptr=pointers([graph.row_ptr for graph in graphs]),
            reverse=shifted(reverses, edges) if len(reverses) == len(graphs) else None,
            perm=None if all(graph.perm is None for graph in graphs) else shifted(perms, edges),
            n_nodes=n_nodes,
            row_source=shifted([graph.row_source for graph in graphs], nodes),
            transpose_ptr=pointers([graph.transpose_ptr for graph in graphs]),
            transpose_slots=shifted([graph.transpose_slots for graph in graphs], edges),
            has_shifts=any(graph.has_shifts for graph in graphs),
            cutoff=graphs[0].cutoff if len({graph.cutoff for graph in graphs}) == 1 else None,
            batch=shifted(batches, systems),
            n_systems=n_systems,
        )


def offsets_of(index: Tensor, n_groups: int) -> Tensor:
    """(n_groups + 1) int64: where each group begins once ``index`` (values below ``n_groups``) is sorted."""
    offsets = torch.zeros(n_groups + 1, dtype=torch.int64, device=index.device)
    offsets[1:] = torch.bincount(index, minlength=n_groups).cumsum(0)
    return offsets


def _offsets(counts: list[int]) -> tuple[list[int], int]:
    """Where each of several consecutive ranges begins, and the end of the last."""
    *starts, end = itertools.accumulate(counts, initial=0)
    return starts, end


def _is_sorted(values: Tensor) -> bool:
    return bool((values[1:] >= values[:-1]).all())


def as_tensor(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """``value`` as a dense tensor, without a copy where its memory can be shared.

    Python numbers keep their precision (float64, int64). What is not a tensor yet goes to ``device``.
    """
    if isinstance(value, Tensor):
        tensor = value
    else:
        try:
            # an array on a GPU may have `__array__` only to refuse
            on_cpu = not hasattr(value, "__dlpack_device__") or value.__dlpack_device__()[0] == _DLPACK_CPU
            if on_cpu and (hasattr(value, "__array__") or not hasattr(value, "__dlpack__")):
                array = np.asarray(value)
                # torch has no negative strides, and warns of memory that must not be written
                if not array.flags.writeable or any(stride < 0 for stride in array.strides):
                    array = array.copy()
                tensor = torch.from_numpy(array)
            else:
                tensor = torch.utils.dlpack.from_dlpack(value)
        except (AssertionError, TypeError, ValueError, OverflowError, RuntimeError, BufferError) as error:
            raise ValueError(f"{name}: expected an array, got {type(value).__name__} ({error})") from error
        tensor = tensor.to(device)
    if tensor.layout != torch.strided or tensor.is_nested:
        layout = "a nested tensor" if tensor.is_nested else tensor.layout
        raise ValueError(f"{name}: expected a dense tensor, got {layout}")
    return tensor


def tensor_with_values(name: str, value: Any) -> Tensor:
    """`as_tensor`, for what has to be looked into."""
    tensor = as_tensor(name, value)
    if tensor.is_meta:
        raise ValueError(f"{name}: expected a tensor with values, got one on the meta device")
    return tensor


def _check_edges(edges: Any, n_nodes: Any) -> tuple[Tensor, int]:
    is_bool = isinstance(n_nodes, bool)  # which Python counts among the integers
    if is_bool or not isinstance(n_nodes, numbers.Integral):
        raise ValueError(f"n_nodes: expected an integer, got {n_nodes!r}")
    n_nodes = int(n_nodes)
    # the product of two nodes is a sort key of 64 bits
    if not 0 <= n_nodes <= _INT32_MAX:
        raise ValueError(f"n_nodes: expected a number of nodes from 0 to {_INT32_MAX}, got {n_nodes}")
    edge_index = tensor_with_values("edge_index", edges)
    if isinstance(edges, list | tuple) and edge_index.numel() == 0:
        edge_index = edge_index.to(torch.int64)  # nothing in it tells that they are integers
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index: expected shape (2, n_edges), got {tuple(edge_index.shape)}")
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"edge_index: expected int64 or int32, got {edge_index.dtype}")
    outside = (edge_index < 0) | (edge_index >= n_nodes)
    if bool(outside.any()):
        edge = int(outside.any(dim=0).nonzero()[0])
        pair = edge_index[:, edge].tolist()
        raise ValueError(f"edge_index: expected nodes from 0 to {n_nodes - 1}, got {pair} at edge {edge}")
    return edge_index, n_nodes


def _check_shifts(given: Any, n_edges: int) -> Tensor:
    shifts = tensor_with_values("shifts", given)
    if shifts.shape != (n_edges, 3):
        raise ValueError(f"shifts: expected shape ({n_edges}, 3), got {tuple(shifts.shape)}")
    if shifts.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8):
        raise ValueError(f"shifts: expected signed integers (unit: cell vectors), got {shifts.dtype}")
    # two comparisons: the smallest integer has no absolute value
    outside = (shifts.to(torch.int64) > _INT32_MAX) | (shifts.to(torch.int64) < -_INT32_MAX)
    if bool(outside.any()):
        edge = int(outside.any(dim=1).nonzero()[0])
        got = shifts[edge].tolist()
        raise ValueError(f"shifts: expected magnitudes up to {_INT32_MAX}, got {got} at edge {edge}")
    return shifts


def _graphs(graphs: Any) -> list[Graph]:
    if not isinstance(graphs, Iterable):
        raise ValueError(f"graphs: expected Graph objects, got {type(graphs).__name__}")
    listed = list(graphs)
    if not listed:
        raise ValueError("graphs: expected at least one Graph, got none")
    for index, graph in enumerate(listed):
        if not isinstance(graph, Graph):
            raise ValueError(f"graphs: expected Graph objects, got {type(graph).__name__} at index {index}")
    return listed


def _lexicographic_order(pair: Tensor, shifts: Tensor, has_shifts: bool) -> Tensor:
    """Indices that sort by ``pair``, then by shift; equal edges stay in their order."""
    order = torch.arange(len(pair), device=pair.device)
    for key in ([shifts[:, 2], shifts[:, 1], shifts[:, 0]] if has_shifts else []) + [pair]:
        order = order[torch.argsort(key[order], stable=True)]
    return order


def _reverse_edges(edge_index: Tensor, shifts: Tensor, n_nodes: int) -> Tensor | None:
    """The opposite of every edge, or None; the k-th of several equal edges gets the k-th of their opposites.

    Sorting edges by (source, receiver, shift) and by (receiver, source, -shift) lines up the opposites.
    """
    source, receiver = edge_index[0], edge_index[1]
    has_shifts = bool(shifts.any())
    forward, backward = source * n_nodes + receiver, receiver * n_nodes + source
    first = _lexicographic_order(forward, shifts, has_shifts)
    second = _lexicographic_order(backward, -shifts, has_shifts)
    if not (torch.equal(forward[first], backward[second]) and torch.equal(shifts[first], -shifts[second])):
        return None
    reverse = torch.empty_like(first)
    reverse[first] = second
    return reverse
