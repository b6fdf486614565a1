"""`glassconv.compat.pyg`: a periodic radius graph as a transform, alone and in batches."""

from __future__ import annotations

import doctest
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from neighbor_oracle import brute_force
from torch import Tensor
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import MessagePassing
from torch_geometric.transforms import BaseTransform, Compose, Distance

import glassconv.compat.pyg
from glassconv.compat.pyg import PeriodicRadiusGraph

CUTOFF = 1.3
WRITTEN = ["edge_index", "edge_shift", "edge_vec", "edge_weight"]


def random_data(seed: int, n: int = 20, **attributes: Any) -> Data:
    """Particles in and around a skewed cell, in float64."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2.0, 4.0, 3)) + rng.uniform(-0.5, 0.5, (3, 3))
    pos = rng.uniform(-0.5, 1.5, (n, 3)) @ cell
    return Data(pos=torch.from_numpy(pos), cell=torch.from_numpy(cell), **attributes)


def edges_of(data: Data) -> np.ndarray:
    """(E, 5) rows (target, source, shift)."""
    return np.column_stack([*data.edge_index.flip(0).numpy(), data.edge_shift.numpy()]).astype(np.int64)


def assert_same(found: Data, expected: Data) -> None:
    for name in WRITTEN:
        assert found[name].dtype == expected[name].dtype, name
        exact = name in ("edge_index", "edge_shift")  # other sums of the same terms to 10
        torch.testing.assert_close(
            found[name], expected[name], rtol=0, atol=0.0 if exact else 1e-14, msg=name
        )


@pytest.mark.parametrize("pbc", [(True,) * 3, (True, False, True), (False,) * 3], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_and_vectors_of_the_definition(pbc: tuple[bool, ...], dtype: torch.dtype) -> None:
    data = random_data(1, pbc=torch.tensor(pbc))
    data.pos, data.cell = data.pos.to(dtype), data.cell.to(dtype)
    data = PeriodicRadiusGraph(CUTOFF)(data)
    expected = brute_force(data.pos.numpy(), CUTOFF, data.cell.numpy(), pbc)
    np.testing.assert_array_equal(edges_of(data), expected)
    source, target = data.edge_index
    vectors = data.pos[target] - data.pos[source] + data.edge_shift @ data.cell
    tolerance = 1e-5 if dtype == torch.float32 else 1e-14  # coordinates to 10, a few roundings of them
    torch.testing.assert_close(data.edge_vec, vectors, rtol=0, atol=tolerance)
    torch.testing.assert_close(data.edge_weight, vectors.norm(dim=1), rtol=0, atol=tolerance)
    assert {data[name].dtype for name in WRITTEN[1:]} == {dtype}
    assert data.edge_index.dtype == torch.int64
    data.validate()


def test_without_a_cell_all_is_open() -> None:
    pos = random_data(2, n=60).pos
    for data in (Data(pos=pos), Data(pos=pos, cell=None, pbc=None)):
        edges = edges_of(PeriodicRadiusGraph(CUTOFF)(data))
        np.testing.assert_array_equal(edges, brute_force(pos.numpy(), CUTOFF))


CELLS = {
    "matrix": lambda cell: cell,
    "one matrix": lambda cell: cell[None],
    "array": lambda cell: cell.numpy(),
    "nested list": lambda cell: cell.tolist(),
}
LENGTHS = {"lengths": lambda cell: cell.diagonal(), "one box": lambda cell: cell.diagonal()[None]}
FLAGS = {
    "bool": True,
    "flags": torch.tensor([True, False, True]),
    "one row": torch.tensor([[True, False, True]]),
    "one flag": torch.tensor([False]),
    "scalar": torch.tensor(False),
}


@pytest.mark.parametrize("form", [*CELLS, *LENGTHS])
def test_shapes_of_cells(form: str) -> None:
    data = random_data(3)
    expected = data.cell.diagonal().diag() if form in LENGTHS else data.cell
    edges = brute_force(data.pos.numpy(), CUTOFF, expected.numpy())
    data.cell = (CELLS | LENGTHS)[form](data.cell)
    np.testing.assert_array_equal(edges_of(PeriodicRadiusGraph(CUTOFF)(data)), edges)


@pytest.mark.parametrize("form", list(FLAGS))
def test_shapes_of_periodicities(form: str) -> None:
    data = random_data(4, pbc=FLAGS[form])
    pbc = np.broadcast_to(np.asarray(FLAGS[form]).ravel(), 3).tolist()
    edges = brute_force(data.pos.numpy(), CUTOFF, data.cell.numpy(), pbc)
    np.testing.assert_array_equal(edges_of(PeriodicRadiusGraph(CUTOFF)(data)), edges)


def systems(n_systems: int, cell: str = "matrix", flags: str | None = "flags") -> list[Data]:
    """Systems of different sizes, cells and periodicities, one of them without particles."""
    listed = [random_data(k, n=[20, 0, 11, 17][k % 4]) for k in range(n_systems)]
    for k, data in enumerate(listed):
        data.cell = (CELLS | LENGTHS)[cell](data.cell)
        if flags is not None:
            data.pbc = not FLAGS[flags] if flags == "bool" and k == 1 else FLAGS[flags]
    return listed


@pytest.mark.parametrize("n_systems", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("cell", "flags"),
    [(cell, "flags") for cell in (*CELLS, *LENGTHS)] + [("matrix", flags) for flags in (*FLAGS, None)],
)
def test_before_and_after_batching_give_the_same(n_systems: int, cell: str, flags: str | None) -> None:
    transform, listed = PeriodicRadiusGraph(CUTOFF), systems(n_systems, cell, flags)
    before = Batch.from_data_list([transform(data) for data in listed])
    after = transform(Batch.from_data_list(listed))
    assert_same(after, before)
    assert after.num_edges > 20
    data_list = before.to_data_list()
    for part, single in zip(data_list, listed, strict=True):
        assert_same(part, transform(single))


def test_through_a_loader() -> None:
    transform, listed = PeriodicRadiusGraph(CUTOFF), systems(8, flags=None)
    batches = list(DataLoader([transform(data) for data in listed], batch_size=3))
    assert [batch.num_graphs for batch in batches] == [3, 3, 2]
    for batch, raw in zip(batches, DataLoader(listed, batch_size=3), strict=True):
        assert_same(batch, transform(raw))
        source, target = batch.edge_index
        assert bool((batch.batch[source] == batch.batch[target]).all())
        cells = batch.cell.reshape(-1, 3, 3)[batch.batch[target]]
        vectors = batch.pos[target] - batch.pos[source] + torch.einsum("ea,eab->eb", batch.edge_shift, cells)
        torch.testing.assert_close(batch.edge_vec, vectors, rtol=0, atol=1e-14)


def test_batch_attribute_without_a_batch_object() -> None:
    first, second = random_data(5), random_data(6)
    data = Data(
        pos=torch.cat([first.pos, second.pos]),
        cell=torch.stack([first.cell, second.cell]),
        batch=torch.arange(2).repeat_interleave(20),
    )
    transform = PeriodicRadiusGraph(CUTOFF)
    assert_same(transform(data), transform(Batch.from_data_list([first, second])))
    empty = Data(pos=torch.zeros(0, 3), batch=torch.zeros(0, dtype=torch.int64))
    assert transform(empty).num_edges == 0


def test_vectors_are_differentiable() -> None:
    data = random_data(7)
    data.pos.requires_grad_()
    data.cell.requires_grad_()
    transform = PeriodicRadiusGraph(CUTOFF)
    for name in ("edge_vec", "edge_weight"):
        of_pos, of_cell = torch.autograd.grad(transform(data)[name].square().sum(), (data.pos, data.cell))
        edges = transform(data)
        vectors = edges.edge_vec.detach()
        expected = torch.zeros_like(of_pos).index_add(
            0, edges.edge_index[1], 4 * vectors
        )  # every pair, from both ends
        torch.testing.assert_close(of_pos, expected)
        torch.testing.assert_close(of_cell, 2 * edges.edge_shift.T @ vectors)


def test_messages_flow_from_neighbors_to_particles() -> None:
    class Sum(MessagePassing):
        def forward(self, x: Tensor, data: Data) -> Tensor:
            return self.propagate(data.edge_index, x=x, weight=data.edge_weight)

        def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
            return weight[:, None] * x_j

    data = PeriodicRadiusGraph(CUTOFF)(random_data(8))
    x = torch.randn(20, 2, dtype=torch.float64)
    expected = torch.zeros(20, 2, dtype=torch.float64)
    for (source, target), weight in zip(data.edge_index.T.tolist(), data.edge_weight, strict=True):
        expected[target] += weight * x[source]
    torch.testing.assert_close(Sum()(x, data), expected)


def test_what_is_not_wanted_is_not_written() -> None:
    data = PeriodicRadiusGraph(CUTOFF, vectors=False, distances=False)(random_data(9))
    assert set(data.keys()) == {"pos", "cell", "edge_index", "edge_shift"}
    assert set(PeriodicRadiusGraph(CUTOFF, vectors=False)(random_data(9)).keys()) - set(data.keys()) == {
        "edge_weight"
    }


def test_nothing_is_left_of_former_edges() -> None:
    for data in (random_data(9), Batch.from_data_list([random_data(9), random_data(10)])):
        former = PeriodicRadiusGraph(CUTOFF)(data)
        edges = PeriodicRadiusGraph(0.8, vectors=False, distances=False)(former)
        assert edges.num_edges != former.num_edges
        assert set(edges.keys()) == set(data.keys()) | {"edge_index", "edge_shift"}
        assert set(WRITTEN) <= set(former.keys())


def test_three_graphs_are_not_three_axes() -> None:
    """What could be meant for all of three graphs is refused; what batching makes of each is not."""
    transform, listed = PeriodicRadiusGraph(CUTOFF), systems(3, "one box", "bool")
    collated = Batch.from_data_list(listed)
    assert (collated.cell.shape, collated.pbc.tolist()) == ((3, 3), [True, False, True])
    edges = transform(collated)
    batches = (Batch.from_data_list(systems(3, flags=flags)) for flags in (None, "flags"))
    for batch in batches:
        batch.pbc = torch.tensor([True, True, False])
        with pytest.raises(
            ValueError, match=r"data.pbc: expected shape \(3, 3\) for 3 graphs, got \(3,\), wh"
        ):
            transform(batch)
        batch.cell, batch.pbc = collated.cell.reshape(9), collated.pbc[:, None].expand(3, 3)
        assert_same(transform(batch), edges)
        batch.cell = collated.cell.diag_embed()
        assert_same(transform(batch), edges)
        batch.cell = torch.full((3, 3), 0.1) + 3.0 * torch.eye(3)
        with pytest.raises(
            ValueError, match=r"data.cell: expected shape \(3, 3, 3\) for cells or \(9,\) for"
        ):
            transform(batch)
    alike = Batch.from_data_list(systems(3, flags=None))
    alike.pbc = torch.tensor([False, False, False])
    assert not transform(alike).edge_shift.any()


def test_it_is_a_transform_like_others() -> None:
    data = random_data(10, edge_attr=torch.ones(1, 2), edge_index=torch.tensor([[0], [1]]))
    transform = PeriodicRadiusGraph(CUTOFF)
    assert isinstance(transform, BaseTransform)
    assert repr(transform) == "PeriodicRadiusGraph(cutoff=1.3)"
    composed = Compose([transform, Distance(norm=False)])(data)
    assert composed.edge_attr.shape == (composed.num_edges, 1)
    assert transform(data).edge_attr is None
    assert data.num_edges == 1  # the given data stays as it was
    assert "edge_shift" not in data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HeteroData(), r"data: expected torch_geometric.data.Data, got HeteroData"),
        (Data(), r"data.pos: expected a tensor of shape \(N, 3\), got NoneType"),
        (Data(pos=np.zeros((2, 3))), r"data.pos: expected a tensor of shape \(N, 3\), got ndarray"),
        (Data(pos=torch.zeros(2, 2)), r"positions: expected shape \(N, 3\), got \(2, 2\)"),
        (Data(pos=torch.zeros(2, 3), cell=torch.ones(6)), r"data.cell: expected shape .*, got \(6,\)"),
        (Data(pos=torch.zeros(2, 3), cell=torch.zeros(3, 3)), "cell: expected linearly independent"),
        (Data(pos=torch.zeros(2, 3), cell=[3.0, 0.0, 3.0]), "cell: expected linearly independent"),
        (
            Data(pos=torch.zeros(2, 3), cell=[3.0, -2.0, 3.0]),
            "data.cell: expected box lengths from 0, got -2",
        ),
        (Data(pos=torch.zeros(2, 3), cell="cubic"), "data.cell: expected an array, got str"),
        (
            Data(pos=torch.zeros(2, 3), cell=torch.eye(3), pbc=torch.tensor([True, False])),
            r"data.pbc: expected shape \(\), \(1,\), \(3,\) or \(1, 3\) for .* of 1, got \(2,\)",
        ),
        (
            Data(pos=torch.zeros(2, 3), cell=torch.eye(3), pbc=torch.ones(3)),
            "pbc: expected bool, got torch.float32",
        ),
        (
            Data(pos=torch.zeros(2, 3), cell=torch.eye(3), batch=torch.tensor([0, 1])),
            r"data.cell: expected shape \(2, 3, 3\), \(6, 3\), \(2, 3\) or \(6,\) .* of 2, got \(3, 3\)",
        ),
        (Data(pos=torch.zeros(2, 3), batch=torch.tensor([1, 0])), "batch: expected non-decreasing systems"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_data_is_named(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PeriodicRadiusGraph(CUTOFF)(data)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan"), "1", None, True])
def test_bad_cutoffs_are_refused_at_once(cutoff: Any) -> None:
    with pytest.raises(ValueError, match="cutoff: expected a positive finite number"):
        PeriodicRadiusGraph(cutoff)


def test_the_documented_example() -> None:
    results = doctest.testmod(glassconv.compat.pyg)
    assert results.attempted > 0
    assert results.failed == 0


def test_without_pyg_the_extra_is_named() -> None:
    code = "import sys; sys.modules['torch_geometric'] = None\nimport glassconv\nglassconv.compat.pyg"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    expected = "ImportError: glassconv.compat.pyg needs PyTorch Geometric: pip install 'glassconv[compat]'"
    assert result.stderr.strip().endswith(expected)
