"""A graph's arrays are of the caller's kind: tensors, NumPy arrays, or those of any library with DLPack."""

from __future__ import annotations

import dataclasses
import doctest
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from neighbor_oracle import brute_force, check_well_formed, edges_of
from torch import Tensor

import glassconv
import glassconv.graph
import glassconv.neighbors
from glassconv import Graph, neighbor_list

CELL = np.array([[3.0, 0.0, 0.0], [0.4, 3.2, 0.0], [-0.3, 0.5, 3.4]])
POSITIONS = np.random.default_rng(21).uniform(-1.0, 2.0, (30, 3)) @ CELL
CUTOFF = 1.1


class OtherArray:
    """What another library's array shows of itself: memory on the CPU, by DLPack."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def __getitem__(self, index: Any) -> OtherArray:
        return OtherArray(self.tensor[index])

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


class ArrayOfTheStandard(OtherArray):
    """With the `__array_namespace__` of the array API standard, as JAX and CuPy 14 have it."""

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return sys.modules["other_library"]


@pytest.fixture(autouse=True)
def other_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose module has `from_dlpack`, which names it in the type of its arrays as CuPy does."""
    library = ModuleType("other_library")
    library.from_dlpack = lambda array: ArrayOfTheStandard(torch.from_dlpack(array))
    monkeypatch.setitem(sys.modules, "other_library", library)


class ArrayOfAnOlderLibrary(OtherArray):
    """Without a namespace: known by the module of its type."""

    __module__ = "other_library.core"


KINDS: dict[str, tuple[Callable[[Any], Any], type]] = {
    "torch": (torch.as_tensor, Tensor),
    "lists": (lambda array: np.asarray(array).tolist(), Tensor),
    "numpy": (np.array, np.ndarray),
    "numpy subclass": (lambda array: np.array(array).view(np.memmap), np.ndarray),
    "namespace": (lambda array: ArrayOfTheStandard(torch.as_tensor(array)), ArrayOfTheStandard),
    "module": (lambda array: ArrayOfAnOlderLibrary(torch.as_tensor(array)), ArrayOfTheStandard),
    "unknown library": (lambda array: OtherArray(torch.as_tensor(array)), Tensor),
}
EACH_KIND = pytest.mark.parametrize("kind", list(KINDS))


def arrays_of(graph: Graph) -> dict[str, Any]:
    """Every array of a graph, by name."""
    names = [field.name for field in dataclasses.fields(graph) if not field.name.startswith("_")]
    found = {name: getattr(graph, name) for name in names}
    return {name: value for name, value in found.items() if hasattr(value, "shape")}


def values(array: Any) -> np.ndarray:
    return np.asarray(torch.from_dlpack(array))


def address(array: Any) -> int:
    return torch.from_dlpack(array).data_ptr()


def check_arrays(graph: Graph, kind: type) -> None:
    """All arrays are of this kind, in the memory of the graph's tensors."""
    arrays, tensors = arrays_of(graph), arrays_of(graph.torch())
    assert arrays.keys() == tensors.keys()
    assert arrays.keys() >= {
        "edge_index",
        "shifts",
        "row_ptr",
        "row_source",
        "transpose_ptr",
        "transpose_slots",
    }
    for name, array in arrays.items():
        assert isinstance(array, kind), name
        assert address(array) == tensors[name].data_ptr(), name
        assert str(values(array).dtype) == ("int32" if name == "shifts" else "int64"), name


@EACH_KIND
def test_search_gives_the_kind_of_the_positions(kind: str) -> None:
    make, expected = KINDS[kind]
    graph = neighbor_list(make(POSITIONS), CUTOFF, CELL)
    check_arrays(graph, expected)
    check_well_formed(graph.torch())
    edges = brute_force(POSITIONS, CUTOFF, CELL, (True, True, True))
    np.testing.assert_array_equal(edges_of(graph.torch()), edges)
    for options in ({"half": True}, {"capacity": 500}, {"order": "spatial"}):
        check_arrays(neighbor_list(make(POSITIONS), CUTOFF, CELL, **options), expected)
    batch = np.arange(30) // 10
    batched = neighbor_list(make(POSITIONS), CUTOFF, np.stack([CELL] * 3), batch=make(batch))
    check_arrays(batched, expected)
    np.testing.assert_array_equal(values(batched.batch), batch)


@EACH_KIND
def test_given_edges_give_their_kind(kind: str) -> None:
    make, expected = KINDS[kind]
    graph = Graph.from_edge_index(make(np.array([[2, 0, 1], [0, 1, 0]])), 3, np.zeros((3, 3), dtype=np.int8))
    check_arrays(graph, expected)
    assert values(graph.perm).tolist() == [0, 2, 1]


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"lists"}))
def test_no_particles(kind: str) -> None:
    make, expected = KINDS[kind]
    graph = neighbor_list(make(np.zeros((0, 3))), CUTOFF, CELL)
    check_arrays(graph, expected)
    assert tuple(graph.edge_index.shape) == (2, 0)


