"""`neighbor_list` beyond the search itself: cutoffs of pairs, spatial order, half lists, capacity."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from neighbor_oracle import brute_force, brute_force_batch, check_well_formed, edges_of, half_of
from oracles import FORMS, random_arguments
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

import glassconv
from glassconv import Graph, _neighbor_checks, neighbor_list
from glassconv._lattice import spatial_order

SKEWED = np.array([[4.0, 0.0, 0.0], [3.5, 2.0, 0.0], [-2.5, 3.0, 3.0]])
CUTOFFS = np.array([[1.3, 0.9, 0.0], [0.9, 1.1, 1.7], [0.0, 1.7, 0.4]])
BOX = [3.0, 3.0, 3.0]

on_each_cuda_backend = pytest.mark.parametrize("backend", ["emulated", "cuda"], indirect=True)
where_errors_are_raised = pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)


def random_positions(n: int, cell: Any = SKEWED, seed: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 1.5, (n, 3)) @ np.asarray(cell)


def random_types(n: int, n_types: int = 3) -> np.ndarray:
    return np.random.default_rng(31).integers(0, n_types, n)


# Cutoffs of pairs of types


@pytest.mark.parametrize("pbc", [True, (True, False, True), False], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cutoffs_of_pairs(backend: str, pbc: object, dtype: type) -> None:
    positions, types = random_positions(40).astype(dtype), random_types(40)
    graph = neighbor_list(positions, CUTOFFS, SKEWED, pbc, types=types)
    np.testing.assert_array_equal(edges_of(graph), brute_force(positions, CUTOFFS, SKEWED, pbc, types))
    assert graph.cutoff == 1.7
    assert graph.n_edges > 20
    check_well_formed(graph)
    half = neighbor_list(positions, CUTOFFS, SKEWED, pbc, types=types, half=True)
    np.testing.assert_array_equal(edges_of(half), half_of(edges_of(graph)))


def test_types_decide_exactly_at_the_cutoff(backend: str) -> None:
    """Two distances that are the cutoffs of their pairs, and the same cutoffs one rounding more."""
    positions = [[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.7, 0.0]]
    at = np.array([[1.0, 0.1, 0.7], [0.1, 1.0, 0.2], [0.7, 0.2, 1.0]])
    for cutoffs in (at, np.nextafter(at, 2.0)):
        found = edges_of(neighbor_list(positions, cutoffs, types=[0, 1, 2]))
        np.testing.assert_array_equal(found, brute_force(positions, cutoffs, types=[0, 1, 2]))
    assert len(found) == 4


def test_types_in_a_batch(backend: str) -> None:
    cells, sizes = [SKEWED, np.eye(3) * 2.5], [20, 15]
    systems = [(random_positions(n, cell), cell, True) for n, cell in zip(sizes, cells, strict=True)]
    positions = np.concatenate([system[0] for system in systems])
    types, batch = random_types(35), np.repeat([0, 1], sizes)
    graph = neighbor_list(positions, CUTOFFS, np.stack(cells), True, batch, types=types)
    np.testing.assert_array_equal(edges_of(graph), brute_force_batch(systems, CUTOFFS, types))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
    ],
)
def test_types_of_any_integer_dtype(backend: str, dtype: torch.dtype) -> None:
    positions, types = random_positions(20), torch.from_numpy(random_types(20))
    expected = edges_of(neighbor_list(positions, CUTOFFS, SKEWED, types=types))
    given = neighbor_list(positions, CUTOFFS.tolist(), SKEWED, types=types.to(dtype))
    np.testing.assert_array_equal(edges_of(given), expected)


def test_one_type_is_one_cutoff(backend: str) -> None:
    positions, types = random_positions(20), np.zeros(20, dtype=np.int64)
    expected = neighbor_list(positions, 1.3, SKEWED)
    graph = neighbor_list(positions, [[1.3]], SKEWED, types=types)
    np.testing.assert_array_equal(edges_of(graph), edges_of(expected))
    # the second type, which no particle has, changes the radius of the search only
    graph = neighbor_list(positions, [[1.3, 1.9], [1.9, 1.9]], SKEWED, types=types)
    np.testing.assert_array_equal(edges_of(graph), edges_of(expected))
    assert graph.cutoff == 1.9


GOOD, TYPES = np.zeros((2, 3)), [0, 1]
PAIRS = [[1.0, 0.5], [0.5, 0.8]]


@pytest.mark.parametrize(
    ("cutoff", "types", "message"),
    [
        (1.0, TYPES, r"cutoff: expected an array of shape \(T, T\), one for each two types, got 1.0"),
        (np.ones(2), TYPES, r"cutoff: expected shape \(T, T\) with types, got \(2,\)"),
        (np.ones((2, 3)), TYPES, r"cutoff: expected shape \(T, T\) with types, got \(2, 3\)"),
        (
            np.array(PAIRS),
            None,
            r"types: expected the types that a cutoff of shape \(2, 2\) is for, got None",
        ),
        (np.eye(2, dtype=bool), TYPES, "cutoff: expected real numbers, got torch.bool"),
        ([[1.0, 0.5], [0.4, 1.0]], TYPES, r"expected a symmetric matrix, got 0.5 at \[0, 1\] and 0.4 at \[1"),
        ([[1.0, -0.5], [-0.5, 1.0]], TYPES, r"cutoff: expected numbers of at least 0, got -0.5 at \[0, 1\]"),
        ([[1.0, np.nan], [np.nan, 1.0]], TYPES, r"cutoff: expected finite numbers, got nan at \[0, 1\]"),
        ([[1.0, 0.0], [0.0, np.inf]], TYPES, r"cutoff: expected finite numbers, got inf at \[1, 1\]"),
        ([[1.0, 0.0], [0.0, 1e-200]], TYPES, r"cutoff: expected 0 or numbers of at least 1e-140, got 1e-200"),
        (np.zeros((2, 2)), TYPES, "cutoff: expected a positive finite number, got 0.0"),
        (np.eye(2) * 1e141, TYPES, r"cutoff: expected from 1e-140 to 1e\+140, got 1e\+141"),
        (PAIRS, [0, 2], "types: expected types from 0 to 1, as the cutoff has, got 2 at particle 1"),
        (PAIRS, [0, -1], "types: expected types from 0 to 1, as the cutoff has, got -1 at particle 1"),
        (PAIRS, [0, 2**32], "types: expected types from 0 to 1, .*, got 4294967296 at particle 1"),
        (PAIRS, np.array([0, 2**32], np.uint64), "types: expected types from 0 to 1, .*, got 4294967296 at"),
        (PAIRS, np.array([0, 2**64 - 1], np.uint64), "types: expected .*, got 18446744073709551615 at"),
        (PAIRS, np.array([0, 2**32 - 1], np.uint32), "types: expected .*, got 4294967295 at particle 1"),
        (PAIRS, [0], r"types: expected shape \(2,\), got \(1,\)"),
        (PAIRS, [0.0, 1.0], "types: expected integers, got torch.float64"),
        (PAIRS, [True, False], "types: expected integers, got torch.bool"),
        (PAIRS, torch.zeros(2, device="meta"), "types: expected a tensor with values, got one on the meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("capacity", [None, 5])
@where_errors_are_raised
def test_wrong_cutoffs_and_types(
    backend: str, capacity: int | None, cutoff: Any, types: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        neighbor_list(GOOD, cutoff, BOX, types=types, capacity=capacity)


# Spatial order


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("pbc", [True, (False, True, False), False], ids=str)
def test_spatial_order_is_the_list_of_reordered_particles(backend: str, pbc: object, half: bool) -> None:
    positions, types = torch.from_numpy(random_positions(50)), torch.from_numpy(random_types(50))
    graph = neighbor_list(positions, CUTOFFS, SKEWED, pbc, types=types, order="spatial", half=half)
    order = graph.node_order
    assert torch.equal(order.sort().values, torch.arange(50))
    expected = neighbor_list(positions[order], CUTOFFS, SKEWED, pbc, types=types[order], half=half)
    np.testing.assert_array_equal(edges_of(graph), edges_of(expected))
    assert neighbor_list(positions, 1.0, SKEWED).node_order is None


def test_spatial_order_and_back(backend: str) -> None:
    """Coordination numbers come out the same when they are brought back to the order of the particles."""
    positions = torch.from_numpy(random_positions(50))
    plain, graph = (
        neighbor_list(positions, 1.3, SKEWED),
        neighbor_list(positions, 1.3, SKEWED, order="spatial"),
    )
    restored = torch.empty(50, dtype=torch.int64)
    restored[graph.node_order] = graph.row_ptr.diff()
    assert torch.equal(restored, plain.row_ptr.diff())
    lengths = graph.distances(positions[graph.node_order], SKEWED)
    torch.testing.assert_close(
        lengths.sort().values, plain.distances(positions, SKEWED).sort().values, rtol=0, atol=0
    )


@pytest.mark.parametrize("lengths", [(6.3, 4.2, 3.1), (1.5, 9.0, 1.0), (2.2, 6.1, 9.9)])
def test_nodes_are_sorted_by_cell_then_index(backend: str, lengths: tuple[float, ...]) -> None:
    """Lines of cells along x, 4 x 4 of them together; box lengths over the cutoff 1 give their numbers."""
    rng = np.random.default_rng(32)
    positions = rng.uniform(-1.0, 2.0, (400, 3)) * lengths
    counts = np.maximum(np.floor(np.array(lengths) / (1.0 + 1e-6)), 1)
    fractional = positions / lengths - np.floor(positions / lengths)
    x, y, z = np.floor(fractional * counts).astype(int).T
    expected = np.lexsort((np.arange(400), x, y, z, y // 4, z // 4))
    graph = neighbor_list(torch.from_numpy(positions), 1.0, lengths, order="spatial")
    np.testing.assert_array_equal(graph.node_order, expected)


@pytest.mark.parametrize("length", [1e3, 1e12, 1e100])
def test_bins_of_sparse_systems_are_few(length: float) -> None:
    """2 n + 8 in all, so at most that many along each axis; more would have the lines of a tile apart."""
    n = 50
    positions = torch.rand(n, 3, dtype=torch.float64) * length
    cell, pbc = length * torch.eye(3, dtype=torch.float64)[None], torch.ones(1, 3, dtype=torch.bool)
    order = spatial_order(positions, cell, pbc, torch.zeros(n, dtype=torch.int64), 1.0)
    for per_axis in range(1, 5):  # 5 x 5 x 5 would be too many
        x, y, z = (positions / length * per_axis).floor().to(torch.int64).numpy().T
        expected = np.lexsort((np.arange(n), x, y, z))
        if np.array_equal(order, expected):
            return
    pytest.fail("not the order of any number of bins that is allowed")


def test_spatial_order_keeps_systems_together(backend: str) -> None:
    cells, sizes = np.stack([SKEWED, np.eye(3), np.eye(3) * 2.5]), [20, 0, 15]
    positions = np.concatenate([random_positions(n, cell) for n, cell in zip(sizes, cells, strict=True)])
    batch = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    pbc = [[True, False, True], [True] * 3, [False] * 3]
    for capacity in (None, 1000):
        graph = neighbor_list(
            torch.from_numpy(positions), 1.2, cells, pbc, batch, order="spatial", capacity=capacity
        )
        order = graph.node_order
        assert torch.equal(batch[order], batch)
        assert torch.equal(graph.batch, batch)
        expected = neighbor_list(torch.from_numpy(positions)[order], 1.2, cells, pbc, batch)
        n = expected.n_edges
        assert torch.equal(graph.edge_index[:, :n], expected.edge_index)
        assert torch.equal(graph.row_ptr, expected.row_ptr)


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("cell", [None, [1e12] * 3, [0.4] * 3, np.diag([1e-139] * 3)], ids=str)
def test_spatial_order_of_few_particles_in_any_cell(backend: str, n: int, cell: Any) -> None:
    scale = 1.0 if cell is None else np.min(np.diag(cell) if np.ndim(cell) == 2 else cell)
    positions = np.zeros((n, 3)) + np.arange(n)[:, None] * 0.3 * scale
    graph = neighbor_list(torch.from_numpy(positions), 0.9 * scale, cell, order="spatial")
    assert sorted(graph.node_order.tolist()) == list(range(n))
    assert graph.n_edges == neighbor_list(positions, 0.9 * scale, cell).n_edges


@where_errors_are_raised
@pytest.mark.parametrize("capacity", [None, 5])
def test_errors_name_particles_in_the_order_given(backend: str, capacity: int | None) -> None:
    positions = np.array([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, np.nan], [0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match=r"positions: expected finite numbers .* at particle 2"):
        neighbor_list(positions, 0.5, BOX, order="spatial", capacity=capacity)
    positions[2, 2] = 4e9
    with pytest.raises(ValueError, match=r"positions: expected within 1e9 cells .* at particle 2"):
        neighbor_list(positions, 0.5, BOX, order="spatial", capacity=capacity)


def test_unknown_order() -> None:
    with pytest.raises(ValueError, match="order: expected 'receiver' or 'spatial', got 'random'"):
        neighbor_list(GOOD, 1.0, order="random")


def test_node_order_of_joined_graphs() -> None:
    positions = torch.from_numpy(random_positions(12))
    spatial, plain = (
        neighbor_list(positions, 1.3, SKEWED, order="spatial"),
        neighbor_list(positions, 1.3, SKEWED),
    )
    joined = Graph.concatenate([plain, spatial])
    assert torch.equal(joined.node_order, torch.cat([torch.arange(12), spatial.node_order + 12]))
    both = positions.repeat(2, 1)[joined.node_order]
    cells = np.stack([SKEWED, SKEWED])
    torch.testing.assert_close(
        joined.distances(both, cells)[plain.n_edges :],
        spatial.distances(positions[spatial.node_order], SKEWED),
    )
    assert Graph.concatenate([plain, plain]).node_order is None


# Half lists


def test_half_list_of_images(backend: str) -> None:
    """Several edges between the same two particles, and of a particle with itself."""
    positions = random_positions(3, np.eye(3))
    full = neighbor_list(torch.from_numpy(positions), 1.9, np.eye(3))
    half = neighbor_list(torch.from_numpy(positions), 1.9, np.eye(3), half=True)
    np.testing.assert_array_equal(edges_of(half), half_of(edges_of(full)))
    assert 2 * half.n_edges == full.n_edges
    assert torch.equal(half.transpose_slots.sort().values, torch.arange(half.n_edges))
    by_source = half.row_source[half.transpose_slots]
    assert torch.equal(by_source, torch.arange(3).repeat_interleave(half.transpose_ptr.diff()))


# Capacity


def assert_padded(graph: Graph, expected: Graph, capacity: int) -> None:
    """The arrays of `expected`, then -1."""
    assert graph.edge_index.shape == (2, capacity)
    assert graph.n_found.shape == ()
    assert (int(graph.n_found), bool(graph.overflow)) == (expected.n_edges, False)
    for name in ("edge_index", "shifts", "reverse", "row_source", "transpose_slots"):
        values, wanted = getattr(graph, name), getattr(expected, name)
        if wanted is None:
            assert values is None
            continue
        dim = int(name == "edge_index")
        first, rest = values.split([expected.n_edges, capacity - expected.n_edges], dim)
        torch.testing.assert_close(first, wanted, rtol=0, atol=0, msg=name)
        assert bool((rest == -1).all()), name
    for name in ("row_ptr", "transpose_ptr"):
        assert torch.equal(getattr(graph, name), getattr(expected, name)), name
    assert graph.edge_mask.tolist() == [True] * expected.n_edges + [False] * (capacity - expected.n_edges)
    graph.check()


@pytest.mark.parametrize("options", [{}, {"half": True}, {"order": "spatial"}, {"types": True}], ids=str)
@pytest.mark.parametrize("more", [0, 1, 50])
def test_capacity_pads(backend: str, options: dict[str, Any], more: int) -> None:
    positions = torch.from_numpy(random_positions(30))
    cutoff: Any = 1.4
    if "types" in options:
        cutoff, options = CUTOFFS, {"types": random_types(30)}
    expected = neighbor_list(positions, cutoff, SKEWED, **options)
    capacity = expected.n_edges + more
    graph = neighbor_list(positions, cutoff, SKEWED, capacity=capacity, **options)
    assert_padded(graph, expected, capacity)
    assert expected.n_found is None
    assert expected.overflow is None
    assert bool(expected.edge_mask.all())
    expected.check()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("lack", [1, 20, None])
def test_too_small_a_capacity(backend: str, half: bool, lack: int | None) -> None:
    positions = torch.from_numpy(random_positions(30))
    expected = neighbor_list(positions, 1.4, SKEWED, half=half)
    capacity = 0 if lack is None else expected.n_edges - lack
    graph = neighbor_list(positions, 1.4, SKEWED, half=half, capacity=capacity)
    assert int(graph.n_found) == expected.n_edges
    assert bool(graph.overflow)
    with pytest.raises(
        ValueError, match=f"capacity: expected at least {expected.n_edges} .*, got {capacity}"
    ):
        graph.check()
    assert not bool(graph.edge_mask.any())
    for rows in (graph.row_ptr, graph.transpose_ptr):
        assert rows.tolist() == [0] * 31
    assert not bool(graph.vectors(positions, SKEWED).any())


@pytest.mark.parametrize("n", [0, 1])
def test_capacity_without_edges(backend: str, n: int) -> None:
    positions = torch.zeros(n, 3, dtype=torch.float64, requires_grad=True)
    for cell in (None, BOX):
        for capacity in (0, 4):
            graph = neighbor_list(positions, 1.0, cell, capacity=capacity)
            assert (int(graph.n_found), bool(graph.overflow)) == (0, False)
            distances = graph.distances(positions, cell)
            assert distances.tolist() == [0.0] * capacity
            (gradient,) = torch.autograd.grad(distances.sum(), positions)
            assert not bool(gradient.any())


def test_capacity_with_a_batch(backend: str) -> None:
    positions, batch = torch.from_numpy(random_positions(30, np.eye(3) * 2.5)), torch.arange(30) // 10
    cells, pbc = torch.full((4, 3), 2.5), torch.tensor([[True, False, True]] * 4)
    expected = neighbor_list(positions, 1.1, cells, pbc, batch)
    graph = neighbor_list(positions, 1.1, cells, pbc, batch.int(), capacity=500)
    assert_padded(graph, expected, 500)
    assert graph.n_systems == 4
    assert torch.equal(graph.batch, batch)
    first = expected.vectors(positions, cells.double())
    assert torch.equal(graph.vectors(positions, cells.double())[: expected.n_edges], first)
    for cell, got in ((None, "None"), (BOX, r"\(3,\)")):
        message = rf"cell: expected shape \(B, 3\) or \(B, 3, 3\), one cell .* a capacity, got {got}"
        with pytest.raises(ValueError, match=message):
            neighbor_list(positions, 1.1, cell, pbc, batch, capacity=500)


@pytest.mark.parametrize(
    ("capacity", "message"),
    [
        (-1, "capacity: expected at least 0, got -1"),
        (2.0, "an integer, got 2.0"),
        (True, "integer, got True"),
    ],
)
def test_what_is_no_capacity(capacity: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neighbor_list(GOOD, 1.0, capacity=capacity)


REFUSED = [
    ({"positions": np.full((2, 3), np.nan)}, "positions: expected finite numbers"),
    ({"positions": np.full((2, 3), 1e11)}, "positions: expected within 1e9 cells"),
    ({"cell": [3.0, np.inf, 3.0]}, "cell: expected finite"),
    ({"cell": [3.0, 0.0, 3.0]}, "cell: expected linearly independent periodic vectors"),
    ({"cell": np.full((1, 3), 3.0), "batch": [0, 1]}, "batch: expected|cell: expected shape"),
    ({"cutoff": 1e4}, "cutoff: expected at most 16777216 periodic images within reach"),
    ({"cutoff": PAIRS, "types": [0, 7]}, "types: expected types"),
]


@pytest.mark.parametrize(
    ("change", "message"), REFUSED, ids=lambda value: value if type(value) is str else ""
)
@where_errors_are_raised
def test_capacity_raises_errors_on_a_cpu(backend: str, change: dict[str, Any], message: str) -> None:
    arguments = {"positions": GOOD, "cutoff": 1.0, "cell": BOX, **change}
    with pytest.raises(ValueError, match=message):
        neighbor_list(**arguments, capacity=9)


@pytest.mark.parametrize(
    ("change", "message"), REFUSED, ids=lambda value: value if type(value) is str else ""
)
@pytest.mark.parametrize("half", [False, True])
@on_each_cuda_backend
def test_capacity_reports_errors_on_a_gpu_when_asked(
    backend: str, half: bool, change: dict[str, Any], message: str
) -> None:
    arguments = {"positions": GOOD, "cutoff": 1.0, "cell": BOX, **change}
    graph = neighbor_list(**arguments, capacity=9, half=half)
    assert int(graph.n_found) < 0
    assert not bool(graph.overflow)
    assert not np.asarray(graph.edge_mask).any()
    with pytest.raises(ValueError, match=message):
        graph.check()


def test_padding_has_no_vectors_and_no_gradients(backend: str) -> None:
    positions, cell = torch.from_numpy(random_positions(12)), torch.from_numpy(SKEWED)
    full = neighbor_list(positions, 1.5, cell)
    graph = neighbor_list(positions, 1.5, cell, capacity=full.n_edges + 9)
    n = full.n_edges
    results = []
    for each in (full, graph):
        r, h = positions.clone().requires_grad_(), cell.clone().requires_grad_()
        vectors, distances = each.vectors(r, h), each.distances(r, h)
        energy = (vectors[:n] ** 3).sum() + torch.exp(-distances[:n]).sum()
        poison = torch.full_like(distances[n:], torch.nan)  # as a function that is not finite at zero has
        gradients = torch.autograd.grad((energy, distances[n:]), (r, h), (torch.ones(()).double(), poison))
        results.append((vectors[:n], distances[:n], *gradients))
        assert not bool(vectors[n:].any())
        assert not bool(distances[n:].any())
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert torch.autograd.gradcheck(graph.distances, (positions.requires_grad_(), cell.requires_grad_()))


# Convolution of graphs with a capacity

PATHS = glassconv.Paths("2x0e+1x1o", "0e+1o+2e", "0e+1o+2e")


def conv_arguments(graph: Graph, n_edges: int, form: str) -> dict[str, Tensor]:
    """Random arguments on the edges, and NaN on the padding."""
    arguments = random_arguments(PATHS, graph, form, n_radial=2)
    for name in set(arguments) - {"x", "mix"}:
        arguments[name][n_edges:] = torch.nan
    return arguments


def conv_and_derivatives(graph: Graph, arguments: dict[str, Tensor], n_edges: int) -> dict[str, Tensor]:
    """The value, first derivatives, and second ones, at the edges; what else there is must be zero."""
    given = {name: value.clone().requires_grad_() for name, value in arguments.items()}
    out = glassconv.conv(given["x"], graph, PATHS, **{k: v for k, v in given.items() if k != "x"})
    first = torch.autograd.grad(out.square().sum(), list(given.values()), create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), list(given.values()))
    found = {"out": out}
    for order, gradients in (("d", first), ("d2", second)):
        for name, gradient in zip(given, gradients, strict=True):
            is_per_edge = name not in ("x", "mix")
            assert not (is_per_edge and bool(gradient[n_edges:].any())), name
            found[f"{order} {name}"] = gradient[:n_edges] if is_per_edge else gradient
    return found


def check_padded_conv(form: str, device: str = "cpu") -> None:
    positions = torch.from_numpy(random_positions(6)).to(device)
    full = neighbor_list(positions, 1.8, SKEWED)
    n = full.n_edges
    graph = neighbor_list(positions, 1.8, SKEWED, capacity=n + 5)
    arguments = {name: value.to(device) for name, value in conv_arguments(graph, n, form).items()}
    without = {k: v if k in ("x", "mix") else v[:n] for k, v in arguments.items()}
    expected, found = conv_and_derivatives(full, without, n), conv_and_derivatives(graph, arguments, n)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_conv_passes_over_padding(backend: str, form: str) -> None:
    check_padded_conv(form)


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_conv_passes_over_padding_on_a_gpu(backend: str, form: str) -> None:
    check_padded_conv(form, "cuda")


@pytest.mark.parametrize("backend", ["emulated"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_conv_kernels_end_where_the_rows_do(backend: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way tensors on a GPU go."""
    monkeypatch.setattr("glassconv.convolution._with_sink", lambda x, graph: (x, graph))
    check_padded_conv(form)


