"""glassconv: fused kernels for SE(3)-equivariant networks on glassy liquids.

Importing the package loads the operators (`neighbor_list`, `conv`, `spherical_harmonics`) only; the network,
data, training and simulation live in submodules that are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glassconv._native import backend, use_backend
from glassconv.convolution import Paths, conv, spherical_harmonics
from glassconv.neighbors import Graph, neighbor_list
from glassconv.verlet import VerletList

if TYPE_CHECKING:
    from glassconv.simulation.quench import quench

__version__ = "0.1.0"

__all__ = [
    "Graph",
    "Paths",
    "VerletList",
    "backend",
    "conv",
    "neighbor_list",
    "quench",
    "spherical_harmonics",
    "use_backend",
]

_SUBMODULES = ("compat", "data", "nn", "plotting", "reference", "simulation", "training")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"glassconv.{name}")
    if name == "quench":
        return importlib.import_module("glassconv.simulation.quench").quench
    raise AttributeError(f"module 'glassconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
