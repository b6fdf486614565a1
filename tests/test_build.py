"""What is generated and compiled: the coupling header, and the separation of the instruction sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ISA_LEVELS = ("plain", "avx2", "avx512")


def objects(isa: str) -> list[Path]:
    return sorted(REPOSITORY.glob(f"build/temp*/cpu.*.{isa}.o"))


def test_coupling_header_is_what_its_generator_writes() -> None:
    generator = REPOSITORY / "csrc/core/generate_clebsch_gordan.py"
    subprocess.run([sys.executable, str(generator), "--check"], check=True, timeout=300)


@pytest.mark.parametrize("isa", ISA_LEVELS)
def test_objects_share_no_code_between_instruction_sets(isa: str) -> None:
    """The linker keeps one copy of an inline function: one compiled for AVX-512 must not serve the others."""
    found = objects(isa)
    if not found:
        pytest.skip("objects of the build not kept")
    for path in found:
        names = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout
        functions = [line[19:] for line in names.splitlines() if line[17:18] in "WwTu"]
        assert functions
        # static members of templates are data (V, u); functions must belong to the level's own namespace
        strangers = [name for name in functions if f"glassconv::{isa}::" not in name]
        assert not strangers, f"{path.name}: {strangers[:5]}"
