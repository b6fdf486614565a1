"""The command ``glassconv``: train, evaluate, simulate, quench, info.

Exit codes: 0 done; 2 unsuitable input, said in one line on stderr; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from glassconv.cli import evaluate, info, quench, simulate, train
from glassconv.cli.common import CommandError, Parser

__all__ = ["main"]

_COMMANDS = (train, evaluate, simulate, quench, info)
_ALLOCATION = re.compile(r"allocate|out of memory|bad_alloc|storage size", re.IGNORECASE)
_INDICES = re.compile(r"-\d[\d,\s-]*")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments after the program's name; default ``sys.argv[1:]``.

    Returns:
        The exit code (module docstring). Bad options and ``--help`` leave by SystemExit, as argparse does.
    """
    arguments = _parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
    try:
        arguments.run(arguments)
    except KeyboardInterrupt as stop:
        print(f"\nglassconv: stopped{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    except (CommandError, ValueError, OSError, ImportError, ArithmeticError) as error:
        if arguments.traceback:
            raise
        print(f"glassconv {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # PyTorch says by RuntimeError that memory is short
        if arguments.traceback or not (isinstance(error, MemoryError) or _ALLOCATION.search(str(error))):
            raise
        print(
            f"glassconv {arguments.command}: not enough memory for these options and data "
            f"({' '.join(str(error).split())[:200] or type(error).__name__})",
            file=sys.stderr,
        )
        return 2
    return 0


def _joined(argv: Sequence[str]) -> list[str]:
    """Write ``--times -1,-2`` as ``--times=-1,-2``: argparse takes the values for an option otherwise."""
    result: list[str] = []
    for argument in argv:
        if result and result[-1] == "--times" and _INDICES.fullmatch(argument):
            result[-1] += f"={argument}"
        else:
            result.append(argument)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="glassconv",
        description="Equivariant networks that predict the dynamics of glassy liquids from their structure.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser
