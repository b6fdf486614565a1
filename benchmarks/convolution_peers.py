"""The convolution as the users of each library write it: gather, harmonics, tensor product, sum over edges.

Each maker takes paths and a graph and gives a function of the arguments of `glassconv.conv`. With low-rank
weights, the product radial @ mix belongs to the others' operator as it does to ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from convolution_counts import DIRECTIONS
from e3nn import get_optimization_defaults, o3, set_optimization_defaults
from torch import Tensor

import glassconv
from glassconv import Graph, Paths

Conv = Callable[[dict[str, Tensor]], Tensor]


def glassconv_conv(paths: Paths, graph: Graph) -> Conv:
    """The public call."""

    def conv(tensors: dict[str, Tensor]) -> Tensor:
        rest = {name: value for name, value in tensors.items() if name != "x"}
        return glassconv.conv(tensors["x"], graph, paths, **rest)

    return conv


def weights(tensors: dict[str, Tensor]) -> Tensor:
    """One weight per edge, path and channel."""
    return tensors["edge_weight"] if "edge_weight" in tensors else tensors["radial"] @ tensors["mix"]


def harmonics_of(paths: Paths) -> Callable[[Tensor], Tensor]:
    """The harmonics of vectors, as e3nn's users compute them; parity does not enter the values."""
    degrees = [int(irrep.l) for _, irrep in paths.irreps_sh]  # plain numbers, for torch.compile

    def harmonics(vectors: Tensor) -> Tensor:
        return o3.spherical_harmonics(degrees, vectors, normalize=True, normalization="component")

    return harmonics


def around(product: Callable[[Tensor, Tensor, Tensor], Tensor], paths: Paths, graph: Graph) -> Conv:
    """A tensor product of the edges made a convolution: gather, e3nn's harmonics, sum over the edges."""
    (source, receiver), n_nodes, harmonics = graph.edge_index, graph.n_nodes, harmonics_of(paths)

    def conv(tensors: dict[str, Tensor]) -> Tensor:
        messages = product(tensors["x"][source], harmonics(tensors["vectors"]), weights(tensors))
        return messages.new_zeros(n_nodes, messages.shape[1]).index_add(0, receiver, messages)

    return conv


def e3nn_product(
    paths: Paths, device: torch.device, mode: str | None = None, dtype: torch.dtype = torch.float32
) -> o3.TensorProduct:
    """The tensor product in e3nn, weights in our order.

    Args:
        paths: the paths.
        device: where its constants lie.
        mode: e3nn's `jit_mode`: "eager" (the code that it generates, run by PyTorch), "script" (compiled by
            TorchScript); None for e3nn's default, "script" below PyTorch 2.10 and "eager" from there on.
        dtype: of its constants, which are rounded to the default type while it is built.
    """
    default, default_dtype = get_optimization_defaults()["jit_mode"], torch.get_default_dtype()
    set_optimization_defaults(jit_mode=mode or default)
    torch.set_default_dtype(dtype)
    try:
        return o3.TensorProduct(
            paths.irreps_in,
            paths.irreps_sh,
            paths.irreps_out,
            list(paths.instructions),
            shared_weights=False,
            internal_weights=False,
        ).to(device)
    finally:
        set_optimization_defaults(jit_mode=default)
        torch.set_default_dtype(default_dtype)


def e3nn(paths: Paths, graph: Graph, dtype: torch.dtype = torch.float32, *, mode: str | None = None) -> Conv:
    """Its TensorProduct; `mode` as for `e3nn_product`."""
    return around(e3nn_product(paths, graph.device, mode, dtype), paths, graph)


def e3nn_script(paths: Paths, graph: Graph, dtype: torch.dtype = torch.float32) -> Conv:
    """The same, compiled by TorchScript."""
    return e3nn(paths, graph, dtype, mode="script")


def e3nn_compiled(paths: Paths, graph: Graph, dtype: torch.dtype = torch.float32) -> Conv:
    """The whole of it through torch.compile."""
    compiled: Conv = torch.compile(e3nn(paths, graph, dtype, mode="eager"))
    return compiled


def cuequivariance(paths: Paths, graph: Graph, dtype: torch.dtype = torch.float32, **options: Any) -> Conv:
    """Its channel-wise tensor product, between e3nn's harmonics and the sum; options are those of its class.

    For irreps that both libraries order in the same way: of each degree one parity.
    """
    import cuequivariance as cue
    import cuequivariance_torch as cuet

    def irreps(value: object) -> Any:
        return cue.Irreps("O3", str(value))

    outputs = list(dict.fromkeys(str(irrep) for _, irrep in paths.irreps_out))
    product = cuet.ChannelWiseTensorProduct(
        irreps(paths.irreps_in),
        irreps(paths.irreps_sh),
        [irrep for _, irrep in irreps("+".join(outputs))],
        layout=cue.mul_ir,
        shared_weights=False,
        internal_weights=False,
        device=graph.device,
        dtype=dtype,
        **options,
    )
    found = str(product.irreps_out).replace(" ", "")
    expected = "+".join(f"{mul}x{irrep}" for mul, irrep in paths.irreps_out)
    if found != expected:
        raise RuntimeError(f"another order of blocks: {found}, not {expected}")
    return around(product, paths, graph)


def cuequivariance_naive(paths: Paths, graph: Graph, dtype: torch.dtype = torch.float32) -> Conv:
    """Its plain PyTorch method, the one that runs without a GPU."""
    return cuequivariance(paths, graph, dtype, method="naive", math_dtype=dtype)


OURS = "glassconv"
PEERS: dict[str, Callable[[Paths, Graph, torch.dtype], Conv]] = {
    OURS: lambda paths, graph, _dtype: glassconv_conv(paths, graph),
    "e3nn": e3nn,
    "e3nn TorchScript": e3nn_script,
    "e3nn torch.compile": e3nn_compiled,
    "cuequivariance naive": cuequivariance_naive,
}


def make_call(conv: Conv, inputs: dict[str, Tensor], direction: str) -> Callable[[], tuple[Tensor, ...]]:
    """The call of one direction, which returns its results; what precedes it is done here, once.

    Args:
        conv: the convolution.
        inputs: its arguments, which are not changed.
        direction: "forward", without a record for derivatives; "backward": the gradients of all inputs, from
            a given gradient of the output; "both": forward and backward; "double": the gradients of the
            gradients of all inputs, contracted with given cotangents, in the inputs and the gradient of the
            output.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")
    leaves = {name: value.detach().requires_grad_(direction != "forward") for name, value in inputs.items()}
    if direction == "forward":
        return lambda: (conv(leaves),)
    generator = torch.Generator().manual_seed(2)
    wanted = list(leaves.values())

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    if direction == "both":
        cotangents: list[Tensor] = []  # known when the first output is

        def both() -> tuple[Tensor, ...]:
            out = conv(leaves)
            if not cotangents:
                cotangents.append(like(out))
            return torch.autograd.grad(out, wanted, cotangents)

        return both
    out = conv(leaves)
    cotangent = like(out)
    if direction == "backward":
        return lambda: torch.autograd.grad(out, wanted, cotangent, retain_graph=True)
    cotangent.requires_grad_()
    first = torch.autograd.grad(out, wanted, cotangent, create_graph=True)
    given = [like(gradient) for gradient in first]
    return lambda: torch.autograd.grad(first, [*wanted, cotangent], given, retain_graph=True)


def difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Largest ||found - expected|| / ||expected|| of the results; infinite if not comparable."""
    if len(found) != len(expected):
        return float("inf")
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    return max(error if error == error else float("inf") for error in errors)
