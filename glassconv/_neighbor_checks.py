"""The arguments of the neighbor search: what holds numbers as the tensors it takes, and errors that name it.

Two stages: kinds, shapes and dtypes first, without reading a value (which on a GPU would wait); then the
values, of which those of the positions are looked at only after the search refused them.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glassconv._arrays import tensor_with_values
from glassconv._compile import constant_when_compiled

# A cell is singular when its volume, with all periodic vectors scaled to unit length, is below this.
_MIN_UNIT_VOLUME = 1e-7
# Between these, as in csrc/core/lattice.h, the squares that decide about an edge are ordinary numbers.
_MIN_LENGTH, _MAX_LENGTH = 1e-140, 1e140
_MAX_SYSTEMS = torch.iinfo(torch.int32).max


class Given(NamedTuple):
    """The arguments that hold arrays, as the caller gave them."""

    positions: Any
    cell: Any
    pbc: Any
    batch: Any
    types: Any


class Cutoff(NamedTuple):
    """The search radius: the largest one, and those of pairs of types, (T, T) float64, where they differ."""

    largest: float
    matrix: Tensor | None

    def to(self, device: torch.device) -> Cutoff:
        """The same, its matrix on ``device``."""
        return self if self.matrix is None else Cutoff(self.largest, self.matrix.to(device))


class Systems(NamedTuple):
    """Which particles belong together; the search sees S of the systems, so that empty ones cost nothing."""

    batch: Tensor | None  # (N) int64, as the graph keeps it
    n_named: int  # the last system of the batch plus one
    n_systems: int
    occupied: Tensor | None  # (S) int64, those that have particles; None where S is n_systems
    indices: Tensor  # (N) int64, which of the S is that of each particle

    @property
    def n_searched(self) -> int:
        """S."""
        return self.n_systems if self.occupied is None else len(self.occupied)


class Search(NamedTuple):
    """The arguments of the operators, and the systems as the graph names them."""

    positions: Tensor  # (N, 3) float32 or float64
    cell: Tensor  # (S, 3, 3) float64
    pbc: Tensor  # (S, 3) bool
    systems: Systems
    cutoff: float
    types: Tensor | None  # (N) int32
    cutoffs: Tensor | None  # (T, T) float64
    is_open: bool  # nothing is periodic, and that is known

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """The first arguments of an operator."""
        return self.positions, self.cell, self.pbc, self.systems.indices, self.cutoff

    def of_pairs(self) -> tuple[Tensor, ...]:
        """The last arguments of an operator, which only cutoffs of pairs need."""
        return () if self.types is None or self.cutoffs is None else (self.types, self.cutoffs)


def check_positions(value: Any) -> Tensor:
    """(N, 3) without gradient; the values are not looked at."""
    positions = tensor_with_values("positions", value).detach()
    if isinstance(value, list | tuple) and positions.dtype == torch.int64:  # [0, 1, 0] means [0.0, 1.0, 0.0]
        positions = positions.to(torch.float64)
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions: expected shape (N, 3), got {tuple(positions.shape)}")
    if positions.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"positions: expected float32 or float64, got {positions.dtype}")
    return positions


def check_finite(positions: Tensor) -> None:
    """Refuse the first position that is not a finite number up to 1e140."""
    # every finite float32 is below the limit
    limit = _MAX_LENGTH if positions.dtype == torch.float64 else torch.finfo(torch.float32).max
    valid = positions.abs() <= limit
    if not bool(valid.all()):
        particle = int((~valid).any(dim=1).nonzero()[0])
        got = positions[particle].tolist()
        raise ValueError(f"positions: expected finite numbers up to 1e140, got {got} at particle {particle}")


def check_cutoff(cutoff: Any, types: Any) -> Cutoff:
    """One number, or with ``types`` a symmetric matrix of them."""
    if types is not None:
        # torch.compile would not notice that the values of arrays change; lists it compares at every call
        is_listed = isinstance(cutoff, list | tuple)
        rows = _check_listed_matrix(cutoff) if is_listed else _check_matrix(cutoff)
        return Cutoff(
            _check_number(max(map(max, rows))), torch.tensor(rows, dtype=torch.float64, device="cpu")
        )
    is_bool = isinstance(cutoff, bool)  # which Python counts among the numbers
    if isinstance(cutoff, Tensor | np.ndarray):
        number = tensor_with_values("cutoff", cutoff)
        if number.ndim == 2 and number.numel() > 1:
            shape = tuple(number.shape)
            raise ValueError(f"types: expected the types that a cutoff of shape {shape} is for, got None")
        if number.numel() != 1 or number.is_complex() or number.dtype == torch.bool:
            got = f"{number.dtype} of shape {tuple(number.shape)}"
            raise ValueError(f"cutoff: expected a positive finite number, got {got}")
        cutoff = number.item()
    if is_bool or not isinstance(cutoff, numbers.Real):
        raise ValueError(f"cutoff: expected a positive finite number, got {cutoff!r}")
    return Cutoff(_check_number(cutoff), None)


def _check_number(cutoff: numbers.Real | float) -> float:
    try:
        value = float(cutoff)
    except OverflowError as error:
        raise ValueError("cutoff: expected a positive finite number, got one beyond float64") from error
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"cutoff: expected a positive finite number, got {cutoff!r}")
    if not _MIN_LENGTH <= value <= _MAX_LENGTH:
        raise ValueError(f"cutoff: expected from {_MIN_LENGTH} to {_MAX_LENGTH}, got {value}")
    return value


@constant_when_compiled
def _check_listed_matrix(cutoff: Any) -> list[list[float]]:
    return _check_matrix(cutoff)


def _check_matrix(cutoff: Any) -> list[list[float]]:
    if isinstance(cutoff, numbers.Number):
        raise ValueError(f"cutoff: expected an array of shape (T, T), one for each two types, got {cutoff!r}")
    given = tensor_with_values("cutoff", cutoff).detach()
    if given.ndim != 2 or given.shape[0] != given.shape[1] or given.numel() == 0:
        raise ValueError(f"cutoff: expected shape (T, T) with types, got {tuple(given.shape)}")
    if given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"cutoff: expected real numbers, got {given.dtype}")
    values = given.to("cpu", torch.float64).numpy()
    for wrong, expected in (
        (~np.isfinite(values), "finite numbers"),
        (values < 0.0, "numbers of at least 0"),
        ((values != 0.0) & (values < _MIN_LENGTH), f"0 or numbers of at least {_MIN_LENGTH}"),
        (values != values.T, "a symmetric matrix"),
    ):
        if wrong.any():
            a, b = np.argwhere(wrong)[0].tolist()
            got = f"{values[a, b]} at [{a}, {b}]"
            if expected == "a symmetric matrix":
                got += f" and {values[b, a]} at [{b}, {a}]"
            raise ValueError(f"cutoff: expected {expected}, got {got}")
    rows: list[list[float]] = values.tolist()
    return rows


def _of_particles(name: str, value: Any, positions: Tensor) -> Tensor:
    """A tensor, on the device of the positions unless it was one already."""
    tensor = tensor_with_values(name, value)
    return tensor if isinstance(value, Tensor) else tensor.to(positions.device)


def check_types(types: Any, positions: Tensor, n_types: int) -> Tensor:
    """(N) int32, what is no type brought to one that is none either; the values are not looked at."""
    given = _of_particles("types", types, positions)
    if given.shape != (len(positions),):
        raise ValueError(f"types: expected shape ({len(positions)},), got {tuple(given.shape)}")
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"types: expected integers, got {given.dtype}")
    if given.device != positions.device:
        raise ValueError(f"types: expected the device of positions, {positions.device}, got {given.device}")
    if given.dtype != torch.int32:
        given = given.to(torch.int64).clamp(-1, n_types)  # uint64 beyond int64 wraps around to negative
    return given.to(torch.int32).contiguous()


def check_range(types: Any, n_types: int) -> None:
    """Refuse the first type that has no cutoffs."""
    given = tensor_with_values("types", types)
    values = given.to(torch.int64)  # uint64 beyond int64 wraps around to negative
    outside = (values < 0) | (values >= n_types)
    if bool(outside.any()):
        particle = int(outside.nonzero()[0])
        expected = f"types from 0 to {n_types - 1}, as the cutoff has"
        raise ValueError(f"types: expected {expected}, got {given[particle].item()} at particle {particle}")


def check_batch(batch: Any, positions: Tensor) -> Tensor | None:
    """(N) int64, a copy; the values are not looked at."""
    if batch is None:
        return None
    systems = _of_particles("batch", batch, positions)
    if systems.shape != (len(positions),):
        raise ValueError(f"batch: expected shape ({len(positions)},), got {tuple(systems.shape)}")
    if systems.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"batch: expected int64 or int32, got {systems.dtype}")
    if systems.device != positions.device:
        raise ValueError(f"batch: expected the device of positions, {positions.device}, got {systems.device}")
    return systems.to(torch.int64, copy=True).contiguous()  # the graph keeps it


def read_systems(batch: Tensor | None, positions: Tensor) -> Systems:
    """The systems that have particles, from the values of ``batch``; more may be known from the cells."""
    if batch is None:
        indices = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
        return Systems(None, 1, 1, None, indices)
    if len(batch) and int(batch[0]) < 0:
        raise ValueError(f"batch: expected systems counted from 0, got {int(batch[0])} at particle 0")
    decreasing = batch[1:] < batch[:-1]
    if bool(decreasing.any()):
        particle = int(decreasing.nonzero()[0]) + 1
        got = f"{int(batch[particle])} after {int(batch[particle - 1])} at particle {particle}"
        raise ValueError(f"batch: expected non-decreasing systems, got {got}")
    if len(batch) and int(batch[-1]) >= _MAX_SYSTEMS:
        particle = int((batch >= _MAX_SYSTEMS).nonzero()[0])
        got = f"{int(batch[particle])} at particle {particle}"
        raise ValueError(f"batch: expected systems below {_MAX_SYSTEMS}, got {got}")
    occupied, indices = torch.unique_consecutive(batch, return_inverse=True)
    n_named = int(batch[-1]) + 1 if len(batch) else 0
    return Systems(batch, n_named, n_named, occupied, indices)


def shape_of(cell: Any) -> tuple[int, ...] | None:
    """The shape of a cell, or None without one."""
    return None if cell is None else tuple(tensor_with_values("cell", cell).shape)


def count_systems(batch: Tensor | None, cell: Any, positions: Tensor) -> Systems:
    """All systems that have a cell, whatever the values of ``batch``."""
    if batch is None:
        return read_systems(None, positions)
    shape = shape_of(cell)
    if shape is None or len(shape) < 2:
        expected = "shape (B, 3) or (B, 3, 3), one cell for each system, with a batch and a capacity"
        raise ValueError(f"cell: expected {expected}, got {shape}")
    if shape[0] == 0 and len(positions) > 0:
        raise ValueError(f"cell: expected a cell for each system, got {shape}")
    return Systems(batch, shape[0], shape[0], None, batch)


def check_cells(
    cell: Any, pbc: Any, systems: Systems, device: torch.device, *, reads: bool
) -> tuple[Any, ...]:
    """Cells (S, 3, 3) float64 and periodicities (S, 3) bool as the search takes them, and the systems.

    Values are looked at only with ``reads``.
    """
    n = systems.n_searched
    if cell is None:
        lattice = torch.zeros(n, 3, 3, dtype=torch.float64, device=device)
        return lattice, torch.zeros(n, 3, dtype=torch.bool, device=device), systems
    lattice, is_shared = _lattice(tensor_with_values("cell", cell).detach().to(device), systems, reads=reads)
    if not is_shared:
        systems = systems._replace(n_systems=len(lattice))
    periodic = _periodicity(pbc, device)
    if periodic.dtype != torch.bool:
        raise ValueError(f"pbc: expected bool, got {periodic.dtype}")
    shapes = [(), (3,)] + ([] if systems.batch is None else [(systems.n_systems, 3)])
    if tuple(periodic.shape) not in shapes:
        raise ValueError(f"pbc: expected a shape among {shapes}, got {tuple(periodic.shape)}")
    is_shared = is_shared and periodic.ndim < 2
    n_cells = 1 if is_shared else systems.n_systems
    lattice, periodic = lattice.expand(n_cells, 3, 3), periodic.expand(n_cells, 3)
    if reads:
        _check_lattice(lattice.cpu().numpy(), periodic.cpu().numpy())
    if is_shared:
        return lattice.expand(n, 3, 3), periodic.expand(n, 3), systems
    if systems.occupied is None:
        return lattice, periodic, systems
    return lattice.index_select(0, systems.occupied), periodic.index_select(0, systems.occupied), systems


def _periodicity(pbc: Any, device: torch.device) -> Tensor:
    if isinstance(pbc, bool):  # filled in on the device: a copy from the host would wait
        return torch.full((), pbc, device=device)
    if isinstance(pbc, list | tuple) and len(pbc) == 3 and all(isinstance(axis, bool) for axis in pbc):
        return torch.stack([torch.full((), axis, device=device) for axis in pbc])
    return tensor_with_values("pbc", pbc).to(device)


def _lattice(cell: Tensor, systems: Systems, *, reads: bool) -> tuple[Tensor, bool]:
    """Float64 cells (B, 3, 3), and whether there is but one for all systems."""
    if cell.is_complex() or cell.dtype == torch.bool:
        raise ValueError(f"cell: expected real numbers, got {cell.dtype}")
    shape = tuple(cell.shape)
    if systems.batch is None:
        valid, expected = shape in ((3,), (3, 3)), "(3,) or (3, 3)"
    else:
        n = systems.n_named
        # A shared (3, 3) is not accepted: with three systems it could not be told from their box lengths.
        valid = shape == (3,) or (len(shape) in (2, 3) and shape[0] >= n and set(shape[1:]) == {3})
        expected = f"(3,), (B, 3) or (B, 3, 3) with one cell for each of the B >= {n} systems"
    if not valid:
        raise ValueError(f"cell: expected shape {expected}, got {shape}")
    if reads:
        values = cell.cpu().numpy()
        finite = np.isfinite(values)
        if not finite.all():
            index = np.argwhere(~finite)[0].tolist()
            raise ValueError(f"cell: expected finite numbers, got {float(values[tuple(index)])} at {index}")
    cell = cell.to(torch.float64)
    lattice = (
        torch.diag_embed(cell) if shape == (3,) or (systems.batch is not None and len(shape) == 2) else cell
    )
    is_shared = lattice.ndim == 2
    return lattice[None] if is_shared else lattice, is_shared


def _check_lattice(lattice: np.ndarray[Any, Any], periodic: np.ndarray[Any, Any]) -> None:
    """Refuse lengths out of range and singular cells, (B, 3, 3) with (B, 3)."""
    longest = np.abs(lattice).max(axis=2, initial=0.0)
    # vectors that are zero make a cell singular, below
    beyond = periodic & (longest > 0.0) & ~((longest >= _MIN_LENGTH) & (longest <= _MAX_LENGTH))
    if beyond.any():
        system, axis = np.argwhere(beyond)[0].tolist()
        raise ValueError(
            f"cell: expected periodic vectors between {_MIN_LENGTH} and {_MAX_LENGTH}, got "
            f"{lattice[system, axis].tolist()} (vector {axis} of system {system})"
        )
    # Gram determinant of the periodic vectors scaled to unit length: the square of the volume they span.
    units = np.where(periodic[:, :, None], lattice, 0.0) / np.where(longest > 0.0, longest, 1.0)[:, :, None]
    lengths = np.sqrt((units * units).sum(axis=2, keepdims=True))
    units = units / np.where(lengths > 0.0, lengths, 1.0)
    gram = units @ units.transpose(0, 2, 1) + np.where(periodic, 0.0, 1.0)[:, :, None] * np.eye(3)
    singular = ~(np.linalg.det(gram) > _MIN_UNIT_VOLUME**2)
    if singular.any():
        system = int(np.argmax(singular))
        raise ValueError(
            f"cell: expected linearly independent periodic vectors, got {lattice[system].tolist()} "
            f"with pbc {periodic[system].tolist()} (system {system})"
        )
