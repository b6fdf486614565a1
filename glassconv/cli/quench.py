"""``glassconv quench``: inherent structures and energies for configurations that lack them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from glassconv._environment import find_device
from glassconv.cli.common import (
    CommandError,
    add_command,
    add_device_option,
    check_file,
    load,
    run_quench,
    set_threads,
)


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "quench",
        run,
        "Find the inherent structures of Kob-Andersen configurations. Writes all that was read, with "
        "inherent positions and energies per particle, as HDF5.",
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="files of configurations, or the word sample")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="HDF5 file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument(
        "--max-force",
        type=float,
        default=1e-5,
        metavar="F",
        help="convergence, eps_AA/sigma_AA (default 1e-5)",
    )
    add_device_option(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")


def run(arguments: argparse.Namespace) -> None:
    """Read, quench, write."""
    from glassconv import data

    set_threads(arguments.threads)
    device = find_device(arguments.device)
    check_file(arguments.out)
    if arguments.out.exists() and not arguments.overwrite:
        raise CommandError(
            f"--out: expected a new file, got {arguments.out}, which exists (--overwrite replaces it)"
        )
    configurations = run_quench(load(arguments.data), device, max_force=arguments.max_force)
    data.write_hdf5(arguments.out, configurations)
    energies = [float(c.energy.mean()) for c in configurations if c.energy is not None]
    mean = sum(energies) / len(energies)
    print(f"{arguments.out}: {len(configurations)} configurations, mean energy {mean:.4f} per particle")
