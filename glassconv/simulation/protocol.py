"""What an isoconfigurational simulation does, as one immutable record: `SimulationProtocol`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

RELAXATION_TIMES = {0.64: 10.5, 0.56: 24.5, 0.50: 115.5, 0.47: 610.0, 0.44: 5890.0}
"""Structural relaxation time tau_alpha (LJ units) of the 3D Kob-Andersen liquid at density 1.2, by
temperature: when the self-intermediate scattering function of type A at k = 7.2 has fallen to 1/e."""


_LONGEST = 1e6  # relaxation times in one stage
_MOST_STEPS = 1e15  # integrator steps in one stage, exact as float64 and, summed up, as int64
_MOST_TIMES = 1_000_000


def relaxation_time(temperature: float) -> float:
    """tau_alpha at ``temperature``, interpolated in (1/T, ln tau) between `RELAXATION_TIMES`.

    Raises:
        ValueError: outside the measured range; extrapolating a glass's relaxation time is a guess.
    """
    table = sorted(RELAXATION_TIMES.items())
    low, high = table[0][0], table[-1][0]
    if not low <= temperature <= high:
        raise ValueError(
            f"temperature: expected {low} to {high}, where the relaxation time is known, got {temperature}; "
            "give relaxation_time to simulate elsewhere"
        )
    inverse = [1.0 / t for t, _ in reversed(table)]
    log_tau = [math.log(tau) for _, tau in reversed(table)]
    return float(math.exp(np.interp(1.0 / temperature, inverse, log_tau)))


@dataclass(frozen=True)
class SimulationProtocol:
    """Everything that decides the outcome of `glassconv.simulation.simulate`.

    Lengths in sigma_AA, energies and temperatures in eps_AA, times in LJ units or, where said, in units of
    the relaxation time tau. Each of ``n_chains`` independent chains melts at ``melt_temperature`` for
    ``melt_time``, cools linearly to ``temperature`` over ``cooling`` tau and equilibrates for
    ``equilibration`` tau. Every configuration then follows after a further ``gap`` tau: it is recorded,
    quenched to its inherent structure, and started ``n_trajectories`` times with fresh Maxwell velocities.

    Attributes:
        temperature: temperature of the liquid.
        n_particles: particles, 80 % of them (rounded) of type A.
        n_configurations: configurations over all chains; chain c holds a contiguous block of them.
        n_trajectories: velocity draws per configuration, an even number: each half-ensemble averages one
            half.
        n_times: recorded times, log-spaced from ``first_time`` to ``duration`` tau, multiples of
            ``timestep``; no more than there are such steps, and at most a million.
        seed: of everything random; same protocol, same seed, same LAMMPS build: same bits.
        relaxation_time: tau; None interpolates the measured `RELAXATION_TIMES` (0.44 <= T <= 0.64).
        n_chains: independent chains; they can run at the same time, and splits between them are free of
            leakage.
        density: particles per sigma_AA^3.
        melt_temperature, melt_time: the melt, in LJ units.
        cooling, equilibration, gap, duration: in units of tau, at most a million each.
        first_time: earliest recorded time, LJ units.
        timestep: of the integrator, LJ units.
        thermostat_time: damping time of the Nose-Hoover thermostat, LJ units.
        force_tolerance: the quench ends when no particle feels a larger force, eps_AA / sigma_AA.

    Raises:
        ValueError: an argument out of range, naming it, what was expected and what was given.
    """

    temperature: float
    n_particles: int = 1000
    n_configurations: int = 10
    n_trajectories: int = 16
    n_times: int = 8
    seed: int = 0
    relaxation_time: float | None = None
    n_chains: int = 1
    density: float = 1.2
    melt_temperature: float = 1.5
    melt_time: float = 50.0
    cooling: float = 5.0
    equilibration: float = 25.0
    gap: float = 3.0
    duration: float = 1.5
    first_time: float = 0.1
    timestep: float = 0.005
    thermostat_time: float = 0.5
    force_tolerance: float = 1e-5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "relaxation_time" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{field.name}: expected a finite number, got {value!r}")
            if field.type == "int" and not isinstance(value, int):
                raise ValueError(f"{field.name}: expected an integer, got {value!r}")
            if field.name != "seed" and value <= 0:
                raise ValueError(f"{field.name}: expected a positive number, got {value!r}")
        self._check_ranges()

    def _check_ranges(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: expected a non-negative integer, got {self.seed}")
        if self.n_particles < 20:
            raise ValueError(f"n_particles: expected at least 20, got {self.n_particles}")
        if self.n_trajectories % 2:
            raise ValueError(
                f"n_trajectories: expected an even number (two halves), got {self.n_trajectories}"
            )
        if self.n_chains > self.n_configurations:
            raise ValueError(
                f"n_chains: expected at most n_configurations = {self.n_configurations}, got {self.n_chains}"
            )
        if self.melt_temperature < self.temperature:
            raise ValueError(
                f"melt_temperature: expected at least temperature = {self.temperature}, "
                f"got {self.melt_temperature}"
            )
        for name in ("cooling", "equilibration", "gap", "duration"):
            value = getattr(self, name)
            if value > _LONGEST:
                raise ValueError(f"{name}: expected at most {_LONGEST:g} relaxation times, got {value}")
            if value * self.tau / self.timestep > _MOST_STEPS:
                raise ValueError(
                    f"{name}: expected at most {_MOST_STEPS:g} steps of timestep = {self.timestep}, "
                    f"got {value} relaxation times of {self.tau:g}"
                )
        if self.melt_time / self.timestep > _MOST_STEPS:
            raise ValueError(
                f"melt_time: expected at most {_MOST_STEPS:g} steps of timestep = {self.timestep}, "
                f"got {self.melt_time}"
            )
        # Checked before the times are made, which takes memory and time in proportion to their number.
        most = min(_MOST_TIMES, int(self.duration * self.tau / self.timestep) + 1)
        if self.n_times > most:
            raise ValueError(
                f"n_times: expected at most {most}, of which each is a time step = {self.timestep} until "
                f"duration * tau = {self.duration * self.tau:g}, got {self.n_times}"
            )
        steps = self.time_steps
        if steps[0] < 1 or np.any(np.diff(steps) < 1):
            raise ValueError(
                f"n_times: expected times that differ by at least one timestep = {self.timestep} between "
                f"first_time = {self.first_time} and duration * tau = {self.duration * self.tau:g}, "
                f"got {self.n_times}"
            )

    @property
    def tau(self) -> float:
        """The relaxation time in use, LJ units."""
        return relaxation_time(self.temperature) if self.relaxation_time is None else self.relaxation_time

    @property
    def box_length(self) -> float:
        """Edge of the cubic box, sigma_AA."""
        return float((self.n_particles / self.density) ** (1.0 / 3.0))

    @property
    def time_steps(self) -> NDArray[np.int64]:
        """Recorded times as integrator steps, ``(n_times,)`` int64, increasing."""
        last = self.duration * self.tau
        times = np.geomspace(self.first_time, last, self.n_times) if self.n_times > 1 else np.array([last])
        return np.asarray(np.rint(times / self.timestep), dtype=np.int64)

    @property
    def times(self) -> NDArray[np.float64]:
        """Recorded times in LJ units, ``(n_times,)`` float64."""
        return np.asarray(self.time_steps * self.timestep, dtype=np.float64)

    @property
    def chain_lengths(self) -> tuple[int, ...]:
        """Configurations of each chain; the first chains take the remainder."""
        share, extra = divmod(self.n_configurations, self.n_chains)
        return tuple(share + (chain < extra) for chain in range(self.n_chains))

    def steps(self, duration: float) -> int:
        """Integrator steps in ``duration`` LJ time units, at least one."""
        return max(1, round(duration / self.timestep))

    @property
    def preparation_steps(self) -> int:
        """Integrator steps from the lattice to the equilibrated liquid, per chain."""
        return (
            self.steps(self.melt_time)
            + self.steps(self.cooling * self.tau)
            + self.steps(self.equilibration * self.tau)
        )

    @property
    def configuration_steps(self) -> int:
        """Integrator steps per configuration: the gap and all trajectories."""
        return self.steps(self.gap * self.tau) + self.n_trajectories * int(self.time_steps[-1])

    @property
    def total_steps(self) -> int:
        """Integrator steps of the whole simulation (the unit of the progress callback)."""
        return self.n_chains * self.preparation_steps + self.n_configurations * self.configuration_steps

    def to_dict(self) -> dict[str, Any]:
        """All fields as a JSON-able dict, ``relaxation_time`` resolved to the number in use."""
        return {**asdict(self), "relaxation_time": self.tau}
