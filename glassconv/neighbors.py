"""The periodic neighbor search: checks of the input, choice of the backend, and the `Graph` it makes."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glassconv._native import runs_on
from glassconv.graph import Graph, offsets_of, tensor_with_values
from glassconv.reference.neighbors import search_neighbors

__all__ = ["Graph", "neighbor_list"]

# A cell is singular when its volume, with all periodic vectors scaled to unit length, is below this.
_MIN_UNIT_VOLUME = 1e-7
# Between these, as in csrc/core/lattice.h, the squares that decide about an edge are ordinary numbers.
_MIN_LENGTH, _MAX_LENGTH = 1e-140, 1e140
_MAX_SYSTEMS = torch.iinfo(torch.int32).max


@torch.inference_mode(False)  # training may use what was made under inference mode
def neighbor_list(
    positions: Any,
    cutoff: float,
    cell: Any = None,
    pbc: bool | Sequence[bool] | Any = True,
    batch: Any = None,
    *,
    half: bool = False,
) -> Graph:
    """All pairs closer than ``cutoff``, every periodic image included.

    The edges are all (source j, receiver i, shift S) with ``|r_i - r_j + S @ cell| < cutoff``, except a
    particle with itself at S = 0; images of a particle are its neighbors when the cell is shorter than the
    cutoff. The set is exactly the one that float64 arithmetic gives on the positions as given, on every
    backend. Sorted by receiver, then source, then shift: the same input gives the same bits.

    Args:
        positions: (N, 3) float32 or float64, in or outside the cell, up to 1e140; a tensor, a NumPy array,
            nested lists (float64) or anything with ``__dlpack__``, like the other arrays.
        cutoff: from 1e-140 to 1e140, the range where squares are ordinary numbers; unit of the positions.
        cell: None (open), (3,) box lengths, or (3, 3) with lattice vectors in rows, of any shape and
            handedness. With ``batch``: (B, 3) or (B, 3, 3), or (3,) for all systems.
        pbc: which cell vectors are periodic: bool or 3 bools; with ``batch`` also (B, 3). Ignored without a
            cell. Vectors that are not periodic do not matter and may be zero; periodic ones have a largest
            component from 1e-140 to 1e140.
        batch: (N,) integers, the system of each particle, non-decreasing from 0 and below 2**31 - 1; pairs
            do not cross systems. Systems may be empty: ``n_systems`` of the graph is B, or the last system
            plus one without cells of their own, and time and memory go by the systems with particles.
        half: keep each pair once (from the lower to the higher index or, between images of one particle, with
            a shift whose first nonzero number is positive); such a graph has no ``reverse``.

    Returns:
        Graph of torch tensors on the device of ``positions``. They carry no gradient: see `Graph.vectors`.

    Raises:
        ValueError: wrong shapes, dtypes or devices; sparse tensors or tensors without values; NaN or
            infinity; a cutoff not above zero; lengths out of range; periodic cell vectors that are (nearly)
            linearly dependent; ``batch`` decreasing or out of range; positions more than 1e9 cells away;
            more than 2**24 periodic images within the cutoff, or within its rounding error relative to the
            largest position and cell vector.
    """
    positions = _positions(positions)
    cutoff = _check_cutoff(cutoff)
    systems = _batch(batch, positions)
    n_systems, lattice, periodic, indices = _cells(cell, pbc, systems, positions)

    search = torch.ops.glassconv.neighbor_list if _runs_natively(positions) else search_neighbors
    edge_index, shifts, row_ptr, reverse = search(positions, lattice, periodic, indices, cutoff)
    graph = Graph(
        edge_index=edge_index,
        shifts=shifts,
        row_ptr=row_ptr,
        reverse=reverse,
        perm=None,
        n_nodes=len(positions),
        row_source=edge_index[0],
        # Slot k holds the edge j -> i; the slots with source i are therefore the opposites of row i.
        transpose_ptr=row_ptr,
        transpose_slots=reverse,
        has_shifts=bool(shifts.any()),
        cutoff=cutoff,
        batch=systems,
        n_systems=n_systems,
    )
    return _half(graph) if half else graph


def _half(graph: Graph) -> Graph:
    source, receiver = graph.edge_index[0], graph.edge_index[1]
    a, b, c = graph.shifts.unbind(1)
    positive = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c > 0))))
    keep = (source < receiver) | ((source == receiver) & positive)
    edge_index = graph.edge_index[:, keep]
    return Graph(
        edge_index=edge_index,
        shifts=graph.shifts[keep],
        row_ptr=offsets_of(edge_index[1], graph.n_nodes),
        reverse=None,
        perm=None,
        n_nodes=graph.n_nodes,
        row_source=edge_index[0],
        transpose_ptr=offsets_of(edge_index[0], graph.n_nodes),
        transpose_slots=torch.argsort(edge_index[0], stable=True),
        has_shifts=graph.has_shifts,
        cutoff=graph.cutoff,
        batch=graph.batch,
        n_systems=graph.n_systems,
    )


def _runs_natively(positions: Tensor) -> bool:
    return runs_on(positions.device.type)


def _positions(value: Any) -> Tensor:
    positions = tensor_with_values("positions", value).detach()
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions: expected shape (N, 3), got {tuple(positions.shape)}")
    if positions.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"positions: expected float32 or float64, got {positions.dtype}")
    # every finite float32 is below the limit
    limit = _MAX_LENGTH if positions.dtype == torch.float64 else torch.finfo(torch.float32).max
    valid = positions.abs() <= limit
    if not bool(valid.all()):
        particle = int((~valid).any(dim=1).nonzero()[0])
        got = positions[particle].tolist()
        raise ValueError(f"positions: expected finite numbers up to 1e140, got {got} at particle {particle}")
    return positions


def _check_cutoff(cutoff: Any) -> float:
    is_bool = isinstance(cutoff, bool)  # which Python counts among the numbers
    if isinstance(cutoff, Tensor | np.ndarray):
        number = tensor_with_values("cutoff", cutoff)
        if number.numel() != 1 or number.is_complex() or number.dtype == torch.bool:
            got = f"{number.dtype} of shape {tuple(number.shape)}"
            raise ValueError(f"cutoff: expected a positive finite number, got {got}")
        cutoff = number.item()
    if is_bool or not isinstance(cutoff, numbers.Real):
        raise ValueError(f"cutoff: expected a positive finite number, got {cutoff!r}")
    try:
        value = float(cutoff)
    except OverflowError as error:
        raise ValueError("cutoff: expected a positive finite number, got one beyond float64") from error
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"cutoff: expected a positive finite number, got {cutoff!r}")
    if not _MIN_LENGTH <= value <= _MAX_LENGTH:
        raise ValueError(f"cutoff: expected from {_MIN_LENGTH} to {_MAX_LENGTH}, got {value}")
    return value


def _batch(batch: Any, positions: Tensor) -> Tensor | None:
    if batch is None:
        return None
    systems = tensor_with_values("batch", batch)
    if systems.shape != (len(positions),):
        raise ValueError(f"batch: expected shape ({len(positions)},), got {tuple(systems.shape)}")
    if systems.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"batch: expected int64 or int32, got {systems.dtype}")
    if systems.device != positions.device:
        raise ValueError(f"batch: expected the device of positions, {positions.device}, got {systems.device}")
    systems = systems.to(torch.int64, copy=True).contiguous()  # the graph keeps it
    if len(systems) and int(systems[0]) < 0:
        raise ValueError(f"batch: expected systems counted from 0, got {int(systems[0])} at particle 0")
    decreasing = systems[1:] < systems[:-1]
    if bool(decreasing.any()):
        particle = int(decreasing.nonzero()[0]) + 1
        got = f"{int(systems[particle])} after {int(systems[particle - 1])} at particle {particle}"
        raise ValueError(f"batch: expected non-decreasing systems, got {got}")
    if len(systems) and int(systems[-1]) >= _MAX_SYSTEMS:
        particle = int((systems >= _MAX_SYSTEMS).nonzero()[0])
        got = f"{int(systems[particle])} at particle {particle}"
        raise ValueError(f"batch: expected systems below {_MAX_SYSTEMS}, got {got}")
    return systems


def _cells(
    cell: Any, pbc: Any, systems: Tensor | None, positions: Tensor
) -> tuple[int, Tensor, Tensor, Tensor]:
    """What the search needs of the systems that have particles, S of them, so that empty ones cost nothing.

    Returns the number of all systems, the cells (S, 3, 3) float64 and periodicities (S, 3) bool, and which
    of these S is that of each particle (N) int64.
    """
    device = positions.device
    if systems is None:
        n_systems, occupied = 1, torch.zeros(1, dtype=torch.int64, device=device)
        indices = torch.zeros(len(positions), dtype=torch.int64, device=device)
    else:
        n_systems = int(systems[-1]) + 1 if len(systems) else 0
        occupied, indices = torch.unique_consecutive(systems, return_inverse=True)
    if cell is None:
        lattice = torch.zeros(len(occupied), 3, 3, dtype=torch.float64, device=device)
        return n_systems, lattice, torch.zeros(len(occupied), 3, dtype=torch.bool, device=device), indices
    lattice, is_shared = _lattice(tensor_with_values("cell", cell).detach().to(device), systems, n_systems)
    n_systems = n_systems if is_shared else len(lattice)
    periodic = tensor_with_values("pbc", pbc).to(device)
    if periodic.dtype != torch.bool:
        raise ValueError(f"pbc: expected bool, got {periodic.dtype}")
    shapes = [(), (3,)] + ([] if systems is None else [(n_systems, 3)])
    if tuple(periodic.shape) not in shapes:
        raise ValueError(f"pbc: expected a shape among {shapes}, got {tuple(periodic.shape)}")
    is_shared &= periodic.ndim < 2
    n_cells = 1 if is_shared else n_systems
    lattice, periodic = lattice.expand(n_cells, 3, 3), periodic.expand(n_cells, 3)
    _check_lengths(lattice, periodic)
    _check_not_singular(lattice, periodic)
    chosen = torch.zeros_like(occupied) if is_shared else occupied
    return n_systems, lattice.index_select(0, chosen), periodic.index_select(0, chosen), indices


def _lattice(cell: Tensor, systems: Tensor | None, n_systems: int) -> tuple[Tensor, bool]:
    """Float64 cells (B, 3, 3), and whether there is but one for all systems."""
    if cell.is_complex() or cell.dtype == torch.bool:
        raise ValueError(f"cell: expected real numbers, got {cell.dtype}")
    shape = tuple(cell.shape)
    if systems is None:
        valid, expected = shape in ((3,), (3, 3)), "(3,) or (3, 3)"
    else:
        # A shared (3, 3) is not accepted: with three systems it could not be told from their box lengths.
        valid = shape == (3,) or (len(shape) in (2, 3) and shape[0] >= n_systems and set(shape[1:]) == {3})
        expected = f"(3,), (B, 3) or (B, 3, 3) with one cell for each of the B >= {n_systems} systems"
    if not valid:
        raise ValueError(f"cell: expected shape {expected}, got {shape}")
    finite = torch.isfinite(cell)
    if not bool(finite.all()):
        index = (~finite).nonzero()[0].tolist()
        raise ValueError(f"cell: expected finite numbers, got {float(cell[~finite][0])} at {index}")
    cell = cell.to(torch.float64)
    lattice = torch.diag_embed(cell) if shape == (3,) or (systems is not None and len(shape) == 2) else cell
    is_shared = lattice.ndim == 2
    return lattice[None] if is_shared else lattice, is_shared


def _check_lengths(lattice: Tensor, periodic: Tensor) -> None:
    """Vectors that are zero are left to the check for singular cells."""
    longest = lattice.abs().amax(dim=2)
    beyond = periodic & (longest > 0.0) & ~((longest >= _MIN_LENGTH) & (longest <= _MAX_LENGTH))
    if bool(beyond.any()):
        system, axis = beyond.nonzero()[0].tolist()
        raise ValueError(
            f"cell: expected periodic vectors between {_MIN_LENGTH} and {_MAX_LENGTH}, got "
            f"{lattice[system, axis].tolist()} (vector {axis} of system {system})"
        )


def _check_not_singular(lattice: Tensor, periodic: Tensor) -> None:
    """Gram determinant of the periodic vectors scaled to unit length: the square of the volume they span."""
    longest = lattice.abs().amax(dim=2, keepdim=True)
    units = torch.nn.functional.normalize(lattice / longest.where(longest > 0, 1.0), dim=2, eps=0.5)
    open_axis = ~periodic
    units = units.masked_fill(open_axis[:, :, None], 0.0)
    gram = units @ units.transpose(1, 2) + torch.diag_embed(open_axis.to(units.dtype))
    singular = ~(torch.linalg.det(gram) > _MIN_UNIT_VOLUME**2)
    if bool(singular.any()):
        system = int(singular.nonzero()[0])
        raise ValueError(
            f"cell: expected linearly independent periodic vectors, got {lattice[system].tolist()} "
            f"with pbc {periodic[system].tolist()} (system {system})"
        )
