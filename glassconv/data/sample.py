"""The data set that comes with the package: small Kob-Andersen liquids made with `glassconv.simulation`."""

from __future__ import annotations

import math
from importlib.resources import as_file, files

from glassconv.data.configuration import Configuration
from glassconv.data.hdf5 import read_hdf5

__all__ = ["sample"]


def sample(temperature: float | None = None) -> list[Configuration]:
    """Isoconfigurational data of a three-dimensional Kob-Andersen liquid at two temperatures, to train on.

    N = 1000 particles (800 A, 200 B) at density 1.2; 8 configurations at T = 0.64 and 8 at T = 0.56, four
    from each of two independent chains (``metadata["chain"]``): split by chain, or at least by blocks.
    Thermal and inherent positions, energies per particle of the inherent structure, and propensities with
    both half-ensembles at 8 times, log-spaced from 0.1 (LJ units) to 1.5 relaxation times, 24 trajectories
    each. Stored in single precision. Made by ``python -m glassconv.simulation.make_sample``; protocol, seed,
    versions and date are in the ``metadata`` of every configuration.

    Args:
        temperature: give only the configurations of this temperature; None gives all.

    Returns:
        Configurations in order of falling temperature, then chain, then time in the chain.

    Raises:
        ValueError: no configuration has this temperature.
    """
    with as_file(files("glassconv.data").joinpath("sample.h5")) as path:
        configurations = read_hdf5(path)
    if temperature is None:
        return configurations
    chosen = [c for c in configurations if math.isclose(c.temperature or 0.0, temperature, rel_tol=1e-6)]
    if not chosen:
        known = sorted({c.temperature for c in configurations if c.temperature is not None})
        raise ValueError(f"temperature: expected one of {known}, got {temperature}")
    return chosen
