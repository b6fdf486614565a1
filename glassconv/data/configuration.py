"""One frozen-in state of a glass-forming liquid, with what is known of its dynamics."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Configuration"]


def _all_periodic() -> Tensor:
    return torch.ones(3, dtype=torch.bool)


@dataclass(frozen=True, eq=False, repr=False)
class Configuration:
    """A particle configuration and, where known, its inherent structure and its propensities.

    Lengths are in units of sigma_AA, energies in eps_AA, temperatures in eps_AA / k_B and times in the
    Lennard-Jones unit sigma_AA sqrt(m / eps_AA). ``N`` is the number of particles, ``T`` the number of times.
    Every tensor argument also takes a NumPy array or nested sequence; the dtypes below are the stored ones,
    all on the device of ``positions``.

    Args:
        positions: ``(N, 3)`` float64. Thermal positions, wrapped into the cell or not.
        types: ``(N,)`` int64. Particle types from 0 (for Kob-Andersen 0 = A, the large majority; 1 = B).
        cell: ``(3, 3)`` float64, rows are the lattice vectors; ``(3,)`` box lengths or one length also do.
        pbc: ``(3,)`` bool, or one bool for all three. Periodic directions.
        inherent: ``(N, 3)`` float64. Positions in the inherent structure (nearest energy minimum).
        energy: ``(N,)`` float64. Potential energy of each particle in the inherent structure, half of every
            pair energy going to each partner.
        propensity: ``(T, N)`` float64. Displacement from ``positions``, averaged over isoconfigurational
            runs.
        propensity_halves: ``(2, T, N)`` float64. The same for the two halves of the ensemble of runs.
        times: ``(T,)`` float64. Times at which the propensities were measured; the readers sort them.
        temperature: temperature at which the configuration was equilibrated.
        name: where it comes from, for messages and tables.
        metadata: anything else that JSON can hold (stored as JSON gives it back: tuples become lists).

    Raises:
        ValueError: on a wrong shape, a value that is not finite, a singular cell, or propensities and times
            that disagree; the message says which argument, what was expected and what was given.
        TypeError: on types that are not integers or metadata that JSON cannot hold.
    """

    positions: Tensor
    types: Tensor
    cell: Tensor
    pbc: Tensor = field(default_factory=_all_periodic)
    inherent: Tensor | None = None
    energy: Tensor | None = None
    propensity: Tensor | None = None
    propensity_halves: Tensor | None = None
    times: Tensor | None = None
    temperature: float | None = None
    name: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positions = _real("positions", self.positions, None)
        if positions.ndim != 2 or positions.shape[1] != 3 or positions.shape[0] == 0:
            raise ValueError(f"positions: expected shape (N, 3) with N >= 1, got {tuple(positions.shape)}")
        device, n = positions.device, positions.shape[0]
        put = object.__setattr__  # the only door into a frozen dataclass
        put(self, "positions", positions)
        put(self, "types", _types(self.types, n, device))
        put(self, "cell", _cell(self.cell, device))
        put(self, "pbc", _pbc(self.pbc, device))
        put(self, "inherent", _optional("inherent", self.inherent, (n, 3), device))
        put(self, "energy", _optional("energy", self.energy, (n,), device))
        self._set_dynamics(n, device)
        put(self, "temperature", _temperature(self.temperature))
        if not isinstance(self.name, str):
            raise TypeError(f"name: expected a string, got {type(self.name).__name__}")
        put(self, "metadata", _metadata(self.metadata))

    def _set_dynamics(self, n: int, device: torch.device) -> None:
        put = object.__setattr__
        if self.times is None:
            for argument in ("propensity", "propensity_halves"):
                if getattr(self, argument) is not None:
                    raise ValueError(f"times: expected one time per row of {argument}, got None")
            return
        times = _real("times", self.times, device)
        if times.ndim != 1 or bool((times < 0).any()):
            raise ValueError(f"times: expected shape (T,) and no negative time, got {_brief(times)}")
        t = times.shape[0]
        put(self, "times", times)
        put(self, "propensity", _optional("propensity", self.propensity, (t, n), device))
        halves = _optional("propensity_halves", self.propensity_halves, (2, t, n), device)
        put(self, "propensity_halves", halves)

    @property
    def n_particles(self) -> int:
        """Number of particles N."""
        return int(self.positions.shape[0])

    @property
    def n_times(self) -> int:
        """Number of times T with propensities (0 when none are known)."""
        return 0 if self.times is None else int(self.times.shape[0])

    @property
    def device(self) -> torch.device:
        """The device that all tensors are on."""
        return self.positions.device

    def to(self, device: torch.device | str) -> Configuration:
        """Return the same configuration with all tensors on ``device`` (itself if they are there already)."""
        if torch.device(device) == self.device:
            return self
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def select_times(self, indices: Sequence[int]) -> Configuration:
        """Return the configuration with only some of the times.

        Args:
            indices: positions in ``times``, in the order wanted; negative ones count from the end.

        Raises:
            ValueError: if an index lies outside ``[-n_times, n_times)``.
        """
        chosen = [int(i) for i in indices]
        for i in chosen:
            if not -self.n_times <= i < self.n_times:
                raise ValueError(f"indices: expected indices of {self.n_times} times, got {i}")
        if self.times is None:
            return self
        return dataclasses.replace(
            self,
            times=self.times[chosen],
            propensity=None if self.propensity is None else self.propensity[chosen],
            propensity_halves=None if self.propensity_halves is None else self.propensity_halves[:, chosen],
        )

    def __repr__(self) -> str:
        parts = [repr(self.name)] if self.name else []
        parts.append(f"n_particles={self.n_particles}")
        if self.temperature is not None:
            parts.append(f"temperature={self.temperature:g}")
        if self.n_times:
            parts.append(f"n_times={self.n_times}")
        known = ("inherent", "energy", "propensity", "propensity_halves")
        parts += [k for k in known if getattr(self, k) is not None]
        return f"Configuration({', '.join(parts)})"


def _brief(tensor: Tensor) -> str:
    values = tensor.tolist() if tensor.numel() <= 6 else "..."
    return f"shape {tuple(tensor.shape)}, values {values}"


def _tensor(argument: str, value: Any, device: torch.device | None) -> Tensor:
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        found = type(value).__name__
        raise TypeError(f"{argument}: expected a tensor or array, got {found} ({error})") from error


def _real(argument: str, value: Any, device: torch.device | None) -> Tensor:
    tensor = _tensor(argument, value, device)
    if tensor.is_complex():
        raise TypeError(f"{argument}: expected real numbers, got {tensor.dtype}")
    tensor = tensor.to(torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        n_bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{argument}: expected finite values, got {n_bad} that are NaN or infinite")
    return tensor


def _optional(argument: str, value: Any, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    if value is None:
        return None
    tensor = _real(argument, value, device)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{argument}: expected shape {shape}, got {tuple(tensor.shape)}")
    return tensor


def _types(value: Any, n: int, device: torch.device) -> Tensor:
    tensor = _tensor("types", value, device)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"types: expected integers, got {tensor.dtype}")
    tensor = tensor.to(torch.int64)
    if tuple(tensor.shape) != (n,):
        raise ValueError(f"types: expected shape ({n},), one per particle, got {tuple(tensor.shape)}")
    if int(tensor.min()) < 0:
        raise ValueError(f"types: expected types counted from 0, got {int(tensor.min())}")
    return tensor


def _cell(value: Any, device: torch.device) -> Tensor:
    tensor = _real("cell", value, device)
    given = tuple(tensor.shape)
    if tensor.ndim == 0:
        tensor = tensor.expand(3)
    if tuple(tensor.shape) == (3,):
        tensor = torch.diag(tensor)
    if tuple(tensor.shape) != (3, 3):
        raise ValueError(f"cell: expected shape (3, 3) or (3,), got {given}")
    volume = float(torch.linalg.det(tensor.cpu()))
    # Relative to the edges, so that the unit of length does not matter.
    if abs(volume) <= 1e-12 * float(tensor.norm(dim=1).prod()):
        raise ValueError(f"cell: expected three independent lattice vectors, got volume {volume:g}")
    return tensor


def _pbc(value: Any, device: torch.device) -> Tensor:
    tensor = _tensor("pbc", value, device)
    if tensor.dtype != torch.bool or tuple(tensor.shape) not in ((), (3,)):
        found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(f"pbc: expected one or three bools, got {found}")
    return tensor.expand(3).contiguous()


def _temperature(value: Any) -> float | None:
    if value is None:
        return None
    temperature = float(value)
    if not math.isfinite(temperature) or temperature <= 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature:g}")
    return temperature


def _metadata(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"metadata: expected a dict, got {type(value).__name__}")
    try:
        copy: dict[str, Any] = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata: expected what JSON can hold, got {error}") from error
    return copy
