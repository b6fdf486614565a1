"""``glassconv train``: from files of configurations to a trained network, its scores and plots."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import torch

from glassconv._environment import find_device
from glassconv._files import write_json
from glassconv.cli.common import (
    SAMPLE,
    CommandError,
    add_command,
    add_data_options,
    add_device_option,
    check_folder,
    comma_list,
    load,
    one_of,
    quench_missing,
    require_propensities,
    set_threads,
    split_last,
)
from glassconv.cli.evaluate import needed_fields
from glassconv.data import Configuration
from glassconv.training.metrics import GroupScore, table
from glassconv.training.options import SCHEDULES, TrainingOptions

_CONFIGURATION = "config.json"
_RESULTS = (
    "log.csv",
    "training.json",
    "environment.json",
    "metrics.json",
    "model.safetensors",
    "learning_curve.png",
)

# Every option that makes the run what it is, with its default: small enough for ten configurations and two
# cores.
_DEFAULTS: dict[str, Any] = {
    "data": [],
    "temperature": None,
    "times": None,
    "quench": False,
    "test": 0,
    "validation": 0,
    "validation_files": [],
    "channels": 8,
    "l_max": 2,
    "n_layers": 4,
    "cutoff": 2.0,
    "parity": "natural",
    "positions": "inherent",
    "inputs": ("type", "energy"),
    "dtype": "float32",
    "epochs": 60,
    "learning_rate": 1e-2,
    "batch_size": 1,
    "schedule": "cosine",
    "schedule_patience": 20,
    "early_stopping": None,
    "gradient_clip": 10.0,
    "ema": 0.99,
    "loss_types": None,
    "seed": 0,
    "device": "auto",
    "threads": None,
    "demo": False,
}
# Beyond these a number is a mistake, and would only fill the memory.
_LARGEST = {"channels": 1024, "l_max": 4, "n_layers": 128}
_MOST_TYPES = 100
# A few seconds of training that show everything, on the packaged sample. The cage displacement tells what the
# inherent structure cannot: how far the particle has moved already at short times.
_DEMO: dict[str, Any] = {
    "data": ["sample"],
    "temperature": (0.56,),
    "test": 2,
    "validation": 1,
    "inputs": ("type", "energy", "cage"),
}
_NETWORK = ("channels", "l_max", "n_layers", "cutoff", "parity", "positions", "inputs")
_TRAINING = (
    "epochs",
    "learning_rate",
    "batch_size",
    "schedule",
    "schedule_patience",
    "early_stopping",
    "gradient_clip",
    "ema",
    "loss_types",
    "seed",
)


def add_parser(commands: Any) -> None:
    """Add the command. Options that are not given are left out, so that a resumed run can fill them in."""
    parser = add_command(
        commands,
        "train",
        run,
        "Train a network to predict propensities. Writes the network, its log, scores and plots into DIR; "
        "stopped, it continues with --resume.",
    )
    absent = argparse.SUPPRESS
    parser.add_argument(
        "data", nargs="*", metavar="DATA", default=absent, help="files of configurations, or the word sample"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for all results")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in DIR, with the options it has"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run in DIR")
    parser.add_argument(
        "--demo",
        action="store_true",
        help="train on the sample at T = 0.56 and score the network at the other temperature too; further "
        "options change that, an earlier demonstration in DIR is replaced",
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON in place of the table")
    choice = parser.add_argument_group("data")
    add_data_options(choice, default=absent)
    _add(choice, "test", int, "K", "hold out the last K configurations of each temperature, score at the end")
    _add(
        choice, "validation", int, "K", "of the rest, use the last K of each temperature to choose the epoch"
    )
    choice.add_argument(
        "--validation-files",
        nargs="+",
        metavar="DATA",
        default=absent,
        help="further files, only to choose the epoch",
    )
    network = parser.add_argument_group("network")
    _add(network, "channels", int, "C", "channels of each irrep")
    _add(network, "l-max", int, "L", "highest degree of the harmonics")
    _add(network, "n-layers", int, "N", "convolution layers")
    _add(network, "cutoff", float, "R", "length of the edges, sigma_AA")
    _add(network, "parity", str, None, "parities of the features", choices=("natural", "both"))
    _add(network, "positions", str, None, "structure that the network sees", choices=("inherent", "thermal"))
    _add(network, "inputs", comma_list(str), "NAMES", "node inputs, some of type,energy,cage")
    _add(network, "dtype", str, None, "precision", choices=("float32", "float64"))
    training = parser.add_argument_group("training")
    _add(training, "epochs", int, "N", "passes over the data")
    _add(training, "learning-rate", float, "LR", "of Adam", "--lr")
    _add(training, "batch-size", int, "N", "configurations per step")
    _add(training, "schedule", str, None, "of the learning rate", choices=SCHEDULES)
    _add(training, "schedule-patience", int, "N", "epochs on a plateau before the rate is halved")
    _add(training, "early-stopping", int, "N", "stop after N epochs without a better validation correlation")
    _add(training, "gradient-clip", float, "G", "largest norm of the gradient, 0: any")
    _add(training, "ema", float, "D", "average the weights with this decay per step, 0: do not")
    _add(training, "loss-types", comma_list(int), "TYPES", "particle types in the loss, e.g. 0")
    _add(training, "seed", int, "N", "of initial weights and order")
    add_device_option(training, default=absent)
    _add(training, "threads", int, "N", "default: all cores")


def _add(
    group: argparse._ArgumentGroup,
    name: str,
    kind: Any,
    metavar: str | None,
    text: str,
    *more: str,
    **extra: Any,
) -> None:
    default = _DEFAULTS[name.replace("-", "_")]
    shown = ",".join(default) if isinstance(default, tuple) else default
    text = text if default is None else f"{text} (default {shown})"
    extra |= {} if metavar is None else {"metavar": metavar}
    group.add_argument(f"--{name}", *more, type=kind, help=text, default=argparse.SUPPRESS, **extra)


def run(arguments: argparse.Namespace) -> None:
    """Read, split, train, score, report."""
    try:
        import lightning.pytorch as pl
        import matplotlib as mpl  # noqa: F401 - said before the training, not after it
    except ImportError as error:
        raise CommandError(
            f"training needs the extra train: pip install 'glassconv[train]' ({error})"
        ) from error
    from glassconv.training import fit
    from glassconv.training.checks import check_data, check_parts

    folder: Path = arguments.out
    check_folder(folder)
    options = _options(arguments, folder)
    set_threads(options["threads"])
    device = find_device(options["device"])
    # negative seeds and such are refused before any file is read
    training_options = _training_options(options)
    _check_sizes(options)
    parts = _split(options)
    pl.seed_everything(options["seed"], workers=True, verbose=False)
    model = _model(options, parts).to(device)
    check_parts(parts, model.n_outputs, training_options)  # once before a quench, which may take long
    parts = {
        name: quench_missing(part, needed_fields(model), device, quench=options["quench"])
        for name, part in parts.items()
    }
    check_data(model, parts, training_options)
    # all is checked: from here on the folder changes
    if not arguments.resume:
        _clear(folder)  # nothing, unless a run is there and is to be replaced
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _CONFIGURATION, options)

    try:
        result = fit(
            model,
            parts["training"],
            parts["validation"],
            out=folder,
            options=training_options,
            resume=arguments.resume,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_continue(folder)) from None
    _report(folder, result, parts, as_json=arguments.json)


def _options(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Defaults, then those of the run to resume, then those given."""
    if arguments.resume and arguments.overwrite:
        raise CommandError("--resume: expected one of --resume and --overwrite, got both")
    stored: dict[str, Any] = {}
    file = folder / _CONFIGURATION
    if arguments.resume:
        if not file.is_file():
            raise CommandError(
                f"--resume: expected a folder with a training run, got {folder} (no {_CONFIGURATION})"
            )
        stored = _stored(file)
    elif _has_run(folder) and not arguments.overwrite and not (arguments.demo and _is_demo(file)):
        raise CommandError(
            f"--out: expected a folder without a training run, got {folder} (--resume continues it, "
            "--overwrite replaces it)"
        )
    given = {name: value for name, value in vars(arguments).items() if name in _DEFAULTS}
    if not given.get("data"):
        given.pop("data", None)
    for name in ("data", "validation_files"):  # absolute, so that a run can be resumed from anywhere
        if name in given:
            given[name] = [path if path == SAMPLE else str(Path(path).resolve()) for path in given[name]]
    given["demo"] = arguments.demo or stored.get("demo", False)
    options = {**_DEFAULTS, **(_DEMO if arguments.demo else {}), **stored, **given}
    if not options["data"]:
        raise CommandError("DATA: expected files of configurations or the word sample, got none")
    for name in ("temperature", "times", "inputs", "loss_types"):  # JSON has made lists of them
        options[name] = None if options[name] is None else tuple(options[name])
    for name, value in stored.items():
        free = name in ("device", "threads") or (name == "epochs" and options["schedule"] != "cosine")
        if not free and json.loads(json.dumps(options[name])) != value:
            option = name.replace("_", "-")
            raise CommandError(f"--{option}: expected {value} as in the run to resume, got {options[name]}")
    return options


