"""The neighbor search as other packages have it: `ase` (ASE's function), `pyg` (a transform for PyG).

Each is imported when first used and needs its package: ``pip install 'glassconv[compat]'`` brings both.
"""

from __future__ import annotations

import importlib
from typing import Any

_SUBMODULES = ("ase", "pyg")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"glassconv.compat.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
