"""Scoring a trained network: Pearson table, noise ceiling, JSON and plot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from glassconv._files import write_json
from glassconv.data import Configuration
from glassconv.nn import SE3GNN
from glassconv.training.metrics import GroupScore, score

__all__ = ["evaluate", "write_report"]


def evaluate(model: SE3GNN, configurations: Sequence[Configuration]) -> list[GroupScore]:
    """Predict every configuration and score the predictions per temperature, type and time.

    Args:
        model: a trained network; evaluated with its running statistics, one configuration at a time.
        configurations: with propensities at as many times as the network has outputs. The times may differ in
            value from those it was trained on, at another temperature: they are taken by their index.

    Returns:
        What `glassconv.training.score` gives.

    Raises:
        ValueError: another number of times than outputs, and what the network or `score` refuse.
        FloatingPointError: predictions that are not finite.
    """
    for configuration in configurations:
        if configuration.propensity is None:
            raise ValueError(f"configurations: expected propensities, got none in {configuration!r}")
        if configuration.n_times != model.n_outputs:
            where = configuration.name or "a configuration"
            raise ValueError(
                f"configurations: expected {model.n_outputs} times, as the network has outputs, "
                f"got {configuration.n_times} in {where}"
            )
    predictions = [model.predict(configuration) for configuration in configurations]
    for prediction, configuration in zip(predictions, configurations, strict=True):
        if not bool(torch.isfinite(prediction).all()):
            where = configuration.name or "a configuration"
            raise FloatingPointError(f"predictions: expected finite numbers, got others for {where}")
    return score(predictions, configurations)


def write_report(
    folder: str | os.PathLike[str],
    sets: Mapping[str, Sequence[GroupScore]],
    about: dict[str, Any] | None = None,
) -> None:
    """Write ``metrics.json`` and one ``correlation*.png`` per set of configurations, atomically.

    Args:
        folder: where to; created if need be.
        sets: scores by the name of the set, e.g. ``{"test": ..., "validation": ...}``. The figure of the
            first one is ``correlation.png``, of the others ``correlation_<name>.png``.
        about: further entries of ``metrics.json``.
    """
    from glassconv import plotting

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    content = {name: [group.to_json() for group in groups] for name, groups in sets.items()}
    write_json(target / "metrics.json", {"format": 1, **(about or {}), "sets": content})
    for k, (name, groups) in enumerate(sets.items()):
        figure = plotting.correlation_against_time(groups)
        plotting.save(figure, target / ("correlation.png" if k == 0 else f"correlation_{name}.png"))
