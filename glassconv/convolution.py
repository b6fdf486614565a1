"""The equivariant convolution and the spherical harmonics: arguments checked, backend chosen."""

from __future__ import annotations

import dataclasses
from math import sqrt
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from glassconv import _native
from glassconv._autocast import autocasts, widened
from glassconv._compile import constant_when_compiled
from glassconv.graph import Graph
from glassconv.paths import PathEntry, Paths
from glassconv.reference.convolution import conv as _reference_conv
from glassconv.reference.spherical_harmonics import checked_arguments
from glassconv.reference.spherical_harmonics import spherical_harmonics as _reference_spherical_harmonics

__all__ = ["PathEntry", "Paths", "conv", "spherical_harmonics"]


@constant_when_compiled
def _native_is_chosen(device_type: str) -> bool:
    # a constant for torch.compile, which could trace neither the environment nor the loading of the extension
    return _native.runs_on(device_type)


def _is_transformed(tensor: Tensor) -> bool:
    """Whether the tensor carries a tangent, or is an argument that a transform of torch.func differentiates.

    An operator with derivative formulas of its own ignores tangents, in silence: what comes out has none.
    """
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)  # what vmap batches may itself be such an argument
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


@constant_when_compiled
def _is_inside_transform() -> bool:
    # constant for one compilation: torch.compile guards on the stack itself
    levels = _functorch.get_interpreter_stack() or []
    differentiating = (_functorch.TransformType.Grad, _functorch.TransformType.Jvp)
    return any(level.key() in differentiating for level in levels)


def _runs_natively(*tensors: Tensor | None) -> bool:
    given = [tensor for tensor in tensors if tensor is not None]
    if not _native_is_chosen(given[0].device.type):  # all are on one device
        return False
    if torch.compiler.is_compiling():
        # the stack first: a level that the traced code itself enters (jvp) must not be guarded on
        return not _is_inside_transform() and forward_ad._current_level < 0
    return not any(_is_transformed(tensor) for tensor in given)


def _n_rows(value: Any) -> int:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() > 0 else 0


def _check_exactly_one(names: str, given: int) -> None:
    if given != 1:
        raise ValueError(f"{names}: expected exactly one of them, got {'both' if given else 'neither'}")


