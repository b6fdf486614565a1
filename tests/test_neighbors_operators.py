"""Neighbor operators: cutoffs of pairs of types, updates in place, lists filtered to a smaller cutoff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from neighbor_oracle import brute_force
from test_neighbors_capacity import (
    assert_same,
    cut,
    join,
    liquid,
    on_each_cuda_backend,
    on_each_native_backend,
    random_system,
)
from torch import Tensor

import glassconv

Pairs = tuple[Tensor, Tensor]


def list_of(*arguments: Any) -> tuple[Tensor, ...]:
    return torch.ops.glassconv.neighbor_list(*arguments)


def fixed_list_of(*arguments: Any) -> tuple[Tensor, ...]:
    return torch.ops.glassconv.neighbor_list_fixed(*arguments)


def filtered(
    arguments: Sequence[Any], edges: Sequence[Tensor], pairs: Sequence[Tensor] = ()
) -> tuple[Tensor, ...]:
    """The edges of a list at the positions and with the cutoff of the arguments."""
    positions, cell, _pbc, batch, cutoff = arguments
    return torch.ops.glassconv.neighbor_list_filter(positions, cell, batch, cutoff, *edges, *pairs)


def random_pairs(rng: np.random.Generator, n: int, cutoff: float) -> Pairs:
    """Types of n particles and their cutoffs, of which some are zero and the largest is `cutoff`."""
    n_types = int(rng.integers(1, 4))
    cutoffs = np.triu(rng.choice([0.0, 0.5, 0.75, 1.0], (n_types, n_types)) * cutoff)
    cutoffs[0, -1] = cutoff
    cutoffs = np.maximum(cutoffs, cutoffs.T)
    return torch.from_numpy(rng.integers(0, n_types, n, dtype=np.int32)), torch.from_numpy(cutoffs)


def random_batch(rng: np.random.Generator, cutoff: float) -> tuple[tuple[Any, ...], Pairs]:
    arguments = join([random_system(rng) for _ in range(rng.integers(1, 4))], cutoff)
    return arguments, random_pairs(rng, len(arguments[0]), cutoff)


def definition(arguments: Sequence[Any], pairs: Pairs) -> np.ndarray:
    """(E, 5) rows (receiver, source, shift) of a batch, from every image of every pair."""
    positions, cell, pbc, batch, _cutoff = arguments
    types, cutoffs = (values.numpy() for values in pairs)
    found = [np.zeros((0, 5), dtype=np.int64)]
    for system in range(len(cell)):
        (members,) = np.nonzero(batch.numpy() == system)
        if not len(members):
            continue
        used = types[members].max() + 1
        rows = brute_force(
            positions[members].numpy(),
            cutoffs[:used, :used],
            cell[system].numpy(),
            pbc[system].numpy(),
            types[members],
        )
        rows[:, :2] += members[0]
        found.append(rows)
    return np.concatenate(found)


def rows_of(edges: Sequence[Tensor]) -> np.ndarray:
    edge_index, shifts = edges[:2]
    return torch.column_stack([edge_index[1], edge_index[0], shifts]).numpy()


def assert_well_formed(edges: Sequence[Tensor], n: int) -> None:
    """Rows and opposites of a list."""
    edge_index, shifts, row_ptr, reverse = edges
    expected = np.searchsorted(edge_index[1].numpy(), np.arange(n + 1))
    np.testing.assert_array_equal(row_ptr.numpy(), expected)
    assert_same((edge_index[:, reverse], shifts[reverse]), (edge_index.flip(0), -shifts))


@pytest.mark.parametrize("seed", range(4))
@on_each_native_backend
def test_pair_cutoffs_against_brute_force(backend: str, seed: int) -> None:
    rng = np.random.default_rng([31, seed])
    for _ in range(20):
        arguments, pairs = random_batch(rng, float(rng.choice([0.5, 1.0, 1.7])))
        edges = list_of(*arguments, *pairs)
        np.testing.assert_array_equal(rows_of(edges), definition(arguments, pairs))
        assert_well_formed(edges, len(arguments[0]))
        capacity = int(rng.integers(0, edges[3].numel() + 5))
        assert_same(fixed_list_of(*arguments, capacity, *pairs), cut(edges, capacity))


@on_each_native_backend
def test_pairs_with_the_same_cutoff_give_the_list_without_types(backend: str) -> None:
    arguments = liquid(300, 5.0)
    types = torch.arange(300, dtype=torch.int32) % 3
    cutoffs = torch.full((3, 3), arguments[-1], dtype=torch.float64)
    assert_same(list_of(*arguments, types, cutoffs), list_of(*arguments))


def some_pairs(n: int, cutoff: float) -> Pairs:
    cutoffs = torch.tensor([[cutoff, 0.8 * cutoff], [0.8 * cutoff, 0.0]], dtype=torch.float64)
    return torch.arange(n, dtype=torch.int32) % 2, cutoffs


@pytest.mark.parametrize("wrong", [-1, 2, 2**31 - 1, -(2**31)])
@on_each_native_backend
def test_types_out_of_range_are_refused_before_all_else(backend: str, wrong: int) -> None:
    positions, *others = liquid(9, 2.0)
    positions[1] = torch.nan
    types, cutoffs = some_pairs(9, 1.3)
    types[[4, 7]] = torch.tensor([wrong, -7], dtype=torch.int32)
    message = f"types: expected types from 0 to 1, got {wrong} at particle 4"
    with pytest.raises(ValueError, match=message):
        list_of(positions, *others, types, cutoffs)


@on_each_cuda_backend
def test_refused_types_without_waiting_are_a_number(backend: str) -> None:
    arguments = liquid(9, 2.0)
    types, cutoffs = some_pairs(9, 1.3)
    types[4] = 2
    edge_index, shifts, row_ptr, reverse, n_found = fixed_list_of(*arguments, 11, types, cutoffs)
    assert n_found.tolist() == [-7]
    assert row_ptr.tolist() == [0] * 10
    for values in (edge_index, shifts, reverse):
        assert bool((values == -1).all())


@on_each_native_backend
def test_types_and_cutoffs_are_checked(backend: str) -> None:
    arguments = liquid(9, 2.0)
    types, cutoffs = some_pairs(9, 1.3)
    for pairs, message in (
        ((types, None), "types, cutoffs: expected both or neither, got types alone"),
        ((None, cutoffs), "types, cutoffs: expected both or neither, got cutoffs alone"),
        ((types[:8], cutoffs), r"types: expected shape \[9\], got \[8\]"),
        ((types.long(), cutoffs), "types: expected Int, got Long"),
        ((types, cutoffs[0]), r"cutoffs: expected shape \(T, T\), got \[2\]"),
        ((types, cutoffs[:1]), r"cutoffs: expected shape \[1, 1\], got \[1, 2\]"),
        ((types, cutoffs.float()), "cutoffs: expected Double, got Float"),
    ):
        with pytest.raises(ValueError, match=message):
            list_of(*arguments, *pairs)


# What is given for the cutoff 1, what a GPU takes it for, and the message where one can be raised.
SENSELESS = {
    "not a number": (
        [torch.nan, 0.6, 0.6, 0.9],
        [0.0, 0.6, 0.6, 0.9],
        "from 0 to 1, got nan for types 0 and 0",
    ),
    "negative": ([-1.0, 0.9, 0.9, -1e300], [0.0, 0.9, 0.9, 0.0], "from 0 to 1, got -1 for types 0 and 0"),
    "too large": (
        [0.9, 1e6, 1e6, torch.inf],
        [0.9, 1.0, 1.0, 1.0],
        "from 0 to 1, got 1e.06 for types 0 and 1",
    ),
    "not symmetric": (
        [0.9, 0.3, 0.8, 0.9],
        [0.9, 0.3, 0.3, 0.9],
        "a symmetric .* 0.3 and 0.8 for types 0 and 1",
    ),
}


def lattice_with_types() -> tuple[tuple[Any, ...], Tensor]:
    """Particles of two types at distances of 0.5, 1 and others."""
    positions = np.stack(np.meshgrid(*[np.arange(6) * 0.5] * 3), axis=-1).reshape(-1, 3)
    return join([(positions, np.eye(3) * 3.0, [True] * 3)], 1.0), torch.arange(216, dtype=torch.int32) % 5 % 2


@pytest.mark.parametrize("name", SENSELESS)
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_senseless_cutoffs_of_pairs_are_refused(backend: str, name: str) -> None:
    values, _taken_for, message = SENSELESS[name]
    arguments, types = lattice_with_types()
    with pytest.raises(ValueError, match=f"cutoffs: expected {message}"):
        list_of(*arguments, types, torch.tensor(values, dtype=torch.float64).view(2, 2))


@pytest.mark.parametrize("name", SENSELESS)
@on_each_cuda_backend
def test_senseless_cutoffs_of_pairs_on_a_gpu_still_give_a_list(backend: str, name: str) -> None:
    """There nobody waits for their values; a list that is not symmetric would be written out of bounds."""
    arguments, types = lattice_with_types()
    found, expected = (
        list_of(*arguments, types, torch.tensor(values, dtype=torch.float64).view(2, 2))
        for values in SENSELESS[name][:2]
    )
    assert_same(found, expected)
    assert_well_formed(found, 216)
    assert found[3].numel() > 0


def buffers_for(n: int, capacity: int, rng: np.random.Generator) -> list[Tensor]:
    """What an update writes to, full of anything."""

    def anything(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.from_numpy(rng.integers(-(2**31), 2**31, shape)).to(dtype)

    index, shifts = anything(2, capacity), anything(capacity, 3, dtype=torch.int32)
    return [index, shifts, anything(n + 1), anything(capacity), anything(1)]


def update(
    needed: bool, arguments: Sequence[Any], buffers: Sequence[Tensor], pairs: Sequence[Tensor] = ()
) -> None:
    torch.ops.glassconv.neighbor_list_update(torch.tensor([needed]), *arguments, *buffers, *pairs)


@on_each_native_backend
def test_update_writes_what_the_search_returns_or_nothing(backend: str) -> None:
    """Step by step, with room enough and too little, with and without types."""
    rng = np.random.default_rng(32)
    for _ in range(12):
        arguments, pairs = random_batch(rng, 1.2)
        some = () if rng.integers(2) else pairs
        n, n_edges = len(arguments[0]), list_of(*arguments)[3].numel()
        capacity = int(rng.integers(0, n_edges + 5))
        buffers = buffers_for(n, capacity, rng)
        for _ in range(6):
            needed = bool(rng.integers(2))
            moved = (arguments[0] + torch.from_numpy(rng.normal(0.0, 0.2, (n, 3))), *arguments[1:])
            before = [buffer.clone() for buffer in buffers]
            update(needed, moved, buffers, some)
            assert_same(buffers, fixed_list_of(*moved, capacity, *some) if needed else before)


@on_each_native_backend
def test_update_of_nothing(backend: str) -> None:
    none = join([(np.zeros((0, 3)), np.eye(3), [True] * 3)], 1.0)
    no_system = (none[0], none[1][:0], none[2][:0], none[3], 1.0)
    for arguments in (none, no_system):
        for capacity in (0, 3):
            buffers = buffers_for(0, capacity, np.random.default_rng(33))
            before = [buffer.clone() for buffer in buffers]
            update(False, arguments, buffers)
            assert_same(buffers, before)
            update(True, arguments, buffers)
            assert_same(buffers, fixed_list_of(*arguments, capacity))


@on_each_cuda_backend
def test_update_keeps_a_refusal_until_the_next_search(backend: str) -> None:
    arguments = liquid(40, 3.0)
    spoiled = (arguments[0].where(torch.arange(40)[:, None] != 7, torch.nan), *arguments[1:])
    buffers = buffers_for(40, 900, np.random.default_rng(34))
    update(True, spoiled, buffers)
    assert_same(buffers, fixed_list_of(*spoiled, 900))
    assert buffers[-1].tolist() == [-4]
    update(False, arguments, buffers)
    assert_same(buffers, fixed_list_of(*spoiled, 900))
    update(True, arguments, buffers)
    assert_same(buffers, fixed_list_of(*arguments, 900))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_refused_update_writes_nothing(backend: str) -> None:
    arguments = liquid(40, 3.0)
    buffers = buffers_for(40, 900, np.random.default_rng(34))
    before = [buffer.clone() for buffer in buffers]
    arguments[0][7] = torch.nan
    with pytest.raises(ValueError, match=r"positions: expected finite numbers .* at particle 7"):
        update(True, arguments, buffers)
    assert_same(buffers, before)


@on_each_native_backend
def test_autograd_finds_out_about_an_update(backend: str) -> None:
    arguments = liquid(9, 2.0)
    buffers = buffers_for(9, 50, np.random.default_rng(35))
    weight = torch.ones(10, dtype=torch.float64, requires_grad=True)
    update(True, arguments, buffers)
    value = weight.gather(0, buffers[2].clamp(max=9)).sum() + (weight * buffers[2]).sum()
    update(True, arguments, buffers)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@on_each_native_backend
def test_update_checks_its_buffers(backend: str) -> None:
    arguments = liquid(9, 2.0)
    good = buffers_for(9, 50, np.random.default_rng(36))
    strided = torch.zeros(50, 2, dtype=torch.int64).T
    for place, wrong, message in (
        (0, good[0][0], r"edge_index: expected shape \(2, E\), got \[50\]"),
        (0, strided, r"edge_index: expected contiguous memory, got strides \[1, 2\]"),
        (0, good[0].int(), "edge_index: expected Long, got Int"),
        (1, good[1][:49], r"shifts: expected shape \[50, 3\], got \[49, 3\]"),
        (2, good[2][:9], r"row_ptr: expected shape \[10\], got \[9\]"),
        (3, good[3][:40], r"reverse: expected shape \[50\], got \[40\]"),
        (4, good[4][0], r"n_found: expected shape \[1\], got \[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            update(True, arguments, [*good[:place], wrong, *good[place + 1 :]])
    for needed, message in (
        (torch.tensor(True), r"needed: expected shape \[1\], got \[\]"),
        (torch.tensor([1]), "needed: expected Bool, got Long"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.glassconv.neighbor_list_update(needed, *arguments, *good)


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_filtered_list_is_the_list_of_moved_particles(backend: str, seed: int, typed: bool) -> None:
    """As long as no particle has moved by half of what the first list has beyond the cutoff."""
    rng = np.random.default_rng([37, seed])
    for _ in range(40):
        skin, cutoff = float(rng.choice([0.0, 0.2, 0.6])), float(rng.choice([0.5, 1.0, 1.7]))
        (positions, *others, _), pairs = random_batch(rng, cutoff)
        some = pairs if typed else ()
        larger = list_of(positions, *others, cutoff + skin)
        step = torch.from_numpy(rng.uniform(-1.0, 1.0, positions.shape)) * (skin / 2.0 / 1.8)
        moved = (positions + step, *others, cutoff)
        assert_same(filtered(moved, larger, some), list_of(*moved, *some))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_filter_does_not_depend_on_the_number_of_threads(backend: str, dtype: torch.dtype) -> None:
    positions, *others, cutoff = liquid(3000, 12.0)  # some ten thousands of edges: several tasks
    arguments = (positions.to(dtype), *others, cutoff)
    larger = list_of(positions.to(dtype), *others, 1.4 * cutoff)
    expected = list_of(*arguments)
    n_threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_same(filtered(arguments, larger), expected)
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_filter_of_nothing(backend: str) -> None:
    empty = join([(np.zeros((0, 3)), np.eye(3), [True] * 3)], 1.0)
    apart = join([(np.array([[0.0, 0.0, 0.0], [4.0, 4.0, 4.0]]), np.eye(3) * 9.0, [True] * 3)], 1.0)
    for arguments in (empty, apart):
        edges = list_of(*arguments)
        assert_same(filtered(arguments, edges), edges)


def with_value(values: Tensor, place: Any, value: float) -> Tensor:
    changed = values.clone()
    changed[place] = value
    return changed


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_filter_refuses_what_is_no_list(backend: str) -> None:
    arguments = liquid(60, 3.0)
    positions, cell, pbc, batch, cutoff = arguments
    edge_index, shifts, row_ptr, reverse = edges = list_of(*arguments)
    n_edges = len(reverse)
    last = n_edges - 1
    for wrong, message in (
        (
            (with_value(edge_index, (0, 5), 60), shifts, row_ptr, reverse),
            "edge_index: .* 0 to 59, got 60 at edge 5",
        ),
        (
            (with_value(edge_index, (0, 5), -1), shifts, row_ptr, reverse),
            "edge_index: .* 0 to 59, got -1 at edge 5",
        ),
        (
            (edge_index, shifts, with_value(row_ptr, 60, last), reverse),
            f"row_ptr: .*{n_edges}, got from 0 to {last}",
        ),
        ((edge_index, shifts, with_value(row_ptr, 0, 1), reverse), f"row_ptr: .* got from 1 to {n_edges}"),
        (
            (edge_index, shifts, with_value(row_ptr, 7, -4), reverse),
            "row_ptr: .*, got -4 after .* at particle 6",
        ),
        (
            (edge_index, shifts, row_ptr, with_value(reverse, 3, n_edges)),
            f"reverse: .*, got {n_edges} at edge 3",
        ),
        ((edge_index, shifts, row_ptr, with_value(reverse, 3, -1)), "reverse: .*, got -1 at edge 3"),
        ((edge_index[:, :9], shifts, row_ptr, reverse), r"shifts: expected shape \[9, 3\]"),
        ((edge_index, shifts.long(), row_ptr, reverse), "shifts: expected Int, got Long"),
        ((edge_index, shifts, row_ptr[:9], reverse), r"row_ptr: expected shape \[61\], got \[9\]"),
        ((edge_index, shifts, row_ptr, reverse.int()), "reverse: expected Long, got Int"),
    ):
        with pytest.raises(ValueError, match=message):
            filtered(arguments, wrong)
    for bad, message in (
        ((with_value(positions, 4, torch.nan), cell, pbc, batch, cutoff), "positions: .* at particle 4"),
        ((positions, cell, pbc, with_value(batch, 4, 1), cutoff), "batch: .* 0 to 0, got 1 at particle 4"),
        ((positions, cell, pbc, batch, 0.0), "cutoff: expected a positive finite number, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            filtered(bad, edges)
    types, cutoffs = some_pairs(60, cutoff)
    with pytest.raises(ValueError, match="types: expected types from 0 to 1, got 9 at particle 4"):
        filtered(arguments, edges, (with_value(types, 4, 9), cutoffs))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_filter_refuses_opposites_that_are_not_kept(backend: str) -> None:
    positions, *others = liquid(60, 3.0)
    larger = list_of(positions, *others)
    kept = filtered((positions, *others[:3], 1.0), larger)
    distances = set(map(tuple, rows_of(kept)))
    is_kept = torch.tensor([tuple(row) in distances for row in rows_of(larger)])
    edge, dropped = int(is_kept.nonzero()[0]), int((~is_kept).nonzero()[0])
    wrong = (*larger[:3], with_value(larger[3], edge, dropped))
    with pytest.raises(ValueError, match=f"reverse: .*, got {dropped} at edge {edge}"):
        filtered((positions, *others[:3], 1.0), wrong)


@on_each_native_backend
def test_operators_follow_the_rules_of_operators(backend: str) -> None:
    arguments, pairs = liquid(30, 3.0), some_pairs(30, 1.3)
    ops = torch.ops.glassconv
    torch.library.opcheck(ops.neighbor_list, (*arguments, *pairs))
    torch.library.opcheck(ops.neighbor_list_fixed, (*arguments, 400, *pairs))
    for needed in (False, True):
        buffers = buffers_for(30, 400, np.random.default_rng(38))
        torch.library.opcheck(
            ops.neighbor_list_update, (torch.tensor([needed]), *arguments, *buffers, *pairs)
        )


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_filter_follows_the_rules_of_operators(backend: str) -> None:
    positions, cell, pbc, batch, cutoff = liquid(30, 3.0)
    edges = list_of(positions, cell, pbc, batch, cutoff)
    for pairs in ((), some_pairs(30, 1.0)):
        torch.library.opcheck(
            torch.ops.glassconv.neighbor_list_filter, (positions, cell, batch, 1.0, *edges, *pairs)
        )


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_update_in_a_cuda_graph(backend: str) -> None:
    arguments, capacity = liquid(500, 6.0), 12000
    on_the_gpu = [value.cuda() if isinstance(value, Tensor) else value for value in arguments]
    buffers = [values.clone() for values in fixed_list_of(*on_the_gpu, capacity)]
    needed = torch.tensor([True], device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.ops.glassconv.neighbor_list_update(needed, *on_the_gpu, *buffers)
    for shift, is_needed in ((0.0, True), (0.1, False), (0.1, True)):
        before = [buffer.clone() for buffer in buffers]
        on_the_gpu[0].copy_(arguments[0] * (1.0 + shift))
        needed.fill_(is_needed)
        graph.replay()
        assert_same(buffers, fixed_list_of(*on_the_gpu, capacity) if is_needed else before)


@pytest.mark.parametrize("seed", range(6))
def test_half_lists_are_those_of_the_reference(native_extension: None, seed: int) -> None:
    """All arrays of the graph, in batches, with images of particles and cutoffs of pairs."""
    rng = np.random.default_rng([41, seed])
    systems = [random_system(rng) for _ in range(3)]
    positions, cell, pbc, batch, _ = join(systems, 1.0)
    types = torch.from_numpy(rng.integers(0, 2, len(positions)))
    for cutoff, kinds in ((2.1, None), (np.array([[1.2, 0.4], [0.4, 0.0]]), types)):
        found = []
        for name in ("native", "reference"):
            with glassconv.use_backend(name):
                found.append(
                    glassconv.neighbor_list(positions, cutoff, cell, pbc, batch, types=kinds, half=True)
                )
        for field in ("edge_index", "shifts", "row_ptr", "row_source", "transpose_ptr", "transpose_slots"):
            torch.testing.assert_close(*(getattr(graph, field) for graph in found), rtol=0, atol=0)
        assert found[0].reverse is found[1].reverse is None


def test_half_follows_the_rules_of_operators(native_extension: None) -> None:
    arguments = liquid(30, 3.0)
    for pairs in ((), some_pairs(30, arguments[4])):
        torch.library.opcheck(torch.ops.glassconv.neighbor_list_half, (*arguments, *pairs))
