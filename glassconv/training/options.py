"""Options of a training run, checked once and written beside its results."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["SCHEDULES", "TrainingOptions"]

SCHEDULES = ("cosine", "plateau", "constant")

_LARGEST = 10**9  # of counts: beyond, they are mistakes


@dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained; the network itself has its own options.

    Args:
        epochs: passes over the training configurations, at most.
        learning_rate: of Adam, at the start.
        batch_size: configurations per optimization step, concatenated into one graph.
        schedule: ``"cosine"`` to zero over ``epochs``; ``"plateau"``: halved after ``schedule_patience``
            epochs without a better validation correlation (training loss when nothing is validated);
            ``"constant"``.
        schedule_patience: see ``schedule``.
        early_stopping: stop after so many epochs without a better validation correlation; None: never.
        gradient_clip: largest norm of the gradient of all parameters; None: no clipping.
        ema: decay per step of an exponential moving average of the weights, which is then what is validated
            and kept; None: no averaging. 0.99 averages over about a hundred steps.
        loss_types: particle types in the loss; None: all types.
        seed: of the order of the configurations in each epoch (the initial weights are the caller's).

    Raises:
        ValueError: argument, expected, got.
    """

    epochs: int = 60
    learning_rate: float = 1e-2
    batch_size: int = 1
    schedule: str = "cosine"
    schedule_patience: int = 20
    early_stopping: int | None = None
    gradient_clip: float | None = 10.0
    ema: float | None = None
    loss_types: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "schedule_patience"):
            _require(name, getattr(self, name) >= 1, "an integer of at least 1", getattr(self, name))
            _require(name, getattr(self, name) <= _LARGEST, f"at most {_LARGEST}", getattr(self, name))
        _require(
            "early_stopping",
            self.early_stopping is None or self.early_stopping >= 1,
            "at least 1",
            self.early_stopping,
        )
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            _require(name, value is None or (math.isfinite(value) and value > 0), "a positive number", value)
        _require("learning_rate", self.learning_rate <= 1000, "at most 1000", self.learning_rate)
        _require("ema", self.ema is None or 0 < self.ema < 1, "a number between 0 and 1", self.ema)
        _require("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}", self.schedule)
        _require("seed", 0 <= self.seed < 2**32, "an integer in [0, 2^32)", self.seed)
        types = self.loss_types
        sound = types is None or (len(types) > 0 and min(types) >= 0)
        _require("loss_types", sound, "particle types, counted from 0", types)


def _require(argument: str, sound: bool, expected: str, got: object) -> None:
    if not sound:
        raise ValueError(f"{argument}: expected {expected}, got {got}")
