"""``glassconv info``: what a bug report needs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from glassconv._environment import environment
from glassconv.cli.common import add_command


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "info", run, "Print versions, backend and devices. Paste it into a bug report."
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print the environment."""
    found = environment()
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    packages, cuda = found.pop("packages"), found.pop("cuda")
    rows = {**found, "devices": ", ".join(found["devices"])}
    rows["cuda kernels"] = cuda["kernels"] or "not built"
    rows["torch's cuda"] = cuda["torch"] or "none"
    rows |= {name: "not installed" if version is None else version for name, version in packages.items()}
    for name, value in rows.items():
        print(f"{name:<12} {json.dumps(value) if isinstance(value, dict) else value}")
