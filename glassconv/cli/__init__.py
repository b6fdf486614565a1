"""The command ``glassconv``: train, evaluate, simulate, quench, info.

Exit codes: 0 done; 2 unsuitable input, said in one line on stderr; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from glassconv.cli import evaluate, info, quench, simulate, train
from glassconv.cli.common import CommandError, Parser

__all__ = ["main"]

_COMMANDS = (train, evaluate, simulate, quench, info)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments after the program's name; default ``sys.argv[1:]``.

    Returns:
        The exit code (module docstring). Bad options and ``--help`` leave by SystemExit, as argparse does.
    """
    arguments = _parser().parse_args(argv)
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
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="glassconv",
        description="Equivariant networks that predict the dynamics of glassy liquids from their structure.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser
