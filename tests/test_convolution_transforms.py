"""Forward-mode derivatives and the transforms of torch.func agree with ordinary autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles import (
    FORMS,
    TOLERANCE,
    normal,
    random_arguments,
    random_graph,
    random_vectors,
    relative_error,
)
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian

import glassconv
from glassconv import Paths

PATHS = Paths("2x0e+1x1o", 1, "0e+1o")
LIMIT = TOLERANCE[torch.float64]
Function = Callable[[Tensor], Tensor]


def functions(form: str) -> list[tuple[Function, Tensor]]:
    """`conv` of each of its arguments, the others fixed."""
    graph = random_graph(2, 4)
    arguments = random_arguments(PATHS, graph, form, n_radial=2)

    def of(name: str) -> Function:
        def function(value: Tensor) -> Tensor:
            tensors = arguments | {name: value}
            return glassconv.conv(tensors.pop("x"), graph, PATHS, **tensors)

        return function

    return [(of(name), value) for name, value in arguments.items()]


def harmonics(vectors: Tensor) -> Tensor:
    return glassconv.spherical_harmonics(vectors, 3, "norm")


def check_forward_mode(function: Function, value: Tensor) -> None:
    expected = jacobian(function, value)  # one row per output, by ordinary autograd
    direction = normal(value.shape, 70)
    tangent = torch.tensordot(expected, direction, dims=2)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(function(forward_ad.make_dual(value, direction))).tangent
    assert relative_error(dual, tangent) < LIMIT
    assert relative_error(torch.func.jvp(function, (value,), (direction,))[1], tangent) < LIMIT
    assert relative_error(torch.func.jacfwd(function)(value), expected) < LIMIT
    found = jacobian(function, value, strategy="forward-mode", vectorize=True)
    assert relative_error(found, expected) < LIMIT


@pytest.mark.parametrize("form", FORMS)
def test_forward_mode_of_conv(backend: str, form: str) -> None:
    for function, value in functions(form):
        check_forward_mode(function, value)


def test_forward_mode_of_harmonics(backend: str) -> None:
    check_forward_mode(harmonics, random_vectors(4))


def test_forward_mode_by_finite_differences(backend: str) -> None:
    step = 1e-5
    for function, value in (*functions("vectors-lowrank"), (harmonics, random_vectors(4))):
        direction = normal(value.shape, 70)
        slope = (function(value + step * direction) - function(value - step * direction)) / (2 * step)
        _, tangent = torch.func.jvp(function, (value,), (direction,))
        # central differences: step^2 times a third derivative, and 1e-16 / step of rounding
        assert relative_error(tangent, slope) < 1e-7


def check_reverse_mode(function: Function, value: Tensor) -> None:
    cotangent = normal(function(value).shape, 2)
    leaf = value.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(leaf), leaf, cotangent)

    def energy(value: Tensor) -> Tensor:
        return (function(value) * cotangent).sum()

    assert relative_error(torch.func.grad(energy)(value), expected) < LIMIT
    assert relative_error(torch.func.vjp(function, value)[1](cotangent)[0], expected) < LIMIT
    batch = torch.stack([value, value])
    assert relative_error(torch.vmap(torch.func.grad(energy))(batch)[1], expected) < LIMIT
    of_batch = torch.func.grad(lambda batch: torch.vmap(energy)(batch).sum())(batch)
    assert relative_error(of_batch[1], expected) < LIMIT


@pytest.mark.parametrize("form", ["vectors-lowrank", "sh-explicit"])
def test_reverse_mode_of_torch_func(backend: str, form: str) -> None:
    for function, value in functions(form):
        check_reverse_mode(function, value)
    check_reverse_mode(harmonics, random_vectors(4))


def test_forward_mode_within_vmap(backend: str) -> None:
    """A batch that carries tangents: they are inside what vmap hands over."""
    for function, value in (*functions("vectors-explicit"), (harmonics, random_vectors(4))):
        direction = normal(value.shape, 70)
        _, expected = torch.func.jvp(function, (value,), (direction,))
        batch, directions = torch.stack([value, value]), torch.stack([direction, direction])
        _, found = torch.func.jvp(torch.vmap(function), (batch,), (directions,))
        assert relative_error(found[1], expected) < LIMIT
        with forward_ad.dual_level():
            out = torch.vmap(function)(forward_ad.make_dual(batch, directions))
            assert relative_error(forward_ad.unpack_dual(out).tangent[1], expected) < LIMIT


def test_forward_over_reverse(backend: str) -> None:
    """Hessians of both orders of modes."""
    function, value = functions("vectors-explicit")[1]

    def energy(value: Tensor) -> Tensor:
        return function(value).square().sum()

    expected = torch.autograd.functional.hessian(energy, value)
    assert relative_error(torch.func.hessian(energy)(value), expected) < LIMIT


def test_no_transform_no_detour(native_extension: None) -> None:
    """An argument without a tangent runs natively even within a dual level, and so does what vmap batches."""
    function, value = functions("vectors-explicit")[1]
    with glassconv.use_backend("native"), torch.profiler.profile() as profile:
        with forward_ad.dual_level():
            function(value)
        torch.vmap(function)(torch.stack([value, value]))
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["glassconv::conv"] >= 3
    assert "aten::index_add" not in counts


@pytest.mark.slow
@pytest.mark.parametrize("backend_name", ["native", "reference"])
def test_compiled_transforms(native_extension: None, backend_name: str) -> None:
    """Transforms inside a compiled function, around it, and one compiled function with and without."""
    function, value = functions("vectors-explicit")[1]
    direction = normal(value.shape, 70)
    with glassconv.use_backend(backend_name):
        expected, tangent = torch.func.jvp(function, (value,), (direction,))
        torch._dynamo.reset()
        inside = torch.compile(
            lambda value: torch.func.jvp(function, (value,), (direction,))[1], backend="aot_eager"
        )
        assert relative_error(inside(value), tangent) < LIMIT
        compiled = torch.compile(function, backend="aot_eager")
        assert relative_error(compiled(value), expected) < LIMIT
        with forward_ad.dual_level():
            out = compiled(forward_ad.make_dual(value, direction))
            assert relative_error(forward_ad.unpack_dual(out).tangent, tangent) < LIMIT
        assert relative_error(torch.func.jvp(compiled, (value,), (direction,))[1], tangent) < LIMIT


def test_tangent_of_the_cotangent_alone_is_refused(native_extension: None) -> None:
    vectors = torch.rand(3, 3, dtype=torch.float64).requires_grad_()
    with glassconv.use_backend("native"), forward_ad.dual_level():
        sh = glassconv.spherical_harmonics(vectors, 1)
        cotangent = forward_ad.make_dual(torch.ones_like(sh), torch.ones_like(sh))
        with pytest.raises(RuntimeError, match="expected a gradient without a forward-mode tangent"):
            torch.autograd.grad(sh, vectors, cotangent)
