"""What torch.compile and torch.export are told about the package's functions and classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils import _pytree as pytree

P = ParamSpec("P")
R = TypeVar("R")


def constant_when_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function whose result torch.compile takes as a constant instead of tracing the call.

    `torch.compiler.assume_constant_result` does the same, but imports the compiler, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True)
class _Structure:
    """What is left of a dataclass without its tensors. Two that are equal run the same operations."""

    children: tuple[str, ...]
    fixed: tuple[Any, ...]
    free: tuple[Any, ...] = dataclasses.field(compare=False)


def register_container(
    cls: type[Any],
    name: str,
    *,
    fixed: tuple[str, ...] = (),
    free: tuple[str, ...] = (),
    derived: dict[str, Callable[[dict[str, Any]], Any]] | None = None,
) -> None:
    """Make a dataclass a container of tensors for `torch.export` and `torch.utils._pytree`.

    Its fields, apart from those named here, hold tensors, other such containers, or None.

    Args:
        cls: the dataclass.
        name: what saved programs call it.
        fixed: fields with numbers or strings, and the same ones in all that an exported program takes.
        free: fields with numbers that may differ, because no operation depends on them.
        derived: fields that are computed from a dictionary of the tensors.
    """
    computed = derived or {}
    numbers = {*fixed, *free, *computed}
    tensors = [field.name for field in dataclasses.fields(cls) if field.name not in numbers]

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], _Structure]:
        children = tuple(field for field in tensors if getattr(value, field) is not None)
        structure = _Structure(
            children,
            tuple(getattr(value, field) for field in fixed),
            tuple(getattr(value, field) for field in free),
        )
        return [(pytree.GetAttrKey(field), getattr(value, field)) for field in children], structure

    def flatten(value: Any) -> tuple[list[Any], _Structure]:
        children, structure = flatten_with_keys(value)
        return [child for _, child in children], structure

    def unflatten(children: Iterable[Any], structure: _Structure) -> Any:
        fields: dict[str, Any] = dict.fromkeys(tensors)
        fields.update(zip(structure.children, children, strict=True))
        fields.update(zip(fixed, structure.fixed, strict=True))
        fields.update(zip(free, structure.free, strict=True))
        return cls(**fields, **{field: compute(fields) for field, compute in computed.items()})

    def load(dumped: list[Any]) -> _Structure:  # JSON has no tuples
        children, *values = dumped
        return _Structure(
            tuple(children), *(tuple(tuple(v) if isinstance(v, list) else v for v in part) for part in values)
        )

    torch.serialization.add_safe_globals([cls])  # exported programs are saved with their example
    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=name,
        to_dumpable_context=lambda structure: [structure.children, structure.fixed, structure.free],
        from_dumpable_context=load,
        flatten_with_keys_fn=flatten_with_keys,
    )
