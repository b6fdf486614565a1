"""Edges of any origin: what is wrong with them, their rows, and the opposite of each."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from glassconv._arrays import tensor_with_values

_INT32_MAX = torch.iinfo(torch.int32).max


def offsets_of(index: Tensor, n_groups: int) -> Tensor:
    """(n_groups + 1) int64: where each group begins once ``index`` (values below ``n_groups``) is sorted."""
    offsets = torch.zeros(n_groups + 1, dtype=torch.int64, device=index.device)
    offsets[1:] = torch.bincount(index, minlength=n_groups).cumsum(0)
    return offsets


def is_sorted(values: Tensor) -> bool:
    """Whether no value is below the one before it."""
    return bool((values[1:] >= values[:-1]).all())


def check_edges(edges: Any, n_nodes: Any) -> tuple[Tensor, int]:
    """``edge_index (2, n_edges)`` and ``n_nodes`` of a graph that is given."""
    is_bool = isinstance(n_nodes, bool)  # which Python counts among the integers
    if is_bool or not isinstance(n_nodes, numbers.Integral | torch.SymInt):
        raise ValueError(f"n_nodes: expected an integer, got {n_nodes!r}")
    is_traced = torch.compiler.is_compiling()  # what runs later looks at the values, and sizes stay symbols
    if not is_traced:
        n_nodes = int(n_nodes)
    # the product of two nodes is a sort key of 64 bits
    if not is_traced and not 0 <= n_nodes <= _INT32_MAX:
        raise ValueError(f"n_nodes: expected a number of nodes from 0 to {_INT32_MAX}, got {n_nodes}")
    edge_index = tensor_with_values("edge_index", edges)
    if isinstance(edges, list | tuple) and edge_index.numel() == 0:
        edge_index = edge_index.to(torch.int64)  # nothing in it tells that they are integers
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index: expected shape (2, n_edges), got {tuple(edge_index.shape)}")
    if edge_index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"edge_index: expected int64 or int32, got {edge_index.dtype}")
    outside = (edge_index < 0) | (edge_index >= n_nodes)
    if is_traced:
        torch._assert_async(~outside.any(), "edge_index: expected nodes from 0 to n_nodes - 1, got others")
    elif bool(outside.any()):
        edge = int(outside.any(dim=0).nonzero()[0])
        pair = edge_index[:, edge].tolist()
        raise ValueError(f"edge_index: expected nodes from 0 to {n_nodes - 1}, got {pair} at edge {edge}")
    return edge_index, n_nodes


def check_shifts(given: Any, n_edges: int) -> Tensor:
    """``shifts (n_edges, 3)`` of a graph that is given."""
    shifts = tensor_with_values("shifts", given)
    if shifts.shape != (n_edges, 3):
        raise ValueError(f"shifts: expected shape ({n_edges}, 3), got {tuple(shifts.shape)}")
    if shifts.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8):
        raise ValueError(f"shifts: expected signed integers (unit: cell vectors), got {shifts.dtype}")
    # two comparisons: the smallest integer has no absolute value
    outside = (shifts.to(torch.int64) > _INT32_MAX) | (shifts.to(torch.int64) < -_INT32_MAX)
    if torch.compiler.is_compiling():
        torch._assert_async(~outside.any(), f"shifts: expected magnitudes up to {_INT32_MAX}, got others")
    elif bool(outside.any()):
        edge = int(outside.any(dim=1).nonzero()[0])
        got = shifts[edge].tolist()
        raise ValueError(f"shifts: expected magnitudes up to {_INT32_MAX}, got {got} at edge {edge}")
    return shifts


def reverse_edges(edge_index: Tensor, shifts: Tensor, n_nodes: int) -> Tensor | None:
    """The opposite of every edge, or None; the k-th of several equal edges gets the k-th of their opposites.

    Sorting edges by (source, receiver, shift) and by (receiver, source, -shift) lines up the opposites.
    """
    source, receiver = edge_index[0], edge_index[1]
    has_shifts = bool(shifts.any())
    forward, backward = source * n_nodes + receiver, receiver * n_nodes + source
    first = _lexicographic_order(forward, shifts, has_shifts)
    second = _lexicographic_order(backward, -shifts, has_shifts)
    if not (torch.equal(forward[first], backward[second]) and torch.equal(shifts[first], -shifts[second])):
        return None
    reverse = torch.empty_like(first)
    reverse[first] = second
    return reverse


def _lexicographic_order(pair: Tensor, shifts: Tensor, has_shifts: bool) -> Tensor:
    """Indices that sort by ``pair``, then by shift; equal edges stay in their order."""
    order = torch.arange(len(pair), device=pair.device)
    for key in ([shifts[:, 2], shifts[:, 1], shifts[:, 0]] if has_shifts else []) + [pair]:
        order = order[torch.argsort(key[order], stable=True)]
    return order
