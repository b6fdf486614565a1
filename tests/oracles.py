"""Independent implementations of the convolution (e3nn, cuEquivariance), and the inputs it is compared on.

Every comparison is `relative_error(ours, float64 oracle)`: ||a - b|| / ||b|| over a whole tensor. Inputs are
numbers that float32 represents exactly, so that both precisions are compared with one oracle, evaluated once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor

from glassconv import Graph, Paths

try:
    import cuequivariance as cue
    import cuequivariance_torch as cuet
except ImportError:  # a machine with a GPU need not hold it: e3nn remains
    cue = cuet = None

FORMS = ("vectors-explicit", "vectors-lowrank", "sh-explicit", "sh-lowrank")
DTYPES = (torch.float64, torch.float32)

# Relative to the float64 oracle. float64: a few hundred roundings of 1.1e-16 that add up like a random
# walk, with a factor of some hundred to spare. float32: the same with roundings of 6e-8.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6}


class Case(NamedTuple):
    """Irreps of one convolution: input, harmonics, allowed outputs."""

    irreps_in: str
    irreps_sh: str
    irreps_out: str

    @property
    def paths(self) -> Paths:
        return Paths(*self)


NATURAL = ("0e", "0e+1o", "0e+1o+2e", "0e+1o+2e+3o", "0e+1o+2e+3o+4e")
BOTH = "0o+0e+1o+1e+2o+2e+3o+3e"


def _natural(channels: int, l_max: int) -> Case:
    irreps = NATURAL[l_max]
    return Case("+".join(f"{channels}x{irrep}" for irrep in irreps.split("+")), irreps, irreps)


SMALL_CASES = {
    "glass-8-l1": _natural(8, 1),
    "glass-8-l2": _natural(8, 2),
    "glass-8-l3": _natural(8, 3),
    "glass-first-2": Case("2x0e", NATURAL[3], NATURAL[3]),
    "glass-first-3": Case("3x0e", NATURAL[3], NATURAL[3]),
    "tiny": Case("4x0e+3x1o+2x2e", NATURAL[2], "0e+0o+1o+1e+2e+2o+3o+3e"),
    "single": Case("1x1o", NATURAL[3], "0e+1o+1e+2e+2o+3o+4e"),
    "odd": Case("5x0e+13x1o", NATURAL[3], NATURAL[3]),
    "wide-l2": Case("33x2e", NATURAL[2], NATURAL[3]),
    "l4": _natural(3, 4),
    "l4-even": Case("2x0e+1x1e+3x2e+1x3e+2x4e", "0e+1e+2e+3e+4e", "0e+1e+2e+3e+4e"),
    "both-parities": Case("4x0o+4x0e+5x1o+3x1e+2x2o+1x2e", NATURAL[2], BOTH),
    "unsorted-with-gaps": Case("2x2e+0x1o+3x0e+2x1o+4x0e", "2e+0e", "2e+0e"),
    "even-harmonics": Case("4x0e+4x1e+4x2e", "0e+1e+2e", "1e+2e"),
}

# What the networks of the field use; C = 32 to 128 channels, so on small graphs.
PEER_CASES = {
    "mace-large": Case("128x0e+128x1o+128x2e", NATURAL[3], NATURAL[3]),
    "nequip-lips": Case("32x0o+32x0e+32x1o+32x1e+32x2o+32x2e", NATURAL[2], "0o+0e+1o+1e+2o+2e"),
    "nequip-benzene": Case("64x0o+64x0e+64x1o+64x1e+64x2o+64x2e+64x3o+64x3e", NATURAL[3], BOTH),
    "sevennet-l3i5": Case("128x0e+64x1e+32x2e+32x3e", "0e+1e+2e+3e", "0e+1e+2e+3e"),
    "nequix": Case("128x0e+64x1o+32x2e+32x3o", NATURAL[3], NATURAL[3]),
    "glass-4-l3": _natural(4, 3),
    "glass-16-l3": _natural(16, 3),
    "glass-32-l3": _natural(32, 3),
    "glass-32-l2": _natural(32, 2),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(shape: tuple[int, ...] | torch.Size, seed: int) -> Tensor:
    """Standard normal numbers in float64 that float32 represents exactly."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float32).double()


