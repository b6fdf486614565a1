"""The operators on CUDA tensors: against float64 on the CPU, derivatives, determinism, torch.compile."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from cuda_cases import CASES, TOLERANCE, needs_cuda, on_gpu, sorted_by_receiver
from oracles import (
    DTYPES,
    FORMS,
    NATURAL,
    Case,
    derivatives,
    normal,
    random_arguments,
    random_graph,
    random_vectors,
    relative_error,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import glassconv
from glassconv import Graph, Paths

pytestmark = needs_cuda


@pytest.fixture(autouse=True)
def native():
    """The kernels, whatever the environment asks for; new memory holds NaN: what stays unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with glassconv.use_backend("native"):
        yield
    torch.use_deterministic_algorithms(before)
    torch.cuda.synchronize()  # a fault belongs to the test that made it


def conv_of(graph: Graph, paths: Paths):
    return lambda **tensors: glassconv.conv(tensors.pop("x"), graph, paths, **tensors)


@cache
def expected(name: str, form: str, n_nodes: int, n_edges: int) -> dict[str, Tensor]:
    """Value and derivatives in float64 on the CPU."""
    graph = random_graph(n_nodes, n_edges)
    arguments = random_arguments(CASES[name].paths, graph, form)
    return derivatives(conv_of(graph, CASES[name].paths), arguments)


def compare(found: dict[str, Tensor], exact: dict[str, Tensor], dtype: torch.dtype) -> None:
    assert found.keys() == exact.keys()
    for name, value in found.items():
        assert value.device.type == "cuda"
        assert value.dtype == dtype
        error = relative_error(value.cpu(), exact[name])
        assert error < TOLERANCE[dtype][name != "value"], (name, error)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_derivatives(dtype: torch.dtype, name: str, form: str) -> None:
    paths, graph = CASES[name].paths, random_graph(40, 700)
    arguments = on_gpu(random_arguments(paths, graph, form), dtype)
    found = derivatives(conv_of(graph.to("cuda"), paths), arguments)
    compare(found, expected(name, form, 40, 700), dtype)


@pytest.mark.parametrize("form", ["vectors-lowrank", "sh-explicit"])
@pytest.mark.parametrize(
    ("irreps", "l_max"), [("3x0e+2x1o", 2), ("8x0e+8x1o+8x2e+8x3o", 3)], ids=["small", "glass"]
)
def test_smoke(irreps: str, l_max: int, form: str) -> None:
    """Every kernel of the convolution once, on few edges: what the sanitizers run."""
    paths = Paths(irreps, NATURAL[l_max], NATURAL[l_max])
    graph = random_graph(5, 40)
    arguments = random_arguments(paths, graph, form)
    exact = derivatives(conv_of(graph, paths), arguments)
    for given in (graph, sorted_by_receiver(graph)):
        order = graph.edge_index[1].argsort(stable=True) if given is not graph else torch.arange(40)
        per_edge = {k: v if k in ("x", "mix") else v[order] for k, v in arguments.items()}
        found = derivatives(conv_of(given.to("cuda"), paths), on_gpu(per_edge, torch.float32), order=1)
        for name, value in found.items():
            reference = exact[name]
            if name.removeprefix("d ") in per_edge.keys() - {"x", "mix"}:
                reference = reference[order]
            assert relative_error(value.cpu(), reference) < TOLERANCE[torch.float32][1], name
    found = derivatives(conv_of(graph.to("cuda"), paths), on_gpu(arguments, torch.float32))
    compare(found, exact, torch.float32)


def test_smoke_neighbors_and_harmonics() -> None:
    """Every kernel of the search and of the harmonics once."""
    positions = 4 * torch.rand(70, 3, dtype=torch.float64)
    cells = [
        torch.full((3,), 4.0),
        torch.tensor([[4.0, 0, 0], [1.0, 4, 0], [0, 1.0, 4]]),
        torch.full((3,), 1.5),
    ]
    for cell in cells:
        ours = glassconv.neighbor_list(positions.cuda(), 1.3, cell=cell.cuda())
        theirs = glassconv.neighbor_list(positions, 1.3, cell=cell)
        assert torch.equal(ours.edge_index.cpu(), theirs.edge_index)
        assert torch.equal(ours.reverse.cpu(), theirs.reverse)
    vectors = random_vectors(33).cuda().requires_grad_()
    value = glassconv.spherical_harmonics(vectors, 4)
    (gradient,) = torch.autograd.grad(value.square().sum(), vectors, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), vectors)
    assert torch.isfinite(second).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("l_max", range(5))
