"""README.md is true: its example runs as printed and prints what it says, and what it names exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import report

from glassconv import _native

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def example() -> str:
    block = re.search(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert block is not None
    return block.group(1)


@pytest.mark.parametrize("choice", ["reference", "native"])
def test_example_runs_as_printed(choice: str, tmp_path: Path) -> None:
    if choice == "native" and _native.native() is None:
        pytest.skip("native extension not built")
    expected = re.search(r"^print\(.*?\) +# (.+)$", example(), re.MULTILINE)
    assert expected is not None, "the example's last line says what it prints"
    result = subprocess.run(
        [sys.executable, "-c", example()],
        cwd=tmp_path,
        env={**os.environ, "GLASSCONV_BACKEND": choice},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == expected.group(1)
    assert not result.stderr, "the example runs without a warning"


def test_make_targets_exist() -> None:
    targets = set(
        re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = set(re.findall(r"\bmake ([a-z-]+)\b(?! python3)", re.sub(r"apt install [^`)]*", "", README)))
    assert named, "the README names make targets"
    assert named <= targets


def test_named_files_and_folders_exist() -> None:
    folders = re.findall(r"^    ((?:csrc|glassconv|tests)/\S*)", README, re.MULTILINE)
    parts = [f"glassconv/{name}" for name in re.findall(r"^      ([a-z]+/)", README, re.MULTILINE)]
    files = re.findall(r"`([A-Za-z]+(?:\.[a-z]+)?)` ?(?=[.;)]|$)", README, re.MULTILINE)
    files = [name for name in files if name in {"LICENSE", "constraints.txt"}]
    assert len(folders) >= 5
    assert len(parts) >= 5
    missing = [name for name in [*folders, *parts, *files] if not (REPOSITORY / name).exists()]
    assert not missing


def test_measurements_are_those_of_the_records() -> None:
    assert report.BEGIN + report.report() + report.END in README
