"""``glassconv evaluate``: the Pearson table of a trained network on given data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassconv.cli.common import (
    CommandError,
    add_command,
    add_data_options,
    add_device_option,
    check_folder,
    load,
    quench_missing,
    require_propensities,
    set_threads,
    split_last,
)

if TYPE_CHECKING:
    from glassconv.nn import SE3GNN


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        "Score a trained network by the Pearson correlation of predicted and measured propensities. Per "
        "particle type and time, pooled and per configuration, with the noise ceiling where half-ensembles "
        "are known.",
    )
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a folder that train wrote, or a model.safetensors"
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="files of configurations, or the word sample")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write metrics.json and correlation.png there"
    )
    parser.add_argument(
        "--last", type=int, metavar="K", help="only the last K configurations of each temperature"
    )
    add_data_options(parser)
    add_device_option(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")


def run(arguments: argparse.Namespace) -> None:
    """Load, score, report."""
    from glassconv._environment import environment, find_device
    from glassconv.training import evaluate, table, write_report

    set_threads(arguments.threads)
    device = find_device(arguments.device)
    if arguments.last is not None and arguments.last < 1:
        raise CommandError(f"--last: expected at least 1, got {arguments.last}")
    if arguments.out is not None:
        check_folder(arguments.out)
    path, model = load_model(arguments.model)
    configurations = load(arguments.data, arguments.temperature, arguments.times)
    require_propensities(configurations)
    if arguments.last is not None:
        _, configurations = split_last(configurations, arguments.last, "--last", keep=0)
    configurations = quench_missing(configurations, needed_fields(model), device, quench=arguments.quench)
    groups = evaluate(model.to(device), configurations)
    if arguments.out is not None:
        about = {"model": str(path), "data": arguments.data, "environment": environment()}
        write_report(arguments.out, {"evaluation": groups}, about)
    print(json.dumps([group.to_json() for group in groups], indent=1) if arguments.json else table(groups))


def load_model(path: Path) -> tuple[Path, SE3GNN]:
    """The network in a file, or in a folder that ``train`` wrote."""
    from glassconv.nn import SE3GNN

    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise CommandError(f"MODEL: expected a trained network, got {path} (no {file})")
    return file, SE3GNN.load(file)


def needed_fields(model: SE3GNN) -> list[str]:
    """Fields of a configuration that the network reads and that a quench can supply."""
    options = model.options
    needed = []
    if options["positions"] == "inherent" or "cage" in options["inputs"]:
        needed.append("inherent")
    if "energy" in options["inputs"]:
        needed.append("energy")
    return needed
