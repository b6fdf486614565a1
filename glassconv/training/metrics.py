"""Pearson correlation of predicted and measured propensities, and the ceiling that finite ensembles set on
it.

Two forms are always reported. *Pooled*: one coefficient over all particles of all configurations, which also
rewards knowing which configuration is the slow one. *Per configuration*: one coefficient in each, then their
mean.

Values that have no correlation stay visible:

- `pearson` takes a NaN target as not measured and leaves its particle out (propensities of a `Configuration`
  are finite: in the scores of configurations every particle counts);
- a NaN or infinite prediction where a target exists makes the coefficient NaN: a failed network is not scored
  on the particles that happened to survive;
- fewer than two particles, or constant values on either side, give NaN (the coefficient is undefined);
- in the mean over configurations, those in which the *target* leaves the coefficient undefined are not
  counted, while one that is undefined because of the prediction makes the mean NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glassconv.data import Configuration

__all__ = ["GroupScore", "TypeScore", "noise_ceiling", "pearson", "score", "table", "type_label"]

# Standard deviation over largest magnitude below which values count as constant: some hundred roundings of
# float64.
_CONSTANT = 1e-13


def pearson(prediction: Tensor, target: Tensor) -> Tensor:
    """Pearson correlation along the last dimension, in float64.

    Args:
        prediction: ``(..., N)``, any real dtype.
        target: ``(..., N)``, NaN where nothing was measured.

    Returns:
        ``(...)`` float64 in [-1, 1]; NaN where undefined (module docstring).

    Raises:
        ValueError: if the shapes differ.
    """
    if prediction.shape != target.shape or target.ndim == 0:
        raise ValueError(
            f"prediction: expected the shape of target with a dimension of particles, {tuple(target.shape)}, "
            f"got {tuple(prediction.shape)}"
        )
    x, y = prediction.detach().double(), target.detach().double()
    known = ~torch.isnan(y)
    n = known.sum(-1)
    failed = (known & ~torch.isfinite(x)).any(-1)
    x, x_constant = _centered(x, known, n)
    y, y_constant = _centered(y, known, n)
    r = (x * y).sum(-1) / torch.sqrt(x.square().sum(-1) * y.square().sum(-1))
    undefined = failed | x_constant | y_constant | (n < 2)
    return torch.where(undefined, torch.nan, r.clamp(-1, 1))


def _centered(values: Tensor, known: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from the mean over known entries, scaled to order one, and whether they are all rounding."""
    values = torch.where(known, values, 0.0)
    if values.shape[-1] == 0:
        return values, torch.ones_like(n, dtype=torch.bool)
    largest = values.abs().amax(-1, keepdim=True)
    scale = torch.where(
        largest > 0, largest, 1.0
    )  # squares of very small or large units must not leave float64
    values = values / scale
    count = n.clamp(min=1).unsqueeze(-1)
    centered = torch.where(known, values - values.sum(-1, keepdim=True) / count, 0.0)
    deviation = torch.sqrt(centered.square().sum(-1) / count.squeeze(-1))
    return centered, ~(deviation > _CONSTANT)


def noise_ceiling(half_a: Tensor, half_b: Tensor) -> Tensor:
    """Largest correlation that any prediction can be expected to reach with the mean of both half-ensembles.

    With r the correlation of the halves, the reliability of their mean is 2r/(1+r) (Spearman-Brown), and even
    the exact propensity correlates with the measured mean only by its square root.

    Args:
        half_a: ``(..., N)`` propensities from one half of the trajectories.
        half_b: ``(..., N)`` from the other half.

    Returns:
        ``(...)`` float64; NaN where r is undefined or negative (the halves then carry no signal).
    """
    r = pearson(half_a, half_b)
    return torch.where(r >= 0, torch.sqrt(2 * r / (1 + r)), torch.nan)


def type_label(index: int) -> str:
    """Letter for a particle type as the field uses it: 0 is A, 1 is B; from 26 on the number itself."""
    return chr(ord("A") + index) if 0 <= index < 26 else str(index)


@dataclass(frozen=True, eq=False)
class TypeScore:
    """Correlations of one particle type in a group of configurations with the same times; all float64.

    Attributes:
        type: particle type.
        n_particles: particles of this type over all configurations.
        pooled: ``(T,)``.
        per_configuration: ``(T,)``, mean over configurations.
        values: ``(n_configurations, T)``, what that mean is taken over.
        ceiling_pooled: ``(T,)`` noise ceiling, or None without half-ensembles.
        ceiling_per_configuration: ``(T,)``, mean of the ceilings of the configurations, or None.
    """

    type: int
    n_particles: int
    pooled: Tensor
    per_configuration: Tensor
    values: Tensor
    ceiling_pooled: Tensor | None
    ceiling_per_configuration: Tensor | None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists; undefined values are None. ``*_of_ceiling`` is the ratio to the noise
        ceiling.
        """
        result: dict[str, Any] = {
            "type": self.type,
            "label": type_label(self.type),
            "n_particles": self.n_particles,
            "pooled": _plain(self.pooled),
            "per_configuration": _plain(self.per_configuration),
            "per_configuration_values": _plain(self.values),
        }
        for form in ("pooled", "per_configuration"):
            ceiling = getattr(self, f"ceiling_{form}")
            result[f"ceiling_{form}"] = None if ceiling is None else _plain(ceiling)
            result[f"{form}_of_ceiling"] = None if ceiling is None else _plain(getattr(self, form) / ceiling)
        return result


@dataclass(frozen=True, eq=False)
class GroupScore:
    """Scores of the configurations that share a temperature and the times of measurement.

    Attributes:
        temperature: in eps_AA / k_B, or None when unknown.
        times: ``(T,)`` in Lennard-Jones units.
        names: the configurations.
        types: one entry per particle type present.
    """

    temperature: float | None
    times: Tensor
    names: tuple[str, ...]
    types: tuple[TypeScore, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists, for ``metrics.json``."""
        return {
            "temperature": self.temperature,
            "times": _plain(self.times),
            "n_configurations": len(self.names),
            "configurations": list(self.names),
            "types": [scores.to_json() for scores in self.types],
        }


