"""Real spherical harmonics up to degree 4, as explicit polynomials of the unit vector."""

from __future__ import annotations

from math import pi, sqrt
from operator import index
from typing import SupportsIndex

import torch
from torch import Tensor

L_MAX = 4  # highest degree supported anywhere in the package
NORMALIZATIONS = ("component", "norm", "integral")


def checked_arguments(l_max: SupportsIndex, normalization: str) -> int:
    """The degree as an int.

    Raises:
        TypeError: a degree that is no integer.
        ValueError: degree or normalization not known.

    """
    try:
        degree = index(l_max)
    except TypeError as error:
        raise TypeError(f"l_max: expected an integer, 0 to {L_MAX}, got {l_max!r}") from error
    if not 0 <= degree <= L_MAX:
        raise ValueError(f"l_max: expected 0 to {L_MAX}, got {degree}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization: expected one of {NORMALIZATIONS}, got {normalization!r}")
    return degree


def _directions(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (E, 3) along `vectors` of any length, and which of those (E,) are zero and have none.

    The largest component is divided out first, so that the square of the length neither overflows nor
    underflows. A direction does not change with its scale, so the divisor has no part in the derivatives.
    """
    largest = vectors.detach().abs().amax(dim=-1)  # NaN if a component is
    is_zero = largest < torch.finfo(vectors.dtype).tiny  # the reciprocal of a subnormal number overflows
    # `where` before each division: it never sees a zero, so that no derivative, of any order, becomes 0 * inf
    scaled = vectors / torch.where(is_zero, 1.0, largest)[:, None]  # inf / inf is NaN
    length_sq = torch.where(is_zero, 1.0, (scaled * scaled).sum(dim=-1))
    return scaled * length_sq.rsqrt()[:, None], is_zero


def _zonal(y: Tensor, one: Tensor) -> list[list[Tensor]]:
    """Factors `zonal[l][m]` (E,) that depend on the polar coordinate y alone.

    They are Schmidt's semi-normalized associated Legendre functions of y, divided by sin(theta)^m.
    """
    y2 = y * y
    return [
        [one],
        [y, one],
        [(3 * y2 - 1) / 2, sqrt(3) * y, sqrt(3) / 2 * one],
        [
            (5 * y2 - 3) * y / 2,
            sqrt(6) / 4 * (5 * y2 - 1),
            sqrt(15) / 2 * y,
            sqrt(10) / 4 * one,
        ],
        [
            ((35 * y2 - 30) * y2 + 3) / 8,
            sqrt(10) / 4 * (7 * y2 - 3) * y,
            sqrt(5) / 4 * (7 * y2 - 1),
            sqrt(70) / 4 * y,
            sqrt(35) / 8 * one,
        ],
    ]


def _azimuthal(x: Tensor, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Real and imaginary parts of (z + i x)^m, m = 0..4: sin(theta)^m times cos(m phi) and sin(m phi)."""
    cosines, sines = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(L_MAX):
        cosine, sine = cosines[-1], sines[-1]
        cosines.append(z * cosine - x * sine)
        sines.append(z * sine + x * cosine)
    return cosines, sines


def _scale(degree: int, normalization: str) -> float:
    """Factor from |Y_l| = 1 ('norm') to the wanted normalization."""
    if normalization == "norm":
        return 1.0
    return sqrt(2 * degree + 1) if normalization == "component" else sqrt((2 * degree + 1) / (4 * pi))


def spherical_harmonics(vectors: Tensor, l_max: SupportsIndex, normalization: str = "component") -> Tensor:
    """Real spherical harmonics Y_l of the directions of `vectors`, l = 0..l_max.

    Conventions of e3nn: polar axis y, components m = -l..l in ascending order, Y_1 proportional to (x, y, z).
    At a zero vector Y_0 is as always, and every Y_l with l > 0 and all derivatives are exactly 0. A vector
    whose components are all subnormal numbers counts as zero. A vector with a component that is infinite or
    NaN has no direction: all its harmonics, Y_0 included, are NaN.

    Args:
        vectors: (E, 3), any length, float32 or float64.
        l_max: highest degree, 0 to 4.
        normalization: `"component"` (|Y_l|^2 = 2l+1), `"norm"` (|Y_l| = 1) or `"integral"`
            (|Y_l|^2 = (2l+1) / 4 pi: orthonormal on the sphere).

    Returns:
        (E, (l_max+1)^2), the degrees one after the other.

    Raises:
        TypeError: a degree that is no integer.
        ValueError: degree or normalization not known.

    """
    l_max = checked_arguments(l_max, normalization)
    directions, is_zero = _directions(vectors)
    x, y, z = directions.unbind(dim=-1)
    one = 1 + 0 * (x + y + z)  # not ones_like: Y_0 has derivatives, which are 0, and is NaN where they are
    zonal = _zonal(y, one)
    cosines, sines = _azimuthal(x, z)
    columns: list[Tensor] = []
    for degree in range(l_max + 1):
        negative = [zonal[degree][m] * sines[m] for m in range(degree, 0, -1)]
        positive = [zonal[degree][m] * cosines[m] for m in range(degree + 1)]
        values = [_scale(degree, normalization) * value for value in negative + positive]
        if degree > 0:
            values = [torch.where(is_zero, 0.0, value) for value in values]
        columns += values
    return torch.stack(columns, dim=-1)
