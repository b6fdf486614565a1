"""Every operation of glassconv in plain, readable PyTorch: the definition of what the native kernels compute.

The signatures are those of the package's top level. No native code is used, on any device, and every function
can be differentiated twice or more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glassconv.reference.convolution import conv
from glassconv.reference.spherical_harmonics import spherical_harmonics

if TYPE_CHECKING:
    from glassconv.reference.neighbors import neighbor_list

__all__ = ["conv", "neighbor_list", "spherical_harmonics"]


def __getattr__(name: str) -> Any:
    # deferred: the neighbor search needs `Graph`, whose module may be the one that is importing this package
    if name == "neighbor_list":
        return importlib.import_module("glassconv.reference.neighbors").neighbor_list
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