def _check(name: str, value: Any, axes: tuple[str, ...], shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse what is not a floating-point tensor of this shape, with the dtype and device of `like` (x)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, of layout torch.strided, got {value.layout}")
    if value.dtype != like.dtype or value.dtype not in (torch.float32, torch.float64):
        expected = "torch.float32 or torch.float64" if value is like else f"the dtype of x, {like.dtype}"
        raise TypeError(f"{name}: expected {expected}, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{name}: expected the device of x, {like.device}, got {value.device}")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape ({', '.join(axes)}) = {shape}, got {tuple(value.shape)}")


def _with_sink(x: Tensor, graph: Graph) -> tuple[Tensor, Graph]:
    """A graph with a capacity as one without: its padding made edges of one more node, from and to itself."""
    is_edge, end = graph.edge_mask, graph.row_ptr.new_full((1,), graph.n_edges)
    edge_index = torch.where(is_edge, graph.edge_index, graph.n_nodes)
    slots = torch.arange(graph.n_edges, device=graph.device)
    closed = dataclasses.replace(
        graph,
        edge_index=edge_index,
        n_nodes=graph.n_nodes + 1,
        row_ptr=torch.cat([graph.row_ptr, end]),
        row_source=edge_index[0],
        transpose_ptr=torch.cat([graph.transpose_ptr, end]),
        transpose_slots=torch.where(is_edge, graph.transpose_slots, slots),
        n_found=None,
    )
    return torch.cat([x, x.new_zeros(1, x.shape[1])]), closed


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
    """Equivariant convolution: gather, channel-wise tensor product with harmonics, weighted sum over edges.

    For every path p, channel c and receiving node i, with C_p the Wigner 3j symbol of the path (of norm 1):

        out_i^{p,c}[m3] = sqrt(2 l_out + 1) SUM_{edges e into i} w_e^{p,c}
                          SUM_{m1,m2} C_p[m1,m2,m3] x_{source(e)}^c[m1] Y^{l_sh}_{m2}(vectors_e)

    which is e3nn's `TensorProduct(..., 'uvu', shared_weights=False)` on the edges and a plain sum over them,
    without the (E, paths x channels) messages ever being stored. Give the angular factor as `vectors` or as
    `edge_sh`, and the weights as `edge_weight` or as `radial` and `mix`: then w = radial @ mix, which is not
    stored either.

    Per-edge tensors are in the order of `graph.edge_index`. All tensors are of one dtype, float32 or
    float64, and on one device.

    | argument      | shape                      | meaning                                                |
    |---------------|----------------------------|--------------------------------------------------------|
    | `x`           | (N, `paths.irreps_in.dim`) | node features                                          |
    | `vectors`     | (E, 3)                     | receiver - source; 'component' harmonics of them       |
    | `edge_sh`     | (E, `paths.irreps_sh.dim`) | the harmonics themselves, any normalization            |
    | `edge_weight` | (E, `paths.weight_numel`)  | weights, (path, channel) flattened                     |
    | `radial`      | (E, H)                     | radial features of the edges, H >= 1                   |
    | `mix`         | (H, `paths.weight_numel`)  | their map to weights, no bias                          |

    Differentiable twice with respect to every one of them. At a zero vector the harmonics with l > 0 and all
    their derivatives are 0. Non-finite inputs give non-finite outputs at the nodes they reach; which of inf
    and NaN is not specified.

    The sum is over the edges that the graph has. One with ``half=True`` has each pair once, and only one node
    of a pair then hears of the other: convolutions want full graphs. For one in spatial order, node tensors
    are in the order of its nodes.

    For a graph with a capacity, what the per-edge tensors hold where there is no edge does not matter, and
    their gradients there are zero.

    Forward-mode derivatives and the transforms of `torch.func` (`jvp`, `grad`, ...) run the reference, which
    stores the messages: for large graphs take ordinary autograd.

    Returns:
        (N, `paths.irreps_out.dim`), the dtype of `x`; zero for nodes that no edge enters.

    Raises:
        TypeError: something that is not a dense tensor, or dtypes that differ.
        ValueError: a wrong shape or device, or not exactly one form of the angular factor and of the weights.

    Source: e3nn 0.6 `o3.TensorProduct`; the same definition, readable, is `glassconv.reference.conv`.

    """
    if autocasts(x):
        with torch.autocast(x.device.type, enabled=False):
            return conv(
                widened(x),
                graph,
                paths,
                vectors=widened(vectors),
                edge_sh=widened(edge_sh),
                edge_weight=widened(edge_weight),
                radial=widened(radial),
                mix=widened(mix),
            )
    if not isinstance(graph, Graph):
        raise TypeError(f"graph: expected glassconv.Graph, got {type(graph).__name__}")
    graph = graph.torch()
    if not isinstance(paths, Paths):
        raise TypeError(f"paths: expected glassconv.Paths, got {type(paths).__name__}")
    _check_exactly_one("vectors, edge_sh", (vectors is not None) + (edge_sh is not None))
    low_rank = radial is not None or mix is not None
    _check_exactly_one("edge_weight, (radial and mix)", (edge_weight is not None) + low_rank)
    if low_rank and (radial is None or mix is None):
        raise ValueError(f"radial, mix: expected both, got only {'mix' if radial is None else 'radial'}")
    n_nodes, n_edges = graph._n_rows(), graph.edge_index.shape[1]
    _check("x", x, ("n_nodes", "paths.irreps_in.dim"), (n_nodes, paths.dim_in), x)
    if graph.edge_index.device != x.device:
        raise ValueError(f"graph: expected the device of x, {x.device}, got {graph.edge_index.device}")
    if vectors is not None:
        _check("vectors", vectors, ("n_edges", "3"), (n_edges, 3), x)
    else:
        _check("edge_sh", edge_sh, ("n_edges", "paths.irreps_sh.dim"), (n_edges, paths.dim_sh), x)
    if low_rank:
        n_radial = _n_rows(mix)
        _check("mix", mix, ("n_radial", "paths.weight_numel"), (n_radial, paths.weight_numel), x)
        if n_radial == 0:
            raise ValueError("mix: expected at least one radial feature (n_radial >= 1), got 0")
        _check("radial", radial, ("n_edges", "n_radial"), (n_edges, n_radial), x)
    else:
        _check(
            "edge_weight", edge_weight, ("n_edges", "paths.weight_numel"), (n_edges, paths.weight_numel), x
        )

    runs_natively = _runs_natively(x, vectors, edge_sh, edge_weight, radial, mix)
    if graph.n_found is not None:
        is_edge = graph.edge_mask[:, None]
        vectors, edge_sh, edge_weight, radial = (
            None if value is None else torch.where(is_edge, value, 0.0)
            for value in (vectors, edge_sh, edge_weight, radial)
        )
        # kernels for a GPU end where the rows do
        x, graph = (x, graph) if runs_natively and x.is_cuda else _with_sink(x, graph)
    out: Tensor
    if not runs_natively:
        out = _reference_conv(
            x, graph, paths, vectors=vectors, edge_sh=edge_sh, edge_weight=edge_weight, radial=radial, mix=mix
        )
        return out if out.shape[0] == n_nodes else out[:n_nodes]
    out = torch.ops.glassconv.conv(
        x,
        edge_sh if vectors is None else vectors,
        edge_weight if radial is None else radial,
        mix,
        graph.row_ptr,
        graph.row_source,
        graph.perm,
        graph.transpose_ptr,
        graph.transpose_slots,
        paths.spec,
        vectors is None,
    )
    return out if out.shape[0] == n_nodes else out[:n_nodes]


def spherical_harmonics(vectors: Tensor, l_max: SupportsIndex, normalization: str = "component") -> Tensor:
    """Real spherical harmonics of the directions of `vectors`, l = 0..l_max, differentiable twice.

    Conventions of e3nn: polar axis y, components m = -l..l in ascending order, Y_1 proportional to (x, y, z).
    At a zero vector Y_0 is as always, and every Y_l with l > 0 and all its derivatives are 0. A vector whose
    components are all subnormal numbers counts as zero. A vector with a component that is infinite or NaN has
    no direction: all its harmonics, Y_0 included, are NaN.

    Args:
        vectors: (E, 3), any length, float32 or float64.
        l_max: highest degree, 0 to 4.
        normalization: `"component"` (|Y_l|^2 = 2l+1), `"norm"` (|Y_l| = 1) or `"integral"`
            (|Y_l|^2 = (2l+1) / 4 pi).

    Returns:
        (E, (l_max+1)^2), the degrees one after the other.

    Raises:
        TypeError: not a dense tensor of float32 or float64, or a degree that is no integer.
        ValueError: wrong shape, degree or normalization.

    Source: e3nn 0.6 `o3.spherical_harmonics`, whose default normalization is 'integral'.

    """
    if autocasts(vectors):
        with torch.autocast(vectors.device.type, enabled=False):
            return spherical_harmonics(widened(vectors), l_max, normalization)
    _check("vectors", vectors, ("n_edges", "3"), (_n_rows(vectors), 3), vectors)
    l_max = checked_arguments(l_max, normalization)
    if not _runs_natively(vectors):
        return _reference_spherical_harmonics(vectors, l_max, normalization)
    out: Tensor = torch.ops.glassconv.spherical_harmonics(vectors, l_max)
    if normalization == "component":
        return out
    if normalization == "integral":
        return out * (1 / sqrt(4 * torch.pi))
    return torch.cat([out[:, l * l : (l + 1) ** 2] / sqrt(2 * l + 1) for l in range(l_max + 1)], dim=1)
