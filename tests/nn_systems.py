"""Small systems and networks for the tests of `glassconv.nn`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from glassconv.data import Configuration
from glassconv.nn import SE3GNN

DTYPES = (torch.float64, torch.float32)

# Some hundred operations in sequence, each within half a rounding (1.1e-16, 6e-8) of its result, and sums
# over neighbors and normalizations that cancel: a factor of about 1e3, and ten to a hundred to spare. In
# float32 the edge vectors are rounded after the symmetry operation, which costs the same factor.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}

CUTOFF = 1.6

# All parities, inputs and structures between them; small enough for the reference to be quick.
OPTIONS: dict[str, dict[str, Any]] = {
    "natural": {"l_max": 2, "n_layers": 3, "positions": "inherent", "inputs": ("type", "energy")},
    "both-cage": {
        "l_max": 2,
        "n_layers": 4,
        "parity": "both",
        "positions": "thermal",
        "inputs": ("type", "energy", "cage"),
    },
    "l3-gaussian": {
        "channels": 2,
        "l_max": 3,
        "n_layers": 2,
        "radial_basis": "gaussian",
        "positions": "thermal",
        "inputs": ("type",),
    },
}


def system(seed: int = 0, n_side: int = 3, n_times: int = 2) -> Configuration:
    """A disordered triclinic crystal of 2 n_side^3 particles at density 1.2, with all a network can read."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    edge = 1.19 * n_side
    cell = edge * (torch.eye(3, dtype=torch.float64) + 0.05 * normal(3, 3))
    corners = torch.cartesian_prod(*[torch.arange(n_side, dtype=torch.float64)] * 3)
    fractional = torch.cat([corners, corners + 0.5]) / n_side
    inherent = fractional @ cell + 0.08 * normal(len(fractional), 3)
    n = len(inherent)
    return Configuration(
        positions=inherent + 0.05 * normal(n, 3),
        types=(torch.arange(n) % 5 == 0).long(),
        cell=cell,
        inherent=inherent,
        energy=-7 + normal(n),
        propensity=1 + 0.3 * normal(n_times, n),
        times=torch.arange(1.0, n_times + 1),
        name=f"system {seed}",
    )


def cluster(positions: Tensor, **fields: Any) -> Configuration:
    """Particles in open space."""
    n = len(positions)
    defaults: dict[str, Any] = {"inherent": positions, "energy": torch.zeros(n)}
    return Configuration(
        positions=positions,
        types=torch.arange(n) % 2,
        cell=10 * torch.eye(3),
        pbc=False,
        **{**defaults, **fields},
    )


def network(name: str = "natural", dtype: torch.dtype = torch.float64, **options: Any) -> SE3GNN:
    """A network with parameters and running statistics in general position, in training mode."""
    settings = {"channels": 3, "cutoff": CUTOFF, "n_neighbors": 20.0, **OPTIONS[name], **options}
    model = SE3GNN(2, 2, **settings).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and ones of a fresh network would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.set_statistics([system(100), system(101)])
        model([system(100), system(101)])
    return model


def rotated(configuration: Configuration, matrix: Tensor) -> Configuration:
    """The whole configuration, cell included, under an orthogonal matrix."""
    assert configuration.inherent is not None
    return replace(
        configuration,
        positions=configuration.positions @ matrix.T,
        inherent=configuration.inherent @ matrix.T,
        cell=configuration.cell @ matrix.T,
    )


def permuted(configuration: Configuration, order: Tensor) -> Configuration:
    """Particles in another order."""
    assert configuration.inherent is not None
    assert configuration.energy is not None
    assert configuration.propensity is not None
    return replace(
        configuration,
        positions=configuration.positions[order],
        types=configuration.types[order],
        inherent=configuration.inherent[order],
        energy=configuration.energy[order],
        propensity=configuration.propensity[:, order],
    )


def translated(configuration: Configuration, shift: Tensor) -> Configuration:
    """Everything moved, then each thermal position wrapped into the cell: inherent ones stay outside."""
    assert configuration.inherent is not None
    fractional = (configuration.positions + shift) @ torch.linalg.inv(configuration.cell)
    return replace(
        configuration,
        positions=(fractional - fractional.floor()) @ configuration.cell,
        inherent=configuration.inherent + shift,
    )


def assert_close(value: Tensor, expected: Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
    """Equal to rounding, relative to the scale of the whole tensor."""
    error = (value.double() - expected.double()).norm() / expected.double().norm()
    assert error < factor * TOLERANCE[dtype], f"relative error {float(error):.2e}"
