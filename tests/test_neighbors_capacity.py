"""The neighbor search as an operator: the same bits everywhere, and a capacity in place of a wait."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from glassconv.reference.neighbors import search_neighbors

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, float]

on_each_native_backend = pytest.mark.parametrize("backend", ["cpu", "emulated", "cuda"], indirect=True)
on_each_cuda_backend = pytest.mark.parametrize("backend", ["emulated", "cuda"], indirect=True)


def join(systems: Sequence[tuple[np.ndarray, np.ndarray, Sequence[bool]]], cutoff: float) -> Arguments:
    """Arguments of the operator for a batch of systems: positions, cell and periodicity of each."""
    positions, cells, pbc = zip(*systems, strict=True)
    batch = np.repeat(np.arange(len(systems)), [len(r) for r in positions])
    return (
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.stack(cells)),
        torch.from_numpy(np.array(pbc, dtype=bool)),
        torch.from_numpy(batch),
        cutoff,
    )


def random_system(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A few particles, some outside, some on lattice points, in a cell of any kind."""
    cell = np.diag(rng.uniform(0.8, 7.0, 3))
    kind = rng.integers(4)
    if kind == 1:
        cell += np.tril(rng.uniform(-3.0, 3.0, (3, 3)), -1)
    elif kind == 2:
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        cell = (cell + np.tril(rng.uniform(-3.0, 3.0, (3, 3)), -1)) @ rotation
    elif kind == 3:
        cell = cell[rng.permutation(3)]  # left-handed, every other time
    n = int(rng.choice([0, 1, 2, 7, 40]))
    fractional = rng.uniform(-1.0, 2.0, (n, 3)) if rng.integers(2) else rng.integers(-2, 4, (n, 3)) / 4.0
    pbc = rng.random(3) < 0.7
    positions = fractional @ cell
    cell[~pbc & (rng.random(3) < 0.5)] = 0.0
    return positions, cell, pbc


def liquid(n: int, length: float) -> Arguments:
    rng = np.random.default_rng(21)
    return join([(rng.uniform(0.0, length, (n, 3)), np.eye(3) * length, [True] * 3)], 1.3)


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def cut(edges: Sequence[Tensor], capacity: int) -> tuple[Tensor, ...]:
    """What the search with a capacity promises, from the list without one."""
    edge_index, shifts, row_ptr, reverse = edges
    written = int(row_ptr[row_ptr <= capacity].max())

    def pad(values: Tensor, dim: int) -> Tensor:
        shape = list(values.shape)
        shape[dim] = capacity - written
        return torch.cat([values.narrow(dim, 0, written), values.new_full(shape, -1)], dim)

    opposites = reverse.where(reverse < written, -1)
    n_found = torch.tensor([reverse.numel()])
    return pad(edge_index, 1), pad(shifts, 0), row_ptr, pad(opposites, 0), n_found


@pytest.mark.parametrize("seed", range(4))
@on_each_native_backend
def test_batches_of_any_systems(backend: str, seed: int) -> None:
    rng = np.random.default_rng([22, seed])
    for _ in range(25):
        systems = [random_system(rng) for _ in range(rng.integers(1, 4))]
        arguments = join(systems, float(rng.choice([0.3, 1.0, 1.7])))
        expected = search_neighbors(*arguments)
        assert_same(torch.ops.glassconv.neighbor_list(*arguments), expected)
        n_edges = expected[0].shape[1]
        capacity = int(rng.integers(0, n_edges + 5))
        found = torch.ops.glassconv.neighbor_list_fixed(*arguments, capacity)
        assert_same(found, cut(expected, capacity))


@on_each_native_backend
def test_capacity_around_the_number_of_edges(backend: str) -> None:
    arguments = liquid(90, 4.0)
    expected = search_neighbors(*arguments)
    n_edges = expected[0].shape[1]
    row = int(expected[2][45])  # the end of a row exactly
    for capacity in (0, 1, row - 1, row, row + 1, n_edges - 1, n_edges, n_edges + 1, 3 * n_edges):
        found = torch.ops.glassconv.neighbor_list_fixed(*arguments, capacity)
        assert_same(found, cut(expected, capacity))


