"""Spherical harmonics against e3nn: values, derivatives, all normalizations, and a zero vector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from e3nn import o3
from oracles import DTYPES, TOLERANCE, derivatives, random_vectors, relative_error
from torch.autograd import gradcheck, gradgradcheck

import glassconv

NORMALIZATIONS = ("component", "norm", "integral")


def e3nn_harmonics(vectors: torch.Tensor, l_max: int, normalization: str = "component") -> torch.Tensor:
    return o3.spherical_harmonics(
        list(range(l_max + 1)), vectors, normalize=True, normalization=normalization
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("l_max", range(1, 5))
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_e3nn(backend: str, dtype: torch.dtype, l_max: int, normalization: str) -> None:
    vectors = random_vectors(200)
    ours = derivatives(
        lambda vectors: glassconv.spherical_harmonics(vectors, l_max, normalization),
        {"vectors": vectors.to(dtype)},
    )
    oracle = derivatives(lambda vectors: e3nn_harmonics(vectors, l_max, normalization), {"vectors": vectors})
    for name in oracle:
        assert ours[name].dtype == dtype
        assert relative_error(ours[name], oracle[name]) < TOLERANCE[dtype], name


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_degree_zero_is_constant(backend: str, dtype: torch.dtype, normalization: str) -> None:
    vectors = random_vectors(20).to(dtype).requires_grad_()
    values = glassconv.spherical_harmonics(vectors, 0, normalization)
    torch.testing.assert_close(values, e3nn_harmonics(vectors, 0, normalization))
    (gradient,) = torch.autograd.grad(values.sum(), vectors)
    assert (gradient == 0).all()


def test_default_normalization_is_component(backend: str) -> None:
    values = glassconv.spherical_harmonics(torch.tensor([[1.0, 2.0, 2.0]]), 1)
    torch.testing.assert_close(values, torch.tensor([[1.0, 3**-0.5, 2 * 3**-0.5, 2 * 3**-0.5]]))


@pytest.mark.parametrize("length", [1e-12, 1e-3, 1e3, 1e12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_length_does_not_matter(backend: str, dtype: torch.dtype, length: float) -> None:
    directions = random_vectors(50).to(dtype)
    found = glassconv.spherical_harmonics(directions * length, 4)
    # the scaled vector is itself rounded: a few roundings of each of the four powers
    assert relative_error(found, glassconv.spherical_harmonics(directions, 4)) < TOLERANCE[dtype]


@pytest.mark.parametrize("l_max", range(5))
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_vector(backend: str, dtype: torch.dtype, l_max: int) -> None:
    vectors = torch.zeros(3, 3, dtype=dtype)
    vectors[1] = torch.tensor([0.3, -0.2, 0.9])
    results = derivatives(lambda vectors: glassconv.spherical_harmonics(vectors, l_max), {"vectors": vectors})
    for name, value in results.items():
        assert torch.isfinite(value).all(), name
    zeros = results["value"][[0, 2]]
    assert (zeros[:, 0] == 1).all()
    assert (zeros[:, 1:] == 0).all()
    assert (results["d vectors"][[0, 2]] == 0).all()
    assert (results["dd vectors"][[0, 2]] == 0).all()
    assert (results["dd out"][[0, 2]] == 0).all()
    if l_max > 0:
        assert (results["d vectors"][1] != 0).any()  # the neighbors of a zero vector keep their gradients


@pytest.mark.parametrize("length", [1e-30, 1e-25, 1e-13, 1e13, 1e19, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiny_and_huge_vectors(backend: str, dtype: torch.dtype, length: float) -> None:
    """Their squares leave the range of float32; the values and the derivatives, ~1/length, do not."""
    exact = 2.0 ** round(np.log2(length))  # scaling by it rounds nothing
    directions = random_vectors(20).to(dtype)

    def harmonics(vectors: torch.Tensor) -> torch.Tensor:
        return glassconv.spherical_harmonics(vectors, 4)

    expected = derivatives(harmonics, {"vectors": directions})
    found = derivatives(harmonics, {"vectors": directions * exact})
    order = {"value": 0, "d vectors": 1, "dd vectors": 2, "dd out": 1}
    for name, value in found.items():
        scale = exact ** order[name]
        if torch.finfo(dtype).tiny * 1e8 < 1 / scale < torch.finfo(dtype).max / 1e8:
            assert relative_error(value.double() * scale, expected[name]) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_vectors_count_as_zero(backend: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    vectors = torch.tensor([[tiny / 2, -tiny / 4, 0.0], [tiny, 0.0, 0.0]], dtype=dtype)
    results = derivatives(
        lambda vectors: glassconv.spherical_harmonics(vectors, 4), {"vectors": vectors}, order=1
    )
    assert results["value"][0].tolist() == [1.0] + [0.0] * 24
    assert (results["d vectors"][0] == 0).all()
    torch.testing.assert_close(results["value"][1, :4], torch.tensor([1, 3**0.5, 0, 0], dtype=dtype))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_that_are_not_finite(backend: str, dtype: torch.dtype, bad: float) -> None:
    """All harmonics of such a vector are NaN, Y_0 as well; other vectors keep theirs."""
    vectors = random_vectors(9).to(dtype)
    good = glassconv.spherical_harmonics(vectors, 4)
    for position in range(3):
        vectors[2 * position, position] = bad
    vectors[6] = torch.tensor([bad, 0.0, 0.0])
    for l_max in range(5):
        found = glassconv.spherical_harmonics(vectors, l_max)
        assert found[::2][:4].isnan().all()
        torch.testing.assert_close(found[1::2], good[1::2, : (l_max + 1) ** 2])


def test_no_vectors(backend: str) -> None:
    vectors = torch.zeros(0, 3, requires_grad=True)
    values = glassconv.spherical_harmonics(vectors, 3)
    assert values.shape == (0, 16)
    (gradient,) = torch.autograd.grad(values.sum(), vectors, create_graph=True)
    assert gradient.shape == (0, 3)


@pytest.mark.parametrize("l_max", range(5))
def test_gradcheck(backend: str, l_max: int) -> None:
    vectors = random_vectors(4).requires_grad_()

    def harmonics(vectors: torch.Tensor) -> torch.Tensor:
        return glassconv.spherical_harmonics(vectors, l_max)

    assert gradcheck(harmonics, vectors)
    assert gradgradcheck(harmonics, vectors)


def test_degree_may_be_any_integer(backend: str) -> None:
    vectors = random_vectors(4)
    assert torch.equal(
        glassconv.spherical_harmonics(vectors, np.int32(2)), glassconv.spherical_harmonics(vectors, 2)
    )


def test_degree_must_be_an_integer(backend: str) -> None:
    for function in (glassconv.spherical_harmonics, glassconv.reference.spherical_harmonics):
        for degree, shown in ((2.0, "2.0"), ("2", "'2'"), (None, "None")):
            with pytest.raises(TypeError, match=f"l_max: expected an integer, 0 to 4, got {shown}"):
                function(torch.zeros(4, 3), degree)  # type: ignore[arg-type]


def test_errors(backend: str) -> None:
    vectors = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"vectors: expected shape \(n_edges, 3\) = \(4, 3\), got \(4, 2\)"):
        glassconv.spherical_harmonics(torch.zeros(4, 2), 1)
    with pytest.raises(ValueError, match=r"vectors: expected shape \(n_edges, 3\) = \(3, 3\), got \(3,\)"):
        glassconv.spherical_harmonics(torch.zeros(3), 1)
    with pytest.raises(
        TypeError, match=r"vectors: expected torch.float32 or torch.float64, got torch.float16"
    ):
        glassconv.spherical_harmonics(vectors.half(), 1)
    with pytest.raises(TypeError, match=r"vectors: expected a dense tensor.*got torch.sparse_coo"):
        glassconv.spherical_harmonics(vectors.to_sparse(), 1)
    with pytest.raises(TypeError, match=r"vectors: expected a torch.Tensor, got list"):
        glassconv.spherical_harmonics([[1.0, 0.0, 0.0]], 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"l_max: expected 0 to 4, got 5"):
        glassconv.spherical_harmonics(vectors, 5)
    with pytest.raises(ValueError, match=r"l_max: expected 0 to 4, got -1"):
        glassconv.spherical_harmonics(vectors, -1)
    with pytest.raises(ValueError, match=r"normalization: expected one of .*'norm'.*, got 'sphere'"):
        glassconv.spherical_harmonics(vectors, 1, "sphere")
    with pytest.raises(ValueError, match=r"l_max: expected 0 to 4, got 5"):
        glassconv.reference.spherical_harmonics(vectors, 5)
    with pytest.raises(ValueError, match=r"normalization: expected one of .*'norm'.*, got 'sphere'"):
        glassconv.reference.spherical_harmonics(vectors, 1, "sphere")
