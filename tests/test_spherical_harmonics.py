"""Spherical harmonics against e3nn: values, derivatives, all normalizations, and a zero vector."""

from __future__ import annotations

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
