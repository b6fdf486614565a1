"""The neighbor search under extreme numbers, unusual containers and modes; see also test_neighbors.py."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from neighbor_oracle import brute_force, check_well_formed, edges_of

import glassconv
from glassconv import Graph, neighbor_list

SKEWED = np.array([[4.0, 0.0, 0.0], [3.5, 2.0, 0.0], [-2.5, 3.0, 3.0]])
BOX = [3.0, 3.0, 3.0]


@pytest.mark.parametrize("exponent", [-460, -345, -120, 120, 342, 460])
@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, True, False)], ids=str)
def test_powers_of_two_change_nothing(backend: str, exponent: int, pbc: tuple[bool, bool, bool]) -> None:
    """Scaling by them is exact, so the edges are the same bits: up to 1e139, where volumes overflow."""
    positions = np.random.default_rng(12).uniform(-1.0, 2.0, (25, 3)) @ SKEWED
    scale = 2.0**exponent
    graph = neighbor_list(positions * scale, 1.9 * scale, SKEWED * scale, pbc)
    np.testing.assert_array_equal(edges_of(graph), edges_of(neighbor_list(positions, 1.9, SKEWED, pbc)))
    assert graph.n_edges > 25
    check_well_formed(graph)


@pytest.mark.parametrize("length", [1e103, 1e110, 1e139])
@pytest.mark.parametrize("pbc", [True, (True, False, False), (False, True, True)], ids=str)
def test_a_cell_that_is_out_of_reach(backend: str, length: float, pbc: object) -> None:
    """Boundaries so far away that no edge crosses them, with particles on both sides of the origin."""
    positions = np.random.default_rng(13).uniform(-1.0, 1.0, (30, 3))
    graph = neighbor_list(positions, 0.6, [length] * 3, pbc)
    np.testing.assert_array_equal(edges_of(graph), edges_of(neighbor_list(positions, 0.6)))


def test_open_axes_beside_a_tiny_cell(backend: str) -> None:
    """The open axes of such a cell have no length that its own could be compared with."""
    positions = np.random.default_rng(14).uniform(0.0, 3.0, (12, 3)) * 1e-104
    cell = np.diag([1e-104, 0.0, 0.0])
    graph = neighbor_list(positions, 1.5e-104, cell, (True, False, False))
    expected = brute_force(positions * 1e104, 1.5, cell * 1e104, (True, False, False))
    np.testing.assert_array_equal(edges_of(graph), expected)


def test_vectors_of_very_different_lengths(backend: str) -> None:
    """Either the right edges or an error that says why not: here rounding swamps the short vectors."""
    with pytest.raises(ValueError, match="cutoff: expected at most 16777216 periodic images"):
        neighbor_list(np.array([[0.1, 0.2, 0.3]]), 1.0, [1e100, 2.0, 2.0])
    positions = np.random.default_rng(15).uniform(0.0, 2.0, (10, 3))
    graph = neighbor_list(positions, 1.0, [2.0**40, 2.0, 2.0])  # a larger one would only be slower
    expected = brute_force(positions, 1.0, np.diag([2.0**40, 2.0, 2.0]), (True, True, True))
    np.testing.assert_array_equal(edges_of(graph), expected)


def test_limits_are_of_each_component(backend: str) -> None:
    graph = neighbor_list(np.array([[9e139] * 3, [-9e139] * 3]), 1e140, [1e140] * 3)
    expected = brute_force(np.array([[0.9] * 3, [-0.9] * 3]), 1.0, np.eye(3), (True, True, True))
    np.testing.assert_array_equal(edges_of(graph), expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "positions",
            torch.full((2, 3), 2e140, dtype=torch.float64),
            "positions: expected finite numbers up to 1e140, got .* at particle 0",
        ),
        (
            "cell",
            torch.diag(torch.tensor([1.0, 1e200, 1.0], dtype=torch.float64))[None],
            r"cell: .* between 1e-140 and 1e140, got \[0, .*, 0\] \(vector 1 of system 0\)",
        ),
        (
            "cell",
            torch.diag(torch.tensor([1.0, 1.0, 1e-200], dtype=torch.float64))[None],
            r"cell: .* between 1e-140 and 1e140, got .* \(vector 2 of system 0\)",
        ),
        (
            "cell",
            torch.full((1, 3, 3), torch.nan, dtype=torch.float64),
            r"cell: expected finite vectors, .* \(vector 0 of system 0\)",
        ),
        ("cutoff", 1e200, "cutoff: expected from 1e-140 to 1e140, got 1e.200"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operator_checks_ranges(native_extension: None, name: str, value: object, message: str) -> None:
    arguments = {
        "positions": torch.zeros(2, 3, dtype=torch.float64),
        "cell": torch.eye(3, dtype=torch.float64)[None],
        "pbc": torch.ones(1, 3, dtype=torch.bool),
        "batch": torch.zeros(2, dtype=torch.int64),
        "cutoff": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        torch.ops.glassconv.neighbor_list(*(arguments | {name: value}).values())


@pytest.mark.parametrize(
    "cutoff", [Fraction(11, 10), np.float64(1.1), np.array(1.1), torch.tensor([1.1]).double()]
)
def test_cutoff_may_be_any_real_number(backend: str, cutoff: object) -> None:
    positions = np.random.default_rng(17).uniform(0.0, 3.0, (20, 3))
    expected = edges_of(neighbor_list(positions, 1.1, BOX))
    np.testing.assert_array_equal(edges_of(neighbor_list(positions, cutoff, BOX)), expected)


def test_box_lengths_shared_by_a_batch_give_vectors(backend: str) -> None:
    positions, batch = torch.rand(20, 3, dtype=torch.float64) * 3.0, torch.arange(4).repeat_interleave(5)
    lengths = torch.tensor(BOX, dtype=torch.float64, requires_grad=True)
    graph = neighbor_list(positions, 1.4, lengths, batch=batch)
    assert graph.has_shifts
    each = lengths.expand(4, 3)
    assert torch.equal(graph.vectors(positions, lengths), graph.vectors(positions, each))
    assert torch.autograd.gradcheck(lambda cell: graph.vectors(positions, cell), lengths)


def test_numpy_views_and_lists(backend: str) -> None:
    positions = np.random.default_rng(20).uniform(0.0, 3.0, (20, 3))
    expected = edges_of(neighbor_list(positions, 1.1, np.array([3.1, 3.2, 3.3])))
    backward = positions[::-1].copy()[::-1]  # negative strides
    locked = positions.copy()
    locked.setflags(write=False)
    lengths = np.array([3.3, 3.2, 3.1])[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (backward, locked, positions.tolist()):
            graph = neighbor_list(given, 1.1, lengths)
            np.testing.assert_array_equal(edges_of(graph), expected)
    # Python numbers are not rounded to float32: 0.8 there is 1.2e-8 longer
    assert neighbor_list([[0.0] * 3], 0.8000000001, [0.8] * 3).n_edges == 6


def test_graph_owns_its_batch(backend: str) -> None:
    batch = torch.tensor([0, 0, 1])
    graph = neighbor_list(torch.rand(3, 3), 2.0, batch=batch)
    batch[:] = 7
    assert graph.batch.tolist() == [0, 0, 1]


def test_graph_made_in_inference_mode_can_be_trained_on(backend: str) -> None:
    with torch.inference_mode():
        positions = torch.rand(10, 3, dtype=torch.float64)
        batch = torch.arange(2).repeat_interleave(5)
        full = neighbor_list(positions, 0.6, torch.ones(3), batch=batch)
        graphs = [full, neighbor_list(positions, 0.6, torch.ones(3), half=True)]
        graphs += [Graph.from_edge_index(full.edge_index, 10, full.shifts), Graph.concatenate(graphs)]
        graphs += [graphs[0].to("cpu")]
    for graph in graphs:
        tensors = [value for value in vars(graph).values() if isinstance(value, torch.Tensor)]
        assert not any(tensor.is_inference() for tensor in tensors)
    paths = glassconv.Paths("1x0e", "0e+1o", "1x0e+1x1o")
    r = positions.clone().requires_grad_()
    weight = torch.ones(full.n_edges, paths.weight_numel, dtype=torch.float64, requires_grad=True)
    features = torch.ones(10, 1, dtype=torch.float64)
    vectors = full.vectors(r, torch.ones(3))
    glassconv.conv(features, full, paths, vectors=vectors, edge_weight=weight).square().sum().backward()
    assert bool(r.grad.any())
    assert bool(weight.grad.any())