@pytest.mark.parametrize("form", FORMS)
def test_definition_of_conv_passes_over_padding(form: str) -> None:
    positions = torch.from_numpy(random_positions(6))
    full = neighbor_list(positions, 1.8, SKEWED)
    graph = neighbor_list(positions, 1.8, SKEWED, capacity=full.n_edges + 5)
    arguments = conv_arguments(graph, full.n_edges, form)
    without = {k: v if k in ("x", "mix") else v[: full.n_edges] for k, v in arguments.items()}
    expected = glassconv.reference.conv(without.pop("x"), full, PATHS, **without)
    found = glassconv.reference.conv(arguments.pop("x"), graph, PATHS, **arguments)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_conv_of_padded_graphs_by_finite_differences(backend: str, form: str) -> None:
    positions = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.2, 0.1], [2.0, 0.3, -0.2]], dtype=torch.float64)
    graph = neighbor_list(positions, 1.4, capacity=6)
    assert int(graph.n_found) == 4
    arguments = random_arguments(PATHS, graph, form, n_radial=2)
    names = list(arguments)

    def conv(*tensors: Tensor) -> Tensor:
        named = dict(zip(names, tensors, strict=True))
        return glassconv.conv(named.pop("x"), graph, PATHS, **named)

    tensors = [value.requires_grad_() for value in arguments.values()]
    assert torch.autograd.gradcheck(conv, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(conv, tensors, fast_mode=True)


def test_conv_of_graphs_that_overflow_is_zero(backend: str) -> None:
    positions = torch.from_numpy(random_positions(6))
    graph = neighbor_list(positions, 1.8, SKEWED, capacity=5)
    assert bool(graph.overflow)
    arguments = random_arguments(PATHS, graph, "vectors-explicit")
    out = glassconv.conv(arguments.pop("x"), graph, PATHS, **arguments)
    assert out.shape == (6, PATHS.irreps_out.dim)
    assert not bool(out.any())


# torch.compile, and nothing that waits


@pytest.mark.parametrize("options", [{}, {"half": True}, {"order": "spatial"}], ids=str)
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_capacity_compiles_once_for_all_positions(
    backend: str, options: dict[str, Any], periodic: bool
) -> None:
    cell = torch.from_numpy(SKEWED) if periodic else None

    def energy(positions: Tensor) -> tuple[Tensor, Tensor]:
        graph = neighbor_list(positions, 1.4, cell, capacity=400, **options)
        r = positions if graph.node_order is None else positions[graph.node_order]
        lengths = graph.distances(r, cell)
        return torch.where(graph.edge_mask, torch.exp(-lengths), 0.0).sum(), graph.n_found

    counter = CompileCounter()
    compiled = torch.compile(energy, backend=counter, fullgraph=True)
    found = set()
    for seed in range(4):
        positions = torch.from_numpy(random_positions(25, seed=seed)).requires_grad_()
        results = []
        for function in (energy, compiled):
            value, n_found = function(positions)
            results.append((value, n_found, *torch.autograd.grad(value, positions)))
        for expected, got in zip(*results, strict=True):
            assert torch.equal(expected, got)
        found.add(int(results[0][1]))
    assert counter.frame_count == 1
    assert len(found) > 1


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@torch._dynamo.config.patch(specialize_float=True)  # otherwise it refuses the second cutoff
def test_cutoffs_of_pairs_compile_and_are_compared(backend: str) -> None:
    cutoffs, types, cell = CUTOFFS.tolist(), torch.arange(25) % 3, torch.from_numpy(SKEWED)
    positions = torch.from_numpy(random_positions(25))

    def search(positions: Tensor) -> Tensor:
        graph = neighbor_list(positions, cutoffs, cell, types=types, capacity=400)
        return graph.edge_index

    counter = CompileCounter()
    compiled = torch.compile(search, backend=counter, fullgraph=True)
    for n_frames in (1, 2):
        for r in (positions, positions + 0.1 * positions.roll(1, 0)):
            assert torch.equal(compiled(r), search(r))
        assert counter.frame_count == n_frames
        cutoffs[0][0] = 1.8  # in place


class NoReads(TorchDispatchMode):
    """Refuses operations that make the host wait for values."""

    READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "bincount", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.READS, f"{name} waits for the device"
        # indices that are bools have to be counted
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), (
            f"{name} waits for the device"
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"half": True}, {"order": "spatial"}, {"types": True}], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "emulated"], indirect=True)
def test_capacity_reads_no_values(backend: str, options: dict[str, Any]) -> None:
    positions, cell = torch.from_numpy(random_positions(20)), torch.from_numpy(SKEWED)[None]
    batch, cutoff = torch.zeros(20, dtype=torch.int64), 1.4
    if "types" in options:
        cutoff, options = CUTOFFS, {"types": torch.from_numpy(random_types(20))}
    pbc = torch.ones(1, 3, dtype=torch.bool)
    with NoReads():
        graph = neighbor_list(positions, cutoff, cell, pbc, batch, capacity=900, **options)
        distances = torch.where(graph.edge_mask & ~graph.overflow, graph.distances(positions, cell), 0.0)
    assert int(distances.count_nonzero()) == int(graph.n_found) > 0


