"""Reader for the pickles of DeepMind's glassy dynamics data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glassconv.data.configuration import Configuration
from glassconv.data.restricted_pickle import PickledArray, load_pickle

__all__ = ["read_deepmind"]

Array = NDArray[np.float64]


def read_deepmind(path: str | Path) -> Configuration:
    """Read one file of the data of Bapst et al., Nature Physics 16, 448 (2020).

    The pickle is a dict: ``positions`` (N, 3), ``types`` (N,), ``box`` (3,), ``time`` and ``time_indices``
    (the time of measurement k is ``time[time_indices[k]]``), ``is_values`` (the self-intermediate scattering
    function there), ``trajectory_target_positions`` (per time, one array (N, 3), unwrapped, for each
    trajectory), ``metadata`` and, optionally, ``targets`` (per time the propensities (N,)). The measurements
    are ordered by ``is_values`` (.9, .8, ..., .1, 1/e), so that the last one lies in the middle in time: here
    they are sorted by time, and ``is_values`` in the metadata with them. Propensities are ``targets`` where
    given, else means over the trajectories; the two half-ensembles (trajectories 0, 2, ... and 1, 3, ...) are
    there when all times come with two or more trajectories.

    Raises:
        ValueError: if the pickle names anything but NumPy's array globals, or lacks or contradicts any of the
            above.
    """
    path = Path(path)
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a pickled dict, got {type(content).__name__}")
    try:
        return _configuration(content, path)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # Integers of a pickle have any size, its lists any depth.
        raise ValueError(f"{path}: not a file of the DeepMind glass data: {error}") from error


def _configuration(content: dict[Any, Any], path: Path) -> Configuration:
    positions = _array(content, "positions")
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions: expected shape (N, 3), got {positions.shape}")
    times = _times(content)
    trajectories = _trajectories(content, positions.shape)
    propensity, halves = None, None
    if all(trajectories) and len(trajectories) == len(times):
        moved = [np.stack([np.linalg.norm(x - positions, axis=1) for x in runs]) for runs in trajectories]
        propensity = np.stack([m.mean(0) for m in moved])
        if all(len(m) > 1 for m in moved):
            halves = np.stack([[m[start::2].mean(0) for m in moved] for start in (0, 1)])
    if "targets" in content:
        targets = _list(content, "targets")
        propensity = np.stack([_values(t, "targets", positions.shape[:1]) for t in targets])
    if propensity is None:
        raise ValueError(f"targets: expected propensities or trajectories at {len(times)} times, got neither")
    if len(propensity) != len(times):
        raise ValueError(f"targets: expected {len(times)} times as in time_indices, got {len(propensity)}")
    metadata, temperature = _metadata(content)
    order = np.argsort(times, kind="stable")
    if "is_values" in content:
        is_values = _array(content, "is_values")
        if is_values.shape != times.shape:
            raise ValueError(f"is_values: expected shape {times.shape}, got {is_values.shape}")
        metadata["is_values"] = is_values[order].tolist()
    return Configuration(
        positions=torch.from_numpy(positions),
        types=torch.from_numpy(_array(content, "types")),
        cell=torch.from_numpy(_array(content, "box")),
        propensity=torch.from_numpy(propensity[order]),
        propensity_halves=None if halves is None else torch.from_numpy(halves[:, order]),
        times=torch.from_numpy(times[order]),
        temperature=temperature,
        name=path.stem,
        metadata={"format": "DeepMind pickle", "source": path.name, **metadata},
    )


def _times(content: dict[Any, Any]) -> Array:
    clock, indices = _list(content, "time"), _list(content, "time_indices")
    if not all(isinstance(t, (int, float)) for t in clock):
        raise ValueError("time: expected a list of numbers")
    if not indices or not all(isinstance(i, int) and 0 <= i < len(clock) for i in indices):
        raise ValueError(f"time_indices: expected indices of {len(clock)} times, got {_brief(indices)}")
    return np.array([clock[i] for i in indices], dtype=np.float64)


def _trajectories(content: dict[Any, Any], shape: tuple[int, ...]) -> list[list[Array]]:
    """Positions of every trajectory at each time; empty lists, or none at all, where they are left out."""
    if "trajectory_target_positions" not in content:
        return []
    name = "trajectory_target_positions"
    runs = _list(content, name)
    if not all(isinstance(r, list) for r in runs):
        raise ValueError(f"{name}: expected a list of lists of arrays")
    return [[_values(x, name, shape) for x in r] for r in runs]


def _metadata(content: dict[Any, Any]) -> tuple[dict[str, Any], float | None]:
    given = content.get("metadata", {})
    if not isinstance(given, dict):
        raise ValueError(f"metadata: expected a dict, got {type(given).__name__}")
    plain = {k: v for k, v in given.items() if isinstance(k, str) and isinstance(v, (str, int, float))}
    temperature = plain.pop("temperature", None)
    if isinstance(temperature, str):
        raise ValueError(f"metadata: expected a number as temperature, got {temperature!r}")
    return plain, temperature


def _entry(content: dict[Any, Any], key: str) -> Any:
    if key not in content:
        raise ValueError(f"{key}: missing; the dict has {_brief(sorted(map(str, content)))}")
    return content[key]


def _list(content: dict[Any, Any], key: str) -> list[Any]:
    value = _entry(content, key)
    # Some of the files hold lists, others arrays, for the same thing.
    if isinstance(value, PickledArray):
        return list(value.array.tolist()) if value.array.ndim == 1 else list(value.array)
    if not isinstance(value, list):
        raise ValueError(f"{key}: expected a list, got {type(value).__name__}")
    return value


def _array(content: dict[Any, Any], key: str) -> NDArray[Any]:
    value = _entry(content, key)
    if not isinstance(value, PickledArray):
        raise ValueError(f"{key}: expected an array, got {type(value).__name__}")
    # torch takes neither read-only memory nor foreign byte order
    return value.array.astype(value.array.dtype.newbyteorder("="), copy=True)


def _values(value: object, name: str, shape: tuple[int, ...]) -> Array:
    if isinstance(value, PickledArray):
        value = value.array
    if not isinstance(value, np.ndarray) or value.shape != shape:
        found = value.shape if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{name}: expected arrays of shape {shape}, got {found}")
    return value.astype(np.float64)


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."
