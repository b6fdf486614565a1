"""The derivatives against finite differences: gradcheck, gradgradcheck, forces, stress, a short NVE run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles import FORMS, NATURAL, Case, generator, normal, random_arguments, random_graph
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import glassconv

# Irreps with every kind of path of a degree, on as few outputs as a full Jacobian allows.
ALL_EVEN = {1: "0e+1e", 2: "0e+1e+2e", 3: "0e+1e+2e+3e", 4: "0e+1e+2e+3e+4e"}


def channels_of(irreps: str, channels: int) -> str:
    return "+".join(f"{channels}x{irrep}" for irrep in irreps.split("+"))


def check(
    backend: str, case: Case, form: str, *, fast: bool = False, n_nodes: int = 2, n_edges: int = 3
) -> None:
    # the reference is a composition of torch's own derivatives: random directions are enough for it
    fast = fast or backend == "reference"
    paths, graph = case.paths, random_graph(n_nodes, n_edges)
    arguments = random_arguments(paths, graph, form, n_radial=2)
    names = list(arguments)

    def conv(*tensors: Tensor) -> Tensor:
        named = dict(zip(names, tensors, strict=True))
        return glassconv.conv(named.pop("x"), graph, paths, **named)

    tensors = [value.requires_grad_() for value in arguments.values()]
    assert gradcheck(conv, tensors, fast_mode=fast)
    assert gradgradcheck(conv, tensors, fast_mode=fast)


@pytest.mark.in_emulator(channels=[1, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_full_l_max_1(backend: str, channels: int, form: str) -> None:
    check(backend, Case(channels_of("0e+1o", channels), NATURAL[1], "0e+1o+1e"), form)


@pytest.mark.in_emulator(channels=[3, 4, 5])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("channels", "outputs"), [(1, "0e+1o+1e+2e+2o"), (3, "0e+2e"), (4, "1o"), (5, "2e")])
def test_full_l_max_2(backend: str, channels: int, outputs: str, form: str) -> None:
    check(backend, Case(channels_of("0e+2e", channels), NATURAL[2], outputs), form)


@pytest.mark.in_emulator(outputs=["2e"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outputs", ["0e+1e", "2e", "3e"])
def test_full_l_max_3(backend: str, outputs: str, form: str) -> None:
    check(backend, Case("1x0e+1x1e+1x2e+1x3e", ALL_EVEN[3], outputs), form, n_edges=2)


@pytest.mark.slow
@pytest.mark.in_emulator(outputs=["4e"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outputs", ["0e+1e", "2e", "3e", "4e"])
def test_full_l_max_4(backend: str, outputs: str, form: str) -> None:
    check(backend, Case("1x0e+1x1e+1x2e+1x3e+1x4e", ALL_EVEN[4], outputs), form, n_edges=2)


@pytest.mark.slow
@pytest.mark.in_emulator(False)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [3, 4, 5])
def test_full_l_max_3_more_channels(backend: str, channels: int, form: str) -> None:
    check(backend, Case(channels_of("0e+1o+2e+3o", channels), NATURAL[3], NATURAL[3]), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "case",
    [
        Case("4x0o+3x0e+1x1o+5x1e", "0e+1o", "0o+1e"),
        Case("2x2e+3x2o", "1o+2e", "1o+1e+3e"),
        Case("2x1e+1x2e", "2e", "2e"),
    ],
)
def test_full_with_filters_and_both_parities(backend: str, case: Case, form: str) -> None:
    check(backend, case, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [8, 13, 16, 32, 33, 64])
def test_many_channels(backend: str, channels: int, form: str) -> None:
    check(
        backend, Case(channels_of("0e+1o+2e", channels), NATURAL[2], NATURAL[2]), form, fast=True, n_edges=5
    )


@pytest.mark.slow
@pytest.mark.in_emulator(channels=[13, 33])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("l_max", [1, 3, 4])
@pytest.mark.parametrize("channels", [8, 13, 16, 32, 33, 64])
def test_many_channels_all_degrees(backend: str, channels: int, l_max: int, form: str) -> None:
    irreps = ALL_EVEN[l_max]
    check(backend, Case(channels_of(irreps, channels), irreps, irreps), form, fast=True, n_edges=5)


def random_liquid(n_particles: int, length: float) -> tuple[Tensor, Tensor]:
    """Positions on a jittered grid in a slightly triclinic cell: a liquid's density without overlaps."""
    side = round(n_particles ** (1 / 3))
    assert side**3 == n_particles
    grid = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * 3)
    cell = length * torch.tensor([[1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [-0.05, 0.08, 1.0]], dtype=torch.float64)
    jitter = 0.3 * (torch.rand(grid.shape, generator=generator(3), dtype=torch.float64) - 0.5)
    return (grid + jitter) / side @ cell, cell


def energy_function(n_nodes: int, l_max: int, cutoff: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A smooth energy of two convolutions, whose weights vanish at the cutoff: of positions and cell."""
    irreps = NATURAL[l_max]
    first = glassconv.Paths("2x0e", l_max, irreps)
    second = glassconv.Paths(first.irreps_out, l_max, "0e+1o")
    features = normal((n_nodes, 2), 1)
    mixes = [normal((3, paths.weight_numel), 2 + k) / 4 for k, paths in enumerate((first, second))]

    def energy(positions: Tensor, cell: Tensor) -> Tensor:
        graph = glassconv.neighbor_list(positions.detach(), cutoff, cell=cell.detach())
        vectors = graph.vectors(positions, cell)
        lengths = vectors.norm(dim=1, keepdim=True)
        envelope = (1 - (lengths / cutoff) ** 2).clamp(min=0) ** 3
        radial = envelope * torch.cos(lengths * torch.arange(3, dtype=lengths.dtype))
        h = glassconv.conv(features, graph, first, vectors=vectors, radial=radial, mix=mixes[0])
        h = glassconv.conv(h, graph, second, vectors=vectors, radial=radial, mix=mixes[1])
        return (h.square().sum(dim=1) + 1).sqrt().sum() / n_nodes

    return energy


@pytest.mark.parametrize("l_max", [1, 2, 3])
def test_forces_and_stress_by_finite_differences(backend: str, l_max: int) -> None:
    positions, cell = random_liquid(27, 3.0)
    energy = energy_function(27, l_max, cutoff=1.4)
    positions.requires_grad_()
    cell.requires_grad_()
    gradients = torch.autograd.grad(energy(positions, cell), [positions, cell])
    step = 1e-4
    for k, (leaf, gradient) in enumerate(zip((positions, cell), gradients, strict=True)):
        for direction in (normal(leaf.shape, 50 + k), normal(leaf.shape, 60 + k)):
            moved = [
                [leaf.detach() + factor * step * direction if leaf is other else other.detach()
                 for other in (positions, cell)]
                for factor in (-2, -1, 1, 2)
            ]  # fmt: skip
            values = [energy(*arguments).item() for arguments in moved]
            slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
            # error of the five-point formula: about step^4 times a fifth derivative, and 1e-16 / step
            assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-7, abs=1e-9)


@pytest.mark.slow
@pytest.mark.in_emulator(False)
def test_energy_is_conserved_at_l_max_3(backend: str) -> None:
    """NVE by velocity Verlet: the fluctuation of the energy falls as the square of the time step."""
    start, cell = random_liquid(27, 3.0)
    energy = energy_function(27, 3, cutoff=1.4)
    velocities = 0.3 * normal(start.shape, 7)

    def forces(positions: Tensor) -> tuple[Tensor, Tensor]:
        positions = positions.clone().requires_grad_()
        value = energy(positions, cell)
        return value.detach(), -torch.autograd.grad(value, positions)[0]

    def spread(n_steps: int, duration: float) -> float:
        dt = duration / n_steps
        x, v = start.clone(), velocities.clone()
        potential, f = forces(x)
        totals = [potential + 0.5 * v.square().sum()]
        for _ in range(n_steps):
            v = v + 0.5 * dt * f
            x = x + dt * v
            potential, f = forces(x)
            v = v + 0.5 * dt * f
            totals.append(potential + 0.5 * v.square().sum())
        total = torch.stack(totals)
        return float((total - total[0]).abs().max())

    coarse, fine = spread(50, 0.5), spread(100, 0.5)
    assert coarse < 1e-2
    # second order: a factor of 4, within the scatter of a maximum over different instants; a wrong force
    # would leave 1
    assert 3.0 < coarse / fine < 5.0
