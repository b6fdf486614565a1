"""The convolution against e3nn and cuequivariance-torch: values, first and second derivatives, every form."""

from __future__ import annotations

import oracles
import pytest
import torch
from oracles import (
    DTYPES,
    FORMS,
    PEER_CASES,
    SMALL_CASES,
    TOLERANCE,
    Case,
    derivatives,
    e3nn_conv,
    normal,
    oracle_derivatives,
    random_arguments,
    random_graph,
    relative_error,
)

import glassconv
from glassconv import Paths

LIBRARIES = ("e3nn",) if oracles.cue is None else ("e3nn", "cuequivariance")


def compare(case: Case, form: str, dtype: torch.dtype, n_nodes: int, n_edges: int) -> None:
    graph, paths = random_graph(n_nodes, n_edges), case.paths
    arguments = {name: value.to(dtype) for name, value in random_arguments(paths, graph, form).items()}
    ours = derivatives(lambda **tensors: glassconv.conv(tensors.pop("x"), graph, paths, **tensors), arguments)
    assert all(value.dtype == dtype for value in ours.values())
    for library in LIBRARIES:
        oracle = oracle_derivatives(library, case, form, n_nodes, n_edges)
        assert ours.keys() == oracle.keys()
        errors = {name: relative_error(ours[name], oracle[name]) for name in ours}
        assert max(errors.values()) < TOLERANCE[dtype], (library, errors)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SMALL_CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_e3nn_and_cuequivariance(backend: str, dtype: torch.dtype, name: str, form: str) -> None:
    compare(SMALL_CASES[name], form, dtype, n_nodes=7, n_edges=60)


