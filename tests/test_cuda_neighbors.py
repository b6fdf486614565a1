"""The neighbor search on CUDA tensors: the CPU's graph, bit for bit; arrays of CuPy in and out."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import needs_cuda
from gpu.systems import CUTOFF, box, liquid
from torch import Tensor

import glassconv
from glassconv import Graph

pytestmark = needs_cuda

ARRAYS = ("edge_index", "shifts", "row_ptr", "reverse", "row_source", "transpose_ptr", "transpose_slots")


@pytest.fixture(autouse=True)
def native():
    with glassconv.use_backend("native"):
        yield
    torch.cuda.synchronize()


def assert_same(ours: Graph, theirs: Graph) -> None:
    assert ours.device.type == "cuda"
    assert (ours.n_nodes, ours.n_edges, ours.has_shifts) == (
        theirs.n_nodes,
        theirs.n_edges,
        theirs.has_shifts,
    )
    for name in ARRAYS:
        found, expected = getattr(ours, name), getattr(theirs, name)
        assert found.dtype == expected.dtype, name
        assert torch.equal(found.cpu(), expected), name


def compare(positions: Tensor, cutoff: float, **options: object) -> Graph:
    """Search on both sides; gives the CPU's graph."""
    moved = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in options.items()}
    theirs = glassconv.neighbor_list(positions, cutoff, **options)
    assert_same(glassconv.neighbor_list(positions.cuda(), cutoff, **moved), theirs)
    return theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(40))
def test_random_systems(seed: int, dtype: torch.dtype) -> None:
    """Any cell, periodicity, number of particles; some on lattice sites, some far outside."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    n = int(torch.randint(0, 400, (), generator=generator))
    cell = torch.diag(0.8 + 8 * uniform(3))
    if seed % 2:
        cell = (cell + (6 * uniform(3, 3) - 3).tril(-1)) @ torch.linalg.qr(uniform(3, 3))[0]
    fractional = (
        torch.randint(-8, 16, (n, 3), generator=generator) / 4 if seed % 5 == 0 else 3 * uniform(n, 3) - 1
    )
    pbc = torch.tensor([bool(seed & 2), bool(seed & 4), bool(seed & 8)])
    positions = (fractional.double() @ cell).to(dtype)
    for cutoff in (0.5, 1.0, 2.1):
        compare(positions, cutoff, cell=cell, pbc=pbc)


@pytest.mark.parametrize("n_particles", [1000, 4096, 32_768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_liquids(n_particles: int, dtype: torch.dtype) -> None:
    configuration = liquid(n_particles)
    graph = compare(configuration.positions.to(dtype), CUTOFF, cell=box(configuration))
    assert 38 < graph.n_edges / n_particles < 43


@pytest.mark.parametrize("length", [0.4, 0.8, 1.0, 1.7])
def test_cells_shorter_than_the_cutoff(length: float) -> None:
    positions = torch.tensor([[0.1, 0.2, 0.3], [7.3, -0.1, 0.2]], dtype=torch.float64)
    for n in (1, 2):
        compare(positions[:n], 1.0, cell=torch.full((3,), length, dtype=torch.float64))


def test_special_cases() -> None:
    compare(torch.zeros(0, 3), 1.0)
    compare(torch.zeros(1, 3), 1.0)
    compare(torch.zeros(5, 3), 1.0)  # in one place
    compare(1e6 * torch.rand(300, 3, dtype=torch.float64), 1.0, cell=torch.full((3,), 1e6))  # sparse
    compare(
        0.3 * torch.rand(400, 3, dtype=torch.float64), 1.0, cell=torch.full((3,), 1e3)
    )  # one dense cluster
    compare(torch.rand(500, 3, dtype=torch.float64) * torch.tensor([2000.0, 1, 1]), 0.9,
            cell=torch.tensor([2000.0, 1, 1]))  # fmt: skip


def test_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = [0, 5, 300, 0, 1, 77]
    batch = torch.repeat_interleave(torch.arange(6), torch.tensor(sizes))
    lengths = 2 + 4 * torch.rand(6, 3, generator=generator, dtype=torch.float64)
    positions = 9 * torch.rand(sum(sizes), 3, generator=generator, dtype=torch.float64)
    pbc = torch.rand(6, 3, generator=generator) > 0.5
    graph = compare(positions, 1.2, cell=lengths, pbc=pbc, batch=batch)
    assert graph.n_systems == 6
    compare(positions, 1.2, batch=batch)
    compare(positions, 1.2, cell=lengths[1], batch=batch, half=False)


def test_half_lists_and_vectors() -> None:
    configuration = liquid(1000)
    positions, cell = configuration.positions, box(configuration)
    ours = glassconv.neighbor_list(positions.cuda(), 1.5, cell=cell.cuda(), half=True)
    theirs = glassconv.neighbor_list(positions, 1.5, cell=cell, half=True)
    assert torch.equal(ours.edge_index.cpu(), theirs.edge_index)
    assert torch.equal(ours.vectors(positions.cuda(), cell.cuda()).cpu(), theirs.vectors(positions, cell))


def test_same_bits_every_time() -> None:
    configuration = liquid(20_000)
    positions, cell = configuration.positions.cuda(), box(configuration).cuda()
    runs = [glassconv.neighbor_list(positions, CUTOFF, cell=cell) for _ in range(10)]
    for run in runs[1:]:
        assert all(torch.equal(getattr(run, name), getattr(runs[0], name)) for name in ARRAYS)


def test_cell_may_stay_on_the_cpu() -> None:
    positions = torch.rand(50, 3, device="cuda")
    graph = glassconv.neighbor_list(positions, 0.3, cell=[1.0, 1.0, 1.0])
    assert_same(graph, glassconv.neighbor_list(positions.cpu(), 0.3, cell=torch.ones(3)))


def test_arrays_of_cupy() -> None:
    """In and out by DLPack, without a copy through the CPU."""
    cupy = pytest.importorskip("cupy")
    positions = cupy.random.default_rng(0).random((200, 3))
    graph = glassconv.neighbor_list(positions, 0.3, cell=cupy.ones(3))
    assert_same(graph.torch(), glassconv.neighbor_list(cupy.asnumpy(positions), 0.3, cell=[1.0] * 3).torch())
    for name in ARRAYS:
        array = getattr(graph, name)
        assert isinstance(array, cupy.ndarray), name
        assert array.data.ptr == getattr(graph.torch(), name).data_ptr(), name
    again = Graph.from_edge_index(graph.edge_index, 200, graph.shifts)
    vectors = again.vectors(positions, cupy.ones(3))
    assert isinstance(vectors, cupy.ndarray)
    cupy.testing.assert_array_equal(vectors, graph.vectors(positions, cupy.ones(3)))
