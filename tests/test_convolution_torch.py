"""The operators in torch: opcheck, torch.compile, what a profile shows, and what is never allocated."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from oracles import (
    DTYPES,
    FORMS,
    SMALL_CASES,
    TOLERANCE,
    normal,
    random_arguments,
    random_graph,
    random_vectors,
    relative_error,
)
from torch import Tensor

import glassconv
from glassconv import Graph, Paths

PATHS = SMALL_CASES["tiny"].paths


@pytest.fixture
def native(native_extension: None) -> Iterator[None]:
    with glassconv.use_backend("native"):
        yield


def operator_arguments(form: str, dtype: torch.dtype, graph: Graph) -> tuple[object, ...]:
    """Positional arguments of `torch.ops.glassconv.conv`."""
    tensors = [value.to(dtype).requires_grad_() for value in random_arguments(PATHS, graph, form).values()]
    x, angular, weight, *mix = tensors
    index = (graph.row_ptr, graph.row_source, graph.perm, graph.transpose_ptr, graph.transpose_slots)
    return (x, angular, weight, mix[0] if mix else None, *index, list(PATHS.spec), form.startswith("sh"))


def detached(arguments: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in arguments)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_conv(native: None, dtype: torch.dtype, form: str, ordered: bool) -> None:
    graph = random_graph(4, 20)
    if ordered:
        order = graph.edge_index[1].argsort()
        graph = Graph.from_edge_index(graph.edge_index[:, order], 4)
    torch.library.opcheck(torch.ops.glassconv.conv.default, operator_arguments(form, dtype, graph))


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_derivatives_of_conv(native: None, form: str) -> None:
    graph = random_graph(4, 20)
    arguments = detached(operator_arguments(form, torch.float64, graph))
    grad_out = normal((4, PATHS.irreps_out.dim), 1)
    wanted = [True, True, True, form.endswith("lowrank")]
    inputs = [value for value in arguments[:4] if isinstance(value, Tensor)]
    for value in (*inputs, grad_out):
        value.requires_grad_()
    torch.library.opcheck(torch.ops.glassconv.conv_backward.default, (grad_out, *arguments, wanted))
    cotangents = [None if value is None else normal(value.shape, 2) for value in arguments[:4]]
    # derivatives of third order are not the operators' business
    torch.library.opcheck(
        torch.ops.glassconv.conv_double_backward.default,
        (*cotangents, grad_out.detach(), *detached(arguments), [True, *wanted]),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_harmonics(native: None, dtype: torch.dtype) -> None:
    vectors = random_vectors(7).to(dtype)
    grad = normal((7, 16), 1).to(dtype)
    ops = torch.ops.glassconv
    torch.library.opcheck(ops.spherical_harmonics.default, (vectors.clone().requires_grad_(), 3))
    torch.library.opcheck(
        ops.spherical_harmonics_backward.default, (grad.requires_grad_(), vectors.clone().requires_grad_(), 3)
    )
    torch.library.opcheck(
        ops.spherical_harmonics_double_backward.default,
        (normal((7, 3), 2).to(dtype), grad.detach(), vectors, 3),
    )


def transposed(value: Tensor) -> Tensor:
    """The same numbers, stored column after column."""
    return value.detach().t().contiguous().t()


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_of_transposed_tensors(native: None, form: str) -> None:
    """What the operators return does not take over the strides of what they are given."""
    graph = random_graph(4, 20)
    x, angular, weight, mix, *rest = operator_arguments(form, torch.float64, graph)
    inputs = [transposed(v) if isinstance(v, Tensor) else None for v in (x, angular, weight, mix)]
    grad_out = transposed(normal((4, PATHS.irreps_out.dim), 1))
    wanted = [True, True, True, form.endswith("lowrank")]
    torch.library.opcheck(torch.ops.glassconv.conv.default, (*inputs, *rest))
    torch.library.opcheck(torch.ops.glassconv.conv_backward.default, (grad_out, *inputs, *rest, wanted))
    cotangents = [None if value is None else transposed(normal(value.shape, 2)) for value in inputs]
    torch.library.opcheck(
        torch.ops.glassconv.conv_double_backward.default,
        (*cotangents, grad_out, *inputs, *rest, [True, *wanted]),
    )


def test_opcheck_harmonics_of_transposed_tensors(native: None) -> None:
    vectors, grad = transposed(random_vectors(7)), transposed(normal((7, 16), 1))
    ops = torch.ops.glassconv
    torch.library.opcheck(ops.spherical_harmonics.default, (vectors, 3))
    torch.library.opcheck(ops.spherical_harmonics_backward.default, (grad, vectors, 3))
    torch.library.opcheck(
        ops.spherical_harmonics_double_backward.default, (transposed(normal((7, 3), 2)), grad, vectors, 3)
    )


def third_derivatives() -> list[Tensor]:
    graph = random_graph(3, 8)
    leaves = random_arguments(PATHS, graph, "vectors-explicit")
    inputs = [value.requires_grad_() for value in leaves.values()]
    gradients: Sequence[Tensor] = [glassconv.conv(graph=graph, paths=PATHS, **leaves)]
    for order in range(3):
        cotangents = [normal(gradient.shape, order) for gradient in gradients]
        gradients = torch.autograd.grad(gradients, inputs, cotangents, create_graph=order < 2)
    return list(gradients)


def test_third_derivatives_are_refused(native: None) -> None:
    with pytest.raises(RuntimeError, match="expected at most second derivatives from the native operators"):
        third_derivatives()


def test_third_derivatives_of_the_reference() -> None:
    with glassconv.use_backend("reference"):
        assert all(torch.isfinite(gradient).all() for gradient in third_derivatives())


def compare_compiled(form: str) -> None:
    graph = random_graph(6, 40)
    arguments = {name: value.float() for name, value in random_arguments(PATHS, graph, form).items()}

    def energy(x: Tensor, **tensors: Tensor) -> Tensor:
        return glassconv.conv(x.sin(), graph, PATHS, **tensors).square().sum()

    def gradients(function: Callable[..., Tensor]) -> list[Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in arguments.items()}
        value = function(**leaves)
        return [value.detach(), *torch.autograd.grad(value, list(leaves.values()))]

    torch._dynamo.reset()
    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    for found, expected in zip(gradients(compiled), gradients(energy), strict=True):
        assert relative_error(found, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("form", FORMS)
def test_compile_fullgraph(native: None, form: str) -> None:
    compare_compiled(form)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_compile_fullgraph_of_the_reference(form: str) -> None:
    with glassconv.use_backend("reference"):
        compare_compiled(form)


@pytest.mark.slow
def test_compile_with_inductor(native: None) -> None:
    """The whole way to generated code, once; the operator stays one call in it."""
    graph = random_graph(6, 40)
    x, vectors, radial, mix = (t.float() for t in random_arguments(PATHS, graph, "vectors-lowrank").values())

    def energy(vectors: Tensor) -> Tensor:
        return glassconv.conv(x, graph, PATHS, vectors=vectors, radial=radial, mix=mix).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(energy, fullgraph=True)
    found, expected = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    compiled(found).backward()
    energy(expected).backward()
    assert relative_error(found.grad, expected.grad) < TOLERANCE[torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_compile_with_inductor_on_transposed_tensors(native: None, form: str) -> None:
    """Generated code asserts the strides that the operators' fakes promise."""
    graph = random_graph(6, 40)
    arguments = {k: transposed(v.float()) for k, v in random_arguments(PATHS, graph, form).items()}

    def energy(x: Tensor, **tensors: Tensor) -> Tensor:
        return glassconv.conv(x, graph, PATHS, **tensors).square().sum()

    def gradients(function: Callable[..., Tensor]) -> Sequence[Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in arguments.items()}
        assert not any(leaf.is_contiguous() for leaf in leaves.values())
        return torch.autograd.grad(function(**leaves), list(leaves.values()))

    torch._dynamo.reset()
    compiled = torch.compile(energy, fullgraph=True)
    for found, expected in zip(gradients(compiled), gradients(energy), strict=True):
        assert relative_error(found, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("form", FORMS)
def test_vmap(backend: str, form: str) -> None:
    """A batch of any argument, and of cotangents (`is_grads_batched`, Jacobians), equals a loop over it."""
    graph = random_graph(4, 20)
    arguments = random_arguments(PATHS, graph, form)
    for name, value in arguments.items():
        constants = {other: tensor for other, tensor in arguments.items() if other != name}

        def conv(tensor: Tensor, name: str = name, constants: dict[str, Tensor] = constants) -> Tensor:
            tensors = constants | {name: tensor}
            return glassconv.conv(tensors.pop("x"), graph, PATHS, **tensors)

        batch = torch.stack([value, 2 * value, normal(value.shape, 9)])
        expected = torch.stack([conv(element) for element in batch])
        assert relative_error(torch.vmap(conv)(batch), expected) < TOLERANCE[torch.float64], name

    leaves = [value.requires_grad_() for value in arguments.values()]
    out = glassconv.conv(graph=graph, paths=PATHS, **arguments)
    cotangents = normal((3, *out.shape), 10)
    batched = torch.autograd.grad(out, leaves, cotangents, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(out, leaves, cotangent, retain_graph=True) for cotangent in cotangents]
    for found, expected in zip(batched, zip(*each, strict=True), strict=True):
        assert relative_error(found, torch.stack(expected)) < TOLERANCE[torch.float64]


def test_graph_is_captured_with_fake_tensors(native: None) -> None:
    """The fast part of compilation: one node of the operator in the traced graph."""
    graph = random_graph(6, 40)
    x, vectors, edge_weight = random_arguments(PATHS, graph, "vectors-explicit").values()

    def function(x: Tensor, vectors: Tensor, edge_weight: Tensor) -> Tensor:
        return glassconv.conv(x, graph, PATHS, vectors=vectors, edge_weight=edge_weight)

    torch._dynamo.reset()
    explanation = torch._dynamo.explain(function)(x, vectors, edge_weight)
    assert explanation.graph_count == 1
    assert explanation.graph_break_count == 0
    targets = [node.target for node in explanation.graphs[0].graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.glassconv.conv]


# Allocation and views are no composition. Each gradient is one term here: nothing is to be added up.
TRIVIAL = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::detach", "aten::alias"}


def run_three_times(graph: Graph, arguments: dict[str, Tensor]) -> None:
    """Forward, backward and double backward under the profiler, all cotangents made before."""
    leaves = {name: value.clone().requires_grad_() for name, value in arguments.items()}
    tensors = dict(leaves)
    cotangent = normal((graph.n_nodes, PATHS.irreps_out.dim), 1).to(leaves["x"].dtype).requires_grad_()
    cotangents = [normal(leaf.shape, 2).to(leaf.dtype) for leaf in leaves.values()]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        out = glassconv.conv(tensors.pop("x"), graph, PATHS, **tensors)
        first = torch.autograd.grad(out, list(leaves.values()), cotangent, create_graph=True)
        torch.autograd.grad(first, [*leaves.values(), cotangent], cotangents, allow_unused=True)
    names = {event.key for event in profile.key_averages()}
    operators = {name for name in names if "::" in name and "autograd::" not in name}
    assert {name for name in operators if name.startswith("glassconv::")} >= {
        "glassconv::conv",
        "glassconv::conv_backward",
        "glassconv::conv_double_backward",
    }
    assert {name for name in operators if not name.startswith("glassconv::")} <= TRIVIAL


@pytest.mark.parametrize("form", FORMS)
def test_profile_shows_only_our_operators(native: None, form: str) -> None:
    graph = random_graph(6, 40)
    run_three_times(graph, random_arguments(PATHS, graph, form))


PEAK_MEMORY = """
import sys
import torch
import glassconv
from oracles import random_arguments, random_graph

torch.set_num_threads(2)
irreps = "+".join(f"32x{irrep}" for irrep in "0e+1o+2e+3o".split("+"))
paths = glassconv.Paths(irreps, 3, "0e+1o+2e+3o")
graph = random_graph(500, 30_000)
arguments = {name: value.float() for name, value in random_arguments(paths, graph, sys.argv[1]).items()}
cotangent = torch.randn(graph.n_nodes, paths.irreps_out.dim).requires_grad_()
cotangents = [torch.randn_like(value) for value in arguments.values()]
little = {name: value[:1] if name != "mix" else value for name, value in arguments.items()}
glassconv.conv(little.pop("x"), random_graph(1, 1), paths, **little)  # what is loaded once is loaded now


def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def grown(function):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = status("VmRSS")
    result = function()
    print(status("VmHWM") - before)
    return result


leaves = {name: value.requires_grad_() for name, value in arguments.items()}
tensors = dict(leaves)
out = grown(lambda: glassconv.conv(tensors.pop("x"), graph, paths, **tensors))
first = grown(lambda: torch.autograd.grad(out, list(leaves.values()), cotangent, create_graph=True))
grown(lambda: torch.autograd.grad(first, [*leaves.values(), cotangent], cotangents))
widths = (paths.weight_numel, paths.irreps_out.dim, paths.irreps_in.dim)
print(*[4 * graph.n_edges * width for width in widths])
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
@pytest.mark.parametrize("form", ["vectors-lowrank", "vectors-explicit"])
def test_neither_messages_nor_low_rank_weights_are_stored(native_extension: None, form: str) -> None:
    """Growth of the process's peak, which sees every allocation whoever makes it."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY, form],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    forward, backward, double_backward, weights, messages, sources = map(int, done.stdout.split())
    slack = 16 << 20  # outputs of nodes, workspace of the threads, and what the allocator keeps
    if form == "vectors-lowrank":
        assert weights > 50 << 20  # the test is about something
        assert forward < slack
        # one gradient of the source features per edge is kept, (n_edges, dim_in), and gathered by each node
        assert backward < sources + slack < weights
        assert double_backward < sources + slack < weights
    else:
        assert forward < slack
        # and the gradient of the weights, which is the caller's
        assert backward < sources + weights + slack < messages
        assert double_backward < sources + weights + slack < messages


def test_paths_and_modules_that_hold_them_can_be_copied(backend: str) -> None:
    module = torch.nn.Module()
    module.paths = PATHS
    assert copy.deepcopy(module).paths == PATHS
    assert Paths(PATHS.irreps_in, PATHS.irreps_sh, PATHS.irreps_out, instructions=PATHS.instructions) == PATHS
