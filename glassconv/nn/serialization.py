"""Networks in files without pickle: tensors in safetensors format, the options as JSON in its header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from glassconv._files import write_bytes

FORMAT = "glassconv.nn.SE3GNN"
VERSION = 1


def write(path: str | os.PathLike[str], description: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write a network atomically: a temporary file in the same folder takes the place of the old one.

    Args:
        path: the file.
        description: options and metadata, anything JSON can hold.
        state: the tensors; their bits are kept.
    """
    header = {"format": FORMAT, "version": str(VERSION), "description": json.dumps(description)}
    content = save({name: value.detach().cpu().contiguous() for name, value in state.items()}, header)
    write_bytes(path, content)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write` wrote: (description, tensors on the CPU).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of this format, or of a later version; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a saved network, got {path}, which does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"path: expected a network saved by SE3GNN.save, got {path} ({error})") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"path: expected format {FORMAT!r}, got {header.get('format')!r} in {path}")
    version = header.get("version", "no version")
    if not (version.isascii() and version.isdigit() and len(version) < 10 and 1 <= int(version) <= VERSION):
        raise ValueError(f"path: expected version {VERSION} or earlier, got {version} in {path}")
    try:
        description = json.loads(header.get("description", ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"path: expected a description in JSON, got {error} in {path}") from error
    if not isinstance(description, dict) or not isinstance(description.get("options"), dict):
        found = sorted(description) if isinstance(description, dict) else type(description).__name__
        raise ValueError(f"path: expected a description with the options of SE3GNN, got {found} in {path}")
    return description, state


def floating_dtype(state: dict[str, Tensor]) -> torch.dtype:
    """The dtype of the network that the tensors belong to.

    Raises:
        ValueError: none of them holds floating point numbers.
    """
    for value in state.values():
        if value.is_floating_point() and value.numel() > 0:
            return value.dtype
    raise ValueError(f"expected tensors of floating point numbers, got {sorted(state)}")
