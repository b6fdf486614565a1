"""What torch.compile is told about the package's Python functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def constant_when_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function whose result torch.compile takes as a constant instead of tracing the call.

    `torch.compiler.assume_constant_result` does the same, but imports the compiler, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