def test_harmonics(l_max: int, dtype: torch.dtype) -> None:
    vectors = torch.cat([random_vectors(300), torch.zeros(2, 3, dtype=torch.float64)])
    exact = derivatives(lambda vectors: glassconv.spherical_harmonics(vectors, l_max), {"vectors": vectors})
    found = derivatives(
        lambda vectors: glassconv.spherical_harmonics(vectors, l_max), {"vectors": vectors.to("cuda", dtype)}
    )
    compare(found, exact, dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "case", [Case("2x0e+1x1o", NATURAL[2], "0e+1o+1e"), Case("1x1o", NATURAL[3], "2e+3o")]
)
def test_gradcheck(case: Case, form: str) -> None:
    """Also of a second run being the first: gradcheck tolerates no difference between them."""
    paths, graph = case.paths, random_graph(2, 3)
    arguments = on_gpu(random_arguments(paths, graph, form, n_radial=2), torch.float64)
    names, graph = list(arguments), graph.to("cuda")

    def conv(*tensors: Tensor) -> Tensor:
        return conv_of(graph, paths)(**dict(zip(names, tensors, strict=True)))

    tensors = [value.requires_grad_() for value in arguments.values()]
    assert gradcheck(conv, tensors)
    assert gradgradcheck(conv, tensors)


