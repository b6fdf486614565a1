"""What the tests on a GPU share: when they can run, their irreps, and tensors on both sides."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from oracles import SMALL_CASES, Case
from torch import Tensor

from glassconv import Graph, _native


def why_not() -> str | None:
    """The reason why nothing runs on a GPU here, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None if _native.has_cuda() else "native extension built without CUDA"


needs_cuda = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
needs_two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")

SO3 = "0e+1e+2e+3e"
CASES = {
    "so3-8-l3": Case("8x0e+8x1e+8x2e+8x3e", SO3, SO3),
    **{name: SMALL_CASES[name] for name in ("glass-8-l3", "tiny", "odd", "wide-l2", "both-parities", "l4")},
}

# Relative to float64 on the CPU. Sums over tens of edges and paths: forward some ten roundings, gradients ten
# times as many, and float64 has a factor of a hundred to spare.
TOLERANCE = {torch.float64: (1e-13, 1e-13), torch.float32: (2e-6, 2e-5)}


def on_gpu(arguments: Mapping[str, Tensor], dtype: torch.dtype, device: str = "cuda") -> dict[str, Tensor]:
    """Arguments of `glassconv.conv`, moved."""
    return {name: value.to(device, dtype) for name, value in arguments.items()}


def sorted_by_receiver(graph: Graph) -> Graph:
    """The same edges in the order that needs no permutation."""
    order = graph.edge_index[1].argsort(stable=True)
    return Graph.from_edge_index(graph.edge_index[:, order], graph.n_nodes)
