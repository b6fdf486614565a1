"""Where a measurement comes from: no number without device, versions, commit, date and command."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from glassconv._environment import environment
from glassconv._files import write_text

RESULTS = Path(__file__).resolve().parent / "results"
# The peers a benchmark can compare with; `environment` names the package's own dependencies.
PEERS = (
    "cuequivariance",
    "cuequivariance-torch",
    "openequivariance",
    "nvalchemi-toolkit-ops",
    "warp-lang",
    "vesin",
    "vesin-torch",
    "matscipy",
    "scipy",
    "freud-analysis",
    "ase",
)


def _driver() -> str | None:
    """Version of the NVIDIA driver, or None without one."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Describe the machine, software and command of the running process.

    Args:
        device: where the measured work ran, "cpu" or "cuda[:i]".

    Returns:
        A JSON-able dict: device, device_name, driver (None on the CPU), isa (GLASSCONV_ISA; None: chosen at
        run time), peers (versions of the libraries compared with), command, and all of
        `glassconv._environment.environment()`: versions, commit, cpu, threads, backend, date.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    surroundings = environment()
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if on_gpu else surroundings["cpu"],
        "driver": _driver() if on_gpu else None,
        "isa": os.environ.get("GLASSCONV_ISA"),
        "peers": {name: _installed(name) for name in PEERS},
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        **surroundings,
    }


def results_folder(origin: dict[str, Any]) -> Path:
    """`results/<device>` for what `provenance` gave."""
    return RESULTS / "-".join(
        origin["device_name"].replace("(R)", "").replace("(TM)", "").replace("/", " ").split()
    )


def write_records(
    records: list[dict[str, Any]],
    device: str | torch.device = "cpu",
    *,
    folder: Path | None = None,
    origin: dict[str, Any] | None = None,
) -> Path:
    """Append measurements to `results/<device>/<date>-<commit>.jsonl`, one line each, with their provenance.

    Args:
        records: JSON-able dicts; each becomes {**record, "provenance": ...}.
        device: where the measured work ran.
        folder: in place of `results/<device>`.
        origin: what `provenance` gave, where it is known already.

    Returns:
        The file written, as a whole: whatever interrupts, it holds no half of a record.
    """
    origin = origin or provenance(device)
    sha, *changed = (origin["commit"] or "no-commit").split("+")
    folder = folder or results_folder(origin)
    path = folder / f"{origin['date'][:10]}-{'+'.join([sha[:10], *changed])}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(
        path, before + "".join(json.dumps(record | {"provenance": origin}) + "\n" for record in records)
    )
    return path
