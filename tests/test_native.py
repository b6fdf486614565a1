"""Loading the extension: absent, built for another torch, forced by the environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import glassconv

# What `import glassconv._C` meets where no extension was built.
ABSENT = "import sys; sys.modules['glassconv._C'] = None; "
USE = """
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import glassconv
    for _ in range(2):
        graph = glassconv.neighbor_list(torch.rand(5, 3), 0.5, cell=torch.ones(3))
        glassconv.spherical_harmonics(graph.vectors(torch.rand(5, 3), torch.ones(3)), 2)
    print(glassconv.backend(), sum("using the slower PyTorch reference" in str(w.message) for w in caught))
    print(*(w.message for w in caught))
"""


def run(code: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("GLASSCONV_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder or Path(glassconv.__file__).parent.parent,
        env=cleared | environment,
        timeout=120,
    )


def test_absent_extension_is_said_once_and_the_reference_serves() -> None:
    done = run(ABSENT + USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "reference 1"


def test_absent_extension_is_an_error_when_it_is_demanded() -> None:
    done = run(ABSENT + USE, GLASSCONV_BACKEND="native")
    assert done.returncode != 0
    assert "glassconv._C" in done.stderr.splitlines()[-1]


def test_forced_reference_is_silent() -> None:
    done = run(USE, GLASSCONV_BACKEND="reference")
    assert done.stdout.splitlines()[0] == "reference 0", done.stderr


def test_extension_of_another_torch_is_recognized(tmp_path: Path) -> None:
    package = Path(glassconv.__file__).parent
    shutil.copytree(package, tmp_path / "glassconv", ignore=shutil.ignore_patterns("*.h5", "__pycache__"))
    (tmp_path / "glassconv/_build.json").write_text(json.dumps({"torch": "1.13.1+cu117"}))
    done = run(USE, folder=tmp_path)
    assert done.stdout.splitlines()[0] == "reference 1", done.stderr
    assert "built with torch 1.13.1+cu117" in done.stdout
    assert "pip install --no-build-isolation" in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "GLASSCONV_BACKEND",
            "GLASSCONV_BACKEND: expected one of ('native', 'reference') or 'auto', got 'fast'",
        ),
        ("GLASSCONV_ISA", "GLASSCONV_ISA: expected one of ('plain', 'avx2', 'avx512'), got 'fast'"),
    ],
)
def test_wrong_values_in_the_environment(name: str, message: str) -> None:
    done = run("import glassconv; glassconv.backend()", **{name: "fast"})
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]


def test_wrong_name_of_a_backend() -> None:
    with (
        pytest.raises(ValueError, match=r"name: expected one of .*, got 'cuda'"),
        glassconv.use_backend("cuda"),
    ):
        pass


def test_backend_in_a_block(native_extension: None) -> None:
    with glassconv.use_backend("reference"):
        assert glassconv.backend() == "reference"
        with glassconv.use_backend("native"):
            assert glassconv.backend() == "native"
        assert glassconv.backend() == "reference"


def test_threads_choose_independently(native_extension: None) -> None:
    """One thread's block must not end or change another's."""
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with glassconv.use_backend("reference"):
            entered.set()
            leave.wait(timeout=60)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(timeout=60)
    with glassconv.use_backend("native"):
        leave.set()
        thread.join()
        assert glassconv.backend() == "native"
