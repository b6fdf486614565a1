"""From equivariant node features to invariants, and from invariants to predictions per particle type."""

from __future__ import annotations

from math import sqrt

import torch
from e3nn.o3 import Irreps
from torch import Tensor

from glassconv.nn.radial import safe_norm


def invariants(h: Tensor, irreps: Irreps) -> Tensor:
    """Invariants of node features: the scalars as they are, the norm of every other channel.

    Args:
        h: (N, irreps.dim).
        irreps: irreps of `h`. Pseudoscalars (0o) change sign on inversion, so they too give their norm.

    Returns:
        (N, irreps.num_irreps), in the order of the channels. The norm has derivatives 0 at a zero vector.
    """
    return _invariants(h, _blocks(irreps))


def _blocks(irreps: Irreps) -> list[tuple[int, int, bool]]:
    """Multiplicity, dimension and whether it is a scalar, of each block: torch.compile cannot read irreps."""
    return [(mul, ir.dim, ir.is_scalar()) for mul, ir in irreps]


def _invariants(h: Tensor, blocks: list[tuple[int, int, bool]]) -> Tensor:
    columns = []
    channels_of = h.split([mul * dim for mul, dim, _ in blocks], dim=1)
    for (mul, dim, is_scalar), channels in zip(blocks, channels_of, strict=True):
        columns.append(channels if is_scalar else safe_norm(channels.reshape(-1, mul, dim)))
    return torch.cat(columns, dim=1)


class Readout(torch.nn.Module):
    """y_i = W_{type(i)} z_i + b_{type(i)}, with z_i the invariants of node i: all outputs at once.

    Args:
        irreps_in: irreps of the node features.
        n_types: number of particle types, each with a linear map of its own.
        n_outputs: number of outputs.
    """

    def __init__(self, irreps_in: str | Irreps, n_types: int, n_outputs: int) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        self._blocks = _blocks(self.irreps_in)
        n_invariants = self.irreps_in.num_irreps
        bound = 1 / sqrt(n_invariants)
        self.weight = torch.nn.Parameter(
            torch.empty(n_types, n_invariants, n_outputs).uniform_(-bound, bound)
        )
        self.bias = torch.nn.Parameter(torch.zeros(n_types, n_outputs))

    def forward(self, h: Tensor, types: Tensor) -> Tensor:
        """Node features (N, irreps_in.dim) and types (N,) int64 -> (N, n_outputs)."""
        z = _invariants(h, self._blocks)
        per_type = torch.einsum("nz,szt->nst", z, self.weight) + self.bias
        # a masked sum, not an index: its gradient is a product, deterministic on every device
        is_type = torch.nn.functional.one_hot(types, self.weight.shape[0]).to(per_type.dtype)
        return (per_type * is_type[:, :, None]).sum(dim=1)

    def extra_repr(self) -> str:
        """Sizes, for `repr`."""
        n_types, _, n_outputs = self.weight.shape
        return f"{self.irreps_in}, n_types={n_types}, n_outputs={n_outputs}"
