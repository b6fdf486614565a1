"""The convolution in plain PyTorch: the definition that the native kernels are tested against."""

from __future__ import annotations

from functools import cache
from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from glassconv._compile import constant_when_compiled
from glassconv.reference.spherical_harmonics import spherical_harmonics

if TYPE_CHECKING:
    from glassconv.convolution import Paths
    from glassconv.neighbors import Graph


@constant_when_compiled
def _scaled_wigner_3j(l_in: int, l_sh: int, l_out: int) -> Any:
    from e3nn import o3

    with _disable_current_modes():  # torch.export would trace how e3nn computes them
        wigner = o3.wigner_3j(l_in, l_sh, l_out, dtype=torch.float64, device="cpu")
        return (sqrt(2 * l_out + 1) * wigner).tolist()


@cache
def _kept_coupling(l_in: int, l_sh: int, l_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept must serve callers in any mode
        return torch.tensor(_scaled_wigner_3j(l_in, l_sh, l_out), dtype=dtype, device=device)


def coupling(l_in: int, l_sh: int, l_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """e3nn's Wigner 3j symbol (Frobenius norm 1) times sqrt(2 l_out + 1): (2 l_in+1, 2 l_sh+1, 2 l_out+1).

    Computed in float64 and rounded once, whatever the default dtype.
    """
    # tracing sees through caches, or would leave its own tensors in them; numbers it can take as constants
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return torch.tensor(_scaled_wigner_3j(l_in, l_sh, l_out), dtype=dtype, device=device)
    return _kept_coupling(l_in, l_sh, l_out, dtype, device)


def conv(
    x: Tensor,
    graph: Graph,
    paths: Paths,
    *,
    vectors: Tensor | None = None,
    edge_sh: Tensor | None = None,
    edge_weight: Tensor | None = None,
    radial: Tensor | None = None,
    mix: Tensor | None = None,
) -> Tensor:
    """Equivariant convolution over the edges of `graph`; arguments and result as in `glassconv.conv`.

    That function checks them; here they are taken as valid.

    For every path p, channel c and node i:

        out_i^{p,c}[m3] = sqrt(2 l_out + 1) SUM_{edges e into i} w_e^{p,c}
                          SUM_{m1,m2} C_p[m1,m2,m3] x_{source(e)}^c[m1] Y^{l_sh}_{m2}(vectors_e)
    """
    graph = graph.torch()
    source, receiver = graph.edge_index
    if graph.n_found is not None:  # the padding holds no nodes
        is_edge = graph.edge_mask
        source, receiver = source[is_edge], receiver[is_edge]
        vectors, edge_sh, edge_weight, radial = (
            None if value is None else value[is_edge] for value in (vectors, edge_sh, edge_weight, radial)
        )
    if edge_weight is None:
        assert radial is not None
        assert mix is not None
        edge_weight = radial @ mix
    harmonics = None if vectors is None else spherical_harmonics(vectors, paths.l_sh_max)
    x_source = x.index_select(0, source)
    out = []
    for path in paths.entries:
        dim_in, dim_sh, dim_out = 2 * path.l_in + 1, 2 * path.l_sh + 1, 2 * path.l_out + 1
        columns = slice(path.in_offset, path.in_offset + path.mul * dim_in)
        features = x_source[:, columns].reshape(-1, path.mul, dim_in)
        if harmonics is not None:
            angular = harmonics[:, path.l_sh**2 : (path.l_sh + 1) ** 2]
        else:
            assert edge_sh is not None
            angular = edge_sh[:, path.sh_offset : path.sh_offset + dim_sh]
        weight = edge_weight[:, path.weight_offset : path.weight_offset + path.mul]
        wigner = coupling(path.l_in, path.l_sh, path.l_out, x.dtype, x.device)
        matrix = torch.einsum("ej,ijk->eik", angular, wigner)
        message = weight[:, :, None] * torch.einsum("eci,eik->eck", features, matrix)
        block = message.new_zeros(x.shape[0], path.mul * dim_out)
        out.append((path.out_offset, block.index_add(0, receiver, message.reshape(-1, path.mul * dim_out))))
    return torch.cat([block for _, block in sorted(out, key=lambda item: item[0])], dim=1)