def random_graph(n_nodes: int, n_edges: int, seed: int = 0) -> Graph:
    """Any directed graph: unsorted, not symmetric, multi-edges, self edges, often isolated nodes."""
    return Graph.from_edge_index(torch.randint(n_nodes, (2, n_edges), generator=generator(seed)), n_nodes)


def random_vectors(n_edges: int, seed: int = 1) -> Tensor:
    """Edge vectors of length 0.8 to 2.0, the distances of neighbors in a liquid; exact in float32."""
    directions = torch.nn.functional.normalize(normal((n_edges, 3), seed), dim=1)
    lengths = 0.8 + 1.2 * torch.rand(n_edges, 1, generator=generator(seed + 1), dtype=torch.float64)
    return (directions * lengths).float().double()


def random_arguments(
    paths: Paths, graph: Graph, form: str, n_radial: int = 6, seed: int = 0
) -> dict[str, Tensor]:
    """Tensor arguments of `conv` in one of the four `FORMS`, float64."""
    n_edges = graph.edge_index.shape[1]
    angular, weights = form.split("-")
    arguments = {"x": normal((graph.n_nodes, paths.irreps_in.dim), seed + 10)}
    if angular == "vectors":
        arguments["vectors"] = random_vectors(n_edges, seed + 20)
    else:  # free numbers, not harmonics of anything: the operator must not assume more
        arguments["edge_sh"] = normal((n_edges, paths.irreps_sh.dim), seed + 30)
    if weights == "explicit":
        arguments["edge_weight"] = normal((n_edges, paths.weight_numel), seed + 40)
    else:
        arguments["radial"] = normal((n_edges, n_radial), seed + 50)
        arguments["mix"] = normal((n_radial, paths.weight_numel), seed + 60)
    return arguments


@contextmanager
def float64_by_default() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # e3nn rounds its constants to the default dtype at construction
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@lru_cache(maxsize=4)
def _e3nn_tensor_product(paths: Paths) -> o3.TensorProduct:
    with float64_by_default():
        return o3.TensorProduct(
            paths.irreps_in,
            paths.irreps_sh,
            paths.irreps_out,
            list(paths.instructions),
            shared_weights=False,
            internal_weights=False,
        )


