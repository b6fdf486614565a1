"""What is generated and compiled: the coupling header, the separate instruction sets, the CUDA part."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

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


@pytest.fixture(scope="module")
def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("glassconv_setup", REPOSITORY / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_architectures(build_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert build_script.arch_flags() == ["-gencode=arch=compute_90,code=sm_90"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 12.0a+PTX")
    assert build_script.arch_flags()[:3] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_120a,code=sm_120a",
        "-gencode=arch=compute_120a,code=compute_120a",
    ]
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    kinds = re.findall(r",code=(\w+)", " ".join(build_script.arch_flags()))
    assert kinds == ["sm_80", "sm_90", "sm_100", "sm_120", "compute_120"]


def test_malformed_architecture(build_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;Hopper")
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST: expected numbers like 9\.0.* got 'Hopper'"):
        build_script.arch_flags()


@pytest.mark.parametrize(
    ("name", "fuses"), [("conv_forward", True), ("neighbors", False), ("neighbors_rows", False)]
)
def test_distances_are_not_fused(build_script: ModuleType, name: str, fuses: bool) -> None:
    """The same decisions at the cutoff on every backend."""
    flags = build_script.nvcc_flags(Path(f"{name}.cu"))
    assert ("--fmad=false" not in flags) == fuses


def test_wanted_toolkit_is_found_or_refused(
    build_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build_script, "find_toolkit", lambda: None)
    monkeypatch.setenv("GLASSCONV_CUDA", "1")
    with pytest.raises(SystemExit, match="no CUDA toolkit was found: set CUDA_HOME"):
        build_script.find_cuda()
    monkeypatch.setenv("GLASSCONV_CUDA", "auto")
    assert build_script.find_cuda() == (None, "no CUDA toolkit found")
    monkeypatch.setattr(build_script, "find_toolkit", lambda: tmp_path)
    assert build_script.find_cuda() == (tmp_path, f"toolkit at {tmp_path}")
    monkeypatch.setenv("GLASSCONV_CUDA", "0")
    assert build_script.find_cuda() == (None, "GLASSCONV_CUDA=0")
    monkeypatch.setenv("GLASSCONV_CUDA", "yes")
    with pytest.raises(SystemExit, match="GLASSCONV_CUDA: expected auto, 1 or 0, got 'yes'"):
        build_script.find_cuda()


def test_half_a_toolkit_is_none(
    build_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder with a compiler but without headers: distributions split the toolkit."""
    half, whole = tmp_path / "half", tmp_path / "whole"
    for home in (half, whole):
        (home / "bin").mkdir(parents=True)
        (home / "bin/nvcc").touch(mode=0o755)
    (whole / "include").mkdir()
    (whole / "include/cuda_runtime.h").touch()
    monkeypatch.setenv("CUDA_HOME", str(whole))
    assert build_script.find_toolkit() == whole
    monkeypatch.setenv("CUDA_HOME", str(half))
    assert build_script.find_toolkit() != half


def test_module_needs_no_library_of_cuda(native_extension: None) -> None:
    """It imports where there is no driver, and beside a torch with or without CUDA."""
    from glassconv import _native

    path = _native.native().__file__
    needed = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
    libraries = re.findall(r"NEEDED.*\[(.+)\]", needed)
    assert any(name.startswith("libtorch") for name in libraries)
    assert not [name for name in libraries if re.search("cuda|nvrtc", name)]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("echo 9.0", "9.0"),
        ("printf '12.0\\n8.6\\n12.0\\n'", "12.0 8.6"),
        ("echo NVIDIA-SMI has failed; exit 9", "9.0+PTX"),
        ("exit 127", "9.0+PTX"),
    ],
)
def test_make_builds_for_the_gpu_that_is_there(said: str, expected: str, tmp_path: Path) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\n{said}\n")
    driver.chmod(0o755)
    probe = tmp_path / "probe.mk"
    probe.write_text("probe:\n\t@echo $$TORCH_CUDA_ARCH_LIST\n")
    # what an outer make passes on would count as given
    passed_on = {"TORCH_CUDA_ARCH_LIST", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in passed_on}
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    command = ["make", "-s", "-f", str(REPOSITORY / "Makefile"), "-f", str(probe), "probe"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert result.stdout.split() == expected.split()
