"""The stages that find out whether it works: build, tests, sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree as ET

import torch

from gpu.run import GRACE, ROOT, Context, Failure, Skip

# Tests of the kernels that are small enough for a tool that checks every access.
SMOKE = ["tests/test_cuda.py", "-k", "smoke"]
SANITIZERS = ("memcheck", "racecheck", "synccheck")
# What says something where there is no GPU, and is quick: the emulator runs the kernels' sources.
WITHOUT_GPU = ["tests/test_devices.py", "tests/test_gpu_check.py", "tests/test_spherical_harmonics.py"]
WITHOUT_GPU += ["-k", "emulated or devices or gpu_check"]
_STATUS = r"(PASSED|FAILED|SKIPPED|ERROR)"
_RESULT = re.compile(
    rf"^\[gw\d+\] \[ *\d+%\] {_STATUS} (tests/.*?) *$|^(tests/.*) {_STATUS}.* +\[ *\d+%\]$", re.MULTILINE
)


def build(context: Context) -> str:
    """The extension in place, for the GPU that is here; every architecture is the business of a release."""
    environment = dict(os.environ)
    if context.device != "cpu" and "TORCH_CUDA_ARCH_LIST" not in environment:
        major, minor = torch.cuda.get_device_capability()
        environment["TORCH_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    started = time.monotonic()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    seconds = time.monotonic() - started
    # in a process of its own: this one may have loaded the extension that was there before
    code = "from glassconv import _native; m = _native.native(); print(m.build_info() if m else None)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    info = found.stdout.strip().splitlines()[-1]
    archs = environment.get("TORCH_CUDA_ARCH_LIST", "default")
    context.record(benchmark="gpu build", seconds=seconds, architectures=archs, build_info=info)
    if context.device != "cpu" and "'cuda': ''" in info:
        raise Failure(f"built without CUDA kernels although there is a GPU: {info}")
    return f"built in {seconds:.0f} s for {archs}: {info}"


@dataclass
class TestCounts:
    """What a run of pytest says."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        """In one line, the most frequent reasons of skips included."""
        why = "; ".join(f"{count} x {reason}" for reason, count in self.reasons.most_common(4))
        return (
            f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped{f' ({why})' if why else ''}"
        )


def read_junit(path: Path) -> TestCounts:
    """Counts, reasons of skips, and the first line of each failure."""
    counts = TestCounts()
    for case in ET.parse(path).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        skip = case.find("skipped")
        if problem is not None:
            counts.failed += 1
            counts.failures.append(f"{name}: {(problem.get('message') or '').splitlines()[0:1]}")
        elif skip is not None:
            counts.skipped += 1
            counts.reasons[skip.get("message") or "no reason"] += 1
        else:
            counts.passed += 1
    return counts


def read_verbose(text: str) -> TestCounts:
    """The same from the lines of `pytest -v`, for a run that was stopped before its report."""
    counts = TestCounts()
    for status, name, other_name, other_status in _RESULT.findall(text):
        kind, test = status or other_status, name or other_name
        if kind in ("FAILED", "ERROR"):
            counts.failed += 1
            counts.failures.append(test)
        elif kind == "PASSED":
            counts.passed += 1
        else:
            counts.skipped += 1
    return counts


def pytest_command(report: Path | None, chosen: list[str], workers: int) -> list[str]:
    """A call of pytest with what is installed here."""
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *chosen]
    command.append("--continue-on-collection-errors")  # a package that is missing must not hide all the rest
    if report is not None:
        command += [f"--junitxml={report}", "-o", "junit_family=xunit1"]
    if workers > 1 and find_spec("xdist") is not None:
        command += ["-n", str(workers)]
    return command


def tests(context: Context) -> str:
    """Every test with the backend "cuda" and all of test_cuda*.py; without a GPU, what needs none."""
    report = context.folder / "tests.xml"
    report.unlink(missing_ok=True)
    if context.device == "cpu":
        chosen, workers = [*WITHOUT_GPU, "-m", "not slow"], 2
    else:
        # each worker also computes on the CPU what it compares with
        chosen, workers = (
            ["tests", "-m", "not slow", "-k", "cuda"],
            min(6, max(2, (os.cpu_count() or 2) // 2)),
        )
    log = context.folder / "tests.log"
    with log.open("w") as file:
        # its report needs time after it was told to stop
        limit = context.seconds_left - 2 * GRACE
        child = subprocess.Popen(
            pytest_command(report, chosen, workers),
            cwd=ROOT,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        stopped = _wait_for_pytest(child, limit)
    text = log.read_text(errors="replace")
    counts = read_junit(report) if report.exists() else read_verbose(text)
    _, _, traces = text.partition("= FAILURES =")
    print("\n".join(traces.splitlines()[:150]))
    for failure in counts.failures[:30]:
        print(f"FAILED {failure}")
    context.record(
        benchmark="gpu tests",
        passed=counts.passed,
        failed=counts.failed,
        skipped=counts.skipped,
        reasons=dict(counts.reasons),
        failures=counts.failures[:100],
        complete=not stopped,
    )
    if stopped:
        raise Failure(f"stopped after {limit:.0f} s: {counts.line()}")
    if counts.failed or child.returncode not in (0, 1):
        raise Failure(f"exit code {child.returncode}: {counts.line()}")
    if context.device != "cpu" and any("built without CUDA" in reason for reason in counts.reasons):
        raise Failure(f"the extension has no CUDA kernels: {counts.line()}")
    return counts.line()


def _wait_for_pytest(child: subprocess.Popen[bytes], limit: float) -> bool:
    """Whether it had to be stopped."""
    try:
        child.wait(timeout=limit)
        return False
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
    try:
        child.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return True


def sanitizer_verdict(text: str, code: int) -> tuple[bool | None, str]:
    """Whether compute-sanitizer found nothing (None: it could not look), and its last words."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    if "Device not supported" in text or not summaries:
        lines = [line for line in text.splitlines() if line.strip()] or ["no output"]
        unsupported = next((line for line in lines if "not supported" in line), lines[-1])
        return None, unsupported.strip()[:200]
    clean = re.search(r"SUMMARY: 0 (errors|hazards)", summaries[-1]) is not None
    return clean and code == 0, summaries[-1]