@on_each_cuda_backend
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("order", ["receiver", "spatial"])
@pytest.mark.parametrize(
    "change", [{"batch": torch.full((20,), 7)}, {"types": torch.full((20,), 7)}], ids=[0, 1]
)
def test_vectors_of_refused_input_are_zero(
    backend: str, change: dict[str, Tensor], order: str, half: bool
) -> None:
    positions, cells = torch.from_numpy(random_positions(20)), torch.from_numpy(np.stack([SKEWED] * 2))
    given = {"batch": torch.arange(20) // 10, "types": torch.arange(20) % 3} | change
    graph = neighbor_list(positions, CUTOFFS, cells, half=half, order=order, capacity=20, **given)
    assert int(graph.n_found) < 0
    assert not bool(graph.vectors(positions, cells).any())
    assert not bool(graph.distances(positions, cells[:, [0, 1, 2], [0, 1, 2]]).any())


@pytest.mark.parametrize("backend", ["cpu", "emulated"], indirect=True)
def test_a_batch_without_cells_is_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=r"cell: expected .* got \(0, 3\)"):
        neighbor_list(GOOD, 1.0, np.zeros((0, 3)), batch=[0, 0], capacity=4)


def test_arrays_of_the_host_go_where_positions_are() -> None:
    positions = torch.zeros(2, 3, device="meta")
    for values in ([0, 1], np.array([0, 1])):
        assert _neighbor_checks.check_batch(values, positions).is_meta
        assert _neighbor_checks.check_types(values, positions, 2).is_meta
    with pytest.raises(ValueError, match="batch: expected the device of positions, meta, got cpu"):
        _neighbor_checks.check_batch(torch.tensor([0, 1]), positions)


