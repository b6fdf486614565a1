"""What the convolution must not depend on: orientation, mirror image, numbering, threads, run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from e3nn import o3
from oracles import (
    DTYPES,
    FORMS,
    SMALL_CASES,
    TOLERANCE,
    derivatives,
    float64_by_default,
    generator,
    normal,
    random_arguments,
    random_graph,
    relative_error,
)
from torch import Tensor

import glassconv
from glassconv import Graph, Paths

# Rotation matrices of the irreps are products of several matrices: a few times the roundings of the
# convolution.
FACTOR = 10


def random_rotation(seed: int) -> Tensor:
    rotation, triangular = torch.linalg.qr(normal((3, 3), seed))
    rotation = rotation * triangular.diagonal().sign()
    return rotation * rotation.det()


def transformed_error(paths: Paths, matrix: Tensor, dtype: torch.dtype) -> float:
    """Relative difference between transforming before and after; `matrix` is orthogonal (3, 3)."""
    graph = random_graph(7, 60)
    x, vectors, edge_weight = random_arguments(paths, graph, "vectors-explicit").values()
    with float64_by_default():
        in_matrix, out_matrix = paths.irreps_in.D_from_matrix(matrix), paths.irreps_out.D_from_matrix(matrix)
    after = glassconv.conv(
        x.to(dtype), graph, paths, vectors=vectors.to(dtype), edge_weight=edge_weight.to(dtype)
    )
    before = glassconv.conv(
        (x @ in_matrix.T).to(dtype),
        graph,
        paths,
        vectors=(vectors @ matrix.T).to(dtype),
        edge_weight=edge_weight.to(dtype),
    )
    return relative_error(before, after.double() @ out_matrix.T)


@pytest.mark.parametrize("name", SMALL_CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation(backend: str, dtype: torch.dtype, name: str) -> None:
    paths = SMALL_CASES[name].paths
    assert transformed_error(paths, random_rotation(1), dtype) < FACTOR * TOLERANCE[dtype]


# only where the harmonics have the parity of harmonics: an even l = 1 is a vector that is told it is a
# pseudovector
TRUE_PARITY = [
    name
    for name, case in SMALL_CASES.items()
    if all(irrep.p == (-1) ** irrep.l for _, irrep in o3.Irreps(case.irreps_sh))
]


@pytest.mark.parametrize("name", TRUE_PARITY)
@pytest.mark.parametrize("matrix", ["inversion", "mirror", "improper"])
def test_inversion_and_mirrors(backend: str, matrix: str, name: str) -> None:
    matrices = {
        "inversion": -torch.eye(3, dtype=torch.float64),
        "mirror": torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)),
        "improper": -random_rotation(2),
    }
    error = transformed_error(SMALL_CASES[name].paths, matrices[matrix], torch.float64)
    assert error < FACTOR * TOLERANCE[torch.float64]


@pytest.mark.parametrize("form", FORMS)
def test_numbering_of_the_nodes(backend: str, form: str) -> None:
    paths, graph = SMALL_CASES["tiny"].paths, random_graph(9, 80)
    arguments = random_arguments(paths, graph, form)
    order = torch.randperm(9, generator=generator(3))
    renumbered = Graph.from_edge_index(order[graph.edge_index], 9)
    x = torch.empty_like(arguments["x"])
    x[order] = arguments.pop("x")
    expected = glassconv.conv(x[order], graph, paths, **arguments)
    found = glassconv.conv(x, renumbered, paths, **arguments)
    assert relative_error(found[order], expected) < TOLERANCE[torch.float64]


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("irreps_in", ["8x0e+8x1o+8x2e", "5x0e+13x1o"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads_and_any_run(
    native_extension: None, dtype: torch.dtype, irreps_in: str, form: str
) -> None:
    """Enough rows and edges for the work to be split in many pieces; everything up to second derivatives."""
    paths, graph = Paths(irreps_in, 2, "0e+1o+2e"), random_graph(300, 6000)
    arguments = {name: value.to(dtype) for name, value in random_arguments(paths, graph, form).items()}

    def run(n_threads: int) -> dict[str, Tensor]:
        with threads(n_threads), glassconv.use_backend("native"):
            return derivatives(lambda **t: glassconv.conv(t.pop("x"), graph, paths, **t), arguments)

    first = run(1)
    for n_threads in (1, 2, 2, 3):
        again = run(n_threads)
        for name in first:
            assert torch.equal(again[name], first[name]), (name, n_threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_of_harmonics(native_extension: None, dtype: torch.dtype) -> None:
    vectors = normal((20_000, 3), 1).to(dtype)

    def run(n_threads: int) -> dict[str, Tensor]:
        with threads(n_threads), glassconv.use_backend("native"):
            return derivatives(
                lambda vectors: glassconv.spherical_harmonics(vectors, 3), {"vectors": vectors}
            )

    first, second = run(1), run(2)
    assert all(torch.equal(second[name], first[name]) for name in first)
