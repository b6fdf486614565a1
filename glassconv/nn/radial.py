"""What the length of an edge contributes: radial basis, smooth cutoff, and the radial network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf, pi, sqrt
from operator import index
from typing import SupportsIndex

import torch
from torch import Tensor

RADIAL_BASES = ("bessel", "gaussian")


def integer(name: str, value: object) -> int:
    """The argument as an int; a ValueError naming it for anything that is none, 2.0 and True included."""
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        with suppress(TypeError):  # tensors and arrays have the method, and refuse where they hold no integer
            return index(value)
    raise ValueError(f"{name}: expected an integer, got {value!r}")


def count(name: str, value: object) -> int:
    """The argument as an int of at least 1; a ValueError naming it for anything else."""
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number


def safe_norm(vectors: Tensor) -> Tensor:
    """Length over the last axis, (..., D) -> (...); at a zero vector the value and all derivatives are 0."""
    length_sq = (vectors * vectors).sum(dim=-1)
    is_zero = length_sq == 0
    # `where` on both sides: sqrt never sees a zero, so that no derivative, of any order, becomes 0 * inf
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, length_sq).sqrt())


@dataclass(frozen=True, eq=False)
class EdgeFeatures:
    """Radial features of the edges, with the moments that batch normalization over edges needs.

    They depend on the distances alone: computed once, they serve every layer, and every training step as long
    as the positions stay where they are.

    With basis B and cutoff function u of the distance:

    | field | shape | dtype | what |
    |---|---|---|---|
    | `values` | (E, n_radial + 1) | the network's | (u B_1, ..., u B_n, u) |
    | `mean` | (n_radial,) | float64 | mean of B over edges |
    | `covariance` | (n_radial, n_radial) | float64 | covariance of B over edges (divided by E) |
    """

    values: Tensor
    mean: Tensor
    covariance: Tensor

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> EdgeFeatures:
        """The same on another device, or with `values` in another dtype (the moments stay in float64)."""
        return EdgeFeatures(
            self.values.to(device=device, dtype=dtype),
            self.mean.to(device=device),
            self.covariance.to(device=device),
        )

    @staticmethod
    def concatenate(parts: Sequence[EdgeFeatures]) -> EdgeFeatures:
        """Features of the edges of all parts; the moments are merged, not computed anew."""
        counts = [part.values.shape[0] for part in parts]
        shares = [count / max(sum(counts), 1) for count in counts]
        mean = torch.stack([share * part.mean for share, part in zip(shares, parts, strict=True)]).sum(dim=0)
        covariance = torch.zeros_like(parts[0].covariance)
        for share, part in zip(shares, parts, strict=True):
            offset = part.mean - mean
            covariance = covariance + share * (part.covariance + torch.outer(offset, offset))
        return EdgeFeatures(torch.cat([part.values for part in parts]), mean, covariance)


@dataclass(frozen=True)
class RadialBasis:
    r"""Radial basis with a polynomial cutoff.

    With x = d / cutoff, p = `cutoff_power`, and the cutoff function (it and two derivatives vanish at x = 1)

        u(d) = (1 - x)^3 SUM_{k<p} (k+1)(k+2)/2 x^k
             = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2),

    the basis is, for n = 1..n_radial,

        bessel     B_n(d) = u(d) sqrt(2 / cutoff) sin(n pi x) / d
        gaussian   B_n(d) = u(d) exp(-(d - c_n)^2 / (2 s^2)),  c_n evenly from 0 to cutoff, s their spacing

    Source: J. Gasteiger, J. Gross, S. Guennemann, Directional message passing for molecular graphs (2020).

    Args:
        kind: `"bessel"` or `"gaussian"`.
        n_radial: number of functions.
        cutoff: distance, in the unit of the positions, beyond which everything is 0.
        cutoff_power: p, at least 1.

    Raises:
        ValueError: any argument out of its range.
    """

    kind: str = "bessel"
    n_radial: int = 10
    cutoff: float = 2.0
    cutoff_power: int = 6

    def __post_init__(self) -> None:
        if self.kind not in RADIAL_BASES:
            raise ValueError(f"radial_basis: expected one of {RADIAL_BASES}, got {self.kind!r}")
        for name in ("n_radial", "cutoff_power"):
            count(name, getattr(self, name))
        if not self.cutoff > 0:
            raise ValueError(f"cutoff: expected a positive distance, got {self.cutoff}")
        if self.cutoff == inf:
            raise ValueError("cutoff: expected a finite distance, got inf")

    def envelope(self, distances: Tensor) -> Tensor:
        """The cutoff function u: (E,) -> (E,), never negative (the factored form has no cancellation)."""
        x = (distances / self.cutoff).clamp(max=1.0)
        polynomial = torch.zeros_like(x)
        for k in reversed(range(self.cutoff_power)):
            polynomial = polynomial * x + (k + 1) * (k + 2) / 2
        return (1 - x) ** 3 * polynomial

    def __call__(self, distances: Tensor) -> Tensor:
        """The basis B: (E,) -> (E, n_radial). At d = 0 its limit, with all derivatives 0."""
        return self.envelope(distances)[:, None] * self._functions(distances)

    def _functions(self, distances: Tensor) -> Tensor:
        d = distances[:, None]
        if self.kind == "gaussian":
            centers = torch.linspace(0, self.cutoff, self.n_radial, dtype=d.dtype, device=d.device)
            spacing = self.cutoff / max(self.n_radial - 1, 1)
            return torch.exp(-(((d - centers) / spacing) ** 2) / 2)
        wave_numbers = pi / self.cutoff * torch.arange(1, self.n_radial + 1, dtype=d.dtype, device=d.device)
        is_zero = d == 0
        waves = torch.sin(wave_numbers * d) / torch.where(is_zero, 1.0, d)
        return sqrt(2 / self.cutoff) * torch.where(is_zero, wave_numbers, waves)

    def features(self, vectors: Tensor, dtype: torch.dtype | None = None) -> EdgeFeatures:
        """Features of edges with the given vectors.

        Args:
            vectors: (E, 3), float32 or float64; the computation is in their dtype.
            dtype: dtype of `values`; default, that of `vectors`.

        Returns:
            `EdgeFeatures`, differentiable twice or more with respect to `vectors`.
        """
        distances = safe_norm(vectors)
        envelope = self.envelope(distances)[:, None]
        basis = envelope * self._functions(distances)
        n_edges = max(basis.shape[0], 1)
        exact = basis.double()
        mean = exact.sum(dim=0) / n_edges
        centered = exact - mean
        values = torch.cat([envelope * basis, envelope], dim=1)
        return EdgeFeatures(values.to(dtype or vectors.dtype), mean, centered.T @ centered / n_edges)


class RadialNetwork(torch.nn.Module):
    r"""Hidden features of the edges: h = u(d) ReLU(BatchNorm(W B(d))), statistics over the edges of a batch.

    `weight`, `scale`, `shift`, `running_mean`, `running_var` are those of `torch.nn.Linear(n_radial, hidden,
    bias=False)` and `torch.nn.BatchNorm1d(hidden, momentum=momentum)`, and give what the two give. (A bias
    would have no effect: the normalization subtracts it.) No edge is normalized, thanks to two identities:

    - W B has mean W mean(B) and variance diag(W cov(B) W^T): the moments of B, shared by all layers, suffice;
    - u ReLU(z) = ReLU(u z) as u >= 0: normalization, shift and cutoff are one matrix product with (u B, u).

    Args:
        n_radial: number of radial basis functions.
        hidden: number of hidden features H.
        momentum: weight of the newest batch in the running statistics.
        eps: added to the variances.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, n_radial: int = 10, hidden: int = 16, momentum: float = 0.5, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        bound = 1 / sqrt(n_radial)
        self.weight = torch.nn.Parameter(torch.empty(hidden, n_radial).uniform_(-bound, bound))
        self.scale = torch.nn.Parameter(torch.ones(hidden))
        self.shift = torch.nn.Parameter(torch.zeros(hidden))
        self.register_buffer("running_mean", torch.zeros(hidden))
        self.register_buffer("running_var", torch.ones(hidden))

    def forward(self, features: EdgeFeatures) -> Tensor:
        """Radial features of E edges -> (E, H). An empty batch is normalized with the running statistics."""
        weight = self.weight.double()  # a matrix of a few hundred numbers: exact statistics cost nothing
        n_edges = features.values.shape[0]
        if self.training and n_edges > 0:
            mean = weight @ features.mean
            var = ((weight @ features.covariance) * weight).sum(dim=1)
            self._update(mean, var * (n_edges / max(n_edges - 1, 1)))
        else:
            mean, var = self.running_mean.double(), self.running_var.double()
        scale = self.scale.double() * (var.clamp(min=0) + self.eps).rsqrt()
        matrix = torch.cat([(scale[:, None] * weight).T, (self.shift.double() - scale * mean)[None]])
        return torch.relu_(features.values @ matrix.to(features.values.dtype))  # in place: one array (E, H)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), self.momentum)

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        hidden, n_radial = self.weight.shape
        return f"n_radial={n_radial}, hidden={hidden}, momentum={self.momentum}"
