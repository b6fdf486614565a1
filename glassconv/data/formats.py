"""Readers for the files that the field publishes, chosen by what a file contains, not by its name."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from glassconv.data.configuration import Configuration
from glassconv.data.deepmind import read_deepmind
from glassconv.data.hdf5 import FORMAT, read_hdf5

__all__ = ["read", "read_botan", "read_glassbench"]

_DENSITY = 1.2  # of every three-dimensional Kob-Andersen data set below; their npz files do not say the box

# Times of measurement by temperature, which their files do not say either, and the index k = 0..9 of each in
# the name "..._tc0k.npz" of a BOTAN file or in the rows of md_prop in GlassBench; 7 is the relaxation time.
# Only those that go with the published results (Jung et al., arXiv 2311.14752) and whose index is certain.
_TIMES: dict[float, dict[int, float]] = {
    0.44: {7: 4120.0},
    0.50: dict(enumerate((0.108, 0.434, 2.17, 6.86, 21.7, 68.6, 217.0, 686.0, 2170.0, 6860.0))),
}

Array = NDArray[Any]


def read(path: str | os.PathLike[str], *, times: Sequence[float] | None = None) -> list[Configuration]:
    """Read glass configurations from a file, or from all known files of a folder.

    Known are the package's own HDF5, GlassBench npz, BOTAN npz and DeepMind pickles. Pickles are never handed
    to Python's own loader (`glassconv.data.restricted_pickle`), npz files only without pickled objects.

    Args:
        path: a file, or a folder, whose known files are read in the order of their names (2 before 10) and
            whose other files and subfolders are passed over.
        times: ``(T,)`` times of measurement, for the npz formats, which do not hold them. Without it they are
            looked up by temperature and, where not known, the indices of the measurements stand for them
            (``metadata["times"]`` is then "index").

    Returns:
        The configurations, one for each GlassBench, BOTAN or DeepMind file.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the file is of no known format, damaged, or holds anything that is not plain data; if a
            folder holds no known file; the message names the file.
    """
    path = Path(path)
    if path.is_dir():
        found = [
            (file, reader)
            for file in sorted(path.iterdir(), key=_natural)
            if file.is_file() and not file.name.startswith(".") and (reader := _reader(file)) is not None
        ]
        if not found:
            raise ValueError(
                f"{path}: expected a folder with glass configurations, got no file of a known format"
            )
        return [c for file, reader in found for c in reader(file, times)]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    reader = _reader(path)
    if reader is None:
        raise ValueError(
            f"{path}: expected glassconv HDF5, GlassBench npz, BOTAN npz or DeepMind pickle, "
            f"got {_describe(path)}"
        )
    return reader(path, times)


def read_glassbench(path: str | os.PathLike[str], *, times: Sequence[float] | None = None) -> Configuration:
    """Read one three-dimensional GlassBench file, ``N4096T{T}_{id}.npz`` (Zenodo 10118191).

    Its keys used here are ``types`` (N,), ``initial_positions`` and ``initial_positions_inherent`` (N, 3) in
    [-L/2, L/2), and ``md_prop`` (T, N). The box follows from the density 1.2, the temperature from the name
    or the folder. The inherent positions are moved to the periodic image nearest to the thermal ones.
    Energies are not in the file: see `glassconv.quench`.

    Args:
        path: the file.
        times: ``(T,)``; see `read`.

    Raises:
        ValueError: if the file is damaged, holds pickled objects, or lacks or contradicts any of the above.
    """
    path = Path(path)
    content = _load_npz(path, ("types", "initial_positions", "initial_positions_inherent", "md_prop"))
    try:
        positions = _positions(content)
        cell = torch.full((3,), _box(len(positions)), dtype=torch.float64)
        inherent = None
        if "initial_positions_inherent" in content:
            inherent = torch.from_numpy(content["initial_positions_inherent"]).to(torch.float64)
            if inherent.shape != positions.shape:
                found = tuple(inherent.shape)
                raise ValueError(
                    f"initial_positions_inherent: expected {tuple(positions.shape)}, got {found}"
                )
            inherent = inherent + cell * torch.round((positions - inherent) / cell)
        propensity = None
        chosen: list[float] | None = None
        temperature, metadata = _temperature(path), {"format": "GlassBench npz", "source": path.name}
        if "md_prop" in content:
            propensity = torch.from_numpy(content["md_prop"])
            n_times = len(propensity) if propensity.ndim == 2 else 0
            chosen = _choose_times(times, temperature, list(range(n_times)), metadata)
        return Configuration(
            positions=positions,
            types=_types(content),
            cell=cell,
            inherent=inherent,
            propensity=propensity,
            times=None if chosen is None else torch.tensor(chosen, dtype=torch.float64),
            temperature=temperature,
            name=path.stem,
            metadata=metadata,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a GlassBench file: {error}") from error


def read_botan(path: str | os.PathLike[str], *, times: Sequence[float] | None = None) -> Configuration:
    """Read one BOTAN file, ``isoconfig_N4096T{T}_{id}_tc{k}.npz`` (github.com/h3-Open-BDEC/pyg_botan).

    Its keys are ``types`` (N,), ``initial_positions`` (N, 3) and ``positions`` (M, N, 3), those of M
    isoconfigurational runs at one time, unwrapped. The propensity is the mean over the runs of the
    displacement from ``initial_positions``; its halves are the means over every other run (0, 2, ... and 1,
    3, ...). The box follows from the density 1.2, the temperature and the index k of the time from the name.

    Args:
        path: the file.
        times: one time; see `read`.

    Raises:
        ValueError: if the file is damaged, holds pickled objects, or lacks or contradicts any of the above.
    """
    path = Path(path)
    content = _load_npz(path, ("types", "initial_positions", "positions"))
    try:
        positions = _positions(content)
        runs = torch.from_numpy(content["positions"]).to(torch.float64)
        if runs.ndim != 3 or runs.shape[1:] != positions.shape or len(runs) == 0:
            expected = ("M", *positions.shape)
            raise ValueError(f"positions: expected shape {expected}, got {tuple(runs.shape)}")
        moved = (runs - positions).norm(dim=2)
        halves = torch.stack([moved[::2].mean(0), moved[1::2].mean(0)])[:, None] if len(runs) > 1 else None
        temperature, metadata = _temperature(path), {"format": "BOTAN npz", "source": path.name}
        index = re.search(r"_tc(\d+)$", path.stem)
        chosen = _choose_times(times, temperature, [int(index[1]) if index else 0], metadata)
        return Configuration(
            positions=positions,
            types=_types(content),
            cell=torch.full((3,), _box(len(positions)), dtype=torch.float64),
            propensity=moved.mean(0)[None],
            propensity_halves=halves,
            times=torch.tensor(chosen, dtype=torch.float64),
            temperature=temperature,
            name=path.stem,
            metadata={**metadata, "n_trajectories": len(runs)},
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a BOTAN file: {error}") from error


def _reader(path: Path) -> Callable[[Path, Sequence[float] | None], list[Configuration]] | None:
    """Return what reads the file, judged by its first bytes and the names of what it holds, or None."""
    with path.open("rb") as stream:
        start = stream.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return None if _foreign_hdf5(path) else lambda p, _: read_hdf5(p)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return lambda p, _: [read_deepmind(p)]
    if start[:4] == b"PK\x03\x04":
        keys = _npz_keys(path)
        if {"types", "initial_positions", "positions"} <= keys:
            return lambda p, t: [read_botan(p, times=t)]
        if {"types", "initial_positions"} <= keys:
            return lambda p, t: [read_glassbench(p, times=t)]
    return None


def _foreign_hdf5(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get("format")
            return not (isinstance(found, str) and found == FORMAT)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError):
        return False  # damaged: the reader says how


def _npz_keys(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except Exception as error:  # not BadZipFile alone: also what decoding its numbers and names raises
        raise ValueError(f"{path}: not a readable npz file: truncated or damaged ({error})") from error


def _load_npz(path: Path, keys: tuple[str, ...]) -> dict[str, Array]:
    """Load those of the ``keys`` that are there; objects would need pickle and are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {key: archive[key] for key in keys if key in archive.files}
    except FileNotFoundError:
        raise
    except Exception as error:
        # A damaged archive fails in countless ways (BadZipFile, zlib.error, EOFError, MemoryError, ...).
        if "pickle" in str(error).lower():
            reason = "it holds pickled objects"
        elif isinstance(error, RuntimeError):  # of zipfile: encrypted, or a compression that it does not know
            reason = f"it cannot be unpacked ({error})"
        else:
            reason = f"damaged ({error})"
        raise ValueError(f"{path}: not a readable npz file: {reason}") from error
    for key, array in content.items():
        if not isinstance(array, np.ndarray):  # NumPy gives the bytes of a member that is not an array
            raise ValueError(f"{path}: not a readable npz file: {key}: expected an array, got other bytes")
    return content


