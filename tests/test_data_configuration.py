"""`Configuration` holds what it is given, in its own dtypes, and refuses what does not fit together."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from glassconv.data import Configuration


def arguments(n: int = 5, n_times: int = 3) -> dict[str, Any]:
    return {
        "positions": torch.rand(n, 3) * 4,
        "types": torch.tensor([0, 1] * n)[:n],
        "cell": torch.tensor([4.0, 5.0, 6.0]),
        "inherent": torch.rand(n, 3),
        "energy": torch.rand(n),
        "propensity": torch.rand(n_times, n),
        "propensity_halves": torch.rand(2, n_times, n),
        "times": torch.tensor([1.0, 10.0, 100.0])[:n_times],
        "temperature": 0.5,
    }


def test_dtypes_and_shapes() -> None:
    c = Configuration(**arguments())
    for name in ("positions", "inherent", "energy", "propensity", "propensity_halves", "times", "cell"):
        assert getattr(c, name).dtype == torch.float64
    assert c.types.dtype == torch.int64
    assert torch.equal(c.cell, torch.diag(torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64)))
    assert c.pbc.tolist() == [True, True, True]
    assert (c.n_particles, c.n_times) == (5, 3)


def test_numpy_and_one_length_are_taken() -> None:
    c = Configuration(np.zeros((2, 3), np.float32), np.array([0, 1], np.int8), 3.0, pbc=[True, False, True])
    assert torch.equal(c.cell, 3.0 * torch.eye(3, dtype=torch.float64))
    assert c.pbc.tolist() == [True, False, True]
    assert c.n_times == 0


def test_select_times() -> None:
    given = arguments()
    c = Configuration(**given).select_times([2, 0])
    assert c.times.tolist() == [100.0, 1.0]
    assert torch.equal(c.propensity, given["propensity"][[2, 0]].double())
    assert torch.equal(c.propensity_halves, given["propensity_halves"][:, [2, 0]].double())
    assert Configuration(**given).select_times([-1]).times.tolist() == [100.0]
    with pytest.raises(ValueError, match="indices: expected indices of 3 times, got 3"):
        Configuration(**given).select_times([3])


def test_frozen_copied_and_pickled() -> None:
    c = Configuration(**arguments(), metadata={"seed": 1, "steps": (1, 2)})
    with pytest.raises(AttributeError):
        c.name = "other"  # type: ignore[misc]
    assert c.metadata == {"seed": 1, "steps": [1, 2]}
    for other in (copy.deepcopy(c), pickle.loads(pickle.dumps(c))):
        assert torch.equal(other.positions, c.positions)
        assert other.metadata == c.metadata
    assert c.to("cpu") is c


def test_metadata_is_a_copy() -> None:
    given: dict[str, Any] = {"list": [1]}
    c = Configuration(**arguments(), metadata=given)
    given["list"].append(2)
    assert c.metadata == {"list": [1]}


def test_repr_says_what_is_there() -> None:
    text = repr(Configuration(**arguments(), name="a"))
    assert text == (
        "Configuration('a', n_particles=5, temperature=0.5, n_times=3, inherent, energy, propensity, "
        "propensity_halves)"
    )


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("positions", torch.rand(5, 2), ValueError, r"positions: expected shape \(N, 3\).*got \(5, 2\)"),
        ("positions", torch.rand(0, 3), ValueError, r"positions: expected shape \(N, 3\) with N >= 1"),
        ("positions", torch.full((5, 3), torch.nan), ValueError, "positions: expected finite values, got 15"),
        (
            "positions",
            torch.zeros(5, 3, dtype=torch.complex64),
            TypeError,
            "positions: expected real numbers",
        ),
        ("positions", "text", TypeError, "positions: expected a tensor or array, got str"),
        ("types", torch.zeros(5), TypeError, "types: expected integers, got torch.float32"),
        ("types", torch.zeros(4, dtype=torch.int64), ValueError, r"types: expected shape \(5,\).*got \(4,\)"),
        ("types", torch.tensor([0, 0, 0, 0, -1]), ValueError, "types: expected types counted from 0, got -1"),
        ("cell", torch.rand(2), ValueError, r"cell: expected shape \(3, 3\) or \(3,\), got \(2,\)"),
        ("cell", torch.ones(3, 3), ValueError, "cell: expected three independent lattice vectors"),
        ("pbc", torch.tensor([1, 0, 1]), ValueError, "pbc: expected one or three bools, got torch.int64"),
        ("inherent", torch.rand(4, 3), ValueError, r"inherent: expected shape \(5, 3\), got \(4, 3\)"),
        ("energy", torch.rand(5, 1), ValueError, r"energy: expected shape \(5,\), got \(5, 1\)"),
        ("propensity", torch.rand(2, 5), ValueError, r"propensity: expected shape \(3, 5\), got \(2, 5\)"),
        ("propensity_halves", torch.rand(3, 5), ValueError, r"propensity_halves: expected shape \(2, 3, 5\)"),
        ("times", None, ValueError, "times: expected one time per row of propensity, got None"),
        ("times", torch.tensor([1.0, -1.0, 2.0]), ValueError, "times: expected .* no negative time"),
        ("temperature", 0.0, ValueError, "temperature: expected a positive number, got 0"),
        ("name", 3, TypeError, "name: expected a string, got int"),
        ("metadata", [1], TypeError, "metadata: expected a dict, got list"),
        ("metadata", {"a": object()}, TypeError, "metadata: expected what JSON can hold"),
    ],
)
def test_refused(name: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Configuration(**{**arguments(), name: value})


def test_shared_files_through_the_adapters(shared_data: Any) -> None:
    from adapters import TAU_ALPHA_FILE, read_small, read_tau_alpha

    (large,) = read_tau_alpha(shared_data / TAU_ALPHA_FILE, [3])
    assert (large.n_particles, large.n_times, large.temperature) == (4096, 1, 0.44)
    # Stored in single precision: the mean of the halves is the propensity to its rounding, 1e-7 relative.
    assert torch.allclose(large.propensity_halves.mean(0), large.propensity, rtol=1e-6)
    small = read_small(shared_data / "ka3d_small_T0.56.npz", [0, 17])
    assert [(c.n_particles, c.n_times, c.temperature) for c in small] == [(1000, 8, 0.56)] * 2
