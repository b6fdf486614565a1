"""A user's installation: `pip install` beside torch and the build requirements, and the errors without them.

Slow, and needs a package index: it fills new environments.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CONSTRAINTS = REPOSITORY / "constraints.txt"
SOURCES = ("csrc", "glassconv", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GLASSCONV_"))}
    env.update(environment)
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=1800, check=False
    )


def succeed(command: list[str], cwd: Path, **environment: str) -> str:
    result = run(command, cwd, **environment)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as a clone has them: nothing built."""
    folder = tmp_path_factory.mktemp("install") / "clone"
    folder.mkdir()
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
            )
        else:
            shutil.copy2(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def python(sources: Path) -> str:
    """The interpreter of a new environment that holds the build requirements except torch."""
    listed = re.search(r"^requires = (\[.*\])$", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert listed is not None
    requirements: list[str] = ast.literal_eval(listed.group(1))
    environment = sources.parent / "environment"
    succeed([sys.executable, "-m", "venv", str(environment)], sources)
    interpreter = str(environment / "bin" / "python")
    others = [requirement for requirement in requirements if not requirement.startswith("torch")]
    succeed([interpreter, "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS), *others], sources)
    return interpreter


@pytest.fixture(scope="module")
def python_with_torch(python: str, sources: Path) -> str:
    succeed([python, "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS), "torch"], sources)
    return python


@pytest.fixture(scope="module")
def installed(python_with_torch: str, sources: Path) -> str:
    install = ["install", "-q", "--no-build-isolation", "-c", str(CONSTRAINTS), "."]
    succeed([python_with_torch, "-m", "pip", *install], sources)
    return python_with_torch


def build_messages(python: str, sources: Path, **environment: str) -> str:
    """What a failing `pip install` prints."""
    command = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "."]
    result = run(command, sources, **environment)
    assert result.returncode != 0
    return result.stdout + result.stderr


def test_missing_torch_is_named(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = tmp_path_factory.mktemp("bare") / "environment"
    succeed([sys.executable, "-m", "venv", str(environment)], sources)
    python = str(environment / "bin" / "python")
    succeed([python, "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS), "setuptools", "wheel"], sources)
    messages = build_messages(python, sources)
    assert "torch" in messages
    assert "--no-build-isolation" in messages


def test_missing_compiler_is_named(python_with_torch: str, sources: Path) -> None:
    # The environment's own programs (ninja) stay; the system's compilers do not.
    path = str(Path(python_with_torch).parent)
    messages = build_messages(python_with_torch, sources, PATH=path, CXX="")
    assert "compiler" in messages
    assert "g++" in messages


def test_installed_package_works_away_from_its_sources(installed: str, tmp_path: Path) -> None:
    code = """
import glassconv, glassconv.data, torch
configurations = glassconv.data.sample()
first = configurations[0]
graph = glassconv.neighbor_list(first.positions, 2.0, cell=first.cell)
paths = glassconv.Paths("2x0e", 1, "2x0e+2x1o")
vectors = graph.vectors(first.positions, first.cell)
weight = torch.ones(graph.n_edges, paths.weight_numel, dtype=vectors.dtype)
x = torch.ones(graph.n_nodes, 2, dtype=vectors.dtype)
out = glassconv.conv(x, graph, paths, vectors=vectors, edge_weight=weight)
print(glassconv.backend(), tuple(out.shape) == (first.n_particles, paths.irreps_out.dim))
"""
    assert succeed([installed, "-W", "error::RuntimeWarning", "-c", code], tmp_path).split() == [
        "native",
        "True",
    ]


def test_installed_command_works(installed: str, tmp_path: Path) -> None:
    succeed([str(Path(installed).parent / "glassconv"), "info"], tmp_path)
    assert not list(tmp_path.iterdir()), "`glassconv info` writes nothing"


def test_installed_files_are_only_the_package(installed: str, tmp_path: Path) -> None:
    code = "import importlib.metadata as m; print(*(str(f) for f in m.files('glassconv')), sep='\\n')"
    files = succeed([installed, "-c", code], tmp_path).split()
    tops = {file.split("/")[0] for file in files if not file.startswith("..")}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"glassconv"}
    assert {"glassconv/py.typed", "glassconv/data/sample.h5"} <= set(files)
