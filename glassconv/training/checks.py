"""What a training run asks of its configurations, checked before anything is written or removed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch

from glassconv.data import Configuration
from glassconv.nn import SE3GNN
from glassconv.training.options import TrainingOptions

__all__ = ["check_data", "check_parts"]


def check_data(
    model: SE3GNN,
    parts: Mapping[str, Sequence[Configuration]],
    options: TrainingOptions,
    *,
    prepare: bool = True,
) -> None:
    """Refuse what `glassconv.training.fit` or the scores after it would refuse; sets the statistics.

    Args:
        model: the network; the statistics of inputs and targets are set from the part ``"training"``.
        parts: configurations by the name of their part: ``"training"``, ``"validation"`` and any others that
            are only to be scored, such as ``"test"``.
        options: of the training.
        prepare: also try `SE3GNN.prepare` on every configuration, one at a time; the result is dropped.

    Raises:
        ValueError: no training configuration; early stopping without validation configurations; propensities
            that are missing, not finite or at another number of times than outputs; types in the loss or in
            another part that do not occur in training; a configuration in more than one part; anything the
            network refuses.
    """
    check_parts(parts, model.n_outputs, options)
    model.set_statistics(parts["training"])
    if prepare:
        for part in parts.values():
            for configuration in part:
                model.prepare(configuration)


def check_parts(
    parts: Mapping[str, Sequence[Configuration]], n_outputs: int, options: TrainingOptions
) -> None:
    """The part of `check_data` that needs no network and no inherent structures; same errors."""
    training, validation = parts["training"], parts.get("validation", ())
    if not training:
        raise ValueError("training: expected at least one configuration, got none")
    if options.early_stopping is not None and not validation:
        raise ValueError("early_stopping: expected validation configurations to stop on, got none")
    # training first, so that the other part is the one at fault
    names = ["training", *(name for name in parts if name != "training")]
    everything = [(name, configuration) for name in names for configuration in parts[name]]
    for _, configuration in everything:
        _check_targets(configuration, n_outputs)
    _check_types(training, everything, options)
    _check_distinct(everything)


def _check_targets(configuration: Configuration, n_outputs: int) -> None:
    where = configuration.name or "a configuration"
    if configuration.propensity is None or configuration.n_times != n_outputs:
        found = "none" if configuration.propensity is None else configuration.n_times
        raise ValueError(
            f"configurations: expected propensities at {n_outputs} times, as the network has outputs, "
            f"got {found} in {where}"
        )
    n_bad = int((~torch.isfinite(configuration.propensity)).sum())
    if n_bad:
        raise ValueError(
            f"configurations: expected finite propensities, got {n_bad} that are not finite in {where}"
        )


def _check_types(
    training: Sequence[Configuration],
    everything: Sequence[tuple[str, Configuration]],
    options: TrainingOptions,
) -> None:
    known = {kind for configuration in training for kind in configuration.types.unique().tolist()}
    if options.loss_types is not None and not known.issuperset(options.loss_types):
        raise ValueError(
            f"loss_types: expected some of {sorted(known)}, the types in training, got {options.loss_types}"
        )
    for name, configuration in everything:
        where = configuration.name or "a configuration"
        present = set(configuration.types.unique().tolist())
        if not present <= known:
            raise ValueError(
                f"types: expected types that occur in training, {sorted(known)}, got {sorted(present)} in "
                f"{where} ({name})"
            )
        trained = name in ("training", "validation")
        if trained and options.loss_types is not None and present.isdisjoint(options.loss_types):
            raise ValueError(
                f"loss_types: expected some of {sorted(present)}, the types in {where}, got "
                f"{options.loss_types}"
            )


def _check_distinct(everything: Sequence[tuple[str, Configuration]]) -> None:
    """The same structure in training and elsewhere would be scored as if it had been held out."""
    seen: dict[bytes, tuple[str, str]] = {}
    for part, configuration in everything:
        digest = hashlib.sha256()
        for value in (configuration.positions, configuration.types):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        here = configuration.name or "a configuration"
        other, there = seen.setdefault(digest.digest(), (part, here))
        if other != part:
            raise ValueError(
                f"{part}: expected configurations that are not in another part, got {here}, which is "
                f"{there} of {other}"
            )
