"""Writing results so that an interrupted write never leaves half a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["in_place_of", "write_bytes", "write_json", "write_text"]


@contextmanager
def in_place_of(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file in the same folder, to be written in the `with` block; it replaces `path` then."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically."""
    with in_place_of(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused (JSON has none), use None.

    Raises:
        ValueError: on NaN or infinity in ``content``.
    """
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
