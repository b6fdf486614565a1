"""Stand-ins for the CPU operators: the CUDA kernels in the emulator, or on a GPU, behind CPU tensors.

With them every test of CPU tensors is a test of the CUDA kernels as well.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from glassconv import _native

BUILD = Path(__file__).resolve().parent.parent / "build"


@cache
def emulated_module(name: str = "_emulated") -> ModuleType | None:
    """A module of the emulator (tests/emulated/build.py), or None where it was not built.

    `_emulated` holds the CUDA operators, `_selftest` the kernels of test_emulator.py. GLASSCONV_EMULATED
    names another folder in `build`.
    """
    path = BUILD / os.environ.get("GLASSCONV_EMULATED", "emulated") / f"{name}.so"
    if not path.exists() or (name == "_emulated" and _native.native() is None):  # which has the schemas
        return None
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def emulated_operators() -> Iterator[None]:
    """Let the operators of CPU tensors run the CUDA sources, one fiber for each CUDA thread."""
    module = emulated_module()
    assert module is not None
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # New memory is then filled with NaN: a kernel that leaves out an element of its result is found out.
    torch.use_deterministic_algorithms(True, warn_only=True)
    module.activate()
    try:
        yield
    finally:
        module.deactivate()
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def why_no_cuda() -> str | None:
    """The reason why CUDA kernels cannot run here, or None where they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    native = _native.native()
    has_cuda = native is not None and native.build_info()["cuda"]
    return None if has_cuda else "native extension built without CUDA"


@contextmanager
def cuda_operators() -> Iterator[None]:
    """Let the operators of CPU tensors move them to the GPU, run there, and move the results back."""

    def on_the_gpu(name: str) -> Any:
        operator = getattr(torch.ops.glassconv, name).default

        written = [
            i for i, a in enumerate(operator._schema.arguments) if a.alias_info and a.alias_info.is_write
        ]

        def run(*arguments: Any) -> Any:
            moved = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.cuda(), arguments)
            results = operator(*moved)
            for i in written:
                arguments[i].copy_(moved[i])
            return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), results)

        return run

    library = torch.library.Library("glassconv", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            for operator in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
                namespace, _, name = operator.partition("::")
                has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")
                if namespace == "glassconv" and has_kernel:
                    library.impl(name, on_the_gpu(name), "CPU")
        yield
    finally:
        library._destroy()
