"""The periodic neighbor search in plain PyTorch: the definition, and what the native one is checked against.

The edge set is exactly the one that float64 arithmetic gives on the positions as given:

    d = (r_receiver - r_source) + ((S_a a + S_b b) + S_c c)      for the shift S and lattice vectors a, b, c
    edge when (d_x d_x + d_y d_y) + d_z d_z < cutoff cutoff      every operation rounded, none fused

Wrapped positions only preselect the candidates, with a margin that covers their rounding.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from glassconv.graph import Graph

__all__ = ["filter_edges", "neighbor_list", "search_neighbors"]

Edges = tuple[Tensor, Tensor, Tensor, Tensor]  # edge_index, shifts, row_ptr, reverse

_MAX_PAIRS_AT_ONCE = 1 << 21  # 16 MB per float64 temporary
_MAX_IMAGES = 1 << 24
_MAX_IMAGES_ON_AXIS = 1_000_000  # as in csrc/core/cell_grid.h
_EPSILON = torch.finfo(torch.float64).eps


def neighbor_list(
    positions: Tensor,
    cutoff: float | Tensor,
    cell: Tensor | None = None,
    pbc: bool | Tensor = True,
    batch: Tensor | None = None,
    *,
    types: Tensor | None = None,
    half: bool = False,
    order: str = "receiver",
    capacity: int | None = None,
) -> Graph:
    """`glassconv.neighbor_list` by this module, whatever backend is active."""
    import glassconv  # deferred: the public function stands above this module and imports it

    with glassconv.use_backend("reference"):
        return glassconv.neighbor_list(
            positions, cutoff, cell, pbc, batch, types=types, half=half, order=order, capacity=capacity
        )


@dataclass(frozen=True)
class _Box:
    """One system's cell, open axes completed, and how far a neighbor can be in fractional coordinates."""

    vectors: Tensor  # (3, 3) rows
    inverse: Tensor  # (3, 3): fractional = positions @ inverse
    reach: Tensor  # (3)
    margin: float  # length by which a distance between wrapped positions can differ from the defined one


def search_neighbors(  # noqa: PLR0917 - the operator's arguments
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    batch: Tensor,
    cutoff: float,
    types: Tensor | None = None,
    cutoffs: Tensor | None = None,
) -> Edges:
    """The operator ``glassconv::neighbor_list``, with the same arguments and results.

    Args:
        positions: (N, 3) float32 or float64.
        cell: (B, 3, 3) float64, rows are lattice vectors.
        pbc: (B, 3) bool.
        batch: (N) int64, non-decreasing, below B.
        cutoff: same unit as the positions; the largest of ``cutoffs``.
        types: (N) int32, from 0 to T - 1; with ``cutoffs``.
        cutoffs: (T, T) float64, symmetric: the cutoff of each two types.

    Returns:
        ``edge_index (2, E) int64`` (sources, receivers), ``shifts (E, 3) int32``, ``row_ptr (N + 1) int64``,
        ``reverse (E) int64``; sorted by receiver, then source, then shift.
    """
    positions = positions.detach().to(torch.float64)
    n_nodes = len(positions)
    ends = torch.bincount(batch, minlength=len(cell)).cumsum(0).tolist()
    found = [
        _search_system(positions[start:end], cell[system], pbc[system], cutoff, first_node=start)
        for system, (start, end) in enumerate(itertools.pairwise([0, *ends]))
        if end > start
    ]
    edges = torch.cat(found) if found else torch.empty(0, 5, dtype=torch.int64, device=positions.device)
    for column in (4, 3, 2, 1, 0):  # least significant first: stable sorts
        edges = edges[torch.argsort(edges[:, column], stable=True)]
    if types is not None and cutoffs is not None:
        keep = _closer(
            edges[:, [1, 0]].T,
            edges[:, 2:],
            positions=positions,
            cell=cell,
            batch=batch,
            cutoff=cutoff,
            types=types,
            cutoffs=cutoffs,
        )
        edges = edges[keep]
    receiver, source, shifts = edges[:, 0], edges[:, 1], edges[:, 2:]
    row_ptr = torch.searchsorted(receiver.contiguous(), torch.arange(n_nodes + 1, device=positions.device))
    # Sorted by (source, receiver, -shift) the list is that of the opposites: their d is exactly -d.
    reverse = torch.arange(len(edges), device=positions.device)
    for key in (-shifts[:, 2], -shifts[:, 1], -shifts[:, 0], receiver, source):
        reverse = reverse[torch.argsort(key[reverse], stable=True)]
    return torch.stack([source, receiver]), shifts.to(torch.int32), row_ptr, reverse


