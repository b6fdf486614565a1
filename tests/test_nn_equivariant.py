"""`Linear` and `BatchNorm` against e3nn's own, whose parameters they load."""

from __future__ import annotations

import e3nn.nn
import pytest
import torch
from e3nn import o3
from nn_systems import DTYPES, assert_close

from glassconv.nn.equivariant import BatchNorm, Linear

IRREPS = o3.Irreps("3x0o+5x0e+4x1o+2x1e+6x2e")


def derivatives(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, first derivatives in input and parameters, and a second derivative in the input."""
    x = x.detach().requires_grad_()
    out = module(x)
    used = [parameter for parameter in module.parameters() if parameter.numel()]
    first = torch.autograd.grad(out.pow(3).sum(), (x, *used), create_graph=True)
    (second,) = torch.autograd.grad(first[0].square().sum(), x)
    return [out, *first, second]


@pytest.mark.parametrize("irreps_out", ["2x0o+3x0e+7x1o+1x2e", "2x2e+3x0e+4x0e"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_is_that_of_e3nn(dtype: torch.dtype, irreps_out: str) -> None:
    theirs = o3.Linear(IRREPS, irreps_out).to(dtype)
    ours = Linear(IRREPS, irreps_out).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(11, IRREPS.dim, dtype=dtype)
    for value, expected in zip(derivatives(ours, x), derivatives(theirs, x), strict=True):
        assert_close(value, expected, dtype)
    assert ours(x[:0]).shape == (0, theirs.irreps_out.dim)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("irreps", [IRREPS, o3.Irreps("4x1o")], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_norm_is_that_of_e3nn(dtype: torch.dtype, irreps: o3.Irreps, training: bool) -> None:
    theirs = e3nn.nn.BatchNorm(irreps, momentum=0.3).to(dtype).train(training)
    for tensor in [*theirs.parameters(), *theirs.buffers()]:
        torch.nn.init.uniform_(tensor, 0.5, 2)
    ours = BatchNorm(irreps, momentum=0.3).to(dtype).train(training)
    ours.load_state_dict(theirs.state_dict())
    x = 3 * torch.randn(11, irreps.dim, dtype=dtype) + 1
    results = zip(derivatives(ours, x), derivatives(theirs, x), strict=True)
    for value, expected in results:
        # a second derivative of a normalization is a difference of terms ten times its size
        assert_close(value, expected, dtype, factor=10)
    for name, buffer in theirs.named_buffers():
        if buffer.numel():
            assert_close(getattr(ours, name), buffer, dtype)
    assert torch.isfinite(ours.running_var).all()
    before = ours.running_var.clone()
    assert ours(x[:0]).shape == (0, irreps.dim)
    assert torch.equal(ours.running_var, before)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"irreps_in: expected every irrep once, got 2x0e\+3x0e"):
        Linear("2x0e+3x0e", "1x0e")
    with pytest.raises(ValueError, match=r"irreps_out: expected irreps that occur in 2x0e, got \['1o'\]"):
        Linear("2x0e", "1x0e+1x1o")
