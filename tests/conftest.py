"""Fixtures every test may use: the backend under test, the shared data, and fixed random seeds."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# Name a test sees -> name `glassconv._native.use_backend` takes. A further backend is a further line.
BACKENDS = {"reference": "reference", "cpu": "native"}


def pytest_configure() -> None:
    """Let Ctrl-C reach the programs that tests start: shells start background jobs, and so CI, without it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per backend: "reference" (plain PyTorch) and "cpu" (the native extension)."""
    from glassconv import _native

    name: str = request.param
    if BACKENDS[name] == "native" and _native.native() is None:
        pytest.skip("native extension not built")
    with _native.use_backend(BACKENDS[name]):
        yield name


@pytest.fixture
def native_extension() -> None:
    """Skip, visibly, a test of the native extension alone where that was not built."""
    from glassconv import _native

    if _native.native() is None:
        pytest.skip("native extension not built")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared glass data: GLASSCONV_SHARED_DATA, else `../shared/data` beside the repository."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("GLASSCONV_SHARED_DATA") or default)
    if not folder.is_dir():
        pytest.skip("shared data not present")
    return folder


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(20221106)
    np.random.seed(20221106)  # noqa: NPY002 - other people's code still draws from the global state
    torch.manual_seed(20221106)