@on_each_native_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_particles_and_no_edges(backend: str, dtype: torch.dtype) -> None:
    empty, alone = torch.zeros(0, 3, dtype=dtype), torch.zeros(1, 3, dtype=dtype)
    cell, pbc = torch.eye(3, dtype=torch.float64)[None] * 5.0, torch.ones(1, 3, dtype=torch.bool)
    for positions in (empty, alone):
        batch = torch.zeros(len(positions), dtype=torch.int64)
        arguments = (positions, cell, pbc, batch, 1.0)
        expected = search_neighbors(*arguments)
        assert_same(torch.ops.glassconv.neighbor_list(*arguments), expected)
        for capacity in (0, 3):
            found = torch.ops.glassconv.neighbor_list_fixed(*arguments, capacity)
            assert_same(found, cut(expected, capacity))
    none = (empty, cell[:0], pbc[:0], torch.zeros(0, dtype=torch.int64), 1.0)
    assert torch.ops.glassconv.neighbor_list(*none)[2].tolist() == [0]


# Kernels sort rows by rank, in a warp's part of shared memory, in a block's, or in global memory: up to 96,
# 256, 4096 edges and above.
@pytest.mark.parametrize(
    ("length", "n_particles"), [(0.5, 1), (0.5, 3), (0.33, 2), (0.33, 8), (0.21, 2), (0.092, 1)]
)
@on_each_native_backend
def test_rows_of_any_length(backend: str, length: float, n_particles: int) -> None:
    rng = np.random.default_rng(23)
    positions = rng.uniform(0.0, length, (n_particles, 3))
    arguments = join([(positions, np.eye(3) * length, [True] * 3)], 1.0)
    expected = search_neighbors(*arguments)
    assert_same(torch.ops.glassconv.neighbor_list(*arguments), expected)
    shortest = int(expected[2].diff().min())
    assert shortest > 4.0 * (n_particles - 0.5) / length**3  # of 4.19 in the sphere


@on_each_native_backend
def test_many_particles_in_one_bin_and_few_in_the_rest(backend: str) -> None:
    rng = np.random.default_rng(24)
    positions = np.concatenate([rng.normal(15.0, 0.2, (300, 3)), rng.uniform(0.0, 30.0, (60, 3))])
    for order in (np.arange(360), rng.permutation(360)):
        arguments = join([(positions[order], np.eye(3) * 30.0, [True] * 3)], 0.9)
        expected = search_neighbors(*arguments)
        assert_same(torch.ops.glassconv.neighbor_list(*arguments), expected)
        found = torch.ops.glassconv.neighbor_list_fixed(*arguments, 20000)
        assert_same(found, cut(expected, 20000))


@on_each_native_backend
def test_more_particles_than_warps(backend: str) -> None:
    """From 4097 particles on, a warp searches for several, also of several bins and systems."""
    rng = np.random.default_rng(25)
    lengths, sizes = [14.0, 9.0, 3.0], [6000, 2500, 1]
    systems = [
        (rng.uniform(-1.0, length, (n, 3)), np.eye(3) * length, [True, True, False])
        for length, n in zip(lengths, sizes, strict=True)
    ]
    arguments = join(systems, 0.8)
    expected = search_neighbors(*arguments)
    assert_same(torch.ops.glassconv.neighbor_list(*arguments), expected)
    found = torch.ops.glassconv.neighbor_list_fixed(*arguments, 30000)
    assert_same(found, cut(expected, 30000))


@on_each_native_backend
def test_repeated_calls_give_the_same_bits(backend: str) -> None:
    arguments = liquid(200, 5.0)
    first, second = (torch.ops.glassconv.neighbor_list(*arguments) for _ in range(2))
    assert_same(first, second)