def filter_edges(  # noqa: PLR0917 - the operator's arguments
    positions: Tensor,
    cell: Tensor,
    batch: Tensor,
    cutoff: float,
    edge_index: Tensor,
    shifts: Tensor,
    row_ptr: Tensor,
    reverse: Tensor,
    types: Tensor | None = None,
    cutoffs: Tensor | None = None,
    *,
    fixed: bool = False,
) -> Edges:
    """The operator ``glassconv::neighbor_list_filter``: what is left of a list made with larger cutoffs.

    Args:
        positions: (N, 3) float32 or float64, like the next three as `search_neighbors` takes them.
        cell: (B, 3, 3) float64.
        batch: (N) int64.
        cutoff: same unit as the positions.
        edge_index: (2, E) int64, and the next three: the list, as `search_neighbors` returns it.
        shifts: (E, 3) int32.
        row_ptr: (N + 1) int64.
        reverse: (E) int64.
        types: as for `search_neighbors`.
        cutoffs: as for `search_neighbors`.
        fixed: whether the list has a capacity: edges up to ``row_ptr[-1]`` and -1 beyond. So has the result
            then, and no value is read by the host.

    Returns:
        As `search_neighbors`.
    """
    if len(positions) == 0:
        return edge_index, shifts, row_ptr, reverse
    ends = edge_index
    if fixed:  # what was refused, or is padding, must not be an index either
        ends, batch = edge_index.clamp(min=0), batch.clamp(0, len(cell) - 1)
        if types is not None and cutoffs is not None:
            types = types.clamp(0, len(cutoffs) - 1)
    keep = _closer(
        ends,
        shifts,
        positions=positions,
        cell=cell,
        batch=batch,
        cutoff=cutoff,
        types=types,
        cutoffs=cutoffs,
    )
    if fixed:
        keep &= torch.arange(len(keep), device=keep.device) < row_ptr[-1]
    kept = Packing(keep, len(keep) if fixed else None)
    # an edge and its opposite have the same length
    opposites = kept.pack(kept.renumber(reverse))
    return kept.pack(edge_index, 1), kept.pack(shifts), kept.renumber(row_ptr), opposites


class Packing:
    """Some of many rows, moved together."""

    def __init__(self, keep: Tensor, size: int | None = None) -> None:
        """Keep the rows marked in ``keep (E)``: as many as there are, or ``size`` with -1 in the rest."""
        self._before = torch.nn.functional.pad(keep.cumsum(0), (1, 0))
        self._size = size
        if size is None:
            self._places = keep.nonzero()[:, 0]
        else:  # what is not kept goes to a place that is cut off
            self._places = torch.where(keep, self._before[:-1], size)

    def pack(self, values: Tensor, dim: int = 0) -> Tensor:
        """The rows that are kept, of values with E of them along ``dim``."""
        if self._size is None:
            return values.index_select(dim, self._places)
        shape = list(values.shape)
        shape[dim] = self._size + 1
        packed = values.new_full(shape, -1).index_copy(dim, self._places, values)
        return packed.narrow(dim, 0, self._size)

    def renumber(self, rows: Tensor) -> Tensor:
        """What numbers of rows (up to E, or -1 in padding) become: how many are kept before each."""
        return self._before.index_select(0, rows if self._size is None else rows.clamp(min=0))


