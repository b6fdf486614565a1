"""Liquids of any size from the packaged sample: tiled, cut to the number of particles, slightly displaced."""

from __future__ import annotations

import torch
from torch import Tensor

from glassconv.data import Configuration, sample

DENSITY, CUTOFF = 1.2, 2.0  # of the Kob-Andersen liquid, in units of sigma_AA
DISPLACEMENT = 0.02  # standard deviation; so that no two tiles are alike
HOW = (
    f"packaged sample (T = 0.56) tiled, the cube of N particles cut out and scaled to density {DENSITY}, "
    f"displaced by {DISPLACEMENT} sigma"
)


def liquid(n_particles: int, seed: int = 0, tile: Configuration | None = None) -> Configuration:
    """A periodic liquid of exactly so many particles, with energies and propensities of the tiles.

    The tile is a configuration of the packaged sample unless another is given; its particles stay together,
    in their order. Across the periodic boundary a cut through tiles does not fit: about one particle in ten
    has neighbors there that no liquid would give it. For time and memory that does not matter.
    """
    tile = sample(0.56)[0] if tile is None else tile
    length = float(tile.cell[0, 0])
    per_side = 1
    while per_side**3 * tile.n_particles < n_particles:
        per_side += 1
    corners = torch.cartesian_prod(*[torch.arange(per_side, dtype=torch.float64)] * 3) * length
    wrapped = tile.positions % length
    positions = (wrapped[None] + corners[:, None]).reshape(-1, 3)
    reach = positions.amax(dim=1)  # the cube that holds a particle
    chosen = reach.argsort()[:n_particles].sort().values
    within = chosen % tile.n_particles
    side = (n_particles / DENSITY) ** (1 / 3)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_particles, 3, generator=generator, dtype=torch.float64)
    placed = positions[chosen] * (side / float(reach[chosen].max())) + DISPLACEMENT * noise
    assert tile.energy is not None
    assert tile.propensity is not None
    return Configuration(
        positions=placed,
        inherent=placed,
        types=tile.types[within],
        cell=torch.full((3,), side, dtype=torch.float64),
        energy=tile.energy[within],
        propensity=tile.propensity[:, within],
        times=tile.times,
        name=f"liquid of {n_particles}",
    )


def box(configuration: Configuration) -> Tensor:
    """Its box lengths."""
    return configuration.cell.diagonal()
