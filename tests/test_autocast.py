"""torch.autocast: kernels and geometry stay in float32, float64 is untouched, and networks train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from nn_systems import network, system
from oracles import FORMS, TOLERANCE, normal, random_arguments, random_graph, random_vectors, relative_error
from torch import Tensor

import glassconv
from glassconv import Paths
from glassconv.nn import EquivariantConv

PATHS = Paths("3x0e+2x1o", 1, "0e+1o")
SINGLE = TOLERANCE[torch.float32]
BFLOAT16 = 2.0**-8  # spacing of its numbers between 1 and 2

CLOSE = 20 * BFLOAT16  # a rounding in each of several linear maps in sequence, normalizations between

pytestmark = [pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)]


def autocast(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def value_and_gradients(function: Callable[..., Tensor], arguments: dict[str, Tensor]) -> list[Tensor]:
    """Of what is under autocast, with the backward pass outside, as PyTorch recommends."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}
    value = function(**leaves)
    with torch.autocast(value.device.type, enabled=False):
        gradients = torch.autograd.grad(value.square().sum(), list(leaves.values()))
    return [value.detach(), *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
def test_conv_is_as_without(backend: str, form: str, dtype: torch.dtype) -> None:
    graph = random_graph(9, 40)
    arguments = {k: v.to(dtype) for k, v in random_arguments(PATHS, graph, form).items()}

    def conv(**tensors: Tensor) -> Tensor:
        return glassconv.conv(graph=graph, paths=PATHS, **tensors)

    expected = value_and_gradients(conv, arguments)
    with autocast():
        found = value_and_gradients(conv, arguments)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_narrow_arguments_are_widened(backend: str, form: str, narrow: torch.dtype) -> None:
    """What matrix products before the convolution leave; it comes out in float32, and gradients go back."""
    graph = random_graph(9, 40)
    arguments = {k: v.to(narrow) for k, v in random_arguments(PATHS, graph, form).items()}

    def conv(**tensors: Tensor) -> Tensor:
        return glassconv.conv(graph=graph, paths=PATHS, **tensors)

    expected = value_and_gradients(conv, {name: tensor.float() for name, tensor in arguments.items()})
    with autocast():
        value, *gradients = value_and_gradients(conv, arguments)
    assert value.dtype == torch.float32
    assert relative_error(value, expected[0]) < SINGLE
    for found, exact in zip(gradients, expected[1:], strict=True):
        assert found.dtype == narrow  # that of the argument, rounded once
        assert relative_error(found, exact) < torch.finfo(narrow).eps
    with pytest.raises(TypeError, match=r"expected torch.float32 or torch.float64, got torch"):
        conv(**arguments)


def test_backward_pass_under_autocast(backend: str) -> None:
    """The kernels do not notice; of the reference, which is matrix products, gradients are rounded."""
    graph = random_graph(9, 40)
    arguments = {k: v.float() for k, v in random_arguments(PATHS, graph, FORMS[0]).items()}
    results = []
    for enabled in (True, False):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}
        with autocast(enabled):
            energy = glassconv.conv(graph=graph, paths=PATHS, **leaves).square().sum()
            results.append(torch.autograd.grad(energy, list(leaves.values())))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected) if backend == "cpu" else relative_error(found, expected) < CLOSE


def test_second_derivatives_of_conv(backend: str) -> None:
    """A loss of forces: what is differentiated twice ran under autocast."""
    graph = random_graph(9, 40)
    arguments = {k: v.float() for k, v in random_arguments(PATHS, graph, FORMS[0]).items()}

    def loss_gradients(enabled: bool) -> list[Tensor]:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}
        with autocast(enabled):
            energy = glassconv.conv(graph=graph, paths=PATHS, **leaves).square().sum()
        (force,) = torch.autograd.grad(energy, leaves["vectors"], create_graph=True)
        return list(torch.autograd.grad(force.square().sum(), list(leaves.values())))

    for found, expected in zip(loss_gradients(True), loss_gradients(False), strict=True):
        assert relative_error(found, expected) < SINGLE


@pytest.mark.parametrize("normalization", ["component", "integral", "norm"])
def test_harmonics_are_as_without(backend: str, normalization: str) -> None:
    vectors = random_vectors(40)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        given = vectors.to(dtype)
        wide = given.float() if dtype == torch.bfloat16 else given
        with autocast():
            found = glassconv.spherical_harmonics(given, 3, normalization)
        assert found.dtype == wide.dtype
        assert torch.equal(found, glassconv.spherical_harmonics(wide, 3, normalization))


