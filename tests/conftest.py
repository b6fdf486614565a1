"""Fixtures every test may use: the backend under test, the shared data, and fixed random seeds."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import backends
import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# Name a test sees -> name `glassconv._native.use_backend` takes. A further backend is a further line.
BACKENDS = {"reference": "reference", "cpu": "native", "emulated": "native", "cuda": "native"}


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C reach the programs that tests start: shells start background jobs, and so CI, without it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers",
        "in_emulator(parameter=[values], ...): the emulator, being slow, runs only cases with these values "
        "of the test's parameters; in_emulator(False): none. A function's mark overrides its module's.",
    )


def parametrized(item: pytest.Function) -> dict[str, list[object]]:
    """Every value of each parameter in the marks of a test."""
    found: dict[str, list[object]] = {}
    for mark in item.iter_markers("parametrize"):
        names, rows = mark.args
        single = isinstance(names, str)
        for i, name in enumerate([names] if single else names):
            found[name] = [row if single else row[i] for row in rows]
    return found


def is_left_out(item: pytest.Item) -> bool:
    """Whether an `in_emulator` mark takes this case away from the emulator."""
    mark = item.get_closest_marker("in_emulator")
    case = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if mark is None or case.get("backend") != "emulated":
        return False
    known = parametrized(item)
    unknown = [(key, v) for key, values in mark.kwargs.items() for v in values if v not in known.get(key, [])]
    if unknown or mark.args not in ((), (False,)):
        raise pytest.UsageError(
            f"{item.nodeid}: in_emulator: expected False or values of parameters, got {mark.args or unknown}"
        )
    return bool(mark.args) or any(case[key] not in values for key, values in mark.kwargs.items())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the emulator is too slow for."""
    left_out = [item for item in items if is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per backend.

    "reference" is plain PyTorch, "cpu" the native extension, "emulated" its CUDA kernels on the CPU, "cuda"
    the same on a GPU.
    """
    from glassconv import _native

    name: str = request.param
    if BACKENDS[name] == "native" and _native.native() is None:
        pytest.skip("native extension not built")
    if name == "emulated" and backends.emulated_module() is None:
        pytest.skip("emulated kernels not built (make emulated)")
    if name == "cuda" and (reason := backends.why_no_cuda()):
        pytest.skip(reason)
    operators = {"emulated": backends.emulated_operators, "cuda": backends.cuda_operators}.get(
        name, nullcontext
    )
    with _native.use_backend(BACKENDS[name]), operators():
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
