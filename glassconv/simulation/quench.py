"""Inherent structures: downhill to the nearest minimum of the potential energy, by FIRE.

FIRE is molecular dynamics with a brake: velocities are turned towards the forces while the motion goes
downhill and reset when it goes uphill. Source: Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), with the
half step back after an uphill move and the semi-implicit Euler integration of Guenole et al., Comput. Mater.
Sci. 175, 109584 (2020). Several systems are advanced together, each with its own time step and mixing, and
leave the computation when they have converged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from glassconv.data.configuration import Configuration
from glassconv.simulation.kob_andersen import Pairs, energy_and_forces

__all__ = ["quench"]

Progress = Callable[[int, int, float], None]

# FIRE parameters: those of the 2006 paper, alpha and the delay as in the 2020 one, which overshoots into a
# neighboring minimum less often than 0.1 and 5; so does a small first time step, the first forces being
# large. Time steps are for mass 1: with a largest one of 0.04 or more the stiffest vibrations of the
# Kob-Andersen liquid become unstable and two to four times the steps are needed.
_DT_START = 0.001
_DT_MAX = 0.03
_DT_MIN = 1e-4
_DT_GROW = 1.1
_DT_SHRINK = 0.5
_ALPHA = 0.25
_ALPHA_SHRINK = 0.99
_DELAY = 20
_MAX_MOVE = 0.1  # sigma_AA per step and particle: overlapping particles must not be shot across the cell
_PARTICLES_TOGETHER = 16384  # systems advanced together hold at most this many, which bounds the memory
_REPORT_EVERY = 25


@overload
def quench(
    configuration: Configuration,
    *,
    max_force: float = ...,
    max_steps: int = ...,
    skin: float = ...,
    progress: Progress | None = ...,
) -> Configuration: ...


@overload
def quench(
    configuration: Sequence[Configuration],
    *,
    max_force: float = ...,
    max_steps: int = ...,
    skin: float = ...,
    progress: Progress | None = ...,
) -> list[Configuration]: ...


def quench(
    configuration: Configuration | Sequence[Configuration],
    *,
    max_force: float = 1e-5,
    max_steps: int = 20_000,
    skin: float = 0.35,
    progress: Progress | None = None,
) -> Configuration | list[Configuration]:
    """Find the inherent structure of Kob-Andersen configurations and the energy of each particle in it.

    The potential is cut at 2.5 sigma_ab and shifted, its force not smoothed
    (`glassconv.simulation.kob_andersen`). Any ``inherent`` and ``energy`` that a configuration already has
    are ignored and replaced. Runs where the configurations are; on a GPU the forces are summed in an order
    that varies, and the result by rounding from run to run.

    Args:
        configuration: one configuration, or several, with types 0 (A) and 1 (B); ``positions`` are the start.
        max_force: stop when no particle feels a larger force, in units of eps_AA / sigma_AA; finite.
        max_steps: give up after so many steps.
        skin: pairs that are this much farther apart than their cutoff are kept in the neighbor list, which is
            made anew when a particle has moved by half of it, in units of sigma_AA. Affects the speed only.
        progress: called now and then as ``progress(n_done, n_configurations, largest_force)``.

    Returns:
        The configuration (or a list of them, in order) with ``inherent`` ``(N, 3)``, not wrapped into the
        cell, so that ``inherent - positions`` is the displacement; ``energy`` ``(N,)``, half of every pair to
        each partner; and ``metadata["quench"]`` saying the potential, the largest force left and the number
        of steps.

    Raises:
        ValueError: on other particle types, a tolerance that is not positive and finite, a skin that is not
            positive, or coinciding particles.
        RuntimeError: if ``max_steps`` are not enough.
    """
    if not 0 < max_force < math.inf:  # an infinite one would return the start as its inherent structure
        raise ValueError(f"max_force: expected a positive force (finite), got {max_force}")
    if not skin > 0:
        raise ValueError(f"skin: expected a positive length, got {skin}")
    if max_steps < 1:
        raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
    single = isinstance(configuration, Configuration)
    configurations = [configuration] if isinstance(configuration, Configuration) else list(configuration)
    result: list[Configuration] = []

    def report(n_done: int, largest: float) -> None:
        if progress is not None:
            progress(len(result) + n_done, len(configurations), largest)

    for group in _groups(configurations):
        with torch.no_grad():
            result.extend(_quench_together(group, max_force, max_steps, skin, report))
    return result[0] if single else result


def _groups(configurations: list[Configuration]) -> Iterator[list[Configuration]]:
    group: list[Configuration] = []
    for c in configurations:
        n = sum(g.n_particles for g in group)
        if group and (n + c.n_particles > _PARTICLES_TOGETHER or c.device != group[0].device):
            yield group
            group = []
        group.append(c)
    if group:
        yield group


@dataclass
class _Systems:
    """Systems one after the other, ``(N, ...)`` or ``(B, ...)``; ``batch`` tells the system of a particle."""

    positions: Tensor
    types: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    n_systems: int

    @classmethod
    def of(cls, group: list[Configuration]) -> _Systems:
        sizes = torch.tensor([c.n_particles for c in group], device=group[0].device)
        return cls(
            torch.cat([c.positions for c in group]),
            torch.cat([c.types for c in group]),
            torch.stack([c.cell for c in group]),
            torch.stack([c.pbc for c in group]),
            torch.repeat_interleave(torch.arange(len(group), device=sizes.device), sizes),
            len(group),
        )

    def sum(self, values: Tensor) -> Tensor:
        """Sum ``(N,)`` values over the particles of each system: ``(B,)``."""
        return values.new_zeros(self.n_systems).index_add_(0, self.batch, values)

    def amax(self, values: Tensor) -> Tensor:
        """Return the largest of ``(N,)`` non-negative values in each system: ``(B,)``."""
        return values.new_zeros(self.n_systems).scatter_reduce_(0, self.batch, values, "amax")


class _VerletPairs:
    """Forces from a pair list that is made anew only when some particle has moved by half the skin."""

    def __init__(self, systems: _Systems, skin: float) -> None:
        self.systems = systems
        self.skin = skin
        self.active: Tensor | None = None
        self.pairs, self.built_at = self._build(systems.positions)

    def forces(self, positions: Tensor) -> Tensor:
        """Return the forces ``(N, 3)``, zero on the systems that were dropped."""
        moved_sq = (positions - self.built_at).square().sum(1).max()
        if float(moved_sq) >= (0.5 * self.skin) ** 2:
            self.pairs, self.built_at = self._build(positions)
        return self.pairs.forces(positions)

    def keep(self, active: Tensor) -> None:
        """Drop the pairs of systems that are not active ``(B,)``."""
        self.active = active
        self.pairs = self._of_active(self.pairs)

    def _build(self, positions: Tensor) -> tuple[Pairs, Tensor]:
        s = self.systems
        pairs = Pairs.find(positions, s.types, s.cell, s.pbc, s.batch, margin=self.skin)
        return self._of_active(pairs), positions.clone()

    def _of_active(self, pairs: Pairs) -> Pairs:
        return pairs if self.active is None else pairs.select(self.active[self.systems.batch[pairs.source]])


class _Fire:
    """The state of a FIRE minimization; everything is per system ``(B,)`` or per particle ``(N, 3)``."""

    def __init__(self, systems: _Systems, skin: float) -> None:
        self.systems = systems
        self.positions = systems.positions.clone()
        self.velocities = torch.zeros_like(self.positions)
        self.pairs = _VerletPairs(systems, skin)
        self.forces = self.pairs.forces(self.positions)
        self.dt = self.positions.new_full((systems.n_systems,), _DT_START)
        self.alpha = torch.full_like(self.dt, _ALPHA)
        self.n_steps = torch.zeros_like(self.dt, dtype=torch.int64)
        self.n_downhill = torch.zeros_like(self.n_steps)
        self.active = torch.ones_like(self.n_steps, dtype=torch.bool)

    def largest_forces(self) -> Tensor:
        """Return the largest force on a particle of each system ``(B,)``; zero once it has been stopped."""
        largest = self.systems.amax(self.forces.square().sum(1)).sqrt()
        if not bool(torch.isfinite(largest).all()):
            i = int((~torch.isfinite(largest)).nonzero()[0])
            raise ValueError(
                f"positions: expected particles apart from each other, got coinciding ones (system {i})"
            )
        return largest

    def stop(self, done: Tensor) -> None:
        """Leave the systems that are ``done`` ``(B,)`` where they are."""
        if bool((done & self.active).any()):
            self.active = self.active & ~done
            self.pairs.keep(self.active)

    def step(self) -> None:
        """Advance all active systems by one step, each by its own."""
        s = self.systems
        self._adapt(s.sum((self.forces * self.velocities).sum(1)))
        dt = self.dt[s.batch, None] * self.active[s.batch, None]
        self.velocities += dt * self.forces
        speed = s.sum(self.velocities.square().sum(1)).sqrt()
        strength = s.sum(self.forces.square().sum(1)).sqrt()
        turn = self.alpha * speed / strength.clamp(min=torch.finfo(strength.dtype).tiny)
        self.velocities = (1.0 - self.alpha)[s.batch, None] * self.velocities + turn[
            s.batch, None
        ] * self.forces
        move = dt * self.velocities
        longest = s.amax(move.square().sum(1)).sqrt()
        move *= (_MAX_MOVE / longest.clamp(min=_MAX_MOVE))[s.batch, None]
        self.positions += move
        self.n_steps += self.active
        self.forces = self.pairs.forces(self.positions)

    def _adapt(self, power: Tensor) -> None:
        """Choose time steps and mixing from the ``power`` of the forces ``(B,)``; brake if it is uphill."""
        downhill = power > 0
        self.n_downhill = torch.where(downhill, self.n_downhill + 1, 0)
        faster = self.n_downhill > _DELAY
        # Before the first step the power is zero only because nothing moves yet.
        brake = ~downhill & (self.n_steps > 0)
        dt, alpha = self.dt, self.alpha
        dt = torch.where(faster, (dt * _DT_GROW).clamp(max=_DT_MAX), dt)
        alpha = torch.where(faster, alpha * _ALPHA_SHRINK, alpha)
        self.dt = torch.where(brake, (dt * _DT_SHRINK).clamp(min=_DT_MIN), dt)
        self.alpha = torch.where(brake, _ALPHA, alpha)
        if bool(brake.any()):
            batch = self.systems.batch
            back = brake[batch, None]
            half_step = 0.5 * (self.dt * self.active)[batch, None] * self.velocities
            self.positions = torch.where(back, self.positions - half_step, self.positions)
            self.velocities = self.velocities.masked_fill(back, 0.0)


def _minimize(
    systems: _Systems, max_force: float, max_steps: int, skin: float, report: Callable[[int, float], None]
) -> tuple[Tensor, Tensor]:
    """Return the minimized positions ``(N, 3)`` and the steps that each system took ``(B,)``."""
    fire = _Fire(systems, skin)
    for step in range(max_steps + 1):
        largest = fire.largest_forces()
        fire.stop(largest <= max_force)
        n_left = int(fire.active.sum())
        if step % _REPORT_EVERY == 0 or n_left == 0:
            report(systems.n_systems - n_left, float(largest.max()))
        if n_left == 0:
            return fire.positions, fire.n_steps
        if step < max_steps:
            fire.step()
    raise RuntimeError(
        f"max_steps: expected enough for a largest force of {max_force:g}, got {max_steps}, after which "
        f"{n_left} of {systems.n_systems} systems still move, with a force of {float(largest.max()):.3g}"
    )


def _quench_together(
    group: list[Configuration],
    max_force: float,
    max_steps: int,
    skin: float,
    report: Callable[[int, float], None],
) -> list[Configuration]:
    s = _Systems.of(group)
    positions, n_steps = _minimize(s, max_force, max_steps, skin, report)
    energies, forces = energy_and_forces(positions, s.types, s.cell, s.pbc, s.batch)
    left = s.amax(forces.square().sum(1)).sqrt()
    sizes = [c.n_particles for c in group]
    parts = zip(group, positions.split(sizes), energies.split(sizes), n_steps, left, strict=True)
    return [
        dataclasses.replace(
            configuration,
            inherent=inherent.clone(),
            energy=energy.clone(),
            metadata={
                **configuration.metadata,
                "quench": {
                    "method": "FIRE",
                    "potential": "Kob-Andersen, cut and shifted at 2.5 sigma_ab",
                    "max_force": float(force_left),
                    "n_steps": int(n),
                },
            },
        )
        for configuration, inherent, energy, n, force_left in parts
    ]
