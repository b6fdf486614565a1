"""ASE's neighbor list by the search of this package: the same arguments and results, for `ase.Atoms`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import glassconv

try:
    from ase import Atoms
    from ase.data import atomic_numbers
except ImportError as error:
    raise ImportError("glassconv.compat.ase needs ASE: pip install 'glassconv[compat]'") from error

__all__ = ["neighbor_list"]

_QUANTITIES = "ijdDS"
_MAX_TYPES = 256  # cutoffs of all pairs of types are a matrix


def neighbor_list(
    quantities: str, a: Atoms, cutoff: Any, self_interaction: bool = False, max_nbins: float = 1e6
) -> Any:
    """All pairs of atoms closer than a cutoff, every periodic image included; for `ase.neighborlist`'s.

    Takes the arguments of `ase.neighborlist.neighbor_list` and gives its results, so that the import is all
    that changes. The pairs are exactly those of float64 arithmetic, in a reproducible order.

    Args:
        quantities: any of these letters, in the order wanted:

            | letter | shape  | dtype   | what                                                        |
            |--------|--------|---------|-------------------------------------------------------------|
            | i      | (E)    | int64   | first atom, in ascending order                              |
            | j      | (E)    | int64   | second atom, ascending for each i                           |
            | d      | (E)    | float64 | distance                                                    |
            | D      | (E, 3) | float64 | ``a.positions[j] - a.positions[i] + S @ a.cell``            |
            | S      | (E, 3) | int64   | cell vectors that the image of j is away                    |

        a: the atoms, inside or outside their cell. Cell vectors without periodicity do not matter and may be
            zero, periodic ones must not be.
        cutoff: one number for all pairs; a dict from pairs of elements, symbols or atomic numbers in either
            order, to theirs, 0 for pairs that it does not name; or radii (N), for pairs closer than the sum
            of the two. In the unit of the positions.
        self_interaction: each atom is its own neighbor, at distance 0 and before the others, unless the
            cutoff for itself is 0.
        max_nbins: accepted and not used; the memory of this search goes by the number of atoms.

    Returns:
        Tuple of NumPy arrays, one for each letter; the array itself for a single letter.

    Raises:
        ValueError: another letter or none; something that is not `ase.Atoms`; cutoffs that are negative, not
            finite or of another number than the atoms, a single one that is 0, no or unknown elements, two
            cutoffs for a pair; what `glassconv.neighbor_list` refuses.

    >>> from ase.build import bulk
    >>> atoms = bulk("Cu", cubic=True) * 3
    >>> i, d = neighbor_list("id", atoms, 3.0)
    >>> np.bincount(i)[:5]
    array([12, 12, 12, 12, 12])
    >>> print(d.min().round(3), len(neighbor_list("j", atoms, {("Cu", "Cu"): 4.0})))
    2.553 1944
    """
    del max_nbins
    if not quantities or not set(_QUANTITIES).issuperset(quantities):
        raise ValueError(f"quantities: expected letters among {_QUANTITIES!r}, got {quantities!r}")
    if not isinstance(a, Atoms):
        raise ValueError(f"a: expected ase.Atoms, got {type(a).__name__}")
    positions, cell = a.positions, a.cell.array
    reach, types, radii = _cutoffs(cutoff, a.numbers)

    if types is None or reach.any():
        graph = glassconv.neighbor_list(positions, reach, cell, a.pbc, types=types)
    else:
        graph = glassconv.Graph.from_edge_index(np.zeros((2, 0), dtype=np.int64), len(a))
    # Their first atom is our receiver; the shift of an edge moves the receiver, theirs moves the second atom.
    j, i = graph.edge_index
    columns = {"i": i, "j": j}
    if radii is not None or not {"S", "D", "d"}.isdisjoint(quantities):
        columns["S"] = -graph.shifts.astype(np.int64)
    if radii is not None or not {"D", "d"}.isdisjoint(quantities):
        columns["D"] = _vectors(positions, cell, i, j, columns["S"])
    if radii is not None:
        near = _squares(columns["D"]) < np.square(radii[i] + radii[j])
        columns = {letter: column[near] for letter, column in columns.items()}
    if self_interaction:
        own = radii if radii is not None else reach if types is None else reach[types, types]
        atoms = np.flatnonzero(np.broadcast_to(own, len(a)))
        rows = np.searchsorted(columns["i"], atoms)
        for letter, column in columns.items():
            columns[letter] = np.insert(column, rows, atoms if letter in "ij" else 0, axis=0)
    if "d" in quantities:
        columns["d"] = np.sqrt(_squares(columns["D"]))
    chosen = tuple(columns[letter] for letter in quantities)
    return chosen[0] if len(chosen) == 1 else chosen


def _vectors(
    positions: NDArray[np.float64], cell: NDArray[np.float64], i: Any, j: Any, S: NDArray[np.int64]
) -> NDArray[np.float64]:
    """In the order of operations that decides about an edge."""
    shift: NDArray[np.float64] = (S[:, :1] * cell[0] + S[:, 1:2] * cell[1]) + S[:, 2:] * cell[2]
    vectors: NDArray[np.float64] = (positions[j] - positions[i]) + shift
    return vectors


def _squares(D: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = D.T
    squares: NDArray[np.float64] = (x * x + y * y) + z * z
    return squares


def _cutoffs(
    cutoff: Any, numbers: NDArray[np.int64]
) -> tuple[Any, NDArray[np.int64] | None, NDArray[np.float64] | None]:
    """What to search with: a number, or a matrix over types with the type (N) of each atom.

    Also the radii (N), where pairs have to be taken from a search with more than the sum of two radii.
    """
    if isinstance(cutoff, Mapping):
        return *_pair_cutoffs(cutoff, numbers), None
    if isinstance(cutoff, str) or np.ndim(cutoff) == 0:
        return cutoff, None, None
    radii = np.asarray(cutoff)
    if radii.shape != numbers.shape:
        raise ValueError(f"cutoff: expected {len(numbers)} radii, one for each atom, got shape {radii.shape}")
    wrong = [k for k, radius in enumerate(radii.tolist()) if not _is_length(radius)]
    if wrong:
        raise ValueError(f"cutoff: expected finite radii from 0, got {radii[wrong[0]]} for atom {wrong[0]}")
    radii = radii.astype(np.float64)
    kinds, types = np.unique(radii, return_inverse=True)
    if len(kinds) <= _MAX_TYPES:
        return kinds[:, None] + kinds, types, None
    return 2.0 * kinds[-1], None, radii


def _pair_cutoffs(
    cutoff: Mapping[Any, Any], numbers: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    if not cutoff:
        raise ValueError("cutoff: expected a cutoff for some pair of elements, got none")
    given: dict[tuple[int, int], float] = {}
    for pair, length in cutoff.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(f"cutoff: expected pairs of elements, got {pair!r}")
        if not _is_length(length):
            raise ValueError(f"cutoff: expected finite lengths from 0, got {length!r} for {pair!r}")
        first, second = sorted(_number(element) for element in pair)
        if given.setdefault((first, second), float(length)) != length:
            got = f"{given[first, second]} and {length}"
            raise ValueError(f"cutoff: expected one length for {pair!r} in either order, got {got}")
    elements, types = np.unique(numbers, return_inverse=True)
    matrix = np.zeros((len(elements), len(elements)))
    for (first, second), length in given.items():
        of_first, of_second = elements == first, elements == second
        matrix[np.outer(of_first, of_second) | np.outer(of_second, of_first)] = length
    return matrix, types


def _number(element: Any) -> int:
    if isinstance(element, str) and element in atomic_numbers:
        return int(atomic_numbers[element])
    if isinstance(element, int | np.integer) and not isinstance(element, bool) and element >= 0:
        return int(element)
    raise ValueError(f"cutoff: expected symbols or atomic numbers of elements, got {element!r}")


def _is_length(value: Any) -> bool:
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= 0
