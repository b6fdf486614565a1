"""The Kob-Andersen potential against plain sums and derivatives; the quench against published structures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import glassconv
from glassconv.data import Configuration
from glassconv.simulation import kob_andersen
from glassconv.simulation.kob_andersen import energy_and_forces, energy_per_particle, forces

CELLS = {
    "cubic": torch.eye(3, dtype=torch.float64) * 6.0,
    "triclinic": torch.tensor([[6.0, 0, 0], [1.5, 5.8, 0], [-0.7, 1.1, 5.6]], dtype=torch.float64),
    "shorter than the cutoff": torch.diag(torch.tensor([2.2, 2.4, 9.0], dtype=torch.float64)),
}
PBC = {"periodic": (True, True, True), "slab": (True, True, False), "open": (False, False, False)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads gain little on these sizes and cost much where other programs use the cores too."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def liquid(cell: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Particles of both types, at least 0.75 apart across boundaries too, some of them outside the cell."""
    generator = torch.Generator().manual_seed(seed)
    n = int(1.0 * float(torch.linalg.det(cell)))
    images = torch.tensor(list(itertools.product((-1, 0, 1), repeat=3)), dtype=torch.float64) @ cell
    placed: list[Tensor] = []
    for _ in range(4000):
        if len(placed) == n:
            break
        new = torch.rand(3, generator=generator, dtype=torch.float64) @ cell
        if all(float((new - p + images).norm(dim=1).min()) > 0.75 for p in placed):
            placed.append(new)
    positions = torch.stack(placed)
    positions[::5] += cell[0] - 2 * cell[1]  # the choice of image must not matter
    return positions, (torch.arange(len(placed)) % 5 == 0).long()


def brute_force(positions: Tensor, types: Tensor, cell: Tensor, pbc: tuple[bool, ...]) -> Tensor:
    """Sum over all pairs and images, without any neighbor search, from the formula in the paper."""
    fractional = positions @ torch.linalg.inv(cell)
    # Into the cell along periodic directions: then two images on either side reach beyond any cutoff.
    fractional -= torch.floor(fractional) * torch.tensor(pbc, dtype=torch.float64)
    positions = fractional @ cell
    ranges = [range(-2, 3) if p else range(1) for p in pbc]
    shifts = torch.tensor(list(itertools.product(*ranges)), dtype=torch.float64) @ cell
    sigma = torch.tensor(kob_andersen.SIGMA, dtype=torch.float64)
    epsilon = torch.tensor(kob_andersen.EPSILON, dtype=torch.float64)
    energies = torch.zeros(len(positions), dtype=torch.float64)
    for i in range(len(positions)):
        for shift in shifts:
            r = (positions[i] - positions + shift).norm(dim=1)
            s, e = sigma[types[i], types], epsilon[types[i], types]
            x, y = (s / r) ** 6, 2.5**-6
            phi = 4.0 * e * ((x * x - x) - (y * y - y))
            energies[i] += 0.5 * phi[(r > 1e-9) & (r < 2.5 * s)].sum()
    return energies


def test_parameters_are_those_of_the_paper() -> None:
    assert kob_andersen.EPSILON == ((1.0, 1.5), (1.5, 0.5))
    assert kob_andersen.SIGMA == ((1.0, 0.8), (0.8, 0.88))
    assert kob_andersen.MAX_CUTOFF == 2.5


@pytest.mark.parametrize("types", [(0, 0), (0, 1), (1, 1)])
def test_pair_minimum_and_cutoff(types: tuple[int, int]) -> None:
    sigma, epsilon = kob_andersen.SIGMA[types[0]][types[1]], kob_andersen.EPSILON[types[0]][types[1]]

    def pair(r: float) -> tuple[float, float]:
        x = torch.tensor([[0.0, 0, 0], [r, 0, 0]], dtype=torch.float64)
        e, f = energy_and_forces(x, torch.tensor(types), 20.0 * torch.eye(3, dtype=torch.float64))
        assert e[0] == e[1]
        assert torch.equal(f[0], -f[1])
        return float(e.sum()), float(f[1, 0])

    shift = 4 * epsilon * (2.5**-12 - 2.5**-6)
    energy, force = pair(2 ** (1 / 6) * sigma)
    assert energy == pytest.approx(-epsilon - shift, rel=1e-14)
    assert abs(force) < 1e-13 * epsilon / sigma  # rounding of terms of order 24 eps / sigma
    energy, force = pair(2.5 * sigma * (1 - 1e-9))
    assert energy == pytest.approx(0.0, abs=1e-9)  # continuous: force times 1e-9
    assert force == pytest.approx(-0.039 * epsilon / sigma, rel=1e-2)  # not smoothed
    assert pair(2.5 * sigma * (1 + 1e-9)) == (0.0, 0.0)