def _stored(file: Path) -> dict[str, Any]:
    """The options in the configuration of a run."""
    expected = f"{file}: expected the options of a training run"
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"{expected}, got {error}") from error
    if not isinstance(stored, dict) or not stored.get("data") or not stored.keys() <= _DEFAULTS.keys():
        raise CommandError(f"{expected}, got something else")
    for name, value in stored.items():
        default = _DEFAULTS[name]
        listed = name in ("temperature", "times", "loss_types")
        kinds: tuple[type, ...] = (type(default),)
        kinds += (list,) if listed else (int,) if default is None else ()
        kinds += (list,) if isinstance(default, tuple) else (int,) if isinstance(default, float) else ()
        if not isinstance(value, kinds):
            raise CommandError(f"{expected}, got {value!r} for {name}")
    return stored


def _is_demo(file: Path) -> bool:
    """Whether a run is a demonstration, on the sample: what it has found is soon found again."""
    try:
        stored = _stored(file)
    except CommandError:
        return False
    return bool(stored.get("demo")) and stored["data"] == _DEMO["data"]


def _has_run(folder: Path) -> bool:
    """Whether there is anything to lose: a refused run leaves options only, or nothing."""
    if (folder / "checkpoints" / "last.ckpt").exists():
        return True
    results = ("log.csv", "metrics.json", "model.safetensors")
    return (folder / _CONFIGURATION).exists() and any((folder / name).exists() for name in results)