@EACH_KIND
def test_vectors_are_of_the_kind_of_their_positions(kind: str) -> None:
    make, expected = KINDS[kind]
    reference = neighbor_list(torch.from_numpy(POSITIONS), CUTOFF, CELL)
    vectors = reference.vectors(torch.from_numpy(POSITIONS), CELL)
    lengths = reference.distances(torch.from_numpy(POSITIONS), CELL)
    for graph in (reference, reference.numpy(), reference.like(ArrayOfTheStandard(torch.zeros(1)))):
        for dtype in (np.float32, np.float64):
            given = make(POSITIONS.astype(dtype))
            found = graph.vectors(given, make(CELL)), graph.distances(given, CELL)
            for array, right in zip(found, (vectors, lengths), strict=True):
                assert isinstance(array, expected)
                assert values(array).dtype == (np.float64 if kind == "lists" else dtype)
                # coordinates to 10, whose rounding to single precision is below 10 * 2**-24, a few times
                tolerance = 1e-5 if dtype == np.float32 else 0.0
                np.testing.assert_allclose(values(array), right, rtol=0, atol=tolerance)


def test_what_a_physicist_does_with_numpy() -> None:
    graph = neighbor_list(POSITIONS, CUTOFF, CELL)
    i, j = graph.edge_index
    n_neighbors = np.bincount(graph.edge_index[1], minlength=graph.n_nodes)
    np.testing.assert_array_equal(n_neighbors, np.diff(graph.row_ptr))
    vectors = POSITIONS[j] - POSITIONS[i] + graph.shifts @ CELL
    np.testing.assert_allclose(graph.vectors(POSITIONS, CELL), vectors, rtol=0, atol=1e-14)
    distances = graph.distances(POSITIONS, CELL)
    np.testing.assert_allclose(distances, np.linalg.norm(vectors, axis=1), rtol=1e-14)
    np.testing.assert_array_equal(distances[graph.reverse], distances)
    assert np.histogram(distances, bins=20, range=(0.0, CUTOFF))[0].sum() == graph.n_edges


def test_gradients_pass_through_the_graph_of_arrays() -> None:
    graph = neighbor_list(POSITIONS, CUTOFF, CELL)
    positions = torch.tensor(POSITIONS, requires_grad=True)
    cell = torch.tensor(CELL, requires_grad=True)
    graph.distances(positions, cell).square().sum().backward()
    # each pair is there twice, and each end gets twice the vector from both
    vectors = torch.from_numpy(graph.vectors(POSITIONS, CELL))
    expected = torch.zeros(30, 3, dtype=torch.float64).index_add(
        0, torch.from_numpy(graph.edge_index[1]), 4 * vectors
    )
    torch.testing.assert_close(positions.grad, expected)
    assert bool(cell.grad.any())
    without = graph.distances(POSITIONS, cell)
    assert isinstance(without, np.ndarray)


