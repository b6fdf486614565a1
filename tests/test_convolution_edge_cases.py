"""The convolution on graphs and vectors that break kernels: empty, isolated, doubled, zero, unsorted."""

from __future__ import annotations

import pytest
import torch
from oracles import (
    DTYPES,
    FORMS,
    SMALL_CASES,
    TOLERANCE,
    derivatives,
    e3nn_conv,
    generator,
    normal,
    random_arguments,
    random_graph,
    relative_error,
)
from torch import Tensor

import glassconv
from glassconv import Graph, Paths

PATHS = Paths("4x0e+3x1o+5x2e", 2, "0e+1o+1e+2e")


def compare(
    graph: Graph, form: str, dtype: torch.dtype = torch.float64, paths: Paths = PATHS
) -> dict[str, Tensor]:
    arguments = random_arguments(paths, graph, form)
    ours = derivatives(
        lambda **tensors: glassconv.conv(tensors.pop("x"), graph, paths, **tensors),
        {name: value.to(dtype) for name, value in arguments.items()},
    )
    oracle = derivatives(lambda **tensors: e3nn_conv(tensors.pop("x"), graph, paths, **tensors), arguments)
    for name in oracle:
        assert relative_error(ours[name], oracle[name]) < TOLERANCE[dtype], name
    return ours


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n_nodes", "n_edges"), [(0, 0), (1, 0), (5, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_edges(backend: str, dtype: torch.dtype, n_nodes: int, n_edges: int, form: str) -> None:
    graph = Graph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), n_nodes)
    arguments = {name: value.to(dtype) for name, value in random_arguments(PATHS, graph, form).items()}
    results = derivatives(
        lambda **tensors: glassconv.conv(tensors.pop("x"), graph, PATHS, **tensors), arguments
    )
    assert results["value"].shape == (n_nodes, PATHS.irreps_out.dim)
    for name, value in results.items():
        assert value.dtype == dtype
        assert (value == 0).all(), name
    for name, value in arguments.items():
        assert results[f"d {name}"].shape == value.shape


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_edge(backend: str, dtype: torch.dtype, form: str) -> None:
    compare(Graph.from_edge_index(torch.tensor([[2], [0]]), 3), form, dtype)