@pytest.mark.slow
@pytest.mark.in_emulator(name=["mace-large", "nequip-lips", "glass-16-l3"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PEER_CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_on_the_irreps_of_the_peers(backend: str, dtype: torch.dtype, name: str, form: str) -> None:
    compare(PEER_CASES[name], form, dtype, n_nodes=5, n_edges=24)


@pytest.mark.parametrize("form", FORMS)
def test_any_order_of_the_weights(backend: str, form: str) -> None:
    canonical = SMALL_CASES["tiny"].paths
    order = torch.randperm(len(canonical.instructions)).tolist()
    paths = Paths(
        canonical.irreps_in,
        canonical.irreps_sh,
        canonical.irreps_out,
        instructions=[canonical.instructions[i] for i in order],
    )
    graph = random_graph(6, 50)
    arguments = random_arguments(paths, graph, form)
    ours = derivatives(lambda **tensors: glassconv.conv(tensors.pop("x"), graph, paths, **tensors), arguments)
    oracle = derivatives(lambda **tensors: e3nn_conv(tensors.pop("x"), graph, paths, **tensors), arguments)
    for name in ours:
        assert relative_error(ours[name], oracle[name]) < TOLERANCE[torch.float64], name


def test_low_rank_weights_are_the_product(backend: str) -> None:
    paths, graph = SMALL_CASES["odd"].paths, random_graph(6, 50)
    arguments = random_arguments(paths, graph, "vectors-lowrank", n_radial=17)
    x, vectors, radial, mix = arguments.values()
    low_rank = glassconv.conv(x, graph, paths, vectors=vectors, radial=radial, mix=mix)
    explicit = glassconv.conv(x, graph, paths, vectors=vectors, edge_weight=radial @ mix)
    assert relative_error(low_rank, explicit) < TOLERANCE[torch.float64]


def test_harmonics_inside_are_the_public_ones(backend: str) -> None:
    paths, graph = SMALL_CASES["glass-8-l3"].paths, random_graph(6, 50)
    x, vectors, edge_weight = random_arguments(paths, graph, "vectors-explicit").values()
    edge_sh = glassconv.spherical_harmonics(vectors, 3)
    inside = glassconv.conv(x, graph, paths, vectors=vectors, edge_weight=edge_weight)
    given = glassconv.conv(x, graph, paths, edge_sh=edge_sh, edge_weight=edge_weight)
    assert relative_error(inside, given) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("n_radial", [1, 2, 7, 16, 64])
def test_any_number_of_radial_features(backend: str, n_radial: int) -> None:
    paths, graph = SMALL_CASES["tiny"].paths, random_graph(6, 50)
    arguments = random_arguments(paths, graph, "vectors-lowrank", n_radial=n_radial)
    ours = derivatives(lambda **tensors: glassconv.conv(tensors.pop("x"), graph, paths, **tensors), arguments)
    oracle = derivatives(lambda **tensors: e3nn_conv(tensors.pop("x"), graph, paths, **tensors), arguments)
    for name in ours:
        assert relative_error(ours[name], oracle[name]) < TOLERANCE[torch.float64], name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_need_not_be_contiguous(backend: str, dtype: torch.dtype, form: str) -> None:
    paths, graph = SMALL_CASES["tiny"].paths, random_graph(6, 50)
    arguments = {name: value.to(dtype) for name, value in random_arguments(paths, graph, form).items()}
    strided = {
        name: torch.stack([value.t(), torch.full_like(value.t(), torch.nan)], dim=2)[:, :, 0].t()
        for name, value in arguments.items()
    }

    def conv(**tensors: torch.Tensor) -> torch.Tensor:
        return glassconv.conv(tensors.pop("x"), graph, paths, **tensors)

    def conv_of_strided(**tensors: torch.Tensor) -> torch.Tensor:
        views = {name: torch.stack([t.t(), t.t()], dim=2)[:, :, 0].t() for name, t in tensors.items()}
        return conv(**views)

    assert not any(value.is_contiguous() for value in strided.values())
    # a matrix product may sum in another order when its operands are strided: equal to rounding, not in bits
    assert relative_error(conv(**strided), conv(**arguments)) < TOLERANCE[dtype]
    expected, found = derivatives(conv, arguments), derivatives(conv_of_strided, arguments)
    for name in expected:
        assert relative_error(found[name], expected[name]) < TOLERANCE[dtype], name


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_some_arguments_only(backend: str, form: str) -> None:
    """Each argument alone asks for a gradient, as in inference with forces or with frozen weights."""
    paths, graph = SMALL_CASES["tiny"].paths, random_graph(6, 50)
    arguments = random_arguments(paths, graph, form)
    oracle = derivatives(
        lambda **tensors: e3nn_conv(tensors.pop("x"), graph, paths, **tensors), arguments, order=1
    )
    for name in arguments:
        constants = {other: value for other, value in arguments.items() if other != name}

        def conv(constants: dict[str, torch.Tensor] = constants, **tensors: torch.Tensor) -> torch.Tensor:
            everything = constants | tensors
            return glassconv.conv(everything.pop("x"), graph, paths, **everything)

        def oracle_conv(
            constants: dict[str, torch.Tensor] = constants, **tensors: torch.Tensor
        ) -> torch.Tensor:
            everything = constants | tensors
            return e3nn_conv(everything.pop("x"), graph, paths, **everything)

        ours = derivatives(conv, {name: arguments[name]})
        alone = derivatives(oracle_conv, {name: arguments[name]})
        assert relative_error(alone[f"d {name}"], oracle[f"d {name}"]) < TOLERANCE[torch.float64]
        for key in ours:
            assert relative_error(ours[key], alone[key]) < TOLERANCE[torch.float64], key


@pytest.mark.parametrize("form", FORMS)
def test_force_training_pattern(backend: str, form: str) -> None:
    """Gradient of one argument first, of another second: d/db of d/da for every ordered pair."""
    paths, graph = SMALL_CASES["tiny"].paths, random_graph(6, 50)
    arguments = random_arguments(paths, graph, form)

    def mixed(conv: object, a: str, b: str) -> torch.Tensor:
        leaves = {key: value.clone().requires_grad_(key in (a, b)) for key, value in arguments.items()}
        tensors = dict(leaves)
        out = conv(tensors.pop("x"), graph, paths, **tensors)  # type: ignore[operator]
        (gradient,) = torch.autograd.grad(out, leaves[a], normal(out.shape, 5), create_graph=True)
        (second,) = torch.autograd.grad(
            gradient, leaves[b], normal(gradient.shape, 6), materialize_grads=True
        )
        return second

    for a in arguments:
        for b in arguments:
            if a == b != "vectors":
                continue  # linear in everything but the vectors
            error = relative_error(mixed(glassconv.conv, a, b), mixed(e3nn_conv, a, b))
            assert error < TOLERANCE[torch.float64], (a, b)
