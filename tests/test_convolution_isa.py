"""Each instruction set the CPU kernels are compiled for, against the reference, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
import glassconv
from glassconv import _native
from oracles import DTYPES, FORMS, SMALL_CASES, TOLERANCE
from oracles import derivatives, random_arguments, random_graph, relative_error

print(_native.native().build_info()["isa"])
graph = random_graph(7, 90)
for name in ("tiny", "odd", "l4"):
    paths = SMALL_CASES[name].paths
    for form in FORMS:
        arguments = random_arguments(paths, graph, form)
        oracle = derivatives(lambda **t: glassconv.reference.conv(t.pop("x"), graph, paths, **t), arguments)
        for dtype in DTYPES:
            cast = {key: value.to(dtype) for key, value in arguments.items()}
            ours = derivatives(lambda **t: glassconv.conv(t.pop("x"), graph, paths, **t), cast)
            for key in oracle:
                error = relative_error(ours[key], oracle[key])
                assert error < TOLERANCE[dtype], (name, form, dtype, key, error)
"""


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_instruction_set(native_extension: None, isa: str) -> None:
    environment = os.environ | {"GLASSCONV_ISA": isa, "GLASSCONV_BACKEND": "native"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    if done.stdout.split() != [isa]:
        pytest.skip(f"{isa}: not on this machine")