def spoil(name: str, arguments: Arguments) -> Arguments:
    positions, cell, pbc, batch, cutoff = arguments
    if name == "positions":
        positions = positions.clone()
        positions[[5, 3, 7]] = torch.tensor([[torch.nan], [torch.inf], [1e200]], dtype=positions.dtype)
    elif name == "far positions":
        positions = positions.clone()
        positions[[6, 4]] = 1e11
    elif name == "batch":
        batch = batch.clone()
        batch[[3, 8]] = torch.tensor([2, -1])
    elif name == "singular cell":
        cell = cell * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)[:, None]
    elif name == "cell":
        cell = cell * torch.tensor([1.0, 1e200, 1.0], dtype=torch.float64)[:, None]
    elif name == "cutoff":
        cutoff = 1e4
    return positions, cell, pbc, batch, cutoff


# What is spoiled, the message, and the number that stands for it where none can be raised.
# The first of several counts.
REFUSALS = [
    (["cell"], r"cell: expected finite vectors, .* got \[0, .*, 0\] \(vector 1 of system 0\)", -1),
    (["singular cell", "batch", "positions"], r"cell: expected linearly .* \(system 0\)", -2),
    (["batch", "positions"], "batch: expected non-decreasing systems from 0 to 0, got 2 at particle 3", -3),
    (["positions", "cutoff"], r"positions: expected finite .* got \[inf, inf, inf\] at particle 3", -4),
    (["far positions"], r"positions: expected within 1e9 cells .* got \[1000.*, .*\] at particle 4", -5),
    (["cutoff"], "cutoff: expected at most 16777216 periodic images .* particle 0", -6),
]


@pytest.mark.parametrize(("names", "message", "code"), REFUSALS, ids=str)
@on_each_native_backend
def test_first_refusal_is_raised(backend: str, names: list[str], message: str, code: int) -> None:
    arguments = liquid(9, 2.0)
    for name in names:
        arguments = spoil(name, arguments)
    with pytest.raises(ValueError, match=message):
        torch.ops.glassconv.neighbor_list(*arguments)


@pytest.mark.parametrize(("names", "message", "code"), REFUSALS, ids=str)
@on_each_cuda_backend
def test_refusal_without_waiting_is_a_number(backend: str, names: list[str], message: str, code: int) -> None:
    arguments = liquid(9, 2.0)
    for name in names:
        arguments = spoil(name, arguments)
    edge_index, shifts, row_ptr, reverse, n_found = torch.ops.glassconv.neighbor_list_fixed(*arguments, 11)
    assert n_found.tolist() == [code]
    assert row_ptr.tolist() == [0] * 10
    for values, shape in ((edge_index, (2, 11)), (shifts, (11, 3)), (reverse, (11,))):
        assert values.shape == shape
        assert bool((values == -1).all())


@on_each_native_backend
def test_operator_checks_capacity_and_shapes(backend: str) -> None:
    positions, *others = liquid(9, 2.0)
    with pytest.raises(ValueError, match="capacity: expected at least 0, got -1"):
        torch.ops.glassconv.neighbor_list_fixed(positions, *others, -1)
    with pytest.raises(ValueError, match=r"positions: expected shape \(N, 3\), got \[27\]"):
        torch.ops.glassconv.neighbor_list_fixed(positions.flatten(), *others, 5)


@pytest.mark.parametrize("capacity", [0, 40, 2000])
@on_each_native_backend
def test_operator_follows_the_rules_of_operators(backend: str, capacity: int) -> None:
    torch.library.opcheck(torch.ops.glassconv.neighbor_list_fixed, (*liquid(30, 3.0), capacity))


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_search_with_a_capacity_in_a_cuda_graph(backend: str) -> None:
    arguments, capacity = liquid(500, 6.0), 12000  # enough for the first of the two below
    on_the_gpu = [value.cuda() if isinstance(value, Tensor) else value for value in arguments]
    torch.ops.glassconv.neighbor_list_fixed(*on_the_gpu, capacity)  # loads what is loaded at first use
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torch.ops.glassconv.neighbor_list_fixed(*on_the_gpu, capacity)
    for shift in (0.0, 0.5):
        moved = (arguments[0] * (1.0 + shift), *arguments[1:])
        on_the_gpu[0].copy_(moved[0])
        graph.replay()
        assert_same([values.cpu() for values in found], cut(search_neighbors(*moved), capacity))