@pytest.mark.parametrize("form", FORMS)
def test_isolated_nodes(backend: str, form: str) -> None:
    edge_index = torch.tensor([[1, 4, 1, 6], [4, 1, 6, 4]])  # 0, 2, 3, 5, 7 have no edge
    results = compare(Graph.from_edge_index(edge_index, 8), form)
    assert (results["value"][[0, 2, 3, 5, 7]] == 0).all()
    assert (results["d x"][[0, 2, 3, 5, 7]] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_one_way_edges(backend: str, form: str) -> None:
    """A directed tree: nodes that only send, nodes that only receive; no reverse edge exists."""
    graph = Graph.from_edge_index(torch.tensor([[0, 0, 1, 1, 2], [1, 2, 3, 4, 5]]), 6)
    assert graph.reverse is None
    compare(graph, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_multi_edges_and_self_edges(backend: str, dtype: torch.dtype, form: str) -> None:
    edge_index = torch.tensor([[0, 1, 1, 2, 2, 2, 1, 0], [0, 0, 0, 2, 2, 1, 0, 2]])
    compare(Graph.from_edge_index(edge_index, 3), form, dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", [63, 64, 65, 129, 201, 257])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows(backend: str, dtype: torch.dtype, row: int, form: str) -> None:
    source = torch.randint(4, (row + 2,), generator=generator(4))
    receiver = torch.cat([torch.zeros(1), torch.ones(row), torch.full((1,), 3.0)]).long()
    compare(Graph.from_edge_index(torch.stack([source, receiver]), 4), form, dtype)


@pytest.mark.parametrize("form", FORMS)
def test_one_source_of_everything(backend: str, form: str) -> None:
    receiver = torch.randint(20, (150,), generator=generator(5))
    compare(Graph.from_edge_index(torch.stack([torch.full((150,), 3), receiver]), 20), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("multiplicities", ["1,2,3", "7,1,9", "12,17,6", "31,2,15"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_uneven_multiplicities(backend: str, dtype: torch.dtype, multiplicities: str, form: str) -> None:
    a, b, c = multiplicities.split(",")
    compare(random_graph(5, 30), form, dtype, Paths(f"{a}x0e+{b}x1o+{c}x2e", 2, "0e+1o+2e"))


@pytest.mark.parametrize("form", FORMS)
def test_order_of_the_edges_does_not_matter(backend: str, form: str) -> None:
    """The same edges sorted by receiver (no permutation) and shuffled."""
    shuffled = random_graph(9, 120)
    order = shuffled.edge_index[1].argsort(stable=True)
    ordered = Graph.from_edge_index(shuffled.edge_index[:, order], 9)
    assert shuffled.perm is not None
    assert ordered.perm is None
    of_edges = ("vectors", "edge_sh", "edge_weight", "radial")
    arguments = random_arguments(PATHS, shuffled, form)
    sorted_arguments = {n: v[order] if n in of_edges else v for n, v in arguments.items()}
    one = derivatives(lambda **t: glassconv.conv(t.pop("x"), shuffled, PATHS, **t), arguments, order=1)
    other = derivatives(
        lambda **t: glassconv.conv(t.pop("x"), ordered, PATHS, **t), sorted_arguments, order=1
    )
    for name, value in one.items():
        expected = value[order] if name.removeprefix("d ") in of_edges else value
        assert relative_error(other[name], expected) < TOLERANCE[torch.float64], name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1.2, 3.0])
def test_periodic_neighbor_list(backend: str, length: float, form: str) -> None:
    """A graph with `reverse`; in the smaller cell several images of a pair, and of a particle with itself."""
    positions = length * torch.rand(12, 3, generator=generator(6), dtype=torch.float64)
    graph = glassconv.neighbor_list(positions, 1.3, cell=torch.full((3,), length, dtype=torch.float64))
    assert graph.perm is None
    assert graph.reverse is not None
    compare(graph, form)


def zero_safe_oracle(x: Tensor, graph: Graph, paths: Paths, *, vectors: Tensor, **weights: Tensor) -> Tensor:
    """e3nn with the harmonics of zero vectors replaced by Y_0 = 1, Y_l = 0 without derivatives."""
    is_zero = (vectors == 0).all(dim=1)
    somewhere = torch.where(is_zero[:, None], torch.ones_like(vectors), vectors)
    from e3nn import o3

    edge_sh = o3.spherical_harmonics([0, 1, 2], somewhere, normalize=True, normalization="component")
    at_zero = torch.zeros_like(edge_sh)
    at_zero[:, 0] = 1
    return e3nn_conv(x, graph, paths, edge_sh=torch.where(is_zero[:, None], at_zero, edge_sh), **weights)


@pytest.mark.parametrize("form", ["vectors-explicit", "vectors-lowrank"])
@pytest.mark.parametrize("zeros", ["some", "all"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_vectors(backend: str, dtype: torch.dtype, zeros: str, form: str) -> None:
    graph = random_graph(6, 40)
    arguments = random_arguments(PATHS, graph, form)
    is_zero = torch.ones(40, dtype=torch.bool) if zeros == "all" else torch.arange(40) % 3 == 0
    arguments["vectors"][is_zero] = 0
    ours = derivatives(
        lambda **tensors: glassconv.conv(tensors.pop("x"), graph, PATHS, **tensors),
        {name: value.to(dtype) for name, value in arguments.items()},
    )
    oracle = derivatives(lambda **t: zero_safe_oracle(t.pop("x"), graph, PATHS, **t), arguments)
    for name in oracle:
        assert relative_error(ours[name], oracle[name]) < TOLERANCE[dtype], name
    assert (ours["d vectors"][is_zero] == 0).all()
    assert (ours["dd vectors"][is_zero] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_blocks_of_the_paths_are_read(backend: str, dtype: torch.dtype) -> None:
    """Input blocks and harmonics that no path uses get no gradient, whatever they hold."""
    paths = Paths("2x0e+3x1o+2x2e", 2, instructions=[(2, 0, "2e"), (0, 0, "0e")])
    graph = random_graph(5, 30)
    arguments = {n: v.to(dtype) for n, v in random_arguments(paths, graph, "sh-explicit").items()}
    arguments["x"][:, 2:11] = torch.nan
    arguments["edge_sh"][:, 1:] = torch.nan
    results = derivatives(
        lambda **tensors: glassconv.conv(tensors.pop("x"), graph, paths, **tensors), arguments
    )
    assert all(torch.isfinite(value).all() for value in results.values())
    assert (results["d x"][:, 2:11] == 0).all()
    assert (results["d edge_sh"][:, 1:] == 0).all()


@pytest.mark.slow
def test_more_than_2_to_the_31_weights(native_extension: None) -> None:
    """E x W beyond 32 bits; only low-rank weights allow it here, because they are never stored."""
    n_nodes, n_edges, width = 16, 600_000, 4096
    assert n_edges * width > 2**31
    paths = Paths(f"{width}x0e", 0, "0e")
    graph = random_graph(n_nodes, n_edges)
    x, radial, mix = (
        normal((n_nodes, width), 1).float(),
        normal((n_edges, 1), 2).float(),
        normal((1, width), 3).float(),
    )
    vectors = normal((n_edges, 3), 4).float()
    with glassconv.use_backend("native"):
        out = glassconv.conv(x, graph, paths, vectors=vectors, radial=radial, mix=mix)
    source, receiver = graph.edge_index
    adjacency = torch.zeros(n_nodes, n_nodes, dtype=torch.float64)
    adjacency.view(-1).index_add_(0, receiver * n_nodes + source, radial[:, 0].double())
    oracle = (adjacency @ x.double()) * mix.double()
    # sums over some 40,000 edges per node in float32: rounding grows with the square root of their number
    assert relative_error(out, oracle) < 1e-4


def test_cases_cover_what_they_say() -> None:
    irreps = [case.paths for case in SMALL_CASES.values()]
    assert {entry.l_in for paths in irreps for entry in paths.entries} == {0, 1, 2, 3, 4}
    assert {entry.l_out for paths in irreps for entry in paths.entries} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("irreps_in", "l_max", "n_radial"),
    [("32x0e+1x0e", 0, 130), ("32x0e+1x1o", 1, 40), ("8x0e", 0, 2000), ("3x1o+40x0e", 1, 5)],
)
def test_blocks_of_very_different_width(backend: str, irreps_in: str, l_max: int, n_radial: int) -> None:
    """Where a schedule packs several edges side by side for a narrow block, a wide one has few at a time."""
    paths, graph = Paths(irreps_in, l_max, None), random_graph(4, 14)
    arguments = random_arguments(paths, graph, "vectors-lowrank", n_radial=n_radial)
    ours = derivatives(lambda **tensors: glassconv.conv(tensors.pop("x"), graph, paths, **tensors), arguments)
    oracle = derivatives(lambda **tensors: e3nn_conv(tensors.pop("x"), graph, paths, **tensors), arguments)
    for name in ours:
        assert relative_error(ours[name], oracle[name]) < TOLERANCE[torch.float64], name