@pytest.mark.parametrize("pbc", list(PBC.values()), ids=list(PBC))
@pytest.mark.parametrize("cell", list(CELLS.values()), ids=list(CELLS))
def test_energies_against_a_plain_double_sum(backend: str, cell: Tensor, pbc: tuple[bool, ...]) -> None:
    positions, types = liquid(cell)
    expected = brute_force(positions, types, cell, pbc)
    found = energy_per_particle(positions, types, cell, torch.tensor(pbc))
    # A hundred terms of order 10 in another order and with other roundings of the distances.
    assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cell", list(CELLS.values()), ids=list(CELLS))
def test_forces_against_autograd_and_finite_differences(backend: str, cell: Tensor) -> None:
    positions, types = liquid(cell)
    found = forces(positions, types, cell)
    leaf = positions.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy_per_particle(leaf, types, cell).sum(), leaf)
    scale = float(found.abs().max())
    assert torch.allclose(found, -gradient, rtol=0, atol=1e-13 * scale)  # the same sum, rounded differently
    assert float(found.sum(0).abs().max()) < 1e-12 * scale
    h = 1e-5
    for i, k in [(0, 0), (1, 1), (2, 2), (len(positions) - 1, 0)]:
        energies = []
        for sign in (1, -1):
            moved = positions.clone()
            moved[i, k] += sign * h
            energies.append(float(energy_per_particle(moved, types, cell).sum()))
        difference = -(energies[0] - energies[1]) / (2 * h)
        # h^2 times the third derivative, some 1e4 forces / sigma^2 for steep contacts; rounding 1e-16 / h
        assert float(found[i, k]) == pytest.approx(difference, rel=1e-5, abs=1e-6 * scale)


def test_batch_equals_one_by_one(backend: str) -> None:
    systems = [(liquid(cell, seed), cell) for seed, cell in enumerate(CELLS.values())]
    batch = torch.cat([torch.full((len(x),), i) for i, ((x, _), _) in enumerate(systems)])
    pbc = torch.tensor([PBC["periodic"], PBC["slab"], PBC["periodic"]])
    together = energy_and_forces(
        torch.cat([x for (x, _), _ in systems]),
        torch.cat([t for (_, t), _ in systems]),
        torch.stack([cell for _, cell in systems]),
        pbc,
        batch,
    )
    for i, ((x, t), cell) in enumerate(systems):
        alone = energy_and_forces(x, t, cell, pbc[i])
        for a, b in zip(alone, together, strict=True):
            assert torch.allclose(a, b[batch == i], rtol=1e-12, atol=1e-12)  # order of the sums


def test_unknown_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"types: expected 0 \(A\) or 1 \(B\).*got \[0, 2\]"):
        energy_per_particle(torch.rand(2, 3).double(), torch.tensor([0, 2]), CELLS["cubic"])


def configuration(name: str = "cubic", seed: int = 0) -> Configuration:
    """Some sixty particles, so that quenches take a moment even with the reference neighbor search."""
    cell = CELLS[name] * (2.0 / 3.0)
    positions, types = liquid(cell, seed)
    return Configuration(positions, types, cell, name=name, metadata={"seed": seed})


def test_quench_reaches_a_minimum(backend: str) -> None:
    start = configuration()
    found = glassconv.quench(start, max_force=1e-6)
    assert found.inherent is not None
    energy, left = energy_and_forces(found.inherent, found.types, found.cell)
    assert float(left.norm(dim=1).max()) <= 1e-6
    assert torch.equal(energy, found.energy)
    assert float(energy.sum()) < float(energy_per_particle(start.positions, start.types, start.cell).sum())
    # A minimum, not a saddle: any small displacement costs energy, 1e-3 being far above the residual force.
    for seed in range(5):
        step = (
            1e-3 * torch.randn(found.inherent.shape, generator=torch.Generator().manual_seed(seed)).double()
        )
        step -= step.mean(0)
        moved = energy_per_particle(found.inherent + step, found.types, found.cell)
        assert float(moved.sum()) > float(energy.sum())


def test_quench_keeps_everything_else() -> None:
    start = configuration()
    found = glassconv.quench(start, max_force=1e-3)
    assert found.positions is start.positions
    assert found.metadata["seed"] == 0
    assert found.metadata["quench"]["method"] == "FIRE"
    assert 0 < found.metadata["quench"]["max_force"] <= 1e-3
    assert start.inherent is None
    # No force on the center of mass: sums of N rounding errors only.
    assert torch.allclose(found.inherent.mean(0), start.positions.mean(0), atol=1e-10)


def test_quench_of_several_equals_one_by_one() -> None:
    starts = [configuration("cubic", 1), configuration("triclinic", 2), configuration("cubic", 3)]
    together = glassconv.quench(starts, max_force=1e-5)
    assert [c.name for c in together] == ["cubic", "triclinic", "cubic"]
    for start, found in zip(starts, together, strict=True):
        alone = glassconv.quench(start, max_force=1e-5)
        assert alone.metadata["quench"]["n_steps"] == found.metadata["quench"]["n_steps"]
        # The same steps with sums in another order, which FIRE amplifies a little.
        assert torch.allclose(alone.inherent, found.inherent, atol=1e-7)
        assert torch.allclose(alone.energy, found.energy, atol=1e-7)
    assert glassconv.quench([]) == []