def test_lists_of_integers_are_positions(backend: str) -> None:
    positions = [[0, 0, 0], [1, 0, 0]]
    graph = neighbor_list(positions, 1.5)
    assert graph.edge_index.tolist() == [[1, 0], [0, 1]]
    assert graph.vectors(positions).tolist() == [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert graph.vectors(positions).dtype == torch.float64
    with pytest.raises(ValueError, match=r"positions: expected float32 or float64, got torch\.int64"):
        neighbor_list(torch.tensor(positions), 1.5)


@pytest.mark.parametrize("capacity", [2**48 + 1, 2**60, 2**62, 2**63, 10**30])
@pytest.mark.parametrize("half", [False, True])
def test_capacities_beyond_any_memory(capacity: int, half: bool) -> None:
    with pytest.raises(ValueError, match=f"capacity: expected at most 281474976710656, got {capacity}"):
        neighbor_list(GOOD, 1.0, half=half, capacity=capacity)


# Whether a graph has shifts


def test_shifts_are_looked_at_when_asked(backend: str) -> None:
    positions = torch.from_numpy(random_positions(20))
    periodic, far = (
        neighbor_list(positions, 1.4, SKEWED),
        neighbor_list(positions, 1.4, np.eye(3) * 1e3, half=True),
    )
    assert (periodic.has_shifts, far.has_shifts) == (True, False)
    for capacity in (0, far.n_edges + 3):  # padding is none
        assert (
            neighbor_list(positions, 1.4, np.eye(3) * 1e3, half=True, capacity=capacity).has_shifts is False
        )
    assert neighbor_list(positions, 1.4, SKEWED, capacity=900).has_shifts is True
    assert far.vectors(positions).shape == (far.n_edges, 3)
    for same in (
        periodic.to("cpu"),
        dataclasses.replace(periodic, cutoff=None),
        Graph.concatenate([far, periodic]),
    ):
        assert same.has_shifts is True
    assert Graph.concatenate([far, far]).has_shifts is False


def test_open_graphs_are_known_to_have_no_shifts(backend: str) -> None:
    positions = torch.from_numpy(random_positions(20))
    graphs = [neighbor_list(positions, 1.4), neighbor_list(positions, 1.4, half=True)]
    graphs += [Graph.from_edge_index(graphs[0].edge_index, 20)]
    graphs += [Graph.concatenate(graphs), graphs[0].to("meta"), neighbor_list(positions, 1.4, capacity=400)]
    with NoReads():
        assert [graph.has_shifts for graph in graphs] == [False] * 6


def test_graphs_with_a_capacity_are_not_joined() -> None:
    graph = neighbor_list(torch.zeros(2, 3), 1.0, capacity=4)
    with pytest.raises(
        ValueError, match="graphs: expected graphs without a capacity, got one with it at index 1"
    ):
        Graph.concatenate([neighbor_list(torch.zeros(2, 3), 1.0), graph])
