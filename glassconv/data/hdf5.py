"""The package's own file format: configurations in HDF5, readable by anything that reads HDF5.

Layout, format version 1. Root attributes ``format``, ``format_version``, ``n_configurations``, ``written_by``
and ``unit_of_length``, ``unit_of_energy``, ``unit_of_time``. One group ``configurations/000000``, ... per
configuration with the datasets ``positions`` (N, 3), ``types`` (N,), ``cell`` (3, 3), ``pbc`` (3,), those
that are known of ``inherent`` (N, 3), ``energy`` (N,), ``propensity`` (T, N), ``propensity_halves`` (2, T, N)
and ``times`` (T,), each with the attribute ``unit``, and ``metadata`` (a JSON text); attributes ``name`` and,
where known, ``temperature``. Datasets carry checksums. Numbers are stored in the narrowest type that holds
all of them exactly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from glassconv._files import in_place_of
from glassconv.data.configuration import Configuration

__all__ = ["FORMAT", "FORMAT_VERSION", "read_hdf5", "write_hdf5"]

FORMAT = "glassconv configurations"
FORMAT_VERSION = 1

_MOST_COMPRESSED = 2000  # bytes of values per byte in the file; gzip reaches at most 1032

_LENGTH, _ENERGY, _TIME = "sigma_AA", "eps_AA", "sigma_AA sqrt(m / eps_AA)"
_REQUIRED = {"positions": _LENGTH, "types": "1", "cell": _LENGTH, "pbc": "1"}
_OPTIONAL = {
    "inherent": _LENGTH,
    "energy": _ENERGY,
    "propensity": _LENGTH,
    "propensity_halves": _LENGTH,
    "times": _TIME,
}


def write_hdf5(
    path: str | os.PathLike[str], configurations: Sequence[Configuration], *, single_precision: bool = False
) -> None:
    """Write configurations to a file; a reader gets back exactly what was written.

    The file appears complete or not at all (it is written beside its place, then renamed over what was
    there).

    Args:
        path: the file, in a folder that exists.
        configurations: at least one.
        single_precision: round positions, energies and propensities to float32, for half the size; cell and
            times stay exact.

    Raises:
        ValueError: if there are no configurations.
        OSError: if the file cannot be written.
    """
    from glassconv import __version__

    configurations = list(configurations)
    if not configurations:
        raise ValueError("configurations: expected at least one, got none")
    with in_place_of(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["n_configurations"] = len(configurations)
        file.attrs["written_by"] = f"glassconv {__version__}"
        file.attrs["unit_of_length"] = _LENGTH
        file.attrs["unit_of_energy"] = _ENERGY
        file.attrs["unit_of_time"] = _TIME
        for i, configuration in enumerate(configurations):
            _write_one(file.create_group(f"configurations/{i:06d}"), configuration, single_precision)


def read_hdf5(path: str | os.PathLike[str]) -> list[Configuration]:
    """Read the configurations of a file made by `write_hdf5`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not HDF5, is truncated or damaged, was not made by `write_hdf5` or by a
            newer one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            n = _check_header(file)
            return [_read_one(file, f"configurations/{i:06d}") for i in range(n)]
    except (
        OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        # HDF5 itself says OSError or RuntimeError of truncated files and of checksums that do not match.
        raise ValueError(f"{path}: not a readable glassconv HDF5 file: {_reason(error)}") from error


def _write_one(group: h5py.Group, configuration: Configuration, single_precision: bool) -> None:
    for key, unit in {**_REQUIRED, **_OPTIONAL}.items():
        tensor = getattr(configuration, key)
        if tensor is None:
            continue
        values = tensor.cpu().numpy()
        if single_precision and key not in ("cell", "times") and values.dtype == np.float64:
            values = values.astype(np.float32)
        data = _narrowest(values)
        # A dataset of no elements (no times) can be neither chunked nor compressed.
        packing = {"compression": "gzip", "shuffle": True, "fletcher32": True} if data.size else {}
        dataset = group.create_dataset(key, data=data, **packing)
        dataset.attrs["unit"] = unit
    group.create_dataset("metadata", data=json.dumps(configuration.metadata))
    group.attrs["name"] = configuration.name
    if configuration.temperature is not None:
        group.attrs["temperature"] = configuration.temperature


def _narrowest(values: NDArray[Any]) -> NDArray[Any]:
    candidates = {"f": ("f4",), "i": ("u1", "i2", "i4")}.get(values.dtype.kind, ())
    for code in candidates:
        with np.errstate(over="ignore"):
            narrow = values.astype(code)
        if np.array_equal(narrow.astype(values.dtype), values):
            return narrow
    return values


def _check_header(file: h5py.File) -> int:
    found = file.attrs.get("format")
    if found != FORMAT:
        raise ValueError(f"format: expected {FORMAT!r}, got {found!r}")
    version = int(file.attrs["format_version"])
    if not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"format_version: expected at most {FORMAT_VERSION}, got {version}; update glassconv"
        )
    n = int(file.attrs["n_configurations"])
    found_groups = len(file["configurations"])
    if n != found_groups:
        raise ValueError(f"n_configurations: expected {n} groups, got {found_groups}")
    return n


def _read_one(file: h5py.File, where: str) -> Configuration:
    group = file[where]
    arrays: dict[str, torch.Tensor] = {}
    for key in (*_REQUIRED, *_OPTIONAL):
        if key not in group:
            if key in _REQUIRED:
                raise ValueError(f"{where}: expected a dataset {key}, got {sorted(group)}")
            continue
        arrays[key] = torch.from_numpy(_values(group, key))
    temperature = group.attrs.get("temperature")
    return Configuration(
        **arrays,
        temperature=None if temperature is None else float(temperature),
        name=str(group.attrs["name"]),
        metadata=json.loads(_dataset(group, "metadata").asstr()[()]),
    )


def _dataset(group: h5py.Group, key: str) -> h5py.Dataset:
    found = group[key]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{group.name}/{key}: expected a dataset, got {type(found).__name__}")
    return found


def _values(group: h5py.Group, key: str) -> NDArray[Any]:
    dataset = _dataset(group, key)
    stored = dataset.id.get_storage_size()
    # Checked before memory is asked for: a file of a few bytes can declare a dataset of any shape.
    if dataset.nbytes > _MOST_COMPRESSED * stored:
        raise ValueError(
            f"{dataset.name}: expected the data of shape {dataset.shape}, got {stored} bytes in the file"
        )
    return np.asarray(dataset[()])


def _reason(error: Exception) -> str:
    first = error.args[0] if error.args else None
    text = first if isinstance(first, str) else str(error) or type(error).__name__
    return "truncated (incomplete copy?)" if "truncated file" in text else text
