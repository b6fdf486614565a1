"""Configurations from the npz files of the shared data, whose keys are their own (see its README)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from glassconv.data import Configuration

TAU_ALPHA_FILE = "ka3d_T0.44_tau_alpha_train10.npz"
TAU_ALPHA = 4120.0  # time of measurement in LJ units, at T = 0.44


def read_tau_alpha(path: Path, indices: list[int] | None = None) -> list[Configuration]:
    """Read configurations of N = 4096 at T = 0.44 with inherent structures and propensities at tau_alpha."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return [
        Configuration(
            positions=torch.from_numpy(arrays["thermal"][i]),
            types=torch.from_numpy(arrays["types"][i]),
            cell=torch.from_numpy(arrays["box"]),
            inherent=torch.from_numpy(arrays["inherent"][i]),
            energy=torch.from_numpy(arrays["e_inherent"][i]),
            propensity=torch.from_numpy(arrays["propensity"][i][None]),
            propensity_halves=torch.from_numpy(
                np.stack([arrays["propensity_half_a"][i], arrays["propensity_half_b"][i]])[:, None]
            ),
            times=torch.tensor([TAU_ALPHA]),
            temperature=0.44,
            name=f"tau_alpha {int(arrays['config_id'][i])}",
        )
        for i in (range(len(arrays["thermal"])) if indices is None else indices)
    ]


def read_small(path: Path, indices: list[int] | None = None) -> list[Configuration]:
    """Read configurations of the small systems, N = 1000, with propensities at eight times."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    halves = np.stack([arrays["propensity_half0"], 2 * arrays["propensity"] - arrays["propensity_half0"]])
    return [
        Configuration(
            positions=torch.from_numpy(arrays["positions"][i]),
            types=torch.from_numpy(arrays["types"]),
            cell=torch.from_numpy(arrays["box"]),
            inherent=torch.from_numpy(arrays["inherent_positions"][i]),
            energy=torch.from_numpy(arrays["pe_inherent"][i]),
            propensity=torch.from_numpy(arrays["propensity"][i]),
            propensity_halves=torch.from_numpy(halves[:, i]),
            times=torch.from_numpy(arrays["times"]),
            temperature=round(float(arrays["temperature"]), 6),
            name=f"{path.stem} {i}",
        )
        for i in (range(len(arrays["positions"])) if indices is None else indices)
    ]
