"""The whole network: symmetries, smoothness, derivatives, batches, sizes."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from e3nn import o3
from nn_systems import (
    CUTOFF,
    DTYPES,
    OPTIONS,
    assert_close,
    cluster,
    network,
    permuted,
    rotated,
    system,
    translated,
)

import glassconv
from glassconv.nn import SE3GNN


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("inversion", [1, -1], ids=["rotation", "reflection"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_invariant_under_rotation_and_reflection(
    backend: str, dtype: torch.dtype, name: str, inversion: int, training: bool
) -> None:
    model = network(name, dtype).train(training)
    matrix = inversion * o3.rand_matrix(dtype=torch.float64)
    expected = model(system())
    assert expected.std() > 0.01  # else anything would be invariant
    assert_close(model(rotated(system(), matrix)), expected, dtype)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equivariant_under_permutation(backend: str, dtype: torch.dtype, name: str) -> None:
    model = network(name, dtype)
    order = torch.randperm(system().n_particles)
    assert_close(model(permuted(system(), order)), model(system())[order], dtype)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_invariant_under_translation_and_wrapping(backend: str, dtype: torch.dtype, name: str) -> None:
    model = network(name, dtype)
    shift = torch.tensor([1.3, -2.1, 0.4], dtype=torch.float64)
    assert_close(model(translated(system(), shift)), model(system()), dtype)


def test_parity_is_used() -> None:
    # a pseudoscalar channel read without its norm would change sign with the handedness of a chiral cluster
    model = network("both-cage", n_layers=3).eval()
    assert o3.Irrep("0o") in model.irreps_hidden
    chiral = torch.tensor([[0, 0, 0], [0.9, 0, 0], [0, 1.0, 0], [0, 0.3, 1.1]], dtype=torch.float64)
    mirror = torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))
    with torch.no_grad():
        assert_close(model(cluster(chiral @ mirror)), model(cluster(chiral)), torch.float64)


@pytest.mark.parametrize("basis", ["bessel", "gaussian"])
def test_smooth_at_the_cutoff(backend: str, basis: str) -> None:
    model = network("both-cage", radial_basis=basis).eval()

    def outputs(distance: float) -> torch.Tensor:
        positions = torch.tensor([[0, 0, 0], [1.0, 0, 0], [0, distance, 0]], dtype=torch.float64)
        batch = model.prepare(cluster(positions, inherent=torch.zeros(3, 3), energy=torch.zeros(3)))
        # the pair (1, 2) is further than the cutoff throughout
        assert batch.n_edges == (4 if distance < CUTOFF else 2)
        # the cage displacement depends on the distance as well, but has nothing to do with the edge
        with torch.no_grad():
            return model(replace(batch, inputs=torch.zeros_like(batch.inputs)))

    outside = outputs(CUTOFF * (1 + 1e-4))
    # the weight of the edge goes as (1 - d/cutoff)^3 = 1e-12, times coefficients of the order of 1e3
    assert (outputs(CUTOFF * (1 - 1e-4)) - outside).abs().max() < 1e-8
    assert (outputs(0.8 * CUTOFF) - outside).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_gives_what_each_gives_alone(backend: str, dtype: torch.dtype) -> None:
    model = network(dtype=dtype).eval()
    first, second = system(0), system(1, n_side=2)
    with torch.no_grad():
        together = model([first, second])
        # sums over rows do not depend on the other rows; matrix products may block them otherwise
        assert_close(together, torch.cat([model(first), model(second)]), dtype, factor=0.1)
    assert together.shape == (first.n_particles + second.n_particles, 2)


def test_same_input_gives_same_bits(backend: str) -> None:
    model = network(dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(model(system()), model(system()))


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_reach_every_parameter(backend: str, name: str) -> None:
    model = network(name)
    model(system()).square().sum().backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert torch.isfinite(parameter.grad).all(), label
        # per column: every path, channel and type takes part
        assert (parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad).abs().max() > 0, label
    for layer in model.layers:
        assert (layer.conv.mix.grad.abs().amax(dim=0) > 0).all()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradcheck_in_positions(backend: str, training: bool) -> None:
    options = {"channels": 2, "l_max": 1, "n_layers": 2, "positions": "thermal", "inputs": ("type", "cage")}
    model = network("natural", **options).train(training)
    inherent = torch.tensor([[0, 0, 0], [1.0, 0, 0], [0.2, 1.1, 0], [0.1, -0.2, 0.9]], dtype=torch.float64)
    positions = (inherent + 0.1 * torch.randn(4, 3, dtype=torch.float64)).requires_grad_()

    def outputs(positions: torch.Tensor) -> torch.Tensor:
        return model(cluster(positions, inherent=inherent)).sum(dim=0)

    assert torch.autograd.gradcheck(outputs, positions)
    assert torch.autograd.gradgradcheck(outputs, positions)


def test_forces_can_be_trained(backend: str) -> None:
    model = network("natural", positions="thermal")
    positions = system().positions.requires_grad_()
    energy = model(replace(system(), positions=positions)).sum()
    (forces,) = torch.autograd.grad(energy, positions, create_graph=True)
    assert forces.norm() > 1e-3
    # the energy is invariant under translation; roundings of a few hundred terms of order 1
    assert forces.sum(dim=0).norm() < 1e-10 * forces.norm()
    forces.square().sum().backward()
    assert all(layer.conv.mix.grad.abs().max() > 0 for layer in model.layers)


def test_particles_in_one_place_have_finite_derivatives(backend: str) -> None:
    model = network("natural", positions="thermal", inputs=("type", "cage")).eval()
    positions = torch.tensor([[0, 0, 0], [0, 0, 0], [1.0, 0, 0]], dtype=torch.float64, requires_grad=True)
    output = model(cluster(positions, inherent=positions.detach())).sum()
    (first,) = torch.autograd.grad(output, positions, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), positions)
    assert torch.isfinite(output)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_particles_without_neighbors(backend: str, training: bool) -> None:
    model = network().train(training)
    lonely = torch.tensor([[0, 0, 0], [5.0, 0, 0]], dtype=torch.float64)
    output = model(cluster(lonely))
    output.sum().backward()
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(torch.isfinite(b).all() for b in model.buffers())


def count(channels: int, l_max: int, n_layers: int, n_input: int, n_outputs: int, *, hidden: int = 16) -> int:
    """Number of parameters of a network of natural parity with 2 types, counted path by path."""
    total, multiplicities = 0, [n_input]
    for layer in range(n_layers):
        if layer == 1:
            multiplicities = [n_input + channels] + l_max * [channels]
        fan_in = (l_max + 1) * [0]
        for l_in, mul in enumerate(multiplicities):
            for l_sh in range(l_max + 1):
                for l_out in range(abs(l_in - l_sh), min(l_in + l_sh, l_max) + 1):
                    if (l_in + l_sh + l_out) % 2 == 0:
                        fan_in[l_out] += mul
        total += 10 * hidden + 2 * hidden + hidden * sum(fan_in)  # radial network and its norm, mix
        total += (
            channels * sum(fan_in) + channels * (l_max + 1) + channels
        )  # linear, norm with bias on scalars
    n_invariants = channels * (l_max + 1)
    return total + 2 * n_outputs * (n_invariants + 1)


@pytest.mark.parametrize(
    ("channels", "l_max", "n_layers", "n_outputs", "expected"),
    [(4, 2, 3, 1, 2950), (8, 3, 8, 10, None), (16, 1, 4, 10, None), (4, 4, 2, 1, None)],
)
def test_number_of_parameters(
    channels: int, l_max: int, n_layers: int, n_outputs: int, expected: int | None
) -> None:
    model = SE3GNN(2, n_outputs, channels=channels, l_max=l_max, n_layers=n_layers)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert n_parameters == count(channels, l_max, n_layers, 3, n_outputs)
    assert expected is None or n_parameters == expected


def test_default_network_is_the_documented_one() -> None:
    model = SE3GNN(2, 10)
    assert [str(layer.conv.irreps_in) for layer in model.layers[:2]] == ["3x0e", "11x0e+8x1o+8x2e+8x3o"]
    assert str(model.irreps_hidden) == "8x0e+8x1o+8x2e+8x3o"
    assert [layer.residual for layer in model.layers] == [False] + 7 * [True]
    assert (model.cutoff, model.positions, model.inputs) == (2.0, "inherent", ("type", "energy"))
    assert 20_000 < sum(parameter.numel() for parameter in model.parameters()) < 90_000


def test_irreps_of_both_parities_appear_as_they_are_reached() -> None:
    model = SE3GNN(2, 1, channels=2, l_max=1, n_layers=4, parity="both", inputs=("type",))
    assert [str(layer.irreps_out) for layer in model.layers] == [
        "2x0e+2x1o",
        "2x0e+2x1o+2x1e",
        "2x0o+2x0e+2x1o+2x1e",
        "2x0o+2x0e+2x1o+2x1e",
    ]
    assert str(model.layers[3].conv.irreps_in) == "2x0o+4x0e+2x1o+2x1e"
    assert [layer.residual for layer in model.layers] == [False, False, False, True]


@pytest.mark.parametrize("l_max", [0, 1, 2, 3, 4])
def test_every_degree(backend: str, l_max: int) -> None:
    model = network(l_max=l_max, n_layers=2, channels=1, dtype=torch.float64)
    matrix = o3.rand_matrix(dtype=torch.float64)
    small = system(n_side=2)
    assert_close(model(rotated(small, matrix)), model(small), torch.float64)


def test_training_lowers_the_loss(backend: str) -> None:
    model = network(dtype=torch.float32, channels=4)
    batch = model.prepare(system())
    targets = model.standardize(batch.targets, batch.types)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(batch) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # 54 particles with random targets and some 2000 parameters: it can learn them by heart
    assert losses[-1] < 0.5 * losses[0]


def test_users_see_no_warnings(backend: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SE3GNN(2, 1, channels=1, l_max=1, n_layers=2, cutoff=CUTOFF)
        model(system()).sum().backward()


def test_public_names() -> None:
    assert set(glassconv.nn.__all__) >= {"SE3GNN", "Batch", "EquivariantConv", "TensorProductConv"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_types": 0}, "n_types: expected at least 1, got 0"),
        ({"n_outputs": 0}, "n_outputs: expected at least 1, got 0"),
        ({"channels": 0}, "channels: expected at least 1, got 0"),
        ({"n_layers": 0}, "n_layers: expected at least 1, got 0"),
        ({"l_max": 5}, "l_max: expected 0 to 4, got 5"),
        ({"parity": "odd"}, "parity: expected one of .*'natural', 'both'.*, got 'odd'"),
        ({"positions": "mean"}, "positions: expected one of .*'inherent', 'thermal'.*, got 'mean'"),
        ({"inputs": ("type", "charge")}, "inputs: expected some of .*, got .*'charge'"),
        ({"inputs": ()}, "inputs: expected some of .*, each once"),
        ({"inputs": ("type", "type")}, "inputs: expected some of .*, each once"),
        ({"radial_basis": "sine"}, "radial_basis: expected one of .*, got 'sine'"),
        ({"n_radial": 0}, "n_radial: expected at least 1, got 0"),
        ({"radial_hidden": 0}, "radial_hidden: expected at least 1, got 0"),
        ({"cutoff_power": 0}, "cutoff_power: expected at least 1, got 0"),
        ({"cutoff": 0.0}, "cutoff: expected a positive distance, got 0.0"),
        ({"n_neighbors": 0.0}, "n_neighbors: expected a positive number, got 0.0"),
    ],
)
def test_errors_of_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SE3GNN(**{"n_types": 2, "n_outputs": 1, **options})


def test_errors_of_configurations() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"types: expected types 0 to 1, got 2 in 'system 0'"):
        model(replace(system(), types=torch.full((54,), 2)))
    with pytest.raises(
        ValueError, match=r"inherent: expected the positions of the inherent structure .* got None"
    ):
        model(replace(system(), inherent=None))
    with pytest.raises(ValueError, match=r"energy: expected energies .* got None in 'system 0'"):
        model(replace(system(), energy=None))
    with pytest.raises(ValueError, match=r"configurations: expected at least one, got none"):
        model([])
    with pytest.raises(TypeError, match=r"configurations: expected glassconv.data.Configuration, got str"):
        model(["N4096.npz"])
    with pytest.raises(TypeError, match=r"configurations: expected .*, got int"):
        model(3)


def test_what_is_not_read_may_be_missing(backend: str) -> None:
    bare = replace(system(), inherent=None, energy=None, propensity=None, times=None)
    assert network("l3-gaussian")(bare).shape == (54, 2)
