"""Build the emulated backend: the CUDA sources, compiled by the C++ compiler against tests/emulated/include.

    python tests/emulated/build.py             # build/emulated/_emulated.so and _selftest.so
    python tests/emulated/build.py --sanitize  # the same in build/emulated-sanitized, with sanitizers

Environment: CXX, MAX_JOBS. Only what changed is compiled.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CSRC = REPOSITORY / "csrc"
CXXFLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
CXXFLAGS += ["-Wno-unknown-pragmas"]
# Of the undefined, what kernels can do wrong: checks of every pointer would double the time to compile.
UNDEFINED = "signed-integer-overflow,shift,bounds,alignment,integer-divide-by-zero,bool,enum"
# the first error ends the run: what a kernel finds outside of an array could be the right number
SANITIZERS = [f"-fsanitize=address,{UNDEFINED}", "-fno-sanitize-recover=all"]


def kernel_sources() -> list[Path]:
    """The files nvcc compiles."""
    return sorted((CSRC / "cuda").glob("*.cu"))


def binding_sources() -> list[Path]:
    """The torch side of the CUDA operators, without the file that registers them for CUDA tensors."""
    bindings = [path for path in sorted((CSRC / "torch").glob("*_cuda.cpp")) if path.stem != "library_cuda"]
    return [*bindings, CSRC / "torch/conv_arguments.cpp"]


def headers() -> list[Path]:
    """The headers of this project that those files may include."""
    folders = [CSRC / "core", CSRC / "cuda", CSRC / "torch"]
    return sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".h", ".cuh"))


def hashes() -> dict[str, str]:
    """SHA-256 of each file, by its path in the repository."""
    files = [*kernel_sources(), *binding_sources(), *headers()]
    return {
        path.relative_to(REPOSITORY).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def write_if_changed(path: Path, text: str) -> None:
    """Leave the time of an unchanged file alone, so that nothing is compiled again for it."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def escape(path: Path) -> str:
    """Write a path as ninja reads it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class Ninja:
    """The text of a build.ninja: one object for each source, shared by the modules that need it."""

    def __init__(self, folder: Path, flags: list[str], link: list[str]) -> None:
        cxx = shutil.which(os.environ.get("CXX", "g++")) or "g++"
        self.folder = folder
        self.lines = [
            f"cxx = {shlex.quote(cxx)}",
            f"common = {shlex.join(flags)}",
            "rule compile\n  command = $cxx -MMD -MF $out.d $common $flags -c $in -o $out",
            "  description = compile $in\n  depfile = $out.d\n  deps = gcc",
            f"link = {shlex.join(link)}",
            "rule link\n  command = $cxx -shared $in $link $flags -o $out.part && mv $out.part $out",
            "  description = link $out",
        ]

    def add(self, rule: str, target: str, sources: list[Path], flags: list[str]) -> Path:
        """One build statement; returns its target."""
        path = self.folder / target
        self.lines.append(f"build {escape(path)}: {rule} {' '.join(map(escape, sources))}")
        self.lines.append(f"  flags = {shlex.join(flags)}")
        return path

    def compile(self, source: Path, *flags: str) -> Path:
        """Compile one file."""
        kind = ["-x", "c++"] if source.suffix == ".cu" else []
        return self.add("compile", f"{source.parent.name}.{source.stem}.o", [source], [*kind, *flags])

    def run(self) -> None:
        """Build what changed."""
        import ninja

        write_if_changed(self.folder / "build.ninja", "\n".join(self.lines) + "\n")
        at_once = os.environ.get("MAX_JOBS", "2")
        command = [
            str(Path(ninja.BIN_DIR) / "ninja"),
            "-C",
            str(self.folder),
            f"-j{at_once}",
            "-k0",
            "--quiet",
        ]
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would write the same objects
            subprocess.run(command, check=True)


def build(*, sanitize: bool) -> None:
    """Compile and link both modules."""
    import pybind11
    import torch
    from torch.utils import cpp_extension

    folder = REPOSITORY / "build" / ("emulated-sanitized" if sanitize else "emulated")
    folder.mkdir(parents=True, exist_ok=True)
    entries = "".join(f'      {{"{path}", "{digest}"}},\n' for path, digest in hashes().items())
    write_if_changed(
        folder / "sources.cpp",
        "#include <map>\n#include <string>\n\nnamespace emulated {\n"
        "std::map<std::string, std::string> compiled_sources() {\n  return {\n"
        f"{entries}  }};\n}}\n}}  // namespace emulated\n",
    )
    optimize = ["-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZERS] if sanitize else ["-O2"]
    ninja = Ninja(folder, [*CXXFLAGS, *optimize, f"-I{HERE / 'include'}"], SANITIZERS if sanitize else [])
    python = [f"-isystem{path}" for path in (sysconfig.get_paths()["include"], pybind11.get_include())]
    torch_flags = [*python, *(f"-isystem{path}" for path in cpp_extension.include_paths())]
    torch_flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    runtime = [ninja.compile(HERE / "block.cpp"), ninja.compile(HERE / "runtime.cpp")]
    objects = [ninja.compile(path) for path in [*kernel_sources(), folder / "sources.cpp"]]
    objects += [ninja.compile(path, *torch_flags) for path in [*binding_sources(), HERE / "module.cpp"]]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    libraries += ["-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10"]
    ninja.add("link", "_emulated.so", [*objects, *runtime], libraries)
    ninja.add("link", "_selftest.so", [ninja.compile(HERE / "selftest.cu", *python), *runtime], [])
    ninja.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sanitize", action="store_true", help="with the address and UB sanitizers")
    build(sanitize=parser.parse_args().sanitize)
