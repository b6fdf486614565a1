"""Train on ten configurations of the 3D Kob-Andersen liquid at T = 0.44, propensities at about tau_alpha.

    python examples/train_shared_ka3d.py --out runs/ka3d [further options of `glassconv train`]

The data are the file `ka3d_T0.44_tau_alpha_train10.npz`, in the folder that GLASSCONV_SHARED_DATA names or,
by default, in `../shared/data` beside the repository. The last two configurations are the test set: nothing
is chosen on them. One of the other eight, the last, chooses the epoch; `--validation 0` trains on all eight
instead and keeps the last epoch. The example shows how to bring a file of one's own layout into the package:
fill `Configuration`, write HDF5, use the command line.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from glassconv.cli import main
from glassconv.data import Configuration, write_hdf5

FILE = "ka3d_T0.44_tau_alpha_train10.npz"
TEMPERATURE = 0.44
TIME = 4120.0  # the one time of the set, about tau_alpha, in Lennard-Jones units


def find_data() -> Path:
    """The file of the ten configurations."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("GLASSCONV_SHARED_DATA") or default) / FILE


def read_npz(path: Path) -> list[Configuration]:
    """The adapter: arrays of the npz file -> configurations with one time."""
    with np.load(path) as arrays:
        halves = np.stack([arrays["propensity_half_a"], arrays["propensity_half_b"]], axis=1)  # (10, 2, N)
        return [
            Configuration(
                positions=arrays["thermal"][i],
                types=arrays["types"][i],
                cell=arrays["box"],
                inherent=arrays["inherent"][i],
                energy=arrays["e_inherent"][i],
                propensity=arrays["propensity"][i][None],
                propensity_halves=halves[i][:, None],
                times=[TIME],
                temperature=TEMPERATURE,
                name=f"ka3d_{int(config_id)}",
            )
            for i, config_id in enumerate(arrays["config_id"])
        ]


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--out" not in arguments:
        raise SystemExit("train_shared_ka3d.py: --out DIR is required")
    folder = Path(arguments[arguments.index("--out") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    converted = folder / "configurations.h5"
    write_hdf5(converted, read_npz(find_data()))
    raise SystemExit(main(["train", str(converted), "--test", "2", "--validation", "1", *arguments]))
