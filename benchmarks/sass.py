"""Machine code of a cubin, counted: instructions by class, and the innermost loops that multiply.

Needs `nvdisasm` (extra `static`, or a CUDA toolkit). Each instruction carries the line of PTX it came from,
and that the functions it was inlined from, so a loop has the name of the function that holds it.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate, product
from pathlib import Path
from typing import Any

# The first pattern that matches an opcode names its class. IMAD.MOV and HFMA2.MMA are moves on other units.
CLASSES = {
    "FFMA": r"FFMA2?$",
    "FMUL": r"FMUL2?$",
    "FADD": r"FADD2?$",
    "DFMA": r"DFMA",
    "DMUL": r"DMUL",
    "DADD": r"DADD",
    "MUFU": r"MUFU",
    "LDS": r"LDS",
    "STS": r"STS",
    "LDG": r"LDG|LD$",
    "STG": r"STG|ST$",
    "LDL": r"LDL",
    "STL": r"STL",
    "LDC": r"U?LDCU?$",
    "ATOM": r"ATOM|RED$|CCTL|MEMBAR",
    "SHFL": r"SHFL|VOTE|REDUX|MATCH|CREDUX",
    "BAR": r"BAR|WARPSYNC",
    "branch": r"BRA$|BRX|JMP|JMX|CALL|RET|EXIT|BSSY|BSYNC|BREAK|BMOV|ENDCOLLECTIVE|YIELD|NANOSLEEP|KILL|BPT",
    "move": r"HFMA2$|U?MOV|CS2R|CS2UR|S2R|S2UR|R2UR|P2R|R2P|PRMT|U?SEL$|FSEL",
    "integer": r"U?(IMAD|IADD|VIADD|LEA|P?LOP|SHF|SHL|SHR|ISETP|IABS|V?IMNMX|POPC|FLO|BREV|BMSK|I2F|F2I)",
}
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^\s;]*)([^;]*)")
LOCATION = re.compile(r"\s*\.loc\s+(\d+ \d+ \d+)(?:, function_name (\S+), inlined_at (\d+ \d+ \d+))?")
# How the functions are called that hold the loops over edges: one for each (l_in, l_sh, bits of the l_out).
# Lambdas within have names that contain theirs.
EDGE_CASE = re.compile(r"add_item<PathSet\{(\d), (\d), (\d+)u\}")
MULTIPLIES = ("FFMA", "FMUL", "DFMA", "DMUL")


@dataclass
class Instruction:
    """One machine instruction; `target` is the label a branch goes to."""

    opcode: str
    target: str | None
    ptx_line: int

    @property
    def kind(self) -> str:
        """Its class, a key of `CLASSES` or "other"."""
        if self.opcode.startswith(("IMAD.MOV", "IMAD.U32.MOV")):
            return "move"
        base = self.opcode.split(".")[0]
        return next((name for name, pattern in CLASSES.items() if re.match(pattern, base)), "other")


@dataclass
class Loop:
    """An innermost loop: the function that wrote it, and its instructions by class."""

    function: str
    counts: Counter[str]

    @property
    def instructions(self) -> int:
        """All of them, executed once per turn."""
        return self.counts.total()


@dataclass
class Code:
    """A kernel's instructions and the places that labels name."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def counts(self) -> Counter[str]:
        """Instructions by class."""
        return Counter(instruction.kind for instruction in self.instructions)

    def multiplying_spans(self) -> list[tuple[int, int]]:
        """(first, last) instruction of each loop that multiplies and contains no other such loop."""
        last: dict[int, int] = {}
        for index, instruction in enumerate(self.instructions):
            first = self.labels.get(instruction.target or "", index + 1)
            if first < index:
                last[first] = index
        products = [0, *accumulate(instruction.kind in MULTIPLIES for instruction in self.instructions)]
        spans = [span for span in sorted(last.items()) if products[span[1] + 1] > products[span[0]]]
        return [
            span
            for span in spans
            if not any(other != span and span[0] <= other[0] and other[1] <= span[1] for other in spans)
        ]


def find_nvdisasm(toolkit: Path | None) -> str | None:
    """The disassembler: on PATH, in the toolkit, or from the Python package."""
    folders = [toolkit / "bin"] if toolkit else []
    package = importlib.util.find_spec("nvidia")
    for place in (package.submodule_search_locations or []) if package else []:
        folders += sorted(Path(place).glob("*/bin"))
    found = (shutil.which("nvdisasm", path=path) for path in (None, *map(str, folders)))
    return next(filter(None, found), None)


