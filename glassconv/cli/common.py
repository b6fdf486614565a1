"""What the commands share: errors in one line, reading and choosing configurations."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from glassconv.data import Configuration
from glassconv.training.progress import ProgressBar

__all__ = [
    "CommandError",
    "Parser",
    "add_command",
    "add_data_options",
    "add_device_option",
    "check_file",
    "check_folder",
    "comma_list",
    "load",
    "one_of",
    "quench_missing",
    "require_propensities",
    "set_threads",
    "split_last",
]

SAMPLE = "sample"


class CommandError(Exception):
    """Something the user can change; shown in one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with exit code 2."""
        print(
            f"{self.prog}: {' '.join(message.split())} ({self.prog} --help lists the options)",
            file=sys.stderr,
        )
        raise SystemExit(2)


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str) -> Parser:
    """Add a command to the parser, with the options that all of them have."""
    parser: Parser = commands.add_parser(name, help=text.partition(".")[0], description=text)
    parser.set_defaults(run=run)
    parser.add_argument("--traceback", action="store_true", help="on an error, show where it came from")
    return parser


def add_data_options(parser: argparse._ActionsContainer, *, default: Any = None) -> None:
    """Options that choose among the configurations that were read."""
    parser.add_argument(
        "--temperature",
        type=comma_list(float),
        metavar="T[,T]",
        default=default,
        help="only configurations of these temperatures",
    )
    parser.add_argument(
        "--times",
        type=comma_list(int),
        metavar="I[,I]",
        default=default,
        help="only these times, by their index from 0; negative ones count from the last",
    )
    parser.add_argument(
        "--quench",
        action="store_true",
        default=default if default is not None else False,
        help="find the inherent structures that are missing (Kob-Andersen potential)",
    )


def add_device_option(parser: argparse._ActionsContainer, *, default: Any = "auto") -> None:
    """The option that `glassconv._environment.find_device` reads."""
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        default=default,
        help="cpu, cuda, cuda:1 ..., or auto: a GPU where there is one and the build has kernels for it "
        "(default auto)",
    )


def comma_list(convert: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Parser of ``a,b,c`` for an option."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(convert(part.strip()) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected {convert.__name__} values separated by commas, got {text!r}"
            ) from None

    return parse


def load(
    paths: Sequence[str], temperatures: Sequence[float] | None = None, times: Sequence[int] | None = None
) -> list[Configuration]:
    """Read files, or the packaged sample under the word ``sample``, and choose among their configurations.

    Raises:
        CommandError: a file that cannot be read, or nothing left.
    """
    from glassconv import data

    found: list[Configuration] = []
    for path in paths:
        try:
            found += data.sample() if path == SAMPLE else data.read(path)
        except (ValueError, OSError, ImportError) as error:
            text = str(error)
            raise CommandError(text if path in text else f"{path}: {text}") from error
    if temperatures is not None:
        there = sorted({c.temperature for c in found if c.temperature is not None})
        found = [c for c in found if one_of(c.temperature, temperatures)]
        if not found:
            listed = ", ".join(f"{t:g}" for t in there) or "none known"
            wanted = ", ".join(f"{t:g}" for t in temperatures)
            raise CommandError(f"--temperature: expected one of those in the data ({listed}), got {wanted}")
    if not found:
        raise CommandError(f"DATA: expected at least one configuration, got none in {', '.join(paths)}")
    if times is None:
        return found
    require_propensities(found)
    try:
        return [c.select_times(times) for c in found]
    except ValueError as error:
        raise CommandError(f"--times: {error}") from error


def require_propensities(configurations: Sequence[Configuration]) -> None:
    """Refuse configurations without propensities, and without their times.

    Raises:
        CommandError: the first such configuration.
    """
    for configuration in configurations:
        if configuration.propensity is None:
            raise CommandError(
                f"DATA: expected propensities in all configurations, got none in {configuration!r}"
            )


def check_folder(path: Path) -> None:
    """Refuse an ``--out`` that cannot become a folder with results, before work is done for it.

    Raises:
        CommandError: a file, below a file, or not writable.
    """
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise CommandError(f"--out: expected a folder, got {path} ({there} is a file)")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CommandError(f"--out: expected a folder to write into, got {path} ({there} is read-only)")


def check_file(path: Path) -> None:
    """Refuse an ``--out`` that cannot become a file, before work is done for it.

    Raises:
        CommandError: a folder, or in a folder that does not exist or is not writable.
    """
    if path.is_dir():
        raise CommandError(f"--out: expected a file, got the folder {path}")
    if not path.parent.is_dir():
        raise CommandError(f"--out: expected a file in an existing folder, got {path}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CommandError(f"--out: expected a file in a folder that can be written, got {path}")


def one_of(temperature: float | None, wanted: Sequence[float]) -> bool:
    """Whether a temperature is among those wanted, up to rounding; an unknown one never is."""
    if temperature is None:
        return False
    return any(math.isclose(temperature, other, rel_tol=1e-6) for other in wanted)


def split_last(
    configurations: Sequence[Configuration], count: int, option: str, *, keep: int
) -> tuple[list[Configuration], list[Configuration]]:
    """Split off the last ``count`` configurations of every temperature, in order: (the others, the last
    ones).

    Configurations of one simulation follow each other and are only nearly independent, so that whole blocks
    are held out, never every n-th configuration and never particles.

    Raises:
        CommandError: a negative count, or fewer than ``keep`` others left of some temperature.
    """
    if count < 0:
        raise CommandError(f"{option}: expected 0 or more configurations, got {count}")
    groups: dict[float | None, list[int]] = {}
    for i, configuration in enumerate(configurations):
        groups.setdefault(configuration.temperature, []).append(i)
    held: set[int] = set()
    for members in groups.values():
        if count > len(members) - keep:
            raise CommandError(
                f"{option}: expected at most {len(members) - keep} of the {len(members)} configurations of a "
                f"temperature, got {count}"
            )
        held.update(members[len(members) - count :])
    rest = [c for i, c in enumerate(configurations) if i not in held]
    return rest, [configurations[i] for i in sorted(held)]


def quench_missing(
    configurations: list[Configuration], needed: Sequence[str], device: torch.device, *, quench: bool
) -> list[Configuration]:
    """Find inherent structures where ``needed`` fields (``inherent``, ``energy``) are missing, if asked to.

    Raises:
        CommandError: something is missing and ``quench`` is False, or the quench failed.
    """
    lacking = [i for i, c in enumerate(configurations) if any(getattr(c, field) is None for field in needed)]
    if not lacking:
        return configurations
    if not quench:
        first = configurations[lacking[0]]
        missing = " and ".join(field for field in needed if getattr(first, field) is None)
        raise CommandError(
            f"DATA: {len(lacking)} of {len(configurations)} configurations have no {missing}: run "
            "`glassconv quench DATA --out FILE.h5` and use that file, or add --quench"
        )
    result = list(configurations)
    for i, found in zip(lacking, run_quench([configurations[i] for i in lacking], device), strict=True):
        result[i] = found
    return result


def run_quench(
    configurations: list[Configuration], device: torch.device, max_force: float = 1e-5
) -> list[Configuration]:
    """`glassconv.quench` on a device, with a progress bar; gives configurations on the CPU.

    Raises:
        CommandError: it did not converge.
    """
    from glassconv.simulation.quench import quench

    bar = ProgressBar("quench", len(configurations))
    try:
        found = quench(
            [configuration.to(device) for configuration in configurations],
            progress=lambda done, _total, force: bar.update(done, f"largest force {force:.1e}"),
            max_force=max_force,
        )
        return [configuration.to("cpu") for configuration in found]
    except RuntimeError as error:
        raise CommandError(f"quench: {error}") from error
    finally:
        bar.close()


def set_threads(threads: int | None) -> None:
    """Use so many threads; None leaves PyTorch's choice, every core."""
    if threads is None:
        return
    if threads < 1:
        raise CommandError(f"--threads: expected at least 1, got {threads}")
    most = max(256, os.cpu_count() or 1)
    if threads > most:
        raise CommandError(f"--threads: expected at most {most}, got {threads}")
    torch.set_num_threads(threads)
