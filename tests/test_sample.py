"""The packaged sample: what it holds, that it is physical, that it agrees with independent simulations."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from glassconv.data import Configuration, sample
from glassconv.simulation import kob_andersen
from glassconv.simulation.make_sample import PROTOCOLS

N, N_TIMES = 1000, 8
EACH = 8  # configurations of a temperature, half of them from each chain


@pytest.fixture(scope="module")
def configurations() -> list[Configuration]:
    return sample()


def given(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor


def test_size_and_shapes(configurations: list[Configuration]) -> None:
    path = files("glassconv.data").joinpath("sample.h5")
    assert len(path.read_bytes()) < 3_000_000
    assert [c.temperature for c in configurations] == [0.64] * EACH + [0.56] * EACH
    for c in configurations:
        assert c.positions.shape == given(c.inherent).shape == (N, 3)
        assert given(c.energy).shape == (N,)
        assert torch.bincount(c.types).tolist() == [800, 200]
        assert given(c.propensity).shape == (N_TIMES, N)
        assert given(c.propensity_halves).shape == (2, N_TIMES, N)
        assert float(c.cell[0, 0]) == pytest.approx((N / 1.2) ** (1 / 3), rel=1e-6)  # single precision


def test_temperature_filter(configurations: list[Configuration]) -> None:
    assert [c.name for c in sample(temperature=0.56)] == [c.name for c in configurations[EACH:]]
    with pytest.raises(ValueError, match=r"temperature: expected one of \[0.56, 0.64\], got 0.5"):
        sample(temperature=0.5)


def test_provenance_names_the_protocol_in_the_source(configurations: list[Configuration]) -> None:
    for block, protocol in enumerate(PROTOCOLS):
        for index, c in enumerate(configurations[EACH * block : EACH * (block + 1)]):
            assert c.metadata["protocol"] == protocol.to_dict()
            assert (c.metadata["chain"], c.metadata["index_in_chain"]) == divmod(index, EACH // 2)
            assert c.metadata["source"] == "glassconv simulate"
            assert {"lammps", "glassconv", "date", "potential"} <= set(c.metadata)
            np.testing.assert_allclose(given(c.times).numpy(), protocol.times, rtol=1e-12)


def test_particles_keep_apart_and_in_the_box(configurations: list[Configuration]) -> None:
    for c in configurations:
        length = c.cell.diagonal()
        for positions in (c.positions, given(c.inherent)):
            vectors = positions[:, None] - positions[None]
            vectors -= length * (vectors / length).round()
            distances = vectors.norm(dim=-1) + 10 * torch.eye(N, dtype=vectors.dtype)
            # The closest contacts, A with B (sigma 0.8), reach 4 times well depth near 0.73: T is far below.
            assert float(distances.min()) > 0.7
        assert float(c.positions.min()) >= 0
        assert bool((c.positions.amax(0) <= length + 1e-6).all())  # rounded to single precision
        # No particle hops through the box when quenched; the difference is the true displacement.
        assert float((given(c.inherent) - c.positions).norm(dim=1).max()) < 1.5


def test_energies_are_those_of_the_inherent_structures(configurations: list[Configuration]) -> None:
    for c in configurations:
        inherent, forces = kob_andersen.energy_and_forces(given(c.inherent), c.types, c.cell)
        # Positions near 10 rounded to single precision, 5e-7, times forces of up to 1e2 per bond.
        torch.testing.assert_close(inherent, given(c.energy), rtol=0, atol=2e-4)
        # The same rounding times a stiffness of up to 1e3.
        assert float(forces.norm(dim=1).max()) < 5e-3
        thermal = float(kob_andersen.energy_per_particle(c.positions, c.types, c.cell).mean())
        assert thermal == pytest.approx(c.metadata["thermal_energy_mean"], abs=1e-4)
        # Half a potential energy of 3/2 T per particle lies between: 0.84 at T = 0.56.
        assert float(given(c.energy).mean()) < thermal - 0.7


def test_colder_is_deeper_and_slower(configurations: list[Configuration]) -> None:
    warm, cold = (
        torch.stack([given(c.energy) for c in part]).mean()
        for part in (configurations[:EACH], configurations[EACH:])
    )
    assert float(cold) < float(warm)


def test_propensities_grow_and_their_halves_agree(configurations: list[Configuration]) -> None:
    for part in (configurations[:EACH], configurations[EACH:]):
        halves = torch.stack([given(c.propensity_halves) for c in part])  # (EACH, 2, T, N)
        mean = torch.stack([given(c.propensity) for c in part])
        torch.testing.assert_close(halves.mean(1), mean, rtol=0, atol=1e-6)  # single precision
        assert bool((mean.mean(dim=(0, 2)).diff() > 0).all())
        for t in range(N_TIMES):
            a = halves[:, :, t, :800].permute(1, 0, 2).reshape(2, -1)
            r = float(torch.corrcoef(a)[0, 1])
            # Below: noise. Above: particles whose displacements are off by the box length.
            assert 0.3 < r < 0.97, f"split-half correlation {r} at time {t}"


def test_agrees_with_an_independent_simulation(shared_data: Path) -> None:
    other = np.load(shared_data / "ka3d_small_T0.56.npz")
    ours = sample(temperature=0.56)
    energy = torch.stack([given(c.energy).mean() for c in ours]).numpy()
    other_energy = other["pe_inherent"].mean(axis=1)
    # Four standard errors of the difference of two means over configurations.
    error = np.hypot(energy.std() / np.sqrt(EACH), other_energy.std() / np.sqrt(18))
    assert abs(energy.mean() - other_energy.mean()) < 4 * error
    curves = torch.stack([given(c.propensity)[:, :800].mean(1) for c in ours]).numpy()
    other_curves = other["propensity"][:, :, :800].mean(axis=2)
    # The times differ: compare on the other's grid, interpolated in the logarithms.
    grid = np.log(other["times"][1:7].astype(float))
    log_times = np.log(given(ours[0].times).numpy())
    both = [
        np.array([np.interp(grid, log_times, np.log(curve)) for curve in curves]),
        np.log(other_curves[:, 1:7]),
    ]
    error = np.hypot(both[0].std(axis=0) / np.sqrt(EACH), both[1].std(axis=0) / np.sqrt(18))
    # Four standard errors, and 2 % for a straight line between times a factor 2.3 apart.
    assert (np.abs(both[0].mean(axis=0) - both[1].mean(axis=0)) < 4 * error + 0.02).all()
