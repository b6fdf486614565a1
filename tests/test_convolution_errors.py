"""Every argument of `conv` that does not fit is refused with its name, what was expected, and what came."""

from __future__ import annotations

import re
from typing import Any

import backends
import pytest
import torch
from oracles import random_arguments, random_graph

import glassconv
from glassconv import Paths

PATHS = Paths("2x0e+3x1o", 1, "0e+1o")  # dim 11 in, 4 sh, 10 weights
N, E = 5, 12


def valid() -> dict[str, Any]:
    graph = random_graph(N, E)
    return {"graph": graph, "paths": PATHS, **random_arguments(PATHS, graph, "vectors-explicit")}


def low_rank() -> dict[str, Any]:
    graph = random_graph(N, E)
    return {"graph": graph, "paths": PATHS, **random_arguments(PATHS, graph, "sh-lowrank", n_radial=3)}


def refused(error: type[Exception], message: str, base: dict[str, Any], **changes: Any) -> None:
    with pytest.raises(error, match=re.escape(message)):
        glassconv.conv(**(base | changes))


def test_valid_arguments_pass(backend: str) -> None:
    assert PATHS.weight_numel == 10
    assert glassconv.conv(**valid()).shape == (N, PATHS.irreps_out.dim)
    assert glassconv.conv(**low_rank()).shape == (N, PATHS.irreps_out.dim)