def sanitizer(context: Context) -> str:
    """Out-of-bounds accesses, races in shared memory and wrong barriers, on the smoke tests."""
    tool = shutil.which("compute-sanitizer")
    candidates = [
        tool,
        "/usr/local/cuda/bin/compute-sanitizer",
        "/usr/local/cuda/compute-sanitizer/compute-sanitizer",
    ]
    tool = next((path for path in candidates if path and Path(path).exists()), None)
    if tool is None:
        raise Skip("compute-sanitizer is not installed")
    said, wrong = [], []
    for name in SANITIZERS:
        if context.seconds_left < GRACE:
            wrong.append(f"{name}: no time left")
            continue
        # torch's own kernels and the errors it asks for on purpose are none of ours
        options = ["--tool", name, "--kernel-name", "kernel_substring=glassconv", "--error-exitcode", "86"]
        if name == "memcheck":
            options += ["--report-api-errors", "no"]
        environment = {
            **os.environ,
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        }  # so that bounds are those of tensors
        try:
            done = subprocess.run(
                [tool, *options, *pytest_command(None, SMOKE, 1)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=context.seconds_left - GRACE / 2,
                check=False,
            )
        except subprocess.TimeoutExpired:
            wrong.append(f"{name}: no answer in time")
            continue
        print("\n".join(done.stdout.splitlines()[-25:]))
        clean, words = sanitizer_verdict(done.stdout, done.returncode)
        context.record(benchmark="gpu sanitizer", tool=name, clean=clean, words=words)
        (said if clean else wrong).append(f"{name}: {words}")
    if wrong:
        raise Failure("; ".join([*wrong, *said]))
    return "; ".join(said)