def version(nvdisasm: str) -> str:
    """The disassembler's release, such as "13.0, V13.0.88"."""
    said = subprocess.run([nvdisasm, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\S+, \S+)", said)
    return found[1] if found else "unknown"


def disassemble(nvdisasm: str, cubin: Path) -> str:
    """The code sections, each instruction after the line of PTX it came from."""
    command = [nvdisasm, "-c", "-gp", str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse(listing: str) -> dict[str, Code]:
    """Mangled function name -> code."""
    codes: dict[str, Code] = {}
    code, line = Code(), 0
    for text in listing.splitlines():
        if found := re.match(r"\.text\.(\S+):$", text):
            code = codes[found[1]] = Code()
        elif found := re.match(r"\s*//## File .*, line (\d+)", text):
            line = int(found[1])
        elif found := re.match(r"(\S+):$", text):
            code.labels[found[1]] = len(code.instructions)
        elif (found := INSTRUCTION.match(text)) and found[1] != "NOP":
            target = re.search(r"`\((\.L\S*)\)", found[2]) if found[1].startswith("BRA") else None
            code.instructions.append(Instruction(found[1], target and target[1], line))
    return codes


class Inlining:
    """For a line of PTX, the functions that were inlined there (mangled; not the kernel)."""

    def __init__(self, ptx: str) -> None:
        self._names: dict[str, str] = {}
        self._lines = [0]
        self._stacks: list[tuple[str, ...]] = [()]
        label = None
        at: dict[str, tuple[str, ...]] = {}  # place in the source -> functions, where it was met last
        for number, text in enumerate(ptx.splitlines(), start=1):
            if found := LOCATION.match(text):
                place, function, caller = found.groups()
                at[place] = (*at.get(caller, ()), function) if function else ()
                self._lines.append(number)
                self._stacks.append(at[place])
            elif found := re.match(r"(\$L__info_string\d+):", text):
                label = found[1]
                self._names[label] = ""
            elif label and (found := re.match(r"\.b8 ([\d,]+)", text)):
                self._names[label] += bytes(map(int, found[1].split(","))).decode().strip("\0")
            else:
                label = None

    def functions(self, line: int) -> list[str]:
        """From the outermost to the innermost."""
        stack = self._stacks[bisect_right(self._lines, line) - 1]
        return [self._names.get(label, "") for label in stack]


def multiplying_loops(code: Code, inlining: Inlining) -> list[Loop]:
    """The loops of `multiplying_spans`, each with the innermost function that has all of its products."""
    loops = []
    for first, last in code.multiplying_spans():
        body = code.instructions[first : last + 1]
        holders: Counter[str] = Counter()
        depth: dict[str, int] = {}
        for instruction in body:
            if instruction.kind in MULTIPLIES:
                stack = inlining.functions(instruction.ptx_line)
                holders.update(set(stack))
                depth.update(zip(stack, range(len(stack)), strict=True))
        function = max(holders, key=lambda name: (holders[name], depth[name]), default="")
        loops.append(Loop(function, Counter(instruction.kind for instruction in body)))
    return loops


def demangle(names: list[str]) -> dict[str, str]:
    """Mangled -> short readable names."""
    listed = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return {name: short_name(full) for name, full in zip(names, listed.stdout.splitlines(), strict=True)}


def short_name(full: str) -> str:
    """`void glassconv::f<float>(int*)` -> `f<float>`."""
    full = re.sub(r"\(anonymous namespace\)::|_INTERNAL_\w+::|cub::CUB_\w+::|glassconv::|generic::", "", full)
    depth, start = 0, 0
    for end, letter in enumerate(full):
        if letter == "(" and depth == 0:
            return full[start:end]
        depth += (letter in "<(") - (letter in ">)")
        if letter in " :" and depth == 0:
            start = end + 1
    return full[start:]


def edge_loops(code: Code, inlining: Inlining) -> list[dict[str, Any]]:
    """The multiplying loops, those of one function together."""
    loops = multiplying_loops(code, inlining)
    names = demangle([loop.function or "-" for loop in loops]) if loops else {}
    by_function: dict[str, Counter[str]] = {}
    for loop in loops:
        name = names[loop.function or "-"]
        case = EDGE_CASE.search(name)
        counts = by_function.setdefault(case[0] if case else name, Counter())
        counts.update(loop.counts, instructions=loop.instructions, loops=1)
    return [{"function": name, **by_function[name]} for name in sorted(by_function)]


def edge_total(loops: list[dict[str, Any]], l_max: int) -> tuple[int, int] | None:
    """Instructions per edge and lane for all SO(3) paths up to l_max, and the number of cases they are in.

    Each pair (l_in, l_sh) takes the largest case that fits what is left of its l_out, as the kernels do.
    None where a case is missing.
    """
    cases: dict[tuple[int, int], dict[int, int]] = {}
    for loop in loops:
        if found := EDGE_CASE.fullmatch(loop["function"]):
            l_in, l_sh, degrees = map(int, found.groups())
            cases.setdefault((l_in, l_sh), {})[degrees] = loop["instructions"]
    total, n_cases = 0, 0
    for l_in, l_sh in product(range(l_max + 1), repeat=2):
        left = sum(1 << l for l in range(abs(l_in - l_sh), min(l_max, l_in + l_sh) + 1))
        while left:
            fitting = [degrees for degrees in cases.get((l_in, l_sh), {}) if degrees & ~left == 0]
            if not fitting:
                return None
            best = max(fitting, key=lambda degrees: (degrees.bit_count(), -degrees))
            total, n_cases, left = total + cases[l_in, l_sh][best], n_cases + 1, left & ~best
    return total, n_cases