def operator_arguments(form: str, dtype: torch.dtype) -> tuple[object, ...]:
    paths, graph = CASES["tiny"].paths, random_graph(4, 20).to("cuda")
    x, angular, weight, *mix = on_gpu(random_arguments(paths, random_graph(4, 20), form), dtype).values()
    index = (graph.row_ptr, graph.row_source, graph.perm, graph.transpose_ptr, graph.transpose_slots)
    return (x, angular, weight, mix[0] if mix else None, *index, list(paths.spec), form.startswith("sh"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype, form: str) -> None:
    arguments = operator_arguments(form, dtype)
    inputs = [value.requires_grad_() if isinstance(value, Tensor) else None for value in arguments[:4]]
    ops = torch.ops.glassconv
    torch.library.opcheck(ops.conv.default, (*inputs, *arguments[4:]))
    grad_out = normal((4, CASES["tiny"].paths.irreps_out.dim), 1).to("cuda", dtype)
    wanted = [value is not None for value in inputs]
    backward = (grad_out.requires_grad_(), *inputs, *arguments[4:], wanted)
    torch.library.opcheck(ops.conv_backward.default, backward)
    detached = [None if value is None else value.detach() for value in (grad_out, *inputs)]
    cotangents = [None if v is None else normal(v.shape, 2).to("cuda", dtype) for v in detached[1:]]
    second = (*cotangents, *detached, *arguments[4:], [True, *wanted])
    torch.library.opcheck(ops.conv_double_backward.default, second)


def test_opcheck_harmonics_and_search() -> None:
    vectors = random_vectors(7).cuda()
    ops = torch.ops.glassconv
    torch.library.opcheck(ops.spherical_harmonics.default, (vectors.requires_grad_(), 3))
    positions = 3 * torch.rand(20, 3, dtype=torch.float64, device="cuda")
    cell, periodic = (
        3 * torch.eye(3, dtype=torch.float64, device="cuda")[None],
        torch.ones(1, 3).bool().cuda(),
    )
    arguments = (positions, cell, periodic, torch.zeros(20, dtype=torch.int64, device="cuda"), 1.2)
    torch.library.opcheck(ops.neighbor_list.default, arguments)
    torch.library.opcheck(ops.neighbor_list_fixed.default, (*arguments, 500))


@pytest.mark.parametrize("form", FORMS)
def test_run_to_run_bit_equality(form: str) -> None:
    """Ten runs on enough edges to fill the machine, with other work on it in between."""
    paths, graph = CASES["glass-8-l3"].paths, random_graph(500, 20_000)
    arguments = on_gpu(random_arguments(paths, graph, form), torch.float32)
    conv, runs = conv_of(graph.to("cuda"), paths), []
    for _ in range(10):
        runs.append(derivatives(conv, arguments))
        torch.randn(1000, 1000, device="cuda").square_()
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


@pytest.mark.parametrize(("n_nodes", "n_edges"), [(0, 0), (3, 0), (1, 3000), (2000, 5)])
@pytest.mark.parametrize("form", FORMS)
def test_empty_and_uneven_graphs(form: str, n_nodes: int, n_edges: int) -> None:
    """No edges, isolated nodes, and one row of thousands."""
    paths, empty = CASES["tiny"].paths, torch.zeros(2, 0, dtype=torch.int64)
    graph = random_graph(n_nodes, n_edges) if n_edges else Graph.from_edge_index(empty, n_nodes)
    arguments = random_arguments(paths, graph, form)
    exact = derivatives(conv_of(graph, paths), arguments)
    found = derivatives(conv_of(graph.to("cuda"), paths), on_gpu(arguments, torch.float64))
    for name, value in found.items():
        # thousands of terms in one row: a few more roundings
        assert relative_error(value.cpu(), exact[name]) < 1e-12, name


def test_strides_and_views() -> None:
    paths, graph = CASES["tiny"].paths, random_graph(6, 40).to("cuda")
    arguments = on_gpu(random_arguments(paths, random_graph(6, 40), "vectors-lowrank"), torch.float32)
    exact = derivatives(conv_of(graph, paths), arguments)
    # leaves that are views into larger memory, column by column
    strided = {name: torch.stack([v, v]).transpose(1, 2).contiguous()[1].t() for name, v in arguments.items()}
    assert not any(value.is_contiguous() for value in strided.values())
    conv = conv_of(graph, paths)
    leaves = {name: value.requires_grad_() for name, value in strided.items()}
    out = conv(**leaves)
    assert torch.equal(out, exact["value"])


@pytest.mark.parametrize("form", FORMS)
def test_compile_fullgraph(form: str) -> None:
    paths, graph = CASES["tiny"].paths, random_graph(6, 40).to("cuda")
    arguments = on_gpu(random_arguments(paths, random_graph(6, 40), form), torch.float32)

    def energy(x: Tensor, **tensors: Tensor) -> Tensor:
        return glassconv.conv(x.sin(), graph, paths, **tensors).square().sum()

    def gradients(function) -> list[Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in arguments.items()}
        value = function(**leaves)
        return [value.detach(), *torch.autograd.grad(value, list(leaves.values()))]

    torch._dynamo.reset()
    for found, exact in zip(gradients(torch.compile(energy, fullgraph=True)), gradients(energy), strict=True):
        assert relative_error(found, exact) < TOLERANCE[torch.float32][0]


def test_devices_may_not_be_mixed() -> None:
    paths, graph = CASES["tiny"].paths, random_graph(4, 20)
    arguments = random_arguments(paths, graph, "vectors-lowrank")
    for name in arguments:
        mixed = {k: v if k == name else v.cuda() for k, v in arguments.items()}
        message = (
            r"device of x, cpu, got cuda" if name == "x" else rf"{name}: expected the device of x, cuda:0"
        )
        with pytest.raises(ValueError, match=message):
            conv_of(graph if name == "x" else graph.to("cuda"), paths)(**mixed)
    with pytest.raises(ValueError, match="graph: expected the device of x, cuda:0, got cpu"):
        conv_of(graph, paths)(**on_gpu(arguments, torch.float64))
    positions = torch.rand(4, 3, device="cuda")
    with pytest.raises(ValueError, match="batch: expected the device of positions, cuda:0, got cpu"):
        glassconv.neighbor_list(positions, 1.0, batch=torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("place", range(9))
def test_operator_refuses_a_tensor_of_the_cpu(place: int) -> None:
    """Reached without `glassconv.conv`: an error, not an access to memory that is not there."""
    arguments = list(operator_arguments("vectors-lowrank", torch.float32))
    arguments[place] = arguments[place].cpu()
    with pytest.raises((ValueError, RuntimeError), match=r"device|cuda|CUDA|backend"):
        torch.ops.glassconv.conv(*arguments)
    torch.cuda.synchronize()


def test_more_than_2_to_the_31_numbers() -> None:
    """Messages of the backward pass (n_edges x dim_in) that 32-bit offsets cannot address."""
    paths = Paths("32x0e+32x1o+32x2e+32x3o", 1, "0e")
    n_nodes, n_edges, n_last = 20_000, 2**31 // paths.irreps_in.dim + 4096, 500
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("less than 40 GB of GPU memory are free")
    generator = torch.Generator(device="cuda").manual_seed(0)
    edges = torch.randint(n_nodes, (2, n_edges), generator=generator, device="cuda")
    edges[1] = edges[1].sort().values
    graph = Graph.from_edge_index(edges, n_nodes)
    x = torch.randn(n_nodes, paths.irreps_in.dim, generator=generator, device="cuda")
    vectors = torch.randn(n_edges, 3, generator=generator, device="cuda")
    radial = torch.randn(n_edges, 1, generator=generator, device="cuda")
    mix = torch.randn(1, paths.weight_numel, generator=generator, device="cuda")
    # the rows at the end alone, where the offsets are largest
    begin = int(graph.row_ptr[n_nodes - n_last])
    part = Graph.from_edge_index(edges[:, begin:], n_nodes)
    results = []
    for given, r, h in ((graph, vectors, radial), (part, vectors[begin:], radial[begin:])):
        leaves = [x.clone().requires_grad_(), r.clone().requires_grad_()]
        out = glassconv.conv(leaves[0], given, paths, vectors=leaves[1], radial=h, mix=mix)
        out[-n_last:].square().sum().backward()
        results.append((out.detach()[-n_last:], leaves[0].grad, leaves[1].grad[-(n_edges - begin) :]))
    for whole, alone in zip(*results, strict=True):
        assert relative_error(whole, alone) < TOLERANCE[torch.float32][0]
