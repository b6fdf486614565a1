"""One chain of isoconfigurational runs: ``python -m glassconv.simulation.isoconfigurational PARTS CHAIN``.

A process per chain, because LAMMPS and MPI end the whole process when something is badly wrong, and because
chains then run side by side. The chain writes one file per finished step into its folder, each at once or not
at all, and starts every step from the file before: a killed chain continues where it was and ends with the
same bits.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassconv._files import in_place_of
from glassconv.simulation.engine import Array, Engine, State
from glassconv.simulation.kob_andersen import FRACTION_A
from glassconv.simulation.protocol import SimulationProtocol

PROTOCOL_FILE = "protocol.json"
EQUILIBRATED_FILE = "equilibrated.npz"
LATTICE, MELT, DRAW = range(3)  # what a random stream is for


def chain_folder(parts: Path, chain: int) -> Path:
    """Folder of one chain among the parts of an unfinished simulation."""
    return parts / f"chain_{chain:03d}"


def configuration_file(parts: Path, chain: int, index: int) -> Path:
    """File of one finished configuration of a chain."""
    return chain_folder(parts, chain) / f"configuration_{index:04d}.npz"


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any] | float]) -> None:
    """Write an npz file atomically."""
    content: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    with in_place_of(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **content)


def particle_types(n_particles: int) -> NDArray[np.int64]:
    """Types ``(N,)`` int64: 80 % (rounded) A = 0 first, then B = 1."""
    n_a = round(FRACTION_A * n_particles)
    return np.repeat(np.array([0, 1], dtype=np.int64), [n_a, n_particles - n_a])


def maxwell_velocities(n_particles: int, temperature: float, random: np.random.Generator) -> Array:
    """Maxwell velocities ``(N, 3)``: zero total momentum, kinetic temperature exactly ``temperature``."""
    velocities = random.standard_normal((n_particles, 3))
    velocities -= velocities.mean(axis=0)
    kinetic = (velocities * velocities).sum() / (3 * n_particles - 3)
    return np.asarray(velocities * np.sqrt(temperature / kinetic), dtype=np.float64)


def lattice(n_particles: int, box_length: float, random: np.random.Generator) -> Array:
    """``N`` random sites ``(N, 3)`` of the coarsest cubic lattice that has enough of them."""
    per_edge = int(np.ceil(n_particles ** (1.0 / 3.0) - 1e-9))
    sites = random.permutation(per_edge**3)[:n_particles]
    cells = np.stack(np.unravel_index(sites, (per_edge,) * 3), axis=1)
    return np.asarray((cells + 0.5) * (box_length / per_edge), dtype=np.float64)


class Chain:
    """The steps of one chain: `prepare` once, then `advance` and `record` for each configuration.

    Args:
        protocol: what to do.
        chain: index of the chain, which selects its random streams.
        report: called with the number of integrator steps just finished.
    """

    def __init__(self, protocol: SimulationProtocol, chain: int, report: Callable[[int], None]) -> None:
        self._protocol = protocol
        self._chain = chain
        self._report = report
        self._types = particle_types(protocol.n_particles)
        self._engine = Engine(self._types, protocol.box_length, protocol.timestep, protocol.thermostat_time)

    def _random(self, purpose: int, *index: int) -> np.random.Generator:
        key = (self._chain, purpose, *index)
        return np.random.default_rng(np.random.SeedSequence(self._protocol.seed, spawn_key=key))

    def _run(self, state: State, n_steps: int, start: float, stop: float) -> State:
        state = self._engine.run(state, n_steps, start, stop)
        self._report(n_steps)
        return state

    def prepare(self) -> State:
        """From a random lattice to the equilibrated liquid."""
        protocol = self._protocol
        n, melt, target = protocol.n_particles, protocol.melt_temperature, protocol.temperature
        positions = lattice(n, protocol.box_length, self._random(LATTICE))
        # The lattice is no minimum for two sizes of particle: relax it, or its energy heats the melt.
        positions, _ = self._engine.quench(positions, 1e-2)
        state = State(self._engine.wrap(positions), maxwell_velocities(n, melt, self._random(MELT)))
        state = self._run(state, protocol.steps(protocol.melt_time), melt, melt)
        state = self._run(state, protocol.steps(protocol.cooling * protocol.tau), melt, target)
        return self._run(state, protocol.steps(protocol.equilibration * protocol.tau), target, target)

    def advance(self, state: State) -> State:
        """The gap before a configuration."""
        protocol = self._protocol
        n_steps = protocol.steps(protocol.gap * protocol.tau)
        return self._run(state, n_steps, protocol.temperature, protocol.temperature)

    def record(self, state: State, index: int) -> dict[str, NDArray[Any]]:
        """Everything about configuration ``index`` of the chain, starting from ``state``.

        Returns:
            positions, velocities, inherent ``(N, 3)``; types ``(N,)``; thermal_energy, energy (of the
            inherent structure) ``(N,)``; halves ``(2, T, N)``: mean displacement over the even and over the
            odd trajectories.
        """
        protocol = self._protocol
        inherent, energy = self._engine.quench(state.positions, protocol.force_tolerance)
        halves = np.zeros((2, protocol.n_times, protocol.n_particles))
        for trajectory in range(protocol.n_trajectories):
            random = self._random(DRAW, index, trajectory)
            velocities = maxwell_velocities(protocol.n_particles, protocol.temperature, random)
            start = State(state.positions, velocities)
            halves[trajectory % 2] += self._engine.displacements(
                start, protocol.time_steps, protocol.temperature
            )
            self._report(int(protocol.time_steps[-1]))
        return {
            "positions": state.positions,
            "velocities": state.velocities,
            "types": self._types,
            "thermal_energy": self._engine.energies(state.positions),
            "inherent": inherent,
            "energy": energy,
            "halves": halves / (protocol.n_trajectories // 2),
        }


def run_chain(parts: Path, chain: int, report: Callable[[int], None]) -> None:
    """Finish a chain, starting after its last finished file.

    Args:
        parts: folder of the unfinished simulation, with its protocol file.
        chain: index of the chain.
        report: called with the number of integrator steps just finished (not those found finished).
    """
    protocol = SimulationProtocol(**json.loads((parts / PROTOCOL_FILE).read_text()))
    folder = chain_folder(parts, chain)
    folder.mkdir(exist_ok=True)
    steps = Chain(protocol, chain, report)
    previous = folder / EQUILIBRATED_FILE
    if not previous.exists():
        state = steps.prepare()
        write_arrays(previous, {"positions": state.positions, "velocities": state.velocities})
    for index in range(protocol.chain_lengths[chain]):
        path = configuration_file(parts, chain, index)
        if not path.exists():
            began = time.monotonic()
            with np.load(previous) as arrays:
                state = State(arrays["positions"], arrays["velocities"])
            content = steps.record(steps.advance(state), index)
            write_arrays(path, {**content, "seconds": time.monotonic() - began})
        previous = path


def _report_to_parent(n_steps: int) -> None:
    # When the parent is gone the pipe is broken and this process ends too.
    sys.stdout.write(f"{n_steps}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_chain(Path(sys.argv[1]), int(sys.argv[2]), _report_to_parent)