@pytest.mark.parametrize("periodic", ["matrix", "lengths", "batch"])
def test_edge_vectors_are_as_without(backend: str, periodic: str) -> None:
    """Values and derivatives in positions and cell: bfloat16 would put neighbors 0.01 off."""
    configuration = system(0, 3)
    cell = configuration.cell
    if periodic == "lengths":
        cell = cell.diagonal().clone()
    n = configuration.n_particles
    single = glassconv.neighbor_list(configuration.positions, 1.6, cell=cell, pbc=True)
    graph = glassconv.Graph.concatenate([single, single]) if periodic == "batch" else single
    positions = configuration.positions
    if periodic == "batch":
        positions, cell = torch.cat([positions, positions]), torch.stack([cell, 1.1 * cell])
        batch = (torch.arange(2 * n) >= n).long()
        graph = replace(graph, batch=batch, n_systems=2)
    arguments = {"positions": positions.float(), "cell": cell.float()}
    assert graph.has_shifts
    expected = value_and_gradients(graph.vectors, arguments)
    with autocast():
        found = value_and_gradients(graph.vectors, arguments)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, b) < SINGLE


@pytest.mark.parametrize("where", ["forward", "both"])
@pytest.mark.parametrize("train", [True, False])
def test_module_is_close(backend: str, train: bool, where: str) -> None:
    """Linear maps round to bfloat16, whether the backward pass is under autocast too or not."""
    torch.manual_seed(0)
    plain = EquivariantConv("3x0e+2x1o", "4x0e+3x1o", 1, n_radial=4, radial_hidden=5).train(train)
    mixed = copy.deepcopy(plain)
    graph = random_graph(30, 200)
    arguments = {"x": normal((30, plain.irreps_in.dim), 1), "vectors": random_vectors(200)}
    results = []
    for module, enabled in ((plain, False), (mixed, True)):
        leaves = {k: v.float().requires_grad_() for k, v in arguments.items()}
        with autocast(enabled):
            value = module(graph=graph, **leaves).float()
            energy = value.square().sum()
        with autocast(enabled and where == "both"):
            gradients = torch.autograd.grad(energy, [*leaves.values(), *module.parameters()])
        results.append([value.detach(), *gradients])
    for expected, found in zip(*results, strict=True):
        assert found.dtype == torch.float32
        assert 0 < relative_error(found, expected) < CLOSE
    for expected, found in zip(plain.buffers(), mixed.buffers(), strict=True):  # statistics are not rounded
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["natural", "l3-gaussian"])
@pytest.mark.parametrize("train", [True, False])
def test_network_is_close(backend: str, name: str, train: bool) -> None:
    plain = network(name, torch.float32).train(train)
    mixed = copy.deepcopy(plain)
    batch = plain.prepare(system(0, 3))
    results = []
    for model, enabled in ((plain, False), (mixed, True)):
        with autocast(enabled):
            out = model(batch)
            loss = out.square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append((out.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
    for expected, found in zip(*results, strict=True):
        assert found.dtype == torch.float32
        assert 0 < relative_error(found, expected) < CLOSE


def test_forces_are_close(backend: str) -> None:
    """The whole of it under autocast, from positions on; distances are not rounded."""
    model = network("l3-gaussian", torch.float32).eval()
    configuration = system(0, 3)
    forces = []
    for enabled in (False, True):
        positions = configuration.positions.clone().requires_grad_()
        with autocast(enabled):
            energy = model(replace(configuration, positions=positions)).sum()
        forces.append(-torch.autograd.grad(energy, positions)[0])
    assert torch.isfinite(forces[1]).all()
    assert 0 < relative_error(forces[1], forces[0]) < CLOSE


def test_network_in_float64_is_as_without(backend: str) -> None:
    model = network("natural", n_layers=2).eval()
    batch = model.prepare(system(0, 2))
    with autocast():
        found = model(batch)
    assert found.dtype == torch.float64
    assert relative_error(found, model(batch)) < TOLERANCE[torch.float64]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled(backend: str, fresh_compiler: None) -> None:
    """With autocast around what is compiled, and within: one graph, and what the same code gives eagerly."""
    graph = random_graph(37, 101)
    arguments = {k: v.float() for k, v in random_arguments(PATHS, graph, FORMS[0]).items()}
    expected = value_and_gradients(
        lambda **tensors: glassconv.conv(graph=graph, paths=PATHS, **tensors), arguments
    )
    for inside in (False, True):

        def conv(inside: bool = inside, **tensors: Tensor) -> Tensor:
            with autocast() if inside else nullcontext():
                return glassconv.conv(graph=graph, paths=PATHS, **tensors)

        compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
        with nullcontext() if inside else autocast():
            found = value_and_gradients(compiled, arguments)
        # the compiler has the backward pass under autocast too, which rounds the reference's matrix products
        limits = [SINGLE] + [SINGLE if backend == "cpu" else BFLOAT16] * len(arguments)
        for a, b, limit in zip(found, expected, limits, strict=True):
            assert a.dtype == torch.float32
            assert relative_error(a, b) < limit
