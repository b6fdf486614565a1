"""Run tests on the emulated backend with AddressSanitizer and UBSan: `run_sanitized.py [pytest arguments]`.

Needs `build.py --sanitize`. Without arguments: small tests of every operator, and those of the emulator.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# Small cases of every operator, its derivatives and its edge cases: such code is several times slower.
TESTS = [
    "tests/test_emulator.py",
    "tests/test_convolution.py",
    "tests/test_convolution_edge_cases.py",
    "tests/test_spherical_harmonics.py",
    "tests/test_neighbors.py",
]
# the tests of what the sanitizers themselves would stop at are not for here
SELECTION = [
    "-k",
    "(emulated or test_emulator) and not gradcheck and not behind_the_shared and not sanitizers",
    "-m",
    "not slow",
]
SELECTION += TESTS


def environment() -> dict[str, str]:
    """The variables under which Python loads the sanitized modules."""
    cxx = os.environ.get("CXX", "g++")
    # Python was linked with neither; without the second the first finds no exceptions to watch
    libraries = [
        subprocess.check_output([cxx, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    options = {
        # Python and torch keep memory until the end
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "LD_PRELOAD": ":".join(libraries),
        "GLASSCONV_EMULATED": "emulated-sanitized",
        "OMP_NUM_THREADS": "1",
    }
    return os.environ | options


def main(arguments: list[str]) -> int:
    """Run pytest and return its status."""
    # the sanitizers write to the file descriptor, and end the process
    command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider"]
    command += arguments or SELECTION
    return subprocess.run(command, cwd=REPOSITORY, env=environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