def test_conversions_share_memory_and_go_back() -> None:
    tensors = neighbor_list(torch.from_numpy(POSITIONS), CUTOFF, CELL)
    assert tensors.torch() is tensors
    arrays = tensors.numpy()
    check_arrays(arrays, np.ndarray)
    assert arrays.torch() is tensors
    assert arrays.numpy().torch() is tensors
    other = arrays.like(ArrayOfTheStandard(torch.zeros(1)))
    check_arrays(other, ArrayOfTheStandard)
    assert other.torch() is tensors
    assert other.like([]) is tensors
    assert (arrays.n_edges, arrays.cutoff, arrays.device) == (tensors.n_edges, CUTOFF, torch.device("cpu"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        arrays.row_ptr = arrays.row_ptr


def test_representation_names_the_arrays() -> None:
    graph = neighbor_list(POSITIONS, CUTOFF, CELL)
    assert repr(graph).endswith("device=cpu, arrays=numpy.ndarray)")
    assert repr(graph.torch()).endswith("device=cpu)")


def test_arrays_stay_on_their_device() -> None:
    graph = neighbor_list(POSITIONS, CUTOFF, CELL)
    assert graph.to("cpu") is graph
    with pytest.raises(ValueError, match=r"device: expected cpu, where these arrays are .*, got meta"):
        graph.to("meta")
    assert graph.torch().to("meta").device.type == "meta"


def test_graph_shares_no_memory_with_arrays_of_the_caller() -> None:
    edge_index, shifts = np.array([[0, 1], [1, 0]]), np.array([[1, 0, 0], [-1, 0, 0]], dtype=np.int32)
    graph = Graph.from_edge_index(edge_index, 2, shifts)
    positions, batch = np.zeros((4, 3)), np.array([0, 0, 1, 1])
    searched = neighbor_list(positions, 1.0, batch=batch)
    edge_index[:], shifts[:], positions[:], batch[:] = 9, 9, 9.0, 9
    assert graph.edge_index.tolist() == [[0, 1], [1, 0]]
    assert graph.shifts.tolist() == [[1, 0, 0], [-1, 0, 0]]
    assert searched.batch.tolist() == [0, 0, 1, 1]


def test_read_only_positions(recwarn: pytest.WarningsRecorder) -> None:
    positions = POSITIONS.copy()
    positions.flags.writeable = False
    graph = neighbor_list(positions, CUTOFF, CELL)
    graph.distances(positions, CELL)
    assert not recwarn.list


def in_a_record(array: np.ndarray) -> np.ndarray:
    """The same values behind a byte each: neither aligned nor a whole number of items apart."""
    record = np.zeros(len(array), dtype=np.dtype([("kind", "u1"), ("position", array.dtype, (3,))]))
    record["position"] = array
    return record["position"]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "little-endian": lambda array: array.astype(array.dtype.newbyteorder("<")),
    "packed record": in_a_record,
    "reversed rows": lambda array: array[::-1].copy()[::-1],
    "reversed columns": lambda array: np.asfortranarray(array[:, ::-1])[:, ::-1],
    "every other row": lambda array: np.repeat(array, 2, axis=0)[::2],
    "masked array without a mask": np.ma.masked_array,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_any_layout_in_memory(layout: str, dtype: Any) -> None:
    positions = POSITIONS.astype(dtype)
    given = LAYOUTS[layout](positions)
    graph, expected = (neighbor_list(array, CUTOFF, CELL) for array in (given, positions))
    np.testing.assert_array_equal(edges_of(graph.torch()), edges_of(expected.torch()))
    assert isinstance(graph.edge_index, np.ndarray)
    np.testing.assert_array_equal(graph.distances(given, CELL), expected.distances(positions, CELL))
    np.testing.assert_array_equal(given, positions)


def test_values_behind_a_mask_are_refused() -> None:
    masked = np.ma.masked_equal(POSITIONS, POSITIONS.max())
    with pytest.raises(ValueError, match="positions: expected an array without masked values, got 1 of them"):
        neighbor_list(masked, CUTOFF, CELL)


def test_concatenation_has_the_kind_of_the_first() -> None:
    arrays = neighbor_list(POSITIONS, CUTOFF, CELL)
    for first, second, kind in [(arrays, arrays.torch(), np.ndarray), (arrays.torch(), arrays, Tensor)]:
        joined = Graph.concatenate([first, second])
        check_arrays(joined, kind)
        np.testing.assert_array_equal(edges_of(joined)[: arrays.n_edges], edges_of(arrays))
        assert joined.n_systems == 2


def test_convolutions_take_graphs_of_any_kind() -> None:
    graph = neighbor_list(POSITIONS, CUTOFF, CELL)
    paths = glassconv.Paths("2x0e+1o", 1, "2x0e+1o")
    positions = torch.from_numpy(POSITIONS)
    x = torch.randn(30, paths.irreps_in.dim, dtype=torch.float64)
    arguments = {
        "vectors": graph.vectors(positions, CELL),
        "edge_weight": torch.randn(graph.n_edges, paths.weight_numel, dtype=torch.float64),
    }
    module = glassconv.nn.TensorProductConv("2x0e+1o", 1, "2x0e+1o")
    layer = glassconv.nn.EquivariantConv("2x0e+1o", "0e+1o", 1, cutoff=CUTOFF).double().eval()
    for each in (graph, graph.like(ArrayOfTheStandard(torch.zeros(1)))):
        expected = glassconv.conv(x, graph.torch(), paths, **arguments)
        assert torch.equal(glassconv.conv(x, each, paths, **arguments), expected)
        assert torch.equal(module(x, each, **arguments), expected)
        by_definition = glassconv.reference.conv(x, each, paths, **arguments)
        torch.testing.assert_close(by_definition, expected, rtol=1e-12, atol=1e-12)
        outputs = [layer(x, given, arguments["vectors"]) for given in (each, graph.torch())]
        assert torch.equal(*outputs)


@pytest.mark.parametrize("module", [glassconv.graph, glassconv.neighbors])
def test_examples_of_the_documentation(module: ModuleType) -> None:
    results = doctest.testmod(module, extraglobs={"np": np, "torch": torch})
    assert results.attempted > 0
    assert results.failed == 0
