"""Fractional coordinates of periodic systems, and the order of particles along cells of about one cutoff.

Elementary operations in float64, no matrix product and no reading of values: the same bits on every device,
and no wait for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TILE = 4  # lines of bins along each side; as in csrc/cpu/neighbors_cells.cpp


def cross(u: Tensor, v: Tensor) -> Tensor:
    """Vector product along the last axis, every operation rounded."""
    return u.roll(-1, -1) * v.roll(-2, -1) - u.roll(-2, -1) * v.roll(-1, -1)


def dot(u: Tensor, v: Tensor) -> Tensor:
    """Scalar product along the last axis, in a fixed order, every operation rounded."""
    x, y, z = (u * v).unbind(-1)
    return (x + y) + z


def norm(u: Tensor) -> Tensor:
    """Length along the last axis."""
    return dot(u, u).sqrt()


def per_system(values: Tensor, systems: Tensor, n_systems: int, reduction: str) -> Tensor:
    """(S, ...): the ``"amin"`` or ``"amax"`` of the rows of each system; at least one row."""
    if n_systems == 1:
        return (values.amin(0) if reduction == "amin" else values.amax(0))[None]
    shape = (-1,) + (1,) * (values.ndim - 1)
    empty = values.new_zeros(n_systems, *values.shape[1:])
    rows = systems.view(shape).expand_as(values)
    return empty.scatter_reduce(0, rows, values, reduction, include_self=False)


def of_system(values: Tensor, systems: Tensor) -> Tensor:
    """Rows of (S, ...) for each particle; one for all (broadcast) where there is but one system."""
    return values if len(values) == 1 else values.index_select(0, systems)


def reciprocal_vectors(cell: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor]:
    """Cells with their open axes completed, and what gives fractional coordinates: ``dot(r, reciprocal[a])``.

    Open axes get unit vectors normal to the periodic ones and to each other.

    Args:
        cell: (S, 3, 3) float64, vectors in rows.
        pbc: (S, 3) bool.

    Returns:
        (S, 3, 3) and (S, 3, 3) float64.
    """
    periodic = pbc[:, :, None]
    longest = cell.abs().amax(2, keepdim=True)
    mantissa, _ = torch.frexp(longest)
    # powers of two: nothing is rounded, and products of three vectors neither over- nor underflow
    scale = torch.where(periodic & (longest > 0.0), mantissa / longest, 1.0)
    units = torch.where(periodic, cell * scale, 0.0)
    after, before = units.roll(-1, 1), units.roll(-2, 1)  # vectors a + 1 and a + 2 of axis a
    after_is_periodic, before_is_periodic = periodic.roll(-1, 1), periodic.roll(-2, 1)
    # an axis's next but one is the one before it
    along = _normalized(cross(after, before))
    beside_before, beside_after = _any_normal(before), _any_normal(after)
    second = _normalized(cross(after, beside_after))
    alone = torch.eye(3, dtype=cell.dtype, device=cell.device)
    open_vectors = torch.where(
        after_is_periodic,
        torch.where(before_is_periodic, along, second),
        torch.where(before_is_periodic, beside_before, alone),
    )
    vectors = torch.where(periodic, units, open_vectors)
    normals = cross(vectors.roll(-1, 1), vectors.roll(-2, 1))
    volume = dot(vectors[:, 0], normals[:, 0])[:, None, None]
    return torch.where(periodic, cell, vectors), normals * (1.0 / volume) * scale


def _normalized(u: Tensor) -> Tensor:
    return u * (1.0 / norm(u))[..., None]


def _any_normal(u: Tensor) -> Tensor:
    """A unit vector normal to each: to it and to the axis along which it is shortest."""
    x, y, z = u.abs().unbind(-1)
    along_x = (x <= y) & (x <= z)
    along_y = ~along_x & (y <= z)
    axes = torch.stack([along_x, along_y, ~(along_x | along_y)], -1).to(u.dtype)
    return _normalized(cross(u, axes))


def spatial_order(positions: Tensor, cell: Tensor, pbc: Tensor, systems: Tensor, cutoff: float) -> Tensor:
    """(N) int64: particles by system, then by bin, then by index.

    Bins divide the fractional coordinates evenly and are about one cutoff wide, like those that the search
    itself uses (csrc/core/cell_grid.h); where the n particles of a system are sparse they are wider, at most
    2 n + 8 bins in all. They follow each other in lines along the first axis, and lines tile by tile, 4 x 4
    of them, the second axis before the third. Values that have no place in a bin get some place.

    Args:
        positions: (N, 3) float32 or float64.
        cell: (S, 3, 3) float64.
        pbc: (S, 3) bool.
        systems: (N) int64, non-decreasing, below S.
        cutoff: same unit as the positions.
    """
    n_systems, n = len(cell), len(positions)
    if n == 0:
        return torch.arange(0, device=positions.device)
    systems = systems.clamp(0, n_systems - 1)
    _, reciprocal = reciprocal_vectors(cell, pbc)
    coordinates = dot(positions.to(torch.float64)[:, None, :], of_system(reciprocal, systems))
    open_axes = of_system(~pbc, systems)
    fractional = torch.where(open_axes, coordinates, coordinates - coordinates.floor())
    low = torch.where(pbc, 0.0, per_system(fractional, systems, n_systems, "amin"))
    high = torch.where(pbc, 1.0, per_system(fractional, systems, n_systems, "amax"))

    reach = cutoff * (1.0 + 1e-6) * norm(reciprocal)
    counts = torch.zeros(n_systems, dtype=torch.int64, device=positions.device)
    counts = counts.scatter_add(0, systems, torch.ones_like(systems))
    limit = (2 * counts + 8).to(torch.float64)[:, None]
    bins = _at_most(((high - low) / reach).floor().nan_to_num(1.0, 1e300).clamp(min=1.0), limit)
    per_unit = torch.where(pbc | (bins > 1.0), bins / (high - low), 0.0)
    bin_ = ((fractional - of_system(low, systems)) * of_system(per_unit, systems)).floor().nan_to_num(0.0)
    bin_ = torch.minimum(bin_.clamp(min=0.0), of_system(bins, systems) - 1.0).to(torch.int64)
    sizes = bins.to(torch.int64)
    totals = sizes[:, 0] * sizes[:, 1] * sizes[:, 2]
    first, sizes = of_system(totals.cumsum(0) - totals, systems), of_system(sizes, systems)
    a, b, c = bin_.unbind(1)
    n_a, n_b, n_c = sizes.unbind(-1)
    # the lines of bins that come before: whole rows of tiles, tiles of this row, lines of this tile
    tile_b, tile_c = b // _TILE * _TILE, c // _TILE * _TILE
    width, height = (n_b - tile_b).clamp(max=_TILE), (n_c - tile_c).clamp(max=_TILE)
    line = tile_c * n_b + tile_b * height + (c - tile_c) * width + (b - tile_b)
    return torch.argsort(first + line * n_a + a, stable=True)


def _at_most(bins: Tensor, limit: Tensor) -> Tensor:
    """Numbers of bins (S, 3), bounded so that their product is at most ``limit`` (S, 1).

    The bounds 1, 1.25, 1.5, 1.75 times every power of two are all tried at once.
    """
    powers = torch.arange(36, device=bins.device)
    bounds = ((torch.arange(4, 8, device=bins.device)[:, None] << powers) // 4).flatten().to(bins.dtype)
    bounded = torch.minimum(bins[:, None, :], bounds[None, :, None])
    fits = bounded[..., 0] * bounded[..., 1] * bounded[..., 2] <= limit
    fits_as_is = bins[:, :1] * bins[:, 1:2] * bins[:, 2:] <= limit
    bound = torch.where(fits, bounds, 1.0).amax(1, keepdim=True)
    return torch.where(fits_as_is, bins, torch.minimum(bins, bound))
