"""torch.compile of the operators and the network: one graph, for all numbers of nodes and edges, as eager."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from nn_systems import assert_close, network, system
from oracles import FORMS, TOLERANCE, normal, random_arguments, random_graph, random_vectors, relative_error
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import glassconv
from glassconv import Graph, Paths
from glassconv.nn import SE3GNN, Batch, EquivariantConv, TensorProductConv

PATHS = Paths("3x0e+2x1o", 1, "0e+1o")
LIMIT = TOLERANCE[torch.float64]
# Nodes, edges. The first of each, and nodes + 1, occur nowhere else: sizes that are equal in the first call
# are one size to torch, and 9 nodes with 9 features would be 9 nodes always.
SIZES = ((37, 101), (10, 50), (13, 71))

pytestmark = [pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_once(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The compiled function, which raises when it is compiled a second time."""
    compiled = torch.compile(function, fullgraph=True, **{"backend": "aot_eager", **options})

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(error_on_recompile=True):
            return compiled(*args, **kwargs)

    return run


def value_and_gradients(
    function: Callable[..., Tensor], arguments: dict[str, Tensor], *others: Any
) -> list[Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}
    value = function(*others, **leaves)
    return [value.detach(), *torch.autograd.grad(value.square().sum(), list(leaves.values()))]


@pytest.mark.parametrize("form", FORMS)
def test_conv_is_compiled_once_for_all_sizes(backend: str, form: str) -> None:
    def conv(graph: Graph, **tensors: Tensor) -> Tensor:
        return glassconv.conv(graph=graph, paths=PATHS, **tensors)

    compiled = compile_once(conv, dynamic=True)
    for n_nodes, n_edges in SIZES:
        graph = random_graph(n_nodes, n_edges)
        arguments = random_arguments(PATHS, graph, form)
        results = (value_and_gradients(f, arguments, graph) for f in (compiled, conv))
        for found, expected in zip(*results, strict=True):
            assert relative_error(found, expected) < LIMIT


def test_sizes_become_dynamic_by_themselves(backend: str) -> None:
    counter = CompileCounterWithBackend("eager")
    module = TensorProductConv("3x0e+2x1o", 1, "0e+1o")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    for n_nodes, n_edges in SIZES:
        graph = random_graph(n_nodes, n_edges)
        arguments = random_arguments(module.paths, graph, "vectors-lowrank")
        assert relative_error(compiled(graph=graph, **arguments), module(graph=graph, **arguments)) < LIMIT
    assert counter.frame_count == 2


