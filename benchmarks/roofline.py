"""What this machine does at best: `roofline.cpp`, compiled here, checked in the disassembly, and run.

    python benchmarks/roofline.py [--threads 2] [--quick]

prints a JSON object: `loops` with the operations per second of each timed loop (`fma`: multiply-adds in
registers, in the plain set a multiplication and an addition; `memfma`: multiply-adds with one operand from
the first-level cache; `load`: loads from it), `bandwidths` in bytes per second (`copy`: bytes read and
written), from arrays of `array_bytes` on huge pages. A loop that held anything but what is counted (a spill,
a move) would report a fraction of the peak: `checked` says that every loop was found as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".cpp")
# The instructions of one iteration but for the two of the loop; {} stands for the letter of the type.
EXPECTED = {
    ("fma", "avx512"): {"vfmadd231p{}": 24},
    ("fma", "avx2"): {"vfmadd231p{}": 12},
    ("fma", "plain"): {"mulp{}": 12, "addp{}": 12},
    ("memfma", "avx512"): {"vfmadd231p{}": 24},
    ("memfma", "avx2"): {"vfmadd231p{}": 12},
    ("load", "avx512"): {"vmovaps": 24},
    ("load", "avx2"): {"vmovaps": 12},
    ("load", "plain"): {"movaps": 12},
}
REGISTER = {"avx512": "zmm", "avx2": "ymm", "plain": "xmm"}
Roofline = dict[str, Any]


def compile_source(program: Path) -> None:
    """Compile `roofline.cpp` with CXX, else g++."""
    command = [*os.environ.get("CXX", "g++").split(), "-std=c++17", "-O3", "-march=native", "-pthread"]
    subprocess.run([*command, str(SOURCE), "-o", str(program)], check=True, capture_output=True, text=True)


def instructions(program: Path, function: str) -> list[tuple[int, str, str]]:
    """Address, mnemonic and operands of each instruction of a function, as objdump finds them."""
    command = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}", str(program)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = re.findall(r"^\s*([0-9a-f]+):\t(\S+)[ \t]*(.*?)\s*$", text, re.MULTILINE)
    return [(int(address, 16), mnemonic, operands) for address, mnemonic, operands in lines]


def loop_body(listing: list[tuple[int, str, str]]) -> list[tuple[str, str]]:
    """Mnemonic and operands of the instructions between the target of the only backward jump and that jump.

    Raises:
        ValueError: no such jump, or several.
    """
    jumps = []
    for place, (address, mnemonic, operands) in enumerate(listing):
        target = re.match(r"([0-9a-f]+)\b", operands)
        if mnemonic.startswith("j") and target and int(target[1], 16) <= address:
            jumps.append((place, int(target[1], 16)))
    if len(jumps) != 1:
        raise ValueError(f"expected one loop, got {len(jumps)}")
    last, start = jumps[0]
    return [(m, operands) for address, m, operands in listing[: last + 1] if address >= start]


def problem_of(body: list[tuple[str, str]], what: str, isa: str, dtype: str) -> str | None:
    """What a timed loop holds that it should not, or lacks; None if it is as it should be."""
    letter = "s" if dtype == "float32" else "d"
    expected = {name.format(letter): n for name, n in EXPECTED[what, isa].items()}
    *work, count, jump = body
    found: dict[str, int] = {}
    for mnemonic, _ in work:
        found[mnemonic] = found.get(mnemonic, 0) + 1
    if found != expected or not count[0].startswith("dec") or jump[0] not in ("jne", "jnz"):
        return f"expected {expected} and the loop, got {found}, {count[0]}, {jump[0]}"
    targets: list[str] = []
    for mnemonic, operands in work:
        *_, target = operands.split(",")
        targets.append(target)
        reads_memory, stores = "(" in operands, "(" in target
        if stores or reads_memory != (what != "fma") or REGISTER[isa] not in target:
            return f"unexpected operands: {mnemonic} {operands}"
    if len(set(targets)) != sum(expected.values()) // len(expected):
        return f"expected independent chains, got the targets {sorted(set(targets))}"
    return None


def check(program: Path, loops: list[Roofline]) -> None:
    """Look at every loop that was timed.

    Raises:
        RuntimeError: one of them is not what it should be.
    """
    for what, isa, dtype in dict.fromkeys((loop["what"], loop["isa"], loop["dtype"]) for loop in loops):
        name = f"loop_{what}_{isa}_{dtype}"
        problem = problem_of(loop_body(instructions(program, name)), what, isa, dtype)
        if problem is not None:
            raise RuntimeError(f"{name}: {problem}")


def measure(max_threads: int = 2, *, quick: bool = False) -> Roofline:
    """Compile, run and check.

    Args:
        max_threads: measured on one thread, two, and so on, to as many (or as there are cores).
        quick: small arrays, which a cache may hold, and short loops.

    Raises:
        RuntimeError: a loop that is not as it should be.
        OSError, subprocess.SubprocessError: no compiler, or it failed.
    """
    threads = min(max_threads, len(os.sched_getaffinity(0)))
    seconds, n_bytes = (0.0005, 1 << 25) if quick else (0.004, 1 << 30)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "roofline"
        compile_source(program)
        command = [str(program), str(threads), str(seconds), str(n_bytes)]
        result: Roofline = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
        has_objdump = shutil.which("objdump") is not None
        if has_objdump:
            check(program, result["loops"])
    return {**result, "checked": has_objdump}


def rate(found: Roofline, what: str, dtype: str = "float32", threads: int = 1) -> tuple[float, str] | None:
    """Numbers (multiply-adds or loads) per second, of the instruction set that does most, and its name."""
    rates = [
        (loop["per_s"] * loop["lanes"], loop["isa"])
        for loop in found["loops"]
        if (loop["what"], loop["dtype"], loop["threads"]) == (what, dtype, threads)
    ]
    return max(rates, default=None)


def bandwidth(found: Roofline, threads: int = 1) -> float | None:
    """Bytes per second of reading or of copying, whichever is more."""
    values = [b["bytes_per_s"] for b in found["bandwidths"] if b["threads"] == threads]
    return max(values, default=None)


def main() -> int:
    """Print what is found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="the most threads")
    parser.add_argument("--quick", action="store_true", help="small arrays, short loops")
    options = parser.parse_args()
    print(json.dumps(measure(options.threads, quick=options.quick), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