def pad_edges(
    edge_index: Tensor, shifts: Tensor, row_ptr: Tensor, reverse: Tensor, capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What ``glassconv::neighbor_list_fixed`` returns, from what ``glassconv::neighbor_list`` does."""
    n_written = int(row_ptr[row_ptr <= capacity][-1])  # the rows that fit

    def pad(values: Tensor, dim: int) -> Tensor:
        shape = list(values.shape)
        shape[dim] = capacity - n_written
        return torch.cat([values.narrow(dim, 0, n_written), values.new_full(shape, -1)], dim)

    opposites = reverse.where(reverse < n_written, -1)
    n_found = row_ptr[-1:].clone()
    return pad(edge_index, 1), pad(shifts, 0), row_ptr, pad(opposites, 0), n_found


def _closer(
    edge_index: Tensor,
    shifts: Tensor,
    *,
    positions: Tensor,
    cell: Tensor,
    batch: Tensor,
    cutoff: float,
    types: Tensor | None,
    cutoffs: Tensor | None,
) -> Tensor:
    """(E) bool: which of these are edges by the definition."""
    source, receiver = edge_index[0], edge_index[1]
    r = positions.detach().to(torch.float64)
    difference = r.index_select(0, receiver) - r.index_select(0, source)
    edge_cell = cell[0] if len(cell) == 1 else cell[batch[receiver]].movedim(1, 0)
    if types is None or cutoffs is None:
        return _is_edge(difference, shifts, edge_cell, cutoff)
    return _is_edge(difference, shifts, edge_cell, cutoffs[types[receiver].long(), types[source].long()])


def _search_system(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, first_node: int) -> Tensor:
    """(E, 5) int64: receiver, source, shift; nodes counted from ``first_node``, in no particular order."""
    wraps, box = _wrap(positions, cell, pbc, cutoff, first_node)
    wrapped = positions - wraps.to(torch.float64) @ box.vectors
    fractional = wrapped @ box.inverse
    ghost_source, ghost_image = _ghosts(fractional, pbc, box.reach)
    ghosts = wrapped[ghost_source] + ghost_image.to(torch.float64) @ box.vectors

    # Receivers and ghosts sorted along one axis: a chunk of receivers meets a contiguous run of ghosts.
    axis = int(torch.argmax((fractional.amax(0) - fractional.amin(0)) / box.reach))
    ghost_height = (ghosts @ box.inverse[:, axis]).contiguous()
    ghost_order = torch.argsort(ghost_height)
    ghost_height, ghosts = ghost_height[ghost_order], ghosts[ghost_order]
    ghost_source, ghost_image = ghost_source[ghost_order], ghost_image[ghost_order]
    receivers = torch.argsort(fractional[:, axis])
    height = fractional[receivers, axis].contiguous()
    first = torch.searchsorted(ghost_height, height - box.reach[axis])
    last = torch.searchsorted(ghost_height, height + box.reach[axis], right=True)

    found = []
    begin = 0
    while begin < len(receivers):
        end = begin + _chunk_size(first, last, begin)
        low, high = int(first[begin]), int(last[end - 1])
        chunk = receivers[begin:end]
        distances = torch.cdist(wrapped[chunk], ghosts[low:high], compute_mode="donot_use_mm_for_euclid_dist")
        row, column = (distances < cutoff + box.margin).nonzero(as_tuple=True)
        receiver, source = chunk[row], ghost_source[low + column]
        # The ghost of the source stands at +image, so the receiver minus the ghost has shift -image.
        shifts = wraps[source] - wraps[receiver] - ghost_image[low + column]
        edge = _is_edge(positions[receiver] - positions[source], shifts, cell, cutoff)
        edge &= (receiver != source) | (shifts != 0).any(1)
        found.append(torch.cat([torch.stack([receiver, source], 1) + first_node, shifts], 1)[edge])
        begin = end
    return torch.cat(found)


def _wrap(
    positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, first_node: int
) -> tuple[Tensor, _Box]:
    """(N, 3) int64, the cell each particle lies in (zero along open axes), and the box with its margins."""
    # Vectors of about unit length first: neither the decomposition nor squares of the inverse then over- or
    # underflow, however long, short or different the vectors are.
    longest = torch.where(pbc, cell.abs().amax(1), 1.0)
    units = _complete(cell / longest[:, None], pbc)
    vectors = torch.where(pbc[:, None], cell, units)
    inverse = torch.linalg.inv(units) / longest
    wraps = torch.where(pbc, torch.floor(positions @ inverse), 0.0)
    if wraps.abs().max() > 1e9:  # differences of two wraps, and an image on top, fit 32 bits
        particle = int(wraps.abs().amax(1).argmax())
        raise ValueError(
            f"positions: expected within 1e9 cells of the origin, got {positions[particle].tolist()} "
            f"at particle {first_node + particle}"
        )
    lengths, widths = vectors.abs().sum(1), inverse.norm(dim=0)
    images = torch.where(pbc, torch.ceil(cutoff * widths) + 2.0, 0.0)
    size = (positions.abs().sum(1) + (wraps.abs() * lengths).sum(1)).max() + (images * lengths).sum() + cutoff
    margin = 64.0 * _EPSILON * float(size)
    # How much the inverse of the cell amplifies the rounding of fractional coordinates: 1 for orthogonal
    # axes, whatever their lengths.
    skew = float((vectors.norm(dim=1) * widths).max())
    reach = ((cutoff + margin) * (1.0 + 1e-6) + margin * skew) * widths
    return wraps.to(torch.int64), _Box(vectors, inverse, reach, margin)


def _complete(cell: Tensor, pbc: Tensor) -> Tensor:
    """The rows of ``cell``, open ones replaced by unit vectors normal to the periodic ones and each other."""
    periodic = cell[pbc]
    basis = torch.linalg.svd(periodic, full_matrices=True).Vh if len(periodic) else torch.eye(3).to(cell)
    vectors = cell.clone()
    vectors[~pbc] = basis[len(periodic) :]
    return vectors


def _ghosts(fractional: Tensor, pbc: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Source (G) and image (G, 3) of every copy within ``reach`` of the cell, the particles included."""
    # clamped: beyond the limit the number may not even be one that 64 bits hold
    depth = torch.where(pbc, torch.ceil(reach).clamp(max=_MAX_IMAGES), 0.0).to(torch.int64).tolist()
    n_images = math.prod(2 * layers + 1 for layers in depth)
    if n_images > _MAX_IMAGES or max(depth) >= _MAX_IMAGES_ON_AXIS:
        raise ValueError(
            f"cutoff: expected at most {_MAX_IMAGES} periodic images within reach, got {n_images}, or "
            f"{_MAX_IMAGES_ON_AXIS} along one axis "
            "(the cell is too small, too elongated or too skewed for this cutoff)"
        )
    ranges = [torch.arange(-layers, layers + 1, device=fractional.device) for layers in depth]
    images = torch.cartesian_prod(*ranges)
    sources, found = [], []
    for some in images.split(max(1, _MAX_PAIRS_AT_ONCE // len(fractional))):
        copies = fractional[None] + some[:, None]
        inside = (~pbc | ((copies > -reach) & (copies < 1.0 + reach))).all(2)
        image, source = inside.nonzero(as_tuple=True)
        sources.append(source)
        found.append(some[image])
    return torch.cat(sources), torch.cat(found)


def _chunk_size(first: Tensor, last: Tensor, begin: int) -> int:
    """How many receivers from ``begin`` on to take at once, so that memory stays bounded."""
    n_pairs = torch.arange(1, len(first) - begin + 1, device=first.device) * (last[begin:] - first[begin])
    return max(1, int(torch.searchsorted(n_pairs, _MAX_PAIRS_AT_ONCE)))


def _is_edge(difference: Tensor, shifts: Tensor, cell: Tensor, cutoff: float | Tensor) -> Tensor:
    """The definition, in the defined order of operations (a matrix product would fuse or reorder them)."""
    a, b, c = shifts.to(torch.float64)[:, :, None].unbind(1)
    x, y, z = (difference + ((a * cell[0] + b * cell[1]) + c * cell[2])).unbind(1)
    return (x * x + y * y) + z * z < cutoff * cutoff
