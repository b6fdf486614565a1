"""Means and standard deviations per particle type, with which inputs and targets are standardized."""

from __future__ import annotations

import torch
from torch import Tensor

from glassconv.data import Configuration
from glassconv.nn.inputs import where


def targets_of(configuration: Configuration, n_outputs: int) -> Tensor:
    """The propensities of a configuration, (N, n_outputs) float64.

    Raises:
        ValueError: none are known, or not at `n_outputs` times.
    """
    if configuration.propensity is None:
        raise ValueError(
            f"propensity: expected propensities at {n_outputs} times, got None{where(configuration)}"
        )
    if configuration.n_times != n_outputs:
        raise ValueError(
            f"propensity: expected {n_outputs} times, got {configuration.n_times}{where(configuration)}"
        )
    return configuration.propensity.T


def per_type(values: Tensor, types: Tensor, n_types: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n_types, D) of values (N, D) over the particles of each type.

    Values that do not vary get the standard deviation 1; a type that does not occur also the mean 0.
    """
    mean = values.new_zeros(n_types, values.shape[1])
    std = values.new_ones(n_types, values.shape[1])
    for kind in range(n_types):
        chosen = values[types == kind]
        if chosen.shape[0] == 0:
            continue
        mean[kind] = chosen.mean(dim=0)
        deviation = (chosen - mean[kind]).square().mean(dim=0).sqrt()
        # equal values leave a deviation of the size of their rounding
        varies = deviation > 1e-12 * chosen.square().mean(dim=0).sqrt()
        std[kind] = torch.where(varies, deviation, 1.0)
    return mean, std