def f64(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def test_shapes(backend: str) -> None:
    refused(
        ValueError,
        "x: expected shape (n_nodes, paths.irreps_in.dim) = (5, 11), got (5, 10)",
        valid(),
        x=f64(5, 10),
    )
    refused(
        ValueError,
        "x: expected shape (n_nodes, paths.irreps_in.dim) = (5, 11), got (4, 11)",
        valid(),
        x=f64(4, 11),
    )
    refused(
        ValueError,
        "x: expected shape (n_nodes, paths.irreps_in.dim) = (5, 11), got (11,)",
        valid(),
        x=f64(11),
    )
    refused(
        ValueError, "vectors: expected shape (n_edges, 3) = (12, 3), got (12, 4)", valid(), vectors=f64(12, 4)
    )
    refused(
        ValueError, "vectors: expected shape (n_edges, 3) = (12, 3), got (11, 3)", valid(), vectors=f64(11, 3)
    )
    refused(
        ValueError,
        "edge_weight: expected shape (n_edges, paths.weight_numel) = (12, 10), got (12, 1)",
        valid(),
        edge_weight=f64(12, 1),
    )
    refused(
        ValueError,
        "edge_sh: expected shape (n_edges, paths.irreps_sh.dim) = (12, 4), got (12, 9)",
        low_rank(),
        edge_sh=f64(12, 9),
    )
    refused(
        ValueError,
        "mix: expected shape (n_radial, paths.weight_numel) = (3, 10), got (3, 11)",
        low_rank(),
        mix=f64(3, 11),
    )
    refused(
        ValueError,
        "mix: expected shape (n_radial, paths.weight_numel) = (3, 10), got (3,)",
        low_rank(),
        mix=f64(3),
    )
    refused(
        ValueError,
        "radial: expected shape (n_edges, n_radial) = (12, 3), got (12, 4)",
        low_rank(),
        radial=f64(12, 4),
    )
    refused(
        ValueError,
        "radial: expected shape (n_edges, n_radial) = (12, 3), got (3, 12)",
        low_rank(),
        radial=f64(3, 12),
    )
    refused(
        ValueError, "mix: expected at least one radial feature", low_rank(), mix=f64(0, 10), radial=f64(12, 0)
    )


@pytest.mark.parametrize("name", ["vectors", "edge_weight"])
def test_dtypes_must_be_equal(backend: str, name: str) -> None:
    base = valid()
    message = f"{name}: expected the dtype of x, torch.float64, got torch.float32"
    refused(TypeError, message, base, **{name: base[name].float()})


@pytest.mark.parametrize("name", ["edge_sh", "radial", "mix"])
def test_dtypes_must_be_equal_low_rank(backend: str, name: str) -> None:
    base = low_rank()
    message = f"{name}: expected the dtype of x, torch.float64, got torch.float32"
    refused(TypeError, message, base, **{name: base[name].float()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
def test_dtypes_that_are_not_supported(backend: str, dtype: torch.dtype) -> None:
    base = {name: v.to(dtype) if isinstance(v, torch.Tensor) else v for name, v in valid().items()}
    refused(TypeError, f"x: expected torch.float32 or torch.float64, got {dtype}", base)


@pytest.mark.parametrize("name", ["x", "vectors", "edge_weight"])
def test_tensors_must_be_dense(backend: str, name: str) -> None:
    base = valid()
    message = f"{name}: expected a dense tensor, of layout torch.strided, got torch.sparse_coo"
    refused(TypeError, message, base, **{name: base[name].to_sparse()})


def test_devices_must_be_equal(backend: str) -> None:
    base, of_meta = valid(), torch.device("meta")
    refused(
        ValueError,
        "vectors: expected the device of x, cpu, got meta",
        base,
        vectors=base["vectors"].to(of_meta),
    )
    refused(
        ValueError,
        "edge_weight: expected the device of x, cpu, got meta",
        base,
        edge_weight=base["edge_weight"].to(of_meta),
    )
    refused(ValueError, "graph: expected the device of x, meta, got cpu", base, x=base["x"].to(of_meta))


def test_exactly_one_form(backend: str) -> None:
    base, other = valid(), low_rank()
    angular, weights = (
        "vectors, edge_sh: expected exactly one of them",
        "edge_weight, (radial and mix): expected exactly",
    )
    refused(ValueError, f"{angular}, got both", base, edge_sh=other["edge_sh"])
    refused(ValueError, f"{angular}, got neither", base, vectors=None)
    refused(ValueError, f"{weights} one of them, got both", base, radial=other["radial"], mix=other["mix"])
    refused(ValueError, f"{weights} one of them, got both", base, mix=other["mix"])
    refused(ValueError, f"{weights} one of them, got neither", base, edge_weight=None)
    refused(ValueError, "radial, mix: expected both, got only radial", other, mix=None)
    refused(ValueError, "radial, mix: expected both, got only mix", other, radial=None)


def test_types(backend: str) -> None:
    refused(TypeError, "x: expected a torch.Tensor, got list", valid(), x=[[1.0]])
    refused(TypeError, "vectors: expected a torch.Tensor, got list", valid(), vectors=[[1.0]])
    refused(TypeError, "mix: expected a torch.Tensor, got float", low_rank(), mix=1.0)
    refused(TypeError, "paths: expected glassconv.Paths, got str", valid(), paths="2x0e")
    refused(TypeError, "graph: expected glassconv.Graph, got Tensor", valid(), graph=torch.zeros(2, 3))


@pytest.mark.skipif(backends.emulated_module() is None, reason="emulated kernels not built (make emulated)")
@pytest.mark.parametrize(
    ("n_radial", "message"),
    [(20_000, "radial: expected fewer features on a GPU, got 20000"), (2**21, "at most 1048576 features")],
)
def test_rank_beyond_the_shared_memory_of_a_gpu(n_radial: int, message: str) -> None:
    paths, graph = Paths("1x0e", 0, None), random_graph(2, 2)
    arguments = random_arguments(paths, graph, "vectors-lowrank", n_radial=n_radial)
    x, vectors, radial, mix = arguments.values()
    assert glassconv.conv(x, graph, paths, vectors=vectors, radial=radial, mix=mix).shape == (2, 1)
    with backends.emulated_operators(), pytest.raises((RuntimeError, ValueError), match=message):
        glassconv.conv(x, graph, paths, vectors=vectors, radial=radial, mix=mix)


@pytest.mark.skipif(backends.emulated_module() is None, reason="emulated kernels not built (make emulated)")
def test_wide_rows_of_a_gpu() -> None:
    """A grid has at most 65535 blocks in its second dimension; rows may have more columns than those."""
    paths, graph = Paths("2097200x0e", 0, None), random_graph(1, 1)
    arguments = random_arguments(paths, graph, "vectors-explicit")
    x = arguments["x"].float().requires_grad_()
    others = {name: arguments[name].float() for name in ("vectors", "edge_weight")}
    with backends.emulated_operators():
        out = glassconv.conv(x, graph, paths, **others)
        (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, others["edge_weight"])
