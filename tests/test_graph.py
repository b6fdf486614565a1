"""`Graph`: vectors and their derivatives, graphs of any origin, and concatenation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from neighbor_oracle import edges_of
from torch import Tensor

from glassconv import Graph, neighbor_list

CELL = torch.tensor([[2.4, 0.0, 0.0], [0.5, 2.2, 0.0], [-0.6, 0.3, 2.6]], dtype=torch.float64)


@pytest.fixture
def positions() -> Tensor:
    return torch.rand(9, 3, dtype=torch.float64) @ CELL * 1.4


@pytest.fixture
def graph(positions: Tensor) -> Graph:
    return neighbor_list(positions, 1.6, CELL)


def pair_energy(graph: Graph) -> Callable[[Tensor, Tensor], Tensor]:
    """A smooth pair energy, each pair counted once."""
    return lambda positions, cell: 0.5 * torch.exp(-graph.distances(positions, cell)).sum()


def test_vectors_are_those_of_the_definition(positions: Tensor, graph: Graph) -> None:
    source, receiver = graph.edge_index
    expected = positions[receiver] - positions[source] + graph.shifts.double() @ CELL
    vectors = graph.vectors(positions, CELL)
    torch.testing.assert_close(
        vectors, expected, rtol=0, atol=1e-15
    )  # two orders of the same three additions
    assert float(graph.distances(positions, CELL).max()) < 1.6
    assert graph.vectors(positions.float(), CELL).dtype == torch.float32
    torch.testing.assert_close(vectors[graph.reverse], -vectors, rtol=0, atol=1e-15)


def test_box_lengths_are_a_diagonal_cell(positions: Tensor) -> None:
    graph = neighbor_list(positions, 1.0, [2.5, 2.6, 2.7])
    lengths = torch.tensor([2.5, 2.6, 2.7], dtype=torch.float64)
    assert torch.equal(graph.vectors(positions, lengths), graph.vectors(positions, torch.diag(lengths)))


def test_vectors_have_first_and_second_derivatives(positions: Tensor) -> None:
    graph = neighbor_list(positions[:4], 1.4, CELL)
    arguments = (positions[:4].clone().requires_grad_(), CELL.clone().requires_grad_())
    assert torch.autograd.gradcheck(graph.vectors, arguments)
    assert torch.autograd.gradcheck(graph.distances, arguments)
    assert torch.autograd.gradgradcheck(graph.distances, arguments)


def test_vectors_of_a_batch_use_the_cell_of_their_system(positions: Tensor) -> None:
    single = [neighbor_list(positions, 1.2, CELL * scale) for scale in (1.0, 1.3)]
    graph, cells = Graph.concatenate(single), torch.stack([CELL, CELL * 1.3])
    expected = torch.cat([g.vectors(positions, cell) for g, cell in zip(single, cells, strict=True)])
    torch.testing.assert_close(graph.vectors(positions.repeat(2, 1), cells), expected, rtol=0, atol=1e-15)
    lengths = torch.rand(2, 3, dtype=torch.float64)
    with_lengths = graph.vectors(positions.repeat(2, 1), lengths)
    assert torch.equal(with_lengths, graph.vectors(positions.repeat(2, 1), torch.diag_embed(lengths)))
    few = Graph.concatenate([neighbor_list(positions[:2], 1.2, CELL)] * 2)
    arguments = (positions[:2].repeat(2, 1).requires_grad_(), cells.clone().requires_grad_())
    assert torch.autograd.gradcheck(few.distances, arguments)
    assert torch.autograd.gradgradcheck(few.distances, arguments)


def test_forces_are_minus_the_slope_of_the_energy(positions: Tensor, graph: Graph) -> None:
    energy = pair_energy(graph)
    variable = positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(variable, CELL), variable)
    step = 1e-5
    for particle, axis in [(0, 0), (3, 1), (8, 2)]:
        displacement = torch.zeros_like(positions)
        displacement[particle, axis] = step
        slope = (energy(positions + displacement, CELL) - energy(positions - displacement, CELL)) / (2 * step)
        # central differences: step**2 times a third derivative of order 10, and rounding of the energy / step
        assert float(slope) == pytest.approx(float(gradient[particle, axis]), abs=1e-8)
    torch.testing.assert_close(gradient.sum(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-13)


def test_stress_as_documented_is_the_slope_under_strain(positions: Tensor, graph: Graph) -> None:
    energy, volume = pair_energy(graph), float(torch.linalg.det(CELL))
    r, cell = positions.clone().requires_grad_(), CELL.clone().requires_grad_()
    of_positions, of_cell = torch.autograd.grad(energy(r, cell), (r, cell))
    stress = (positions.T @ of_positions + CELL.T @ of_cell) / volume
    torch.testing.assert_close(stress, stress.T, rtol=0, atol=1e-13)

    vectors = graph.vectors(positions, CELL).requires_grad_()
    (of_vectors,) = torch.autograd.grad(0.5 * torch.exp(-vectors.norm(dim=1)).sum(), vectors)
    torch.testing.assert_close(stress, vectors.detach().T @ of_vectors / volume, rtol=0, atol=1e-13)

    step = 1e-5
    for a, b in [(0, 0), (1, 1), (0, 2), (2, 1)]:
        strain = torch.zeros(3, 3, dtype=torch.float64)
        strain[a, b] = step
        up, down = torch.eye(3) + strain, torch.eye(3) - strain
        slope = (energy(positions @ up, CELL @ up) - energy(positions @ down, CELL @ down)) / (2 * step)
        assert float(slope) / volume == pytest.approx(float(stress[a, b]), abs=1e-8)  # as for the forces
    assert (
        float(stress.trace()) < 0.0
    )  # this energy falls with distance: it repels, and the pressure is positive


def test_distance_gradient_is_zero_at_zero_length() -> None:
    positions = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    graph = neighbor_list(positions, 1.0)
    distances = graph.distances(positions)
    assert distances.tolist() == [0.0, 0.0]
    distances.sum().backward()
    assert torch.equal(positions.grad, torch.zeros(2, 3, dtype=torch.float64))


def test_backward_is_deterministic(positions: Tensor, graph: Graph) -> None:
    gradients = []
    for _ in range(3):
        variable = positions.clone().requires_grad_()
        graph.vectors(variable, CELL).pow(3).sum().backward()
        gradients.append(variable.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_vectors_are_traced_without_a_break(positions: Tensor, graph: Graph) -> None:
    batch, cells = Graph.concatenate([graph, graph]), CELL.repeat(2, 1, 1)
    for each, r, cell in [(graph, positions, CELL), (batch, positions.repeat(2, 1), cells)]:
        compiled = torch.compile(each.distances, backend="eager", fullgraph=True)
        assert torch.equal(compiled(r, cell), each.distances(r, cell))


def test_given_edges_keep_their_order(positions: Tensor, graph: Graph) -> None:
    shuffle = torch.randperm(graph.n_edges)
    edge_index, shifts = graph.edge_index[:, shuffle], graph.shifts[shuffle]
    given = Graph.from_edge_index(edge_index, graph.n_nodes, shifts)
    assert torch.equal(given.edge_index, edge_index)
    assert torch.equal(given.row_ptr, graph.row_ptr)
    assert torch.equal(given.vectors(positions, CELL), graph.vectors(positions, CELL)[shuffle])
    assert torch.equal(given.edge_index[:, given.reverse], edge_index.flip(0))
    assert torch.equal(given.shifts[given.reverse], -shifts)
    assert torch.equal(given.reverse[given.reverse], torch.arange(graph.n_edges))
    check_slots(given)


def check_slots(graph: Graph) -> None:
    """Rows and their transpose address every edge once, under its receiver and its source."""
    perm = torch.arange(graph.n_edges) if graph.perm is None else graph.perm
    nodes = torch.arange(graph.n_nodes)
    assert torch.equal(perm.sort().values, torch.arange(graph.n_edges))
    assert torch.equal(graph.edge_index[1][perm], nodes.repeat_interleave(graph.row_ptr.diff()))
    assert torch.equal(graph.edge_index[0][perm], graph.row_source)
    assert torch.equal(graph.transpose_slots.sort().values, torch.arange(graph.n_edges))
    by_source = graph.row_source[graph.transpose_slots]
    assert torch.equal(by_source, nodes.repeat_interleave(graph.transpose_ptr.diff()))


def test_slots_of_searched_graphs(graph: Graph, positions: Tensor) -> None:
    check_slots(graph)
    check_slots(neighbor_list(positions, 1.6, CELL, half=True))


def test_directed_graph_has_no_reverse() -> None:
    graph = Graph.from_edge_index(torch.tensor([[2, 0, 1], [0, 1, 0]], dtype=torch.int32), 4)
    assert graph.reverse is None
    assert graph.edge_index.dtype == torch.int64
    assert graph.row_ptr.tolist() == [0, 2, 3, 3, 3]
    assert graph.perm.tolist() == [0, 2, 1]
    assert graph.row_source.tolist() == [2, 1, 0]
    assert not graph.has_shifts
    check_slots(graph)


def test_symmetric_pairs_with_wrong_shifts_have_no_reverse() -> None:
    edge_index = torch.tensor([[0, 1], [1, 0]])
    assert Graph.from_edge_index(edge_index, 2, torch.tensor([[1, 0, 0], [1, 0, 0]])).reverse is None
    assert Graph.from_edge_index(edge_index, 2, torch.tensor([[1, 0, 0], [-1, 0, 0]])).reverse.tolist() == [
        1,
        0,
    ]


def test_equal_edges_and_loops_are_paired_one_to_one() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 0, 2, 1, 2], [1, 0, 1, 2, 0, 2]]), 3)
    reverse = graph.reverse
    assert torch.equal(reverse[reverse], torch.arange(6))
    assert torch.equal(graph.edge_index[:, reverse], graph.edge_index.flip(0))
    check_slots(graph)


def test_graph_without_edges() -> None:
    graph = Graph.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 3)
    assert (graph.n_edges, graph.row_ptr.tolist(), graph.reverse.tolist()) == (0, [0] * 4, [])
    check_slots(graph)


def test_concatenate_offsets_nodes_and_edges(positions: Tensor, graph: Graph) -> None:
    given = Graph.from_edge_index(graph.edge_index.flip(1), graph.n_nodes, graph.shifts.flip(0))
    joined = Graph.concatenate([graph, Graph.concatenate([given, graph])])
    assert (joined.n_nodes, joined.n_edges, joined.n_systems) == (27, 3 * graph.n_edges, 3)
    assert joined.batch.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    assert joined.cutoff is None
    assert Graph.concatenate([graph, graph]).cutoff == 1.6
    expected = edges_of(given) + np.array([9, 9, 0, 0, 0])
    np.testing.assert_array_equal(edges_of(joined)[graph.n_edges : 2 * graph.n_edges], expected)
    assert torch.equal(joined.edge_index[:, joined.reverse], joined.edge_index.flip(0))
    check_slots(joined)


def test_concatenate_with_a_directed_graph_has_no_reverse(graph: Graph) -> None:
    directed = Graph.from_edge_index(torch.tensor([[0], [1]]), 2)
    assert Graph.concatenate([graph, directed]).reverse is None


def test_graph_is_immutable_and_moves_between_devices(graph: Graph) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.n_nodes = 3
    moved = graph.to("meta")
    assert {moved.device.type, moved.row_ptr.device.type, moved.transpose_slots.device.type} == {"meta"}
    assert (moved.n_nodes, moved.cutoff) == (graph.n_nodes, graph.cutoff)
    assert f"n_nodes=9, n_edges={graph.n_edges}" in repr(graph)


@pytest.mark.parametrize(
    ("edge_index", "n_nodes", "shifts", "message"),
    [
        (
            torch.zeros(3, 2, dtype=torch.int64),
            2,
            None,
            r"edge_index: expected shape \(2, n_edges\), got \(3, 2\)",
        ),
        (torch.zeros(2, 2), 2, None, "edge_index: expected int64 or int32, got torch.float32"),
        (
            torch.tensor([[0, 1], [1, 5]]),
            2,
            None,
            r"edge_index: expected nodes from 0 to 1, got \[1, 5\] at edge 1",
        ),
        (torch.tensor([[0], [-1]]), 2, None, r"expected nodes from 0 to 1, got \[0, -1\] at edge 0"),
        (
            torch.zeros(2, 0, dtype=torch.int64),
            -1,
            None,
            "n_nodes: expected a number of nodes from 0 to 2147483647, got -1",
        ),
        (
            torch.tensor([[0], [1]]),
            2,
            torch.zeros(2, 3, dtype=torch.int32),
            r"shifts: expected shape \(1, 3\)",
        ),
        (
            torch.tensor([[0], [1]]),
            2,
            torch.zeros(1, 3),
            "shifts: expected signed integers .*, got torch.float32",
        ),
        (
            torch.tensor([[0], [1]]),
            2,
            torch.full((1, 3), 2**40),
            "shifts: expected magnitudes up to 2147483647",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_given_edges_are_checked(
    edge_index: Tensor, n_nodes: int, shifts: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Graph.from_edge_index(edge_index, n_nodes, shifts)


def test_vectors_are_checked(positions: Tensor, graph: Graph) -> None:
    with pytest.raises(ValueError, match=r"positions: expected shape \(9, 3\), got \(8, 3\)"):
        graph.vectors(positions[:8], CELL)
    with pytest.raises(ValueError, match="cell: expected the cell of this periodic graph, got None"):
        graph.vectors(positions)
    with pytest.raises(ValueError, match=r"cell: expected shape \(3, 3\) or \(3,\), got \(2, 3, 3\)"):
        graph.vectors(positions, CELL.repeat(2, 1, 1))
    batch = Graph.concatenate([graph, graph])
    with pytest.raises(ValueError, match=r"cell: expected shape .* or \(2, 3\) or \(3,\), got \(3, 3\)"):
        batch.vectors(positions.repeat(2, 1), CELL)
    with pytest.raises(ValueError, match="graphs: expected at least one Graph"):
        Graph.concatenate([])
    with pytest.raises(ValueError, match=r"graphs: expected all on one device, got \['cpu', 'meta'\]"):
        Graph.concatenate([graph, graph.to("meta")])


def test_given_edges_may_be_lists_and_arrays(positions: Tensor) -> None:
    expected = Graph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2, torch.tensor([[1, 0, 0], [-1, 0, 0]]))
    edges, shifts = [[0, 1], [1, 0]], [[1, 0, 0], [-1, 0, 0]]
    backward = np.array(edges)[:, ::-1].copy()[:, ::-1]  # negative strides
    for graph in (
        Graph.from_edge_index(edges, np.int64(2), shifts),
        Graph.from_edge_index(backward, 2, np.array(shifts, dtype=np.int16)),
    ):
        assert torch.equal(graph.torch().edge_index, expected.edge_index)
        assert torch.equal(graph.torch().shifts, expected.shifts)
    assert Graph.from_edge_index([[], []], 3).n_edges == 0
    vectors = expected.vectors(positions[:2], CELL)
    assert torch.equal(expected.vectors(positions[:2].tolist(), CELL.tolist()), vectors)
    assert torch.equal(expected.vectors(positions[:2], CELL.numpy()), vectors)
    lengths = expected.vectors(positions[:2], [3, 4, 5])
    assert torch.equal(lengths, expected.vectors(positions[:2], torch.tensor([3.0, 4.0, 5.0])))


def test_graph_shares_no_memory_with_the_caller() -> None:
    edge_index, shifts = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1, 0, 0], [-1, 0, 0]]).int()
    graph = Graph.from_edge_index(edge_index, 2, shifts)
    edge_index[:], shifts[:] = 9, 9
    assert graph.edge_index.tolist() == [[0, 1], [1, 0]]
    assert graph.shifts.tolist() == [[1, 0, 0], [-1, 0, 0]]
    assert graph.row_source.tolist() == [1, 0]


def test_concatenate_takes_any_iterable(graph: Graph) -> None:
    assert Graph.concatenate(graph for _ in range(3)).n_nodes == 3 * graph.n_nodes
    with pytest.raises(ValueError, match="graphs: expected Graph objects, got Tensor at index 1"):
        Graph.concatenate([graph, graph.edge_index])
    with pytest.raises(ValueError, match="graphs: expected Graph objects, got Graph"):
        Graph.concatenate(graph)


EDGES = torch.tensor([[0, 1], [1, 0]])
NO_SHIFTS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((EDGES, 2.0), "n_nodes: expected an integer, got 2.0"),
        ((EDGES, None), "n_nodes: expected an integer, got None"),
        ((EDGES, True), "n_nodes: expected an integer, got True"),
        ((EDGES, 2**31), "n_nodes: expected a number of nodes from 0 to 2147483647, got 2147483648"),
        (("edges", 2), "edge_index: expected an array, got str"),
        (([[0, 1], [1]], 2), "edge_index: expected an array, got list"),
        (([[0.0, 1.0], [1.0, 0.0]], 2), "edge_index: expected int64 or int32, got torch.float64"),
        ((EDGES.to_sparse(), 2), "edge_index: expected a dense tensor, got torch.sparse_coo"),
        ((EDGES.to("meta"), 2), "edge_index: expected a tensor with values, got one on the meta device"),
        ((EDGES, 2, NO_SHIFTS.to("meta")), "shifts: expected a tensor with values, got one on the meta"),
        (
            (EDGES, 2, NO_SHIFTS - 2**63),
            r"shifts: expected magnitudes up to 2147483647, got \[-9223372036854",
        ),
        ((EDGES, 2, NO_SHIFTS.int() - 2**31), r"shifts: expected magnitudes .* at edge 0"),
        ((EDGES, 2, [[0, 0, 0], [0, 0, 2**31]]), r"shifts: .* got \[0, 0, 2147483648\] at edge 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_are_no_edges_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph.from_edge_index(*arguments)


def test_vectors_refuse_other_dtypes_devices_and_layouts(positions: Tensor, graph: Graph) -> None:
    for given, message in [
        (positions.long(), "positions: expected float32 or float64, got torch.int64"),
        (positions.half(), "positions: expected float32 or float64, got torch.float16"),
        (positions.to("meta"), "positions: expected the device of the graph, cpu, got meta"),
        (positions.to_sparse(), "positions: expected a dense tensor, got torch.sparse_coo"),
        ("positions", "positions: expected an array, got str"),
    ]:
        with pytest.raises(ValueError, match=message):
            graph.vectors(given, CELL)
    for cell, message in [
        (CELL.to_sparse(), "cell: expected a dense tensor, got torch.sparse_coo"),
        (CELL.to("meta"), "cell: expected a tensor with values, got one on the meta device"),
        (CELL.to(torch.complex128), "cell: expected real numbers, got torch.complex128"),
        (CELL.bool(), "cell: expected real numbers, got torch.bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            graph.vectors(positions, cell)
    meta = graph.to("meta")
    assert meta.vectors(positions.to("meta"), CELL.to("meta")).shape == (graph.n_edges, 3)