def _clear(folder: Path) -> None:
    """Remove the files of a run, and nothing else; the folder need not hold one."""
    if not _has_run(folder):
        return
    plots = folder.glob("correlation*.png")
    for file in [*(folder / name for name in _RESULTS), *plots, *folder.glob("checkpoints/*.ckpt")]:
        file.unlink(missing_ok=True)
    (folder / _CONFIGURATION).unlink(missing_ok=True)  # last: an interrupted removal can be repeated


def _training_options(options: dict[str, Any]) -> TrainingOptions:
    chosen = {name: options[name] for name in _TRAINING}
    for name in ("ema", "gradient_clip"):
        chosen[name] = None if chosen[name] == 0 else chosen[name]
    return TrainingOptions(**chosen)


def _check_sizes(options: dict[str, Any]) -> None:
    for name, most in _LARGEST.items():
        least = 0 if name == "l_max" else 1
        if not least <= options[name] <= most:
            raise CommandError(f"{name}: expected {least} to {most}, got {options[name]}")


def _split(options: dict[str, Any]) -> dict[str, list[Configuration]]:
    """Configurations by the part they have in the run, in the order of the report."""
    configurations = load(options["data"], options["temperature"], options["times"])
    rest, test = split_last(configurations, options["test"], "--test", keep=1)
    training, validation = split_last(rest, options["validation"], "--validation", keep=1)
    if options["validation_files"]:
        validation += load(options["validation_files"], options["temperature"], options["times"])
    parts = {"test": test, "validation": validation, "training": training}
    if options["demo"]:
        everything = load(options["data"], times=options["times"])
        parts["other_temperature"] = [
            c for c in everything if not one_of(c.temperature, options["temperature"])
        ]
    for part in parts.values():
        require_propensities(part)
        for configuration in part:
            if configuration.n_times != training[0].n_times:
                raise CommandError(
                    "DATA: expected the same number of times in all configurations, got "
                    f"{training[0].n_times} and {configuration.n_times} (--temperature or --times choose)"
                )
    return parts


def _model(options: dict[str, Any], parts: dict[str, list[Configuration]]) -> Any:
    from glassconv.nn import SE3GNN

    training = parts["training"]
    n_types = max(int(c.types.max()) for part in parts.values() for c in part) + 1
    if n_types > _MOST_TYPES:
        raise CommandError(
            f"types: expected types counted from 0 without gaps, at most {_MOST_TYPES}, got {n_types - 1}"
        )
    network = {name: options[name] for name in _NETWORK}
    model = SE3GNN(n_types, training[0].n_times, **network).to(getattr(torch, options["dtype"]))
    temperatures = sorted({c.temperature for c in training if c.temperature is not None})
    times = None if training[0].times is None else training[0].times.tolist()
    # at several temperatures the k-th output is the k-th time of each; the times kept are those of the first
    model.metadata = {"temperatures": temperatures, "times": times, "training": [c.name for c in training]}
    return model


def _how_to_continue(folder: Path) -> str:
    if not (folder / "checkpoints" / "last.ckpt").exists():
        return "no epoch was finished"
    return f"continue with: glassconv train --resume --out {shlex.quote(str(folder))}"


def _report(folder: Path, result: Any, parts: dict[str, list[Configuration]], *, as_json: bool) -> None:
    from glassconv import plotting
    from glassconv._environment import environment
    from glassconv.training import evaluate, write_report

    scores: dict[str, list[GroupScore]] = {
        name: evaluate(result.model, part) for name, part in parts.items() if part
    }
    about = {
        "epoch": result.epoch,
        "n_epochs": result.n_epochs,
        "n_parameters": sum(p.numel() for p in result.model.parameters()),
        "seconds": sum(float(row["seconds"]) for row in result.log),
        "environment": environment(),
    }
    write_report(folder, scores, about)
    plotting.save(plotting.learning_curve(result.log), folder / "learning_curve.png")
    if as_json:
        print((folder / "metrics.json").read_text(), end="")
        return
    seconds = about["seconds"] / max(len(result.log), 1)
    print(
        f"{about['n_parameters']} parameters, {result.n_epochs} epochs of {seconds:.1f} s, "
        f"weights of epoch {result.epoch + 1}"
    )
    first = next(iter(scores))
    for name in [first, *(["other_temperature"] if "other_temperature" in scores else [])]:
        print(f"\n{name.replace('_', ' ')} set, {table(scores[name])}")
    print(f"\nnetwork, log, scores and plots: {folder}")
