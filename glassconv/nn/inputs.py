"""Node inputs of the network: what is read from a configuration beside its graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from glassconv.data import Configuration
from glassconv.nn.radial import safe_norm

INPUTS = ("type", "energy", "cage")


def where(configuration: Configuration) -> str:
    """The name of a configuration as the end of a message; nothing for a configuration without a name."""
    return f" in {configuration.name!r}" if configuration.name else ""


def listed(configurations: Configuration | Iterable[Configuration]) -> list[Configuration]:
    """One or more configurations as a list, or TypeError, or ValueError for none."""
    given: list[Any] = list(configurations) if isinstance(configurations, Iterable) else [configurations]
    for item in given:
        if not isinstance(item, Configuration):
            raise TypeError(
                f"configurations: expected glassconv.data.Configuration, got {type(item).__name__}"
            )
    if not given:
        raise ValueError("configurations: expected at least one, got none")
    return given


def inherent(configuration: Configuration) -> Tensor:
    """Positions in the inherent structure (N, 3), or ValueError."""
    if configuration.inherent is None:
        raise ValueError(
            "inherent: expected the positions of the inherent structure (glassconv.quench finds them), "
            f"got None{where(configuration)}"
        )
    return configuration.inherent


def cage(configuration: Configuration) -> Tensor:
    """|thermal - inherent position| (N,), nearest image, with derivatives 0 at distance 0."""
    displacement = configuration.positions - inherent(configuration)
    # rounding finds the nearest image of displacements below half a cell, and they are far below
    fractional = displacement.detach() @ torch.linalg.inv(configuration.cell)
    image = torch.where(configuration.pbc, fractional.round(), 0.0)
    return safe_norm(displacement - image @ configuration.cell)


def energy(configuration: Configuration) -> Tensor:
    """Energies of the particles in the inherent structure (N,), or ValueError."""
    if configuration.energy is None:
        raise ValueError(
            "energy: expected energies of the particles in the inherent structure, which the network has as "
            f"input, got None{where(configuration)}"
        )
    return configuration.energy


def scalars(configuration: Configuration, names: Sequence[str]) -> Tensor:
    """The inputs "energy" and "cage" that are named, (N, len(names)) float64, in physical units.

    Raises:
        ValueError: the configuration lacks what an input needs.
    """
    columns = [energy(configuration) if name == "energy" else cage(configuration) for name in names]
    if not columns:
        return configuration.positions.new_zeros(configuration.n_particles, 0)
    return torch.stack(columns, dim=1)
