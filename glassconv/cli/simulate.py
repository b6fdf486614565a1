"""``glassconv simulate``: isoconfigurational data from molecular dynamics."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from glassconv.cli.common import CommandError, add_command
from glassconv.simulation.protocol import SimulationProtocol
from glassconv.training.progress import ProgressBar


def add_parser(commands: Any) -> None:
    """Add the command; its options are the fields of the protocol."""
    parser = add_command(
        commands,
        "simulate",
        run,
        "Simulate a Kob-Andersen liquid with LAMMPS. Makes equilibrated configurations with inherent "
        "structures and isoconfigurational propensities. Stopped, it continues with the same command. "
        "Lengths in sigma_AA, times and temperatures in Lennard-Jones units; cooling, equilibration, "
        "gap and duration in units of the relaxation time.",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="HDF5 file to write")
    parser.add_argument("--restart", action="store_true", help="start anew, replacing what FILE holds")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="chains to run at once (default: one per core)"
    )
    for field in dataclasses.fields(SimulationProtocol):
        required = field.default is dataclasses.MISSING
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=int if field.type == "int" else float,
            required=required,
            default=None if required else field.default,
            metavar="N" if field.type == "int" else "X",
            help="required" if required else f"default {field.default}",
        )


def run(arguments: argparse.Namespace) -> None:
    """Simulate with a progress bar."""
    from glassconv.simulation.lammps import SimulationError, simulate

    if arguments.out.is_dir():
        raise CommandError(f"--out: expected a file, got the folder {arguments.out}")
    names = [field.name for field in dataclasses.fields(SimulationProtocol)]
    protocol = SimulationProtocol(**{name: getattr(arguments, name) for name in names})
    bar: ProgressBar | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or ProgressBar("simulate", total, done=done)
        bar.update(done)

    try:
        simulate(
            protocol, arguments.out, progress=show, resume=not arguments.restart, workers=arguments.workers
        )
    except SimulationError as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues") from None
    finally:
        if bar is not None:
            bar.close()
    print(f"{arguments.out}: {protocol.n_configurations} configurations at T = {protocol.temperature:g}")