def e3nn_conv(
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
    """The convolution as e3nn users write it: gather, `o3.TensorProduct`, scatter."""
    source, receiver = graph.edge_index
    if edge_sh is None:
        degrees = [irrep.l for _, irrep in paths.irreps_sh]
        edge_sh = o3.spherical_harmonics(degrees, vectors, normalize=True, normalization="component")
    if edge_weight is None:
        edge_weight = radial @ mix
    messages = _e3nn_tensor_product(paths)(x[source], edge_sh, edge_weight)
    return messages.new_zeros(graph.n_nodes, messages.shape[1]).index_add(0, receiver, messages)


def _cue_irreps(irreps: object) -> cue.Irreps:
    return cue.Irreps("O3", str(irreps))


@cache
def _cue_harmonics(l_max: int) -> cuet.SphericalHarmonics:
    return cuet.SphericalHarmonics(
        list(range(l_max + 1)), normalize=True, method="naive", math_dtype=torch.float64
    )


@lru_cache(maxsize=4)
def _cue_product(case: Case) -> tuple[cuet.ChannelWiseTensorProduct, Tensor, Tensor]:
    """Tensor product, and for both output columns and weights where ours stand in theirs.

    Theirs orders 0e < 0o < 1o < 1e < 2e < 2o; blocks of equal irrep come in the same order in both.
    """
    paths = case.paths
    product = cuet.ChannelWiseTensorProduct(
        _cue_irreps(case.irreps_in),
        _cue_irreps(case.irreps_sh),
        [irrep for _, irrep in _cue_irreps(case.irreps_out)],
        layout=cue.mul_ir,
        shared_weights=False,
        internal_weights=False,
        method="naive",
        math_dtype=torch.float64,
    )
    theirs = o3.Irreps(str(product.irreps_out))
    # stable: cuEquivariance block number of each of our blocks
    order = sorted(range(len(theirs)), key=lambda block: theirs[block].ir)
    assert [theirs[block] for block in order] == list(paths.irreps_out)
    columns = torch.arange(theirs.dim).split([block.dim for block in theirs])
    weights = torch.arange(product.weight_numel).split([block.mul for block in theirs])
    return (
        product,
        torch.cat([columns[block] for block in order]),
        torch.cat([weights[block] for block in order]).argsort(),
    )


def cue_conv(
    case: Case,
    x: Tensor,
    graph: Graph,
    *,
    vectors: Tensor | None = None,
    edge_sh: Tensor | None = None,
    edge_weight: Tensor | None = None,
    radial: Tensor | None = None,
    mix: Tensor | None = None,
) -> Tensor:
    """The convolution by cuequivariance-torch, its plain PyTorch method; canonical path order only."""
    source, receiver = graph.edge_index
    product, columns, weights = _cue_product(case)
    if edge_sh is None:
        values = _cue_harmonics(max(case.paths.irreps_sh.ls))(vectors)
        edge_sh = torch.cat([values[:, ir.l**2 : (ir.l + 1) ** 2] for _, ir in case.paths.irreps_sh], dim=1)
    if edge_weight is None:
        edge_weight = radial @ mix
    messages = product(x[source], edge_sh, edge_weight[:, weights])[:, columns]
    return messages.new_zeros(graph.n_nodes, messages.shape[1]).index_add(0, receiver, messages)


def relative_error(value: Tensor, oracle: Tensor) -> float:
    """||value - oracle|| / ||oracle||, in float64; the norm of `value` itself where the oracle is zero."""
    assert value.shape == oracle.shape
    norm = oracle.double().norm()
    return float((value.double() - oracle.double()).norm() / (norm if norm > 0 else 1.0))


def derivatives(
    function: Callable[..., Tensor], arguments: Mapping[str, Tensor], seed: int = 100, order: int = 2
) -> dict[str, Tensor]:
    """Value, gradients, second derivatives of `function(**arguments)`, contracted with random cotangents.

    "d a" is the gradient of <out, c0> with respect to argument a, "dd a" that of SUM_b <d b, c_b>: it holds
    every mixed second derivative. "dd out" is the same with respect to c0.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in arguments.items()}
    out = function(**leaves)
    like = {"dtype": out.dtype, "device": out.device}
    cotangent = normal(out.shape, seed).to(**like).requires_grad_()
    results = {"value": out}
    first = torch.autograd.grad(
        out, list(leaves.values()), cotangent, create_graph=order > 1, materialize_grads=True
    )
    results |= {f"d {name}": gradient for name, gradient in zip(leaves, first, strict=True)}
    if order > 1:
        cotangents = [normal(gradient.shape, seed + 1 + i).to(**like) for i, gradient in enumerate(first)]
        # an oracle's gradient may be a constant zero (l = 0 harmonics): no second derivative to ask for
        used = [(d, c) for d, c in zip(first, cotangents, strict=True) if d.requires_grad]
        second = torch.autograd.grad(
            [d for d, _ in used],
            [*leaves.values(), cotangent],
            [c for _, c in used],
            materialize_grads=True,
        )
        results |= {f"dd {name}": gradient for name, gradient in zip([*leaves, "out"], second, strict=True)}
    return {name: value.detach() for name, value in results.items()}


@cache
def oracle_derivatives(library: str, case: Case, form: str, n_nodes: int, n_edges: int) -> dict[str, Tensor]:
    """`derivatives` in float64 by "e3nn" or "cuequivariance" on the standard random graph and arguments."""
    graph = random_graph(n_nodes, n_edges)
    arguments = random_arguments(case.paths, graph, form)
    if library == "e3nn":
        paths = case.paths
        return derivatives(lambda **tensors: e3nn_conv(tensors.pop("x"), graph, paths, **tensors), arguments)
    return derivatives(lambda **tensors: cue_conv(case, tensors.pop("x"), graph, **tensors), arguments)
