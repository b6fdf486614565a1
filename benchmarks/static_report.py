"""What the compiler says of every CUDA kernel: registers, spills, occupancy, and instructions. No GPU needed.

    python benchmarks/static_report.py                     # all architectures, into results/static
    python benchmarks/static_report.py --arch 9.0 --check  # one architecture, the gate alone

The gate fails for a kernel that spills or has a stack frame, unless `ALLOWED` says so. Counting instructions
needs nvdisasm (the extra `static`); without it that part is left out, and the report says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import sass
from occupancy import LIMITS, Occupancy, occupancy

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/static"

# Representative launches: kernel without template arguments -> (label, threads of a block, dynamic shared
# bytes). A kernel that is not named here counts with its launch bounds and without shared memory.
# The tiles of the convolution: all SO(3) paths, l_max 3, low-rank weights of 16 features.
LAUNCHES: dict[str, list[tuple[str, int, int]]] = {
    "conv_forward_kernel": [("C = 8", 128, 54_912), ("C = 32", 128, 39_104)],
    "conv_backward_kernel": [("C = 8", 128, 63_232), ("C = 32", 128, 43_456)],
    "conv_double_backward_kernel": [("C = 8", 128, 79_680), ("C = 32", 128, 50_368)],
    "short_rows_kernel": [("", 128, 8_192)],
    "long_rows_kernel": [("", 512, 32_768)],
    "sum_parts_kernel": [("float64", 512, 4_096)],
}


@dataclass(frozen=True)
class Allowed:
    """A kernel that may have a stack frame or spills of so many bytes; kernel and arch are patterns."""

    kernel: str
    arch: str
    at_most: int
    reason: str


PER_STRUCTURE = "one thread for each structure: small arrays indexed at run time"
L4_IN_FLOAT64 = (
    "couplings of l = 4 in float64: matrices of up to 77 entries beside four inputs of 9 exceed 255 registers"
)
FLOAT64_SINCE_10 = (
    "float64 code for 10.0 and later takes more registers than for 8.0 and 9.0, which have none of this"
)
ALLOWED = [
    Allowed("grids_kernel", "*", 448, PER_STRUCTURE),
    Allowed("lattices_kernel", "*", 72, PER_STRUCTURE),
    Allowed("conv_double_backward_kernel<double, true>", "8.0", 64, L4_IN_FLOAT64),
    Allowed("conv_double_backward_kernel<double, true>", "9.0", 64, L4_IN_FLOAT64),
    Allowed("conv_double_backward_kernel<double, true>", "1[02].0", 672, L4_IN_FLOAT64),
    Allowed("conv_double_backward_kernel<double, false>", "1[02].0", 144, FLOAT64_SINCE_10),
    Allowed("conv_forward_kernel<double, true>", "1[02].0", 64, FLOAT64_SINCE_10),
]
# The two kernels that decide the speed of training and simulation: nothing is allowed to them, ever.
NEVER = ("conv_forward_kernel<float*", "conv_backward_kernel<float*")

# Instructions per edge and lane of code that is specialized for all SO(3) paths up to l_max 1, 2, 3 and has
# one lane for each channel: what the loops over edges are compared with.
SPECIALIZED = {"conv_forward_kernel": (154, 429, 1248), "conv_backward_kernel": (371, 1248, 3803)}


@dataclass
class Kernel:
    """One instance of a `__global__` function on one architecture; sizes in bytes."""

    name: str  # demangled, without namespaces and parameters
    file: str
    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0
    constant: int = 0
    max_threads: int | None = None
    launches: list[dict[str, Any]] = field(default_factory=list)
    instructions: dict[str, int] | None = None
    edge_loops: list[dict[str, Any]] = field(default_factory=list)

    @property
    def local(self) -> int:
        """The largest of what the gate wants to be zero."""
        return max(self.stack, self.spill_stores, self.spill_loads)


def build_script() -> Any:
    """setup.py as a module: the report compiles with the flags of the build."""
    spec = importlib.util.spec_from_file_location("glassconv_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_ptxas(log: str) -> dict[str, dict[str, int]]:
    """Mangled name -> sizes of every kernel, and of functions that are called, in the log of `ptxas -v`."""
    found: dict[str, dict[str, int]] = {}
    name = ""
    patterns = {
        "stack": r"(\d+) bytes (?:stack frame|cumulative stack size)",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
        "registers": r"Used (\d+) registers",
        "shared": r"(\d+) bytes smem",
    }
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'|Function properties for (\S+)", line):
            name = match[1] or match[2]
            found.setdefault(name, {})
        elif name:
            for key, pattern in patterns.items():
                if match := re.search(pattern, line):
                    found[name][key] = max(int(match[1]), found[name].get(key, 0))
    return found


def parse_entries(ptx: str) -> dict[str, int | None]:
    """Mangled kernel name -> most threads of a block (`__launch_bounds__`), None where not given."""
    found: dict[str, int | None] = {}
    for name, directives in re.findall(r"\.entry\s+(\S+?)\s*\([^)]*\)([^{]*)\{", ptx):
        bounds = re.search(r"\.(?:maxntid|reqntid)\s+([\d, ]+)", directives)
        sizes = [int(size) for size in bounds[1].split(",")] if bounds else None
        found[name] = math.prod(sizes) if sizes else None
    return found


def constants(cubin: Path) -> Counter[str]:
    """Mangled kernel name -> bytes in its constant banks (parameters, literals)."""
    listing = subprocess.run(
        ["readelf", "-SW", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    pattern = r"\s\.nv\.constant\d+\.(\S+)\s+\S+\s+[0-9a-f]+\s+[0-9a-f]+\s+([0-9a-f]+)"
    sizes: Counter[str] = Counter()
    for name, size in re.findall(pattern, listing):
        sizes[name] += int(size, 16)
    return sizes


class Compiler:
    """nvcc with the build's flags, and the reader of what it leaves."""

    def __init__(self) -> None:
        self.build = build_script()
        self.toolkit = self.build.find_toolkit()
        if self.toolkit is None:
            raise SystemExit("static report: no CUDA toolkit found: set CUDA_HOME to it")
        self.nvcc = self.toolkit / "bin/nvcc"
        self.cxx = self.build.find_compiler()
        self.nvdisasm = sass.find_nvdisasm(self.toolkit)

    def command(self, source: Path, arch: str, folder: Path) -> list[str]:
        """nvcc's; line numbers, for the names of the loops, leave the code as it is."""
        number = arch.replace(".", "")
        what = [f"-gencode=arch=compute_{number},code=sm_{number}", "-cubin", "-Xptxas=-v"]
        what += ["-lineinfo"] if self.nvdisasm else []
        where = ["--keep", f"--keep-dir={folder}", "-o", str(folder / "out.cubin")]
        flags = ["-ccbin", self.cxx, *self.build.nvcc_flags(source)]
        return [str(self.nvcc), *flags, *what, *where, str(source)]

    def kernels(self, source: Path, arch: str) -> tuple[list[Kernel], float]:
        """Compile one source for one architecture: its kernels, and the seconds it took."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            started = time.perf_counter()
            done = subprocess.run(
                self.command(source, arch, folder), capture_output=True, text=True, check=False
            )
            seconds = time.perf_counter() - started
            if done.returncode != 0:
                raise SystemExit(f"{source}: nvcc failed for {arch}\n{done.stderr[-4000:]}")
            ptx = (folder / f"{source.stem}.ptx").read_text()
            found = self.read(source, parse_ptxas(done.stdout + done.stderr), ptx, folder / "out.cubin")
        return found, seconds

    def read(self, source: Path, sizes: dict[str, dict[str, int]], ptx: str, cubin: Path) -> list[Kernel]:
        """Gather the kernels of one compilation."""
        threads = parse_entries(ptx)
        banks = constants(cubin) if sizes else Counter[str]()
        names = sass.demangle(sorted(sizes)) if sizes else {}
        codes: dict[str, sass.Code] = {}
        if self.nvdisasm and threads:
            codes, inlining = sass.parse(sass.disassemble(self.nvdisasm, cubin)), sass.Inlining(ptx)
        kernels = []
        for mangled, kernel_sizes in sizes.items():
            kernel = Kernel(names[mangled], source.name, **kernel_sizes, constant=banks[mangled])
            kernel.max_threads = threads.get(mangled)
            if mangled in codes:
                counts = codes[mangled].counts()
                kernel.instructions = {"total": counts.total(), **dict(sorted(counts.items()))}
                kernel.edge_loops = sass.edge_loops(codes[mangled], inlining)
            if mangled not in threads:
                kernel.name += " (called)"
            kernels.append(kernel)
        return kernels


def add_launches(kernels: list[Kernel], arch: str) -> None:
    """Occupancy of the representative launches."""
    for kernel in kernels:
        shapes = LAUNCHES.get(kernel.name.split("<")[0], [])
        if not shapes and kernel.max_threads:
            shapes = [("", kernel.max_threads, 0)]
        for label, n_threads, dynamic in shapes:
            fits: Occupancy = occupancy(arch, kernel.registers, n_threads, kernel.shared + dynamic)
            kernel.launches.append(
                {"label": label, "threads": n_threads, "dynamic_shared": dynamic, **asdict(fits)}
            )


def gate(kernels: list[Kernel], arch: str, allowed: list[Allowed]) -> list[str]:
    """What is wrong: spills without an exception, exceptions without a spill, launches of no kernel."""
    wrong = []
    here = [exception for exception in allowed if fnmatchcase(arch, exception.arch)]
    used = set()
    for kernel in kernels:
        said = f"sm_{arch.replace('.', '')}: {kernel.file}: {kernel.name}"
        fitting = [exception for exception in here if fnmatchcase(kernel.name, exception.kernel)]
        if fitting and any(fnmatchcase(kernel.name, never) for never in NEVER):
            wrong.append(f"{said}: expected no exception for this kernel, got {fitting[0]}")
            fitting = []
        local = (kernel.instructions or {}).get("LDL", 0) + (kernel.instructions or {}).get("STL", 0)
        if kernel.local or local:
            used.update(fitting)
            most = max((exception.at_most for exception in fitting), default=0)
            if kernel.local > most or not fitting:
                wrong.append(
                    f"{said}: expected at most {most} bytes of local memory, got {kernel.stack} of stack, "
                    f"{kernel.spill_stores} of spill stores and {kernel.spill_loads} of loads, "
                    f"{local} instructions on it"
                )
        names = {launch["label"]: launch for launch in kernel.launches}
        wrong += [
            f"{said}: launch {label!r} does not fit on a multiprocessor"
            for label, launch in names.items()
            if launch["blocks"] == 0
        ]
        if not kernel.launches and re.search(r"_kernel(<|$)", kernel.name):  # CUB's have other names
            wrong.append(f"{said}: expected __launch_bounds__ or an entry in LAUNCHES, got neither")
    wrong += [f"unused exception: {exception}" for exception in here if exception not in used]
    known = {kernel.name.split("<")[0] for kernel in kernels}
    wrong += [f"LAUNCHES: no kernel is called {name}" for name in LAUNCHES if name not in known]
    return wrong


def table(header: list[str], rows: list[list[Any]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def abbreviated(name: str) -> str:
    """A name that leaves room for the numbers."""
    return f"`{name if len(name) <= 80 else name[:77] + '...'}`"


def markdown(record: dict[str, Any], kernels: list[Kernel]) -> str:
    """The report of one architecture."""
    lines = [f"# {record['target']}: what the compiler says", ""]
    lines += [f"{record['nvcc']}; {record['date']}, commit {record['commit']}; `{record['command']}`", ""]
    lines += [f"Flags: `{record['flags']}`; neighbors: and `--fmad=false`", ""]
    header = ["kernel", "registers", "stack", "spill stores", "loads", "shared", "constant"]
    header += ["launch: threads, dynamic shared", "blocks/SM", "warps/SM", "limit"]
    rows: list[list[Any]] = []
    for kernel in kernels:
        row = [abbreviated(kernel.name), kernel.registers, kernel.stack, kernel.spill_stores]
        row += [kernel.spill_loads, kernel.shared, kernel.constant]
        for launch in kernel.launches or [{}]:
            shape = f"{launch['label']} {launch['threads']}, {launch['dynamic_shared']}" if launch else ""
            rows.append([*row, shape.strip(), *(launch.get(key, "") for key in ("blocks", "warps", "limit"))])
    lines += table(header, rows)
    if record["nvdisasm"] is None:
        return "\n".join([*lines, "Instructions: not counted, nvdisasm was not there.", ""])
    classes = [*sass.CLASSES, "other"]
    counted = [kernel for kernel in kernels if kernel.instructions]
    rows = [
        [abbreviated(k.name), *((k.instructions or {}).get(c, 0) for c in ["total", *classes])]
        for k in counted
    ]
    lines += ["Instructions in the code:", "", *table(["kernel", "total", *classes], rows)]
    return "\n".join([*lines, *edge_table(kernels)])


def edge_table(kernels: list[Kernel]) -> list[str]:
    """Instructions per edge and lane of the convolution."""
    rows: list[list[Any]] = []
    for kernel in kernels:
        compared = SPECIALIZED.get(kernel.name.removesuffix("<float, false>"), ())
        for l_max in range(1, 5):
            if total := sass.edge_total(kernel.edge_loops, l_max):
                with_what = compared[l_max - 1] if l_max <= len(compared) else None
                ratio = f"{total[0] / with_what:.2f}" if with_what else ""
                rows.append([abbreviated(kernel.name), l_max, total[1], total[0], with_what or "", ratio])
    if not rows:
        return []
    header = ["kernel", "l_max", "cases", "instructions", "specialized code", "ratio"]
    return ["Instructions per edge and lane, all SO(3) paths:", "", *table(header, rows)]


def report(
    compiler: Compiler, arch: str, sources: list[Path], n_jobs: int
) -> tuple[dict[str, Any], list[Kernel]]:
    """Compile everything for one architecture."""
    with ThreadPoolExecutor(n_jobs) as pool:
        compiled = list(pool.map(lambda source: compiler.kernels(source, arch), sources))
    kernels = sorted((k for found, _ in compiled for k in found), key=lambda k: (k.file, k.name))
    add_launches(kernels, arch)
    seconds = {source.name: round(time, 1) for source, (_, time) in zip(sources, compiled, strict=True)}
    return {"arch": arch, "target": f"sm_{arch.replace('.', '')}", "compile_s": seconds}, kernels


def provenance(compiler: Compiler) -> dict[str, Any]:
    """Where the report comes from."""
    from glassconv._environment import environment

    surroundings = environment()
    said = subprocess.run([compiler.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "nvcc": re.sub(r"^.*release (\S+), (V\S+).*$", r"nvcc \1 \2", said.strip(), flags=re.DOTALL),
        "nvdisasm": compiler.nvdisasm and sass.version(compiler.nvdisasm),
        "flags": " ".join(compiler.build.nvcc_flags(Path("conv.cu"))),
        "commit": surroundings["commit"],
        "date": surroundings["date"],
        "command": shlex.join(["python", *sys.argv]),
    }


def main() -> int:
    """Compile, write the reports, and run the gate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", action="append", choices=list(LIMITS), help="default: those of the build")
    parser.add_argument("--check", action="store_true", help="the gate alone: write nothing")
    arguments = parser.parse_args()
    compiler = Compiler()
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    archs = arguments.arch or [arch.removesuffix("+PTX") for arch in compiler.build.CUDA_ARCHS.split(";")]
    if arguments.check:
        compiler.nvdisasm = None  # the compiler's log alone decides
    elif compiler.nvdisasm is None:
        print("static report: instructions are not counted: no nvdisasm (pip install nvidia-cuda-nvdisasm)")
    n_jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    wrong = []
    for arch in archs:
        record, kernels = report(compiler, arch, sources, n_jobs)
        found = gate(kernels, arch, ALLOWED)
        wrong += found
        print(
            f"{record['target']}: {len(kernels)} kernels, {len(found)} errors; seconds: {record['compile_s']}"
        )
        if not arguments.check:
            from glassconv._files import write_json, write_text

            RESULTS.mkdir(parents=True, exist_ok=True)
            record = {**record, **provenance(compiler)}
            write_json(
                RESULTS / f"{record['target']}.json", {**record, "kernels": [asdict(k) for k in kernels]}
            )
            write_text(RESULTS / f"{record['target']}.md", markdown(record, kernels))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