def score(predictions: Sequence[Tensor], configurations: Sequence[Configuration]) -> list[GroupScore]:
    """Score predictions per type and time, separately for every temperature and set of times.

    Args:
        predictions: one ``(N, T)`` tensor per configuration. Per type and time, any increasing affine
            function of the propensity scores the same, so that units do not matter.
        configurations: with propensities ``(T, N)``; half-ensembles, where given, set the noise ceiling.

    Returns:
        One `GroupScore` per temperature and set of times, in order of first appearance.

    Raises:
        ValueError: on unequal lengths or shapes, or a configuration without propensities.
    """
    if len(predictions) != len(configurations):
        raise ValueError(
            f"predictions: expected one per configuration, {len(configurations)}, got {len(predictions)}"
        )
    groups: dict[Any, list[int]] = {}
    for i, (prediction, configuration) in enumerate(zip(predictions, configurations, strict=True)):
        if configuration.propensity is None or configuration.times is None:
            raise ValueError(
                f"configurations: expected propensities in each, got none in {_name(configuration, i)}"
            )
        expected = (configuration.n_particles, configuration.n_times)
        if tuple(prediction.shape) != expected:
            raise ValueError(
                f"predictions: expected shape {expected} for {_name(configuration, i)}, "
                f"got {tuple(prediction.shape)}"
            )
        groups.setdefault((configuration.temperature, tuple(configuration.times.tolist())), []).append(i)
    return [
        _group([predictions[i] for i in members], [configurations[i] for i in members], members)
        for members in groups.values()
    ]


def _group(predictions: list[Tensor], configurations: list[Configuration], indices: list[int]) -> GroupScore:
    times = configurations[0].times
    assert times is not None
    present = sorted({int(t) for c in configurations for t in c.types.unique()})
    return GroupScore(
        configurations[0].temperature,
        times.cpu(),
        tuple(_name(c, i) for c, i in zip(configurations, indices, strict=True)),
        tuple(_type_score(t, predictions, configurations) for t in present),
    )


def _type_score(wanted: int, predictions: list[Tensor], configurations: list[Configuration]) -> TypeScore:
    predicted, measured, first, second = [], [], [], []
    for prediction, configuration in zip(predictions, configurations, strict=True):
        chosen = (configuration.types == wanted).cpu()
        assert configuration.propensity is not None
        predicted.append(prediction.detach().cpu().double().T[:, chosen])
        measured.append(configuration.propensity.cpu()[:, chosen])
        if configuration.propensity_halves is not None:
            first.append(configuration.propensity_halves[0].cpu()[:, chosen])
            second.append(configuration.propensity_halves[1].cpu()[:, chosen])
    values = torch.stack([pearson(p, m) for p, m in zip(predicted, measured, strict=True)])
    # the correlation of the target with itself is undefined exactly where the target is to blame
    defined = torch.stack([~torch.isnan(pearson(m, m)) for m in measured])
    ceilings: tuple[Tensor | None, Tensor | None] = (None, None)
    if len(first) == len(configurations):
        each = torch.stack([noise_ceiling(a, b) for a, b in zip(first, second, strict=True)])
        ceilings = (noise_ceiling(torch.cat(first, -1), torch.cat(second, -1)), each.nanmean(0))
    return TypeScore(
        wanted,
        sum(m.shape[-1] for m in measured),
        pearson(torch.cat(predicted, -1), torch.cat(measured, -1)),
        torch.where(defined, values, 0.0).sum(0)
        / defined.sum(0),  # 0/0 = NaN where no configuration is defined
        values,
        *ceilings,
    )


def table(groups: Sequence[GroupScore]) -> str:
    """The scores as a text table: one block per group, one row per time, for reading in a terminal."""
    lines: list[str] = []
    for group in groups:
        if lines:
            lines.append("")
        count = len(group.names)
        where = "" if group.temperature is None else f"T = {group.temperature:g}, "
        ceiling = " (noise ceiling)" if any(s.ceiling_pooled is not None for s in group.types) else ""
        lines.append(f"{where}{count} configuration{'s' if count > 1 else ''}: Pearson correlation{ceiling}")
        labels = [type_label(s.type) for s in group.types]
        heads = [f"{label} {form}" for label in labels for form in ("per configuration", "pooled")]
        lines.append(f"{'time':>10}" + "".join(f"{head:>22}" for head in heads))
        for k, time in enumerate(group.times.tolist()):
            cells = []
            for s in group.types:
                cells.append(_cell(s.per_configuration, s.ceiling_per_configuration, k))
                cells.append(_cell(s.pooled, s.ceiling_pooled, k))
            lines.append(f"{time:>10.4g}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _cell(values: Tensor, ceilings: Tensor | None, k: int) -> str:
    text = f"{float(values[k]):.3f}"
    return text if ceilings is None else f"{text} ({float(ceilings[k]):.3f})"


def _name(configuration: Configuration, index: int) -> str:
    return configuration.name or f"configuration {index}"


def _plain(values: Tensor) -> Any:
    if values.ndim > 1:
        return [_plain(row) for row in values]
    return [None if math.isnan(v) else v for v in values.tolist()]