def _positions(content: dict[str, Array]) -> torch.Tensor:
    for key in ("types", "initial_positions"):
        if key not in content:
            raise ValueError(f"{key}: missing; the file has {sorted(content)}")
    positions = content["initial_positions"]
    if positions.ndim != 2 or positions.shape[1] != 3 or positions.dtype.kind not in "fiu":
        found = f"{positions.dtype} of shape {positions.shape}"
        raise ValueError(f"initial_positions: expected numbers of shape (N, 3), got {found}")
    return torch.from_numpy(positions).to(torch.float64)


def _types(content: dict[str, Array]) -> torch.Tensor:
    types = content["types"]
    if types.dtype.kind not in "iu" and not (types.dtype.kind == "f" and (types == np.round(types)).all()):
        raise ValueError(f"types: expected integers, got {types.dtype}")
    return torch.from_numpy(types.astype(np.int64))


def _box(n_particles: int) -> float:
    return float((n_particles / _DENSITY) ** (1.0 / 3.0))


def _temperature(path: Path) -> float | None:
    for text in (path.stem, path.parent.name, path.parent.parent.name):
        if found := re.search(r"T(\d+\.\d+)", text):
            return float(found[1])
    return None


def _choose_times(
    given: Sequence[float] | None, temperature: float | None, indices: list[int], metadata: dict[str, str]
) -> list[float]:
    """Times of the measurements with these ``indices``, saying in ``metadata`` where they are from."""
    if given is not None:
        if len(given) != len(indices):
            raise ValueError(f"times: expected {len(indices)} times, got {len(given)}")
        metadata["times"] = "given"
        return [float(t) for t in given]
    known = {} if temperature is None else _TIMES.get(temperature, {})
    if all(i in known for i in indices):
        metadata["times"] = "known"
        return [known[i] for i in indices]
    metadata["times"] = "index"
    return [float(i) for i in indices]


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _describe(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(4)
    if not start:
        return "an empty file"
    if start == b"PK\x03\x04":
        return f"an npz file with {sorted(_npz_keys(path))}"[:200]
    if start == b"\x89HDF":
        return "an HDF5 file that glassconv did not write"
    return f"something else (it begins with {start!r})"
