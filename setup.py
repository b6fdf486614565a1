"""Build of the native extension glassconv._C, with ninja.

Environment: GLASSCONV_CUDA=auto|1|0, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS. See "Building" in the README.
GLASSCONV_NATIVE=0 installs the pure-Python package alone.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CXXFLAGS = "-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra".split()
# -Xcicc -O2: the device compiler's default, -O3, takes up to twice as long for the same registers
NVCCFLAGS = (
    "-std=c++20 -O3 -Xcicc -O2 --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra"
).split()
CUDA_ARCHS = "8.0;9.0;10.0;12.0+PTX"
# one object per instruction set: (name, flags); the first runs everywhere
ISA_LEVELS = [("plain", [])]
if platform.machine() in ("x86_64", "AMD64"):
    avx512 = "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mprefer-vector-width=512"
    ISA_LEVELS += [
        ("avx2", ["-DGLASSCONV_LANE_BYTES=32", "-mavx2", "-mfma"]),
        ("avx512", ["-DGLASSCONV_LANE_BYTES=64", "-mavx2", "-mfma", *avx512.split()]),
    ]
# sources compiled once per instruction set; the first are the slowest and should start first
PER_ISA = ["conv_double_backward", "conv_backward", "conv_forward", "spherical_harmonics", "neighbors_rows"]


def find_compiler() -> str:
    """The C++ compiler, checked to be there and recent enough."""
    cxx = shutil.which(os.environ.get("CXX", "g++"))
    if cxx is None:
        raise SystemExit(
            "glassconv: no C++ compiler found. Install g++ 12 or newer (Debian, Ubuntu: apt install g++; "
            "conda: conda install gxx_linux-64), or set CXX to one.\n"
            "GLASSCONV_NATIVE=0 installs the slower pure-PyTorch package without one."
        )
    version = (
        subprocess.run([cxx, "-dumpfullversion"], capture_output=True, text=True, check=False).stdout or "0"
    )
    is_clang = (
        "clang" in subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout
    )
    if not is_clang and int(version.split(".")[0]) < 12:
        raise SystemExit(
            f"glassconv: expected g++ 12 or newer, got {cxx} {version.strip()}; set CXX to another one."
        )
    return cxx


def find_torch():
    """The torch to build against."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SystemExit(
            "glassconv: torch is not importable in the build environment. Install torch first, then:\n"
            "  pip install --no-build-isolation ."
        ) from error
    return torch, cpp_extension