@pytest.mark.parametrize("train", [True, False])
def test_modules_with_sizes_marked_dynamic(backend: str, train: bool) -> None:
    module = EquivariantConv("3x0e+2x1o", "2x0e+2x1o", 1, n_radial=4, radial_hidden=5).double().train(train)
    eager = copy.deepcopy(module)
    compiled = compile_once(module)
    for n_nodes, n_edges in SIZES:
        graph = random_graph(n_nodes, n_edges)
        arguments = {"x": normal((n_nodes, module.irreps_in.dim), 1), "vectors": random_vectors(n_edges)}
        results = []
        for function in (compiled, eager):
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in arguments.items()}
            if function is compiled:
                edges = (graph.shifts, graph.perm, graph.row_source, graph.transpose_slots)
                nodes = (graph.row_ptr, graph.transpose_ptr)
                for tensor in (*leaves.values(), *edges, *nodes):
                    torch._dynamo.mark_dynamic(tensor, 0)
                torch._dynamo.mark_dynamic(graph.edge_index, 1)
            value = function(graph=graph, **leaves)
            results.append([value, *torch.autograd.grad(value.square().sum(), list(leaves.values()))])
        for found, expected in zip(*results, strict=True):
            assert_close(found, expected, torch.float64)
    for found, expected in zip(module.buffers(), eager.buffers(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_network_is_compiled_once_for_all_sizes(backend: str, train: bool) -> None:
    model = network("natural", n_layers=2, l_max=1).train(train)
    eager = copy.deepcopy(model)
    compiled = compile_once(model, dynamic=True)
    for seed, n_side in enumerate((3, 3, 2)):
        batch = model.prepare(system(seed, n_side))
        results = []
        for function, parameters in ((compiled, model.parameters()), (eager, eager.parameters())):
            out = function(batch)
            results.append([out, *torch.autograd.grad(out.square().sum(), list(parameters))])
        for found, expected in zip(*results, strict=True):
            assert_close(found, expected, torch.float64)
    for found, expected in zip(model.buffers(), eager.buffers(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def thermal_network() -> SE3GNN:
    return network("l3-gaussian", l_max=1).eval()


def test_forces_through_a_compiled_network(backend: str) -> None:
    """Derivatives in positions, taken outside: the compiled backward pass runs the operators'."""
    model = thermal_network()
    compiled = compile_once(model, dynamic=True)
    for seed, n_side in enumerate((3, 2)):
        configuration = system(seed, n_side)
        forces = []
        for function in (compiled, model):
            positions = configuration.positions.clone().requires_grad_()
            batch = model.prepare(replace(configuration, positions=positions))
            (gradient,) = torch.autograd.grad(function(batch).sum(), positions)
            forces.append(-gradient)
        assert_close(*forces, torch.float64)


@torch._dynamo.config.patch(trace_autograd_ops=True)
def test_forces_and_their_derivatives_within_what_is_compiled(backend: str) -> None:
    """A loss of forces: the second derivatives too are part of one compiled graph."""
    model = thermal_network()

    def loss(positions: Tensor, types: Tensor, cell: Tensor, graph: Graph) -> Tensor:
        vectors = graph.vectors(positions, cell)
        inputs = positions.new_zeros(positions.shape[0], 0)
        batch = Batch(
            graph, vectors, model.basis.features(vectors), types, inputs, None, (len(types),), model.layout
        )
        energy = model(batch).sum()
        (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
        return energy + gradient.square().sum()

    compiled = compile_once(loss, dynamic=True)
    for seed, n_side in enumerate((3, 2)):
        configuration = system(seed, n_side)
        graph = model.prepare(configuration).graph
        results: list[Sequence[Tensor]] = []
        for function in (compiled, loss):
            positions = configuration.positions.clone().requires_grad_()
            value = function(positions, configuration.types, configuration.cell, graph)
            parameters = [model.readout.weight, model.layers[0].conv.mix, model.layers[1].conv.linear.weight]
            results.append([value, *torch.autograd.grad(value, [positions, *parameters])])
        for found, expected in zip(*results, strict=True):
            assert_close(found, expected, torch.float64)


def test_graphs_are_made_within_what_is_compiled(backend: str) -> None:
    """Edges in any order, as others' models have them: rows, vectors and convolution in one graph."""

    def function(edge_index: Tensor, shifts: Tensor, x: Tensor, r: Tensor, weight: Tensor) -> Tensor:
        graph = Graph.from_edge_index(edge_index, x.shape[0], shifts)
        return glassconv.conv(x, graph, PATHS, vectors=graph.vectors(r, CELL), edge_weight=weight)

    compiled = compile_once(function, dynamic=True)
    for n_nodes, n_edges in SIZES:
        edge_index = random_graph(n_nodes, n_edges).edge_index
        arguments = {
            "x": normal((n_nodes, PATHS.dim_in), 1),
            "r": normal((n_nodes, 3), 2),
            "weight": normal((n_edges, PATHS.weight_numel), 3),
        }
        shifts = normal((n_edges, 3), 4).round().int()
        results = (value_and_gradients(f, arguments, edge_index, shifts) for f in (compiled, function))
        for found, expected in zip(*results, strict=True):
            assert relative_error(found, expected) < LIMIT


CELL = torch.tensor([[3.0, 0.1, 0.0], [0.0, 3.0, 0.2], [0.3, 0.0, 3.0]], dtype=torch.float64)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_nodes_outside_are_refused_by_what_was_compiled(backend: str, wrong: int) -> None:
    def rows(x: Tensor, edge_index: Tensor) -> Tensor:
        return Graph.from_edge_index(edge_index, x.shape[0]).row_ptr + x.shape[0]

    edge_index = random_graph(10, 40).edge_index
    compiled = torch.compile(rows, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.zeros(10), edge_index), rows(torch.zeros(10), edge_index))
    edge_index[1, 7] = wrong
    with pytest.raises(RuntimeError, match="edge_index: expected nodes from 0 to n_nodes - 1"):
        compiled(torch.zeros(10), edge_index)


def test_shifts_too_large_are_refused_by_what_was_compiled(backend: str) -> None:
    def shifted(edge_index: Tensor, shifts: Tensor) -> Tensor:
        return Graph.from_edge_index(edge_index, 10, shifts).shifts + 1

    compiled = torch.compile(shifted, backend="aot_eager", fullgraph=True)
    edge_index, shifts = random_graph(10, 40).edge_index, torch.ones(40, 3, dtype=torch.int64)
    assert torch.equal(compiled(edge_index, shifts), shifted(edge_index, shifts))
    with pytest.raises(RuntimeError, match="shifts: expected magnitudes up to 2147483647"):
        compiled(edge_index, shifts << 40)


@pytest.mark.slow
def test_network_through_generated_code(backend: str) -> None:
    """The default compiler, once: training step and evaluation."""
    model = network("both-cage", torch.float32, n_layers=2, l_max=1)
    for train in (True, False):
        model.train(train)
        eager = copy.deepcopy(model)
        compiled = torch.compile(model, fullgraph=True, dynamic=True)
        for seed, n_side in enumerate((3, 2)):
            batch = model.prepare(system(seed, n_side))
            results = []
            for function, parameters in ((compiled, model.parameters()), (eager, eager.parameters())):
                out = function(batch)
                results.append([out, *torch.autograd.grad(out.square().sum(), list(parameters))])
            for found, expected in zip(*results, strict=True):
                assert_close(found, expected, torch.float32, factor=10)  # sums in another order
