"""Training and evaluation of networks on propensities.

`metrics` needs PyTorch only; `fit` and `evaluate` need the extra ``train`` (Lightning, matplotlib), imported
when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glassconv.training.metrics import GroupScore, TypeScore, noise_ceiling, pearson, score, table
from glassconv.training.options import TrainingOptions

if TYPE_CHECKING:
    from glassconv.training.evaluation import evaluate, write_report
    from glassconv.training.fitting import FitResult, fit

__all__ = [
    "FitResult",
    "GroupScore",
    "TrainingOptions",
    "TypeScore",
    "evaluate",
    "fit",
    "noise_ceiling",
    "pearson",
    "score",
    "table",
    "write_report",
]

_LAZY = {"evaluate": "evaluation", "write_report": "evaluation", "fit": "fitting", "FitResult": "fitting"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"glassconv.training.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'glassconv.training' has no attribute {name!r}")
