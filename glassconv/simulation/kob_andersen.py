"""The Kob-Andersen binary Lennard-Jones mixture: parameters, energies and forces.

Source: W. Kob and H. C. Andersen, Phys. Rev. E 51, 4626 (1995). For a pair of types a, b at distance r

    phi(r) = 4 eps_ab [(sigma_ab / r)^12 - (sigma_ab / r)^6] - phi_cut    for r < 2.5 sigma_ab, else 0,

phi_cut such that phi is continuous at the cutoff; the force is not smoothed and jumps there by 0.04
eps/sigma. Lengths are in units of sigma_AA, energies in eps_AA, masses in m (equal for both types), times in
sigma_AA sqrt(m / eps_AA). Type 0 is A and type 1 is B.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glassconv import neighbor_list

__all__ = [
    "CUTOFF",
    "DENSITY",
    "EPSILON",
    "FRACTION_A",
    "MAX_CUTOFF",
    "SIGMA",
    "energy_and_forces",
    "energy_per_particle",
    "forces",
]

EPSILON = ((1.0, 1.5), (1.5, 0.5))
"""Well depths eps_ab in units of eps_AA."""
SIGMA = ((1.0, 0.8), (0.8, 0.88))
"""Diameters sigma_ab in units of sigma_AA."""
CUTOFF = 2.5
"""Cutoff of every pair in units of its own sigma_ab."""
MAX_CUTOFF = CUTOFF * max(max(row) for row in SIGMA)
"""The largest of the cutoffs, in units of sigma_AA."""
DENSITY = 1.2
"""Number density of the usual simulations, in units of sigma_AA^-3."""
FRACTION_A = 0.8
"""Fraction of type A in the usual simulations."""

_SHIFT = 4.0 * (CUTOFF**-12 - CUTOFF**-6)  # phi_cut in units of eps_ab: the same for every pair


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of particles with the constants of their interaction, ready for many evaluations.

    Attributes:
        source: ``(P,)`` int64, one particle of each pair; every pair (every image of it) appears once.
        receiver: ``(P,)`` int64, the other one.
        offset: ``(P, 3)``, the lattice translation added to ``positions[receiver] - positions[source]``.
        sigma_sq: ``(P,)``, squared diameter sigma_ab^2.
        epsilon: ``(P,)``, well depth eps_ab.
    """

    source: Tensor
    receiver: Tensor
    offset: Tensor
    sigma_sq: Tensor
    epsilon: Tensor

    @classmethod
    def find(
        cls,
        positions: Tensor,
        types: Tensor,
        cell: Tensor,
        pbc: Tensor | bool = True,
        batch: Tensor | None = None,
        *,
        margin: float = 0.0,
    ) -> Pairs:
        """List the pairs no farther apart than their own cutoff plus ``margin``.

        Args:
            positions: ``(N, 3)`` float64, in units of sigma_AA.
            types: ``(N,)`` int64, 0 (A) or 1 (B).
            cell: ``(3, 3)`` rows are lattice vectors, or ``(B, 3, 3)`` with ``batch``.
            pbc: bool, ``(3,)`` or, with ``batch``, ``(B, 3)`` bool.
            batch: ``(N,)`` int64 system of each particle, non-decreasing.
            margin: in units of sigma_AA.

        Raises:
            ValueError: if a type is neither 0 nor 1.
        """
        _check_types(types)
        points = positions.detach()
        graph = neighbor_list(points, MAX_CUTOFF + margin, cell, pbc, batch, half=True)
        source, receiver = graph.edge_index[0], graph.edge_index[1]
        shifts = graph.shifts.to(points.dtype)
        lattice = cell if batch is None else cell[batch[receiver]]
        offset = torch.einsum("pi,ij->pj" if batch is None else "pi,pij->pj", shifts, lattice)
        vectors = points[receiver] - points[source] + offset
        sigma = points.new_tensor(SIGMA)[types[source], types[receiver]]
        epsilon = points.new_tensor(EPSILON)[types[source], types[receiver]]
        pairs = cls(source, receiver, offset, sigma**2, epsilon)
        # The list was made with the largest cutoff; A-B and B-B pairs reach less far.
        return pairs.select(vectors.square().sum(1) <= (CUTOFF * sigma + margin) ** 2)

    def select(self, mask: Tensor) -> Pairs:
        """Keep the pairs where ``mask`` ``(P,)`` is true."""
        return Pairs(
            self.source[mask], self.receiver[mask], self.offset[mask], self.sigma_sq[mask], self.epsilon[mask]
        )

    def energy_per_particle(self, positions: Tensor) -> Tensor:
        """Return ``(N,)`` energies, half of each pair to each partner; differentiable in ``positions``."""
        _, r_sq = self._vectors(positions)
        q = self.sigma_sq / r_sq
        q3 = q**3
        phi = self.epsilon * (4.0 * (q3 * q3 - q3) - _SHIFT)
        half = torch.where(q > CUTOFF**-2, 0.5 * phi, torch.zeros_like(phi))
        energies = torch.zeros_like(positions[:, 0])
        return energies.index_add(0, self.source, half).index_add(0, self.receiver, half)

    def forces(self, positions: Tensor) -> Tensor:
        """Return ``(N, 3)`` forces at ``positions``, not differentiable; in-place arithmetic for speed."""
        vectors, r_sq = self._vectors(positions)
        q = self.sigma_sq / r_sq
        q3 = q * q
        q3 *= q
        # |F| / r = 24 eps (2 q^6 - q^3) / r^2 with q^3 = (sigma / r)^6
        strength = q3 * q3
        strength.mul_(2.0).sub_(q3).mul_(self.epsilon).div_(r_sq).mul_(24.0)
        strength *= q > CUTOFF**-2
        vectors *= strength[:, None]
        total = torch.zeros_like(positions).index_add_(0, self.receiver, vectors)
        # index_add_ with alpha=-1 would leave PyTorch's fast path: ten times slower.
        return total.index_add_(0, self.source, vectors.neg_())

    def _vectors(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        vectors = (
            positions.index_select(0, self.receiver) - positions.index_select(0, self.source) + self.offset
        )
        x, y, z = vectors.unbind(1)
        return vectors, x * x + y * y + z * z  # PyTorch sums over a last axis of three ten times slower


def energy_per_particle(
    positions: Tensor,
    types: Tensor,
    cell: Tensor,
    pbc: Tensor | bool = True,
    batch: Tensor | None = None,
) -> Tensor:
    """Kob-Andersen potential energy of each particle, half of every pair energy going to each partner.

    Args:
        positions: ``(N, 3)``, in units of sigma_AA; gradients flow to them.
        types: ``(N,)`` int64, 0 (A) or 1 (B).
        cell: ``(3, 3)`` rows are lattice vectors, or ``(B, 3, 3)`` with ``batch``.
        pbc: bool, ``(3,)`` or, with ``batch``, ``(B, 3)`` bool.
        batch: ``(N,)`` int64 system of each particle, non-decreasing.

    Returns:
        ``(N,)`` energies in units of eps_AA; their sum is the potential energy.

    Raises:
        ValueError: if a type is neither 0 nor 1.
    """
    return Pairs.find(positions, types, cell, pbc, batch).energy_per_particle(positions)


def forces(
    positions: Tensor,
    types: Tensor,
    cell: Tensor,
    pbc: Tensor | bool = True,
    batch: Tensor | None = None,
) -> Tensor:
    """Kob-Andersen forces ``(N, 3)`` in units of eps_AA / sigma_AA; arguments as `energy_per_particle`."""
    with torch.no_grad():
        return Pairs.find(positions, types, cell, pbc, batch).forces(positions)


def energy_and_forces(
    positions: Tensor,
    types: Tensor,
    cell: Tensor,
    pbc: Tensor | bool = True,
    batch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Energies ``(N,)`` and forces ``(N, 3)`` from one search; arguments as `energy_per_particle`."""
    with torch.no_grad():
        pairs = Pairs.find(positions, types, cell, pbc, batch)
        return pairs.energy_per_particle(positions), pairs.forces(positions)


def _check_types(types: Tensor) -> None:
    if types.numel() and (int(types.min()) < 0 or int(types.max()) > 1):
        found = sorted(set(types.tolist()))
        raise ValueError(f"types: expected 0 (A) or 1 (B) of the Kob-Andersen mixture, got {found}")
