"""One layer of the network: skip connection, convolution, normalization, residual."""

from __future__ import annotations

from typing import Any

import torch
from e3nn.o3 import Irrep, Irreps
from torch import Tensor

from glassconv.nn.batch import Batch
from glassconv.nn.convolution import EquivariantConv, reachable
from glassconv.nn.equivariant import BatchNorm


class Layer(torch.nn.Module):
    """h^k = BatchNorm(EquivariantConv(x, h^(k-1))) [+ h^(k-1) where the irreps agree].

    Args:
        irreps_input: irreps of the node input x, scalars.
        irreps_hidden: irreps of h^(k-1), sorted; empty for the first layer.
        wanted: irreps of h^k, of which those are kept that a path reaches.
        convolution: options of `EquivariantConv`.
        momentum: of the batch normalization over nodes.
    """

    def __init__(
        self,
        irreps_input: Irreps,
        irreps_hidden: Irreps,
        wanted: Irreps,
        convolution: dict[str, Any],
        momentum: float,
    ) -> None:
        super().__init__()
        merged, self._insert_at = _merge(irreps_input, irreps_hidden)
        within_reach = reachable(merged, convolution["l_max"])
        self.irreps_out = Irreps([(mul, ir) for mul, ir in wanted if ir in within_reach])
        self.conv = EquivariantConv(merged, self.irreps_out, **convolution)
        self.norm = BatchNorm(self.irreps_out, momentum=momentum)
        self.residual = self.irreps_out == irreps_hidden

    def forward(self, x: Tensor, h: Tensor, batch: Batch) -> Tensor:
        """Node input (N, irreps_input.dim) and features (N, irreps_hidden.dim) -> (N, irreps_out.dim)."""
        merged = torch.cat([h[:, : self._insert_at], x, h[:, self._insert_at :]], dim=1)
        mixed = self.conv(merged, batch.graph, batch.vectors, edge_features=batch.edge_features)
        out: Tensor = self.norm(mixed)
        return h + out if self.residual else out


def hidden_irreps(channels: int, l_max: int, parity: str) -> Irreps:
    """C x (0e+1o+2e+...), or C x (0o+0e+1o+1e+...), in e3nn's order."""
    irreps = [Irrep(degree, p) for degree in range(l_max + 1) for p in (-1, 1)]
    if parity == "natural":
        irreps = [ir for ir in irreps if ir.p == (-1) ** ir.l]
    return Irreps([(channels, ir) for ir in irreps])


def _merge(irreps_input: Irreps, irreps_hidden: Irreps) -> tuple[Irreps, int]:
    """Irreps of scalars put in front of the scalars of sorted hidden irreps, and the column where they go."""
    before = Irreps([(mul, ir) for mul, ir in irreps_hidden if ir < Irrep("0e")])
    after = Irreps([(mul, ir) for mul, ir in irreps_hidden if not ir < Irrep("0e")])
    return (before + irreps_input + after).simplify(), before.dim