def test_groups_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = [configuration("cubic", seed) for seed in range(3)]
    together = glassconv.quench(starts, max_force=1e-3)
    monkeypatch.setattr("glassconv.simulation.quench._PARTICLES_TOGETHER", 1)
    calls: list[tuple[int, int, float]] = []
    apart = glassconv.quench(starts, max_force=1e-3, progress=lambda *call: calls.append(call))
    for a, b in zip(apart, together, strict=True):
        assert torch.allclose(a.inherent, b.inherent, atol=1e-7)  # as above
    assert calls[-1][:2] == (3, 3)
    assert [n for n, _, _ in calls] == sorted(n for n, _, _ in calls)
    assert all(math.isfinite(force) for _, _, force in calls)


@pytest.mark.parametrize("skin", [0.05, 1.0])
def test_the_skin_does_not_matter(skin: float) -> None:
    start = configuration("triclinic")
    expected = glassconv.quench(start, max_force=1e-5)
    found = glassconv.quench(start, max_force=1e-5, skin=skin)
    assert torch.allclose(found.inherent, expected.inherent, atol=1e-7)  # sums in another order, as above


def test_same_input_same_bits() -> None:
    one, two = (glassconv.quench(configuration(), max_force=1e-4) for _ in range(2))
    assert torch.equal(one.inherent, two.inherent)
    assert torch.equal(one.energy, two.energy)


def test_close_contacts_are_survived() -> None:
    start = configuration()
    positions = start.positions.clone()
    positions[1] = positions[0] + 0.3  # forces of order 1e5
    found = glassconv.quench(Configuration(positions, start.types, start.cell), max_force=1e-4)
    assert float(found.energy.max()) < 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_force": 0.0}, r"max_force: expected a positive force \(finite\), got 0.0"),
        ({"max_force": math.inf}, r"max_force: expected a positive force \(finite\), got inf"),
        ({"max_force": math.nan}, r"max_force: expected a positive force \(finite\), got nan"),
        ({"skin": -1.0}, "skin: expected a positive length, got -1.0"),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
    ],
)
def test_refused_arguments(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        glassconv.quench(configuration(), **given)


def test_refused_configurations() -> None:
    start = configuration()
    with pytest.raises(ValueError, match=r"types: expected 0 \(A\) or 1 \(B\)"):
        glassconv.quench(Configuration(start.positions, start.types + 1, start.cell))
    positions = start.positions.clone()
    positions[1] = positions[0]
    with pytest.raises(ValueError, match=r"positions: expected particles apart .* \(system 0\)"):
        glassconv.quench(Configuration(positions, start.types, start.cell))


def test_too_few_steps() -> None:
    with pytest.raises(RuntimeError, match=r"max_steps: expected enough .* got 3, after which 1 of 1"):
        glassconv.quench(configuration(), max_steps=3)


def test_small_published_systems(shared_data: Any) -> None:
    from adapters import read_small

    expected = read_small(shared_data / "ka3d_small_T0.50.npz", [0, 1])
    for a, b in zip(glassconv.quench(expected), expected, strict=True):
        assert a.energy is not None
        assert b.energy is not None
        # Nearly degenerate minima nearby may be reached by a different minimizer.
        assert abs(float(a.energy.mean()) - float(b.energy.mean())) < 1e-3


def check_tau_alpha(shared_data: Any, indices: list[int]) -> None:
    from adapters import TAU_ALPHA_FILE, read_tau_alpha

    expected = read_tau_alpha(shared_data / TAU_ALPHA_FILE, indices)
    found = glassconv.quench(expected)
    difference = torch.tensor(
        [float(a.energy.mean() - b.energy.mean()) for a, b in zip(found, expected, strict=True)]
    )
    assert abs(float(difference.mean())) < 1e-3
    for a, b in zip(found, expected, strict=True):
        assert a.metadata["quench"]["max_force"] <= 1e-5
        # From the same start two minimizers part ways in a few regions: most particles must agree closely.
        assert float(((a.inherent - b.inherent).norm(dim=1) < 0.05).double().mean()) > 0.85
        assert float(torch.corrcoef(torch.stack([a.energy, b.energy]))[0, 1]) > 0.99


def test_published_inherent_structure(shared_data: Any) -> None:
    check_tau_alpha(shared_data, [5])


@pytest.mark.slow
def test_all_published_inherent_structures(shared_data: Any) -> None:
    check_tau_alpha(shared_data, list(range(10)))


def test_energies_of_published_inherent_structures(backend: str, shared_data: Any) -> None:
    """Without a quench: the potential at the published positions, against energies in single precision."""
    from adapters import TAU_ALPHA_FILE, read_tau_alpha

    (c,) = read_tau_alpha(shared_data / TAU_ALPHA_FILE, [9])
    energy, left = energy_and_forces(c.inherent, c.types, c.cell)
    assert float((energy - c.energy).abs().max()) < 2e-6  # half a unit in the last place of float32 at 10
    assert float(left.norm(dim=1).max()) < 2e-5  # converged to 1e-5 by their measure
