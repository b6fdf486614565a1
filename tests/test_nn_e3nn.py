"""The network against one of e3nn's TensorProduct, scatter, Linear and BatchNorm with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import pytest
import torch
from e3nn_network import E3nnNetwork
from nn_systems import DTYPES, OPTIONS, network, system

# float64: roundings of 1.1e-16 through some layers, a factor of 1e4 in all. float32: roundings of 6e-8,
# amplified a hundred times by sums that cancel (normalizations, radial functions of rounded vectors).
EQUIVALENCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    # e3nn stores Clebsch-Gordan coefficients in the default dtype of the moment when a module is made
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_e3nn_network_with_the_same_weights(
    backend: str, float64_by_default: None, dtype: torch.dtype, name: str, training: bool
) -> None:
    model = network(name, dtype).train(training)
    # a copy of the running statistics: both networks move their own
    theirs = E3nnNetwork(model).train(training)
    model.train(training)
    batch = model.prepare([system(0), system(1)])
    ours, expected = model(batch), theirs(batch)
    error = (ours - expected).norm() / expected.norm()
    assert error < EQUIVALENCE[dtype], f"relative error {float(error):.2e}"
    for our, their in zip(model.layers, theirs.layers, strict=True):
        for name_, value in their.norm.named_buffers():
            difference = (getattr(our.norm, name_) - value).norm() / value.norm()
            assert difference < EQUIVALENCE[dtype], f"{name_}: {float(difference):.2e}"


def test_gradients_are_those_of_e3nn(backend: str, float64_by_default: None) -> None:
    model = network("both-cage")
    theirs = E3nnNetwork(model)
    batch = model.prepare(system())
    model(batch).square().sum().backward()
    ours = [(layer.conv.mix.grad.clone(), layer.conv.linear.weight.grad.clone()) for layer in model.layers]
    model.zero_grad()
    theirs(batch).square().sum().backward()
    for (mix, linear), layer in zip(ours, theirs.layers, strict=True):
        expected = layer.mix.weight.grad.T / sqrt(model.options["n_neighbors"])
        # derivatives pass all layers twice: a factor of 10 on the tolerance of the output
        assert (mix - expected).norm() / expected.norm() < 1e-11
        assert (linear - layer.linear.weight.grad).norm() / linear.norm() < 1e-11
