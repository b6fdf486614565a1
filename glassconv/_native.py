"""Loading of the native extension, and the choice between it and the plain-PyTorch reference.

The extension is optional: without it every operation runs on `glassconv.reference`, and one warning says so.
`GLASSCONV_BACKEND=reference|native` forces the choice; `native` makes a missing extension an error.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall glassconv (in a checkout: make build)"
_BACKENDS = ("native", "reference")
_ISA_LEVELS = ("plain", "avx2", "avx512")
_forced: ContextVar[str | None] = ContextVar("glassconv_backend", default=None)


def _requested() -> str | None:
    name = os.environ.get("GLASSCONV_BACKEND", "")
    if name in ("", "auto"):
        return None
    if name not in _BACKENDS:
        raise ValueError(f"GLASSCONV_BACKEND: expected one of {_BACKENDS} or 'auto', got {name!r}")
    return name


def _release(version: str) -> list[str]:
    return version.split("+", maxsplit=1)[0].split(".")[:2]


def _load() -> ModuleType:
    isa = os.environ.get("GLASSCONV_ISA")
    if isa is not None and isa not in _ISA_LEVELS:
        raise ValueError(f"GLASSCONV_ISA: expected one of {_ISA_LEVELS}, got {isa!r}")
    record = Path(__file__).with_name("_build.json")
    if record.exists():
        built_with = str(json.loads(record.read_text())["torch"])
        # torch's C++ ABI changes with minor releases: loading may fail for a missing symbol or, worse, not
        if _release(built_with) != _release(torch.__version__):
            raise ImportError(
                f"the native extension was built with torch {built_with}, this is torch {torch.__version__}; "
                f"rebuild it with: {REBUILD}"
            )
    return importlib.import_module("glassconv._C")


@cache
def native() -> ModuleType | None:
    """The native extension module; None (said once) where it is absent or does not fit the running torch."""
    requested = _requested()
    if requested == "reference":
        return None
    try:
        module = _load()
    except ImportError as error:
        if requested == "native":
            raise
        warnings.warn(
            f"glassconv: native kernels not available ({error}); using the slower PyTorch reference",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    importlib.import_module("glassconv.ops")  # fake, autograd and vmap rules belong to the loaded operators
    return module


def backend() -> str:
    """Which implementation is used: `"native"` (C++ and CUDA operators) or `"reference"` (plain PyTorch)."""
    forced = _forced.get()
    if forced is not None:
        return forced
    return "native" if native() is not None else "reference"


@cache
def has_cuda() -> bool:
    """Whether the native extension is there and was built with kernels for CUDA."""
    module = native()
    return module is not None and bool(module.build_info()["cuda"])


@cache
def _say_no_kernels() -> None:
    warnings.warn(
        "glassconv: the native extension was built without CUDA kernels; tensors on a GPU use the slower "
        f"PyTorch reference. With a CUDA toolkit (CUDA_HOME) there, rebuild it with: {REBUILD}",
        RuntimeWarning,
        stacklevel=5,
    )


def runs_on(device_type: str) -> bool:
    """Whether the native operators serve tensors on "cpu", "cuda" ...; the reference serves all others."""
    if backend() != "native":
        return False
    if device_type == "cuda" and not has_cuda():
        _say_no_kernels()  # once
        return False
    return device_type in ("cpu", "cuda")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force `"native"` or `"reference"` within a `with` block, for the calling thread.

    Raises:
        ValueError: another name.
        RuntimeError: `"native"` without the extension.
    """
    if name not in _BACKENDS:
        raise ValueError(f"name: expected one of {_BACKENDS}, got {name!r}")
    if name == "native" and native() is None:
        raise RuntimeError("native extension not built")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)