def find_toolkit() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, else that of nvcc on PATH, else one in a standard place."""
    found = shutil.which("nvcc")
    candidates = [
        os.environ.get("CUDA_HOME"),
        found and str(Path(found).resolve().parents[1]),
        "/usr/local/cuda",
    ]
    candidates += sorted(map(str, Path("/usr/local").glob("cuda-*")), reverse=True)
    for home in filter(None, candidates):
        # `nvcc` on PATH may be a wrapper script outside the toolkit
        if (Path(home) / "bin/nvcc").exists() and (Path(home) / "include/cuda_runtime.h").exists():
            return Path(home)
    return None


def find_cuda() -> tuple[Path | None, str]:
    """The CUDA toolkit to build with (or None), and the reason in words."""
    wanted = os.environ.get("GLASSCONV_CUDA", "auto")
    if wanted not in ("auto", "1", "0"):
        raise SystemExit(f"GLASSCONV_CUDA: expected auto, 1 or 0, got {wanted!r}")
    if wanted == "0":
        return None, "GLASSCONV_CUDA=0"
    toolkit = find_toolkit()
    if toolkit is None and wanted == "1":
        raise SystemExit("GLASSCONV_CUDA=1, but no CUDA toolkit was found: set CUDA_HOME to it")
    return toolkit, f"toolkit at {toolkit}" if toolkit else "no CUDA toolkit found"


def cuda_version(cuda: Path) -> str:
    """The toolkit's release, such as "13.0"."""
    said = subprocess.run([cuda / "bin/nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\S+),", said)[1]


def nvcc_flags(source: Path) -> list[str]:
    """What decides the machine code of a CUDA source beside the architecture."""
    # a fused multiply-add that nobody asked for would move a distance across the cutoff
    return [*NVCCFLAGS, *(["--fmad=false"] if source.stem.startswith("neighbors") else [])]


def arch_flags() -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX"."""
    flags = []
    for arch in re.split(r"[; ]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHS):
        found = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", arch)
        if found is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected numbers like 9.0 or 9.0+PTX, got {arch!r}")
        number = found[1] + found[2]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if found[3]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    # the architectures of one source side by side: sources are few, and the slowest decides when all is done
    return [*flags, "--threads=4"] if len(flags) > 1 else flags


class NinjaBuild(build_ext):
    """Compiles every source with flags of its own, which setuptools' and torch's own builders cannot."""

    def build_extension(self, ext: Extension) -> None:
        torch, cpp_extension = find_torch()
        import pybind11

        cxx = find_compiler()
        cuda, reason = find_cuda()
        print(f"glassconv: torch {torch.__version__}, {cxx}; CUDA: {'yes' if cuda else 'no'} ({reason})")
        include = [sysconfig.get_paths()["include"], pybind11.get_include(), *cpp_extension.include_paths()]
        torch_flags = [
            *(shlex.quote(f"-isystem{path}") for path in include),
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
            f'-DGLASSCONV_TORCH_VERSION=\\"{torch.__version__}\\"',
            f'-DGLASSCONV_CUDA_VERSION=\\"{cuda_version(cuda) if cuda else ""}\\"',
            "-fopenmp",
        ]
        # a fused multiply-add that nobody asked for would move a distance across the cutoff
        exact = ["-ffp-contract=off"]
        # the slowest first, so that none of them runs alone at the end
        cuda_sources = sorted(
            (ROOT / "csrc/cuda").glob("*.cu"), key=lambda path: (path.stem[:4] != "conv", path)
        )
        jobs = [(path, "", [*nvcc_flags(path), *arch_flags()]) for path in cuda_sources if cuda]
        jobs += [
            (ROOT / f"csrc/cpu/{name}.cpp", isa, [f"-DGLASSCONV_ISA={isa}", *flags])
            for name in PER_ISA
            for isa, flags in reversed(ISA_LEVELS)
        ]
        # a backend that is not built is a file that is not compiled
        torch_sources = sorted((ROOT / "csrc/torch").glob("*.cpp"))
        jobs += [
            (path, "", torch_flags + exact) for path in torch_sources if cuda or "_cuda" not in path.stem
        ]
        rest = sorted(path for path in (ROOT / "csrc/cpu").glob("*.cpp") if path.stem not in PER_ISA)
        jobs += [(path, "", exact) for path in rest]
        link = [shlex.quote(f"-L{path}") for path in cpp_extension.library_paths()]
        link += ["-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10", "-fopenmp", "-s"]
        if cuda:
            # static, so that the module imports where there is no driver, beside a torch with or without CUDA
            link += [shlex.quote(f"-L{cuda}/lib64"), "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        self.run_ninja(ext, [cxx, cuda and str(cuda / "bin/nvcc")], jobs, link)
        record = Path(self.get_ext_fullpath(ext.name)).with_name("_build.json")
        record.write_text(json.dumps({"torch": torch.__version__}) + "\n")

    def run_ninja(self, ext: Extension, compilers: list, jobs: list, link: list[str]) -> None:
        """Write build.ninja (compile rules with dependency files, one link) and run it."""
        import ninja

        temp = Path(self.build_temp).resolve()
        temp.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)

        def escape(path: Path) -> str:
            return re.sub(r"([$ :])", r"$\1", str(path))

        compile_command = "$cxx -MMD -MF $out.d $cxxflags $flags -c $in -o $out"
        cuda_command = "$nvcc -ccbin $cxx -MMD -MF $out.d $flags -c $in -o $out"
        cxx, nvcc = compilers
        lines = [
            f"cxx = {shlex.quote(cxx)}",
            f"nvcc = {shlex.quote(nvcc or '')}",
            f"cxxflags = {' '.join(CXXFLAGS)} {os.environ.get('CXXFLAGS', '')}",
            f"rule compile\n  command = {compile_command}\n  description = compile $name",
            "  depfile = $out.d\n  deps = gcc",
            f"rule cuda\n  command = {cuda_command}\n  description = compile $name",
            "  depfile = $out.d\n  deps = gcc",
            "rule link\n  command = $cxx -shared $in $flags -o $out.part && mv $out.part $out",
            "  description = link $out",
        ]
        objects = []
        for source, variant, flags in jobs:
            name = f"{source.parent.name}/{source.stem}{variant and '.' + variant}"
            objects.append(temp / f"{name.replace('/', '.')}.o")
            rule = "cuda" if source.suffix == ".cu" else "compile"
            lines.append(f"build {escape(objects[-1])}: {rule} {escape(source)}")
            lines.append(f"  flags = {' '.join(flags)}\n  name = {name}")
        lines.append(f"build {escape(target)}: link {' '.join(map(escape, objects))}")
        lines.append(f"  flags = {' '.join(link)}")
        (temp / "build.ninja").write_text("\n".join(lines) + "\n")
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(temp)]
        if "MAX_JOBS" in os.environ:
            command.append(f"-j{os.environ['MAX_JOBS']}")
        subprocess.run(command, check=True)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        record = Path(self.build_lib) / "glassconv/_build.json"
        shutil.copy(record, ROOT / "glassconv" / record.name)


if __name__ == "__main__":
    setup(
        ext_modules=[]
        if os.environ.get("GLASSCONV_NATIVE") == "0"
        else [Extension("glassconv._C", sources=[])],
        cmdclass={"build_ext": NinjaBuild},
    )
