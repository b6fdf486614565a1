"""DeepMind pickles: read without Python's unpickler, and a hostile one runs nothing."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassconv import data
from glassconv.data.restricted_pickle import PickledArray, load_pickle

N = 20
TIME_INDICES = [5, 9, 2]  # not in order of time, as in the real files


def content(n_runs: int = 4, targets: bool = True, times: int = 3) -> dict[str, Any]:
    random = np.random.default_rng(1)
    positions = random.random((N, 3)) * 3
    runs = [[positions + 0.1 * random.random((N, 3)) for _ in range(n_runs)] for _ in range(times)]
    result = {
        "positions": positions,
        "types": np.array([0, 1] * (N // 2), dtype=np.int32),
        "box": np.array([3.0, 3.0, 4.0]),
        "time": [0.5 * k for k in range(12)],
        "time_indices": list(TIME_INDICES),
        "is_values": np.array([0.9, 0.5, 0.1]),
        "trajectory_target_positions": runs,
        "metadata": {"temperature": 0.5, "fluid": "Kob Andersen", "pressure": 2.9},
    }
    if targets:
        result["targets"] = [random.random(N) for _ in range(3)]
    return result


def save(path: Path, value: object, protocol: int = 3, old_numpy: bool = True) -> Path:
    stored = pickle.dumps(value, protocol=protocol)
    if old_numpy:
        # The published files were written by NumPy 1. In protocols 2 and 3 names stand as lines of text.
        stored = stored.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    path.write_bytes(stored)
    return path


@pytest.mark.parametrize(("protocol", "old_numpy"), [(3, True), (3, False), (4, False)])
@pytest.mark.parametrize("code", ["<f8", ">f4", "<i4", ">i8", "u1", "?"])
def test_arrays_come_back(tmp_path: Path, protocol: int, old_numpy: bool, code: str) -> None:
    flat = np.arange(12).astype(code)
    given = {"c": flat.reshape(3, 4), "fortran": np.asfortranarray(flat.reshape(3, 4)), "empty": flat[:0]}
    found = load_pickle(save(tmp_path / "x.pickle", given, protocol, old_numpy))
    for key, array in given.items():
        assert isinstance(found[key], PickledArray)
        assert found[key].array.dtype == array.dtype
        np.testing.assert_array_equal(found[key].array, array)


def test_deepmind_file(tmp_path: Path) -> None:
    given = content()
    (c,) = data.read(save(tmp_path / "test_large.pickle", given))
    assert torch.equal(c.positions, torch.from_numpy(given["positions"]))
    assert c.types.tolist() == given["types"].tolist()
    assert torch.equal(c.cell, torch.diag(torch.tensor([3.0, 3.0, 4.0], dtype=torch.float64)))
    assert c.times.tolist() == [1.0, 2.5, 4.5]
    # Row k of the file belongs to time_indices[k] = 5, 9, 2: by time that is rows 2, 0, 1.
    assert torch.equal(c.propensity, torch.from_numpy(np.stack([given["targets"][k] for k in (2, 0, 1)])))
    assert c.metadata["is_values"] == [0.1, 0.9, 0.5]
    assert (c.temperature, c.name, c.metadata["pressure"]) == (0.5, "test_large", 2.9)
    moved = np.linalg.norm(np.array(given["trajectory_target_positions"]) - given["positions"], axis=3)
    halves = np.stack([moved[[2, 0, 1], start::2].mean(1) for start in (0, 1)])
    # Sums of two to four numbers in another order: a few units in the last place.
    np.testing.assert_allclose(c.propensity_halves.numpy(), halves, rtol=1e-14)


def test_without_targets_the_trajectories_are_averaged(tmp_path: Path) -> None:
    given = content(n_runs=3, targets=False)
    (c,) = data.read(save(tmp_path / "x.pickle", given))
    moved = np.linalg.norm(np.array(given["trajectory_target_positions"]) - given["positions"], axis=3)
    np.testing.assert_allclose(c.propensity.numpy(), moved[[2, 0, 1]].mean(1), rtol=1e-14)  # order of sums


def test_trajectories_for_some_times_give_no_halves(tmp_path: Path) -> None:
    (c,) = data.read(save(tmp_path / "x.pickle", content(times=1)))
    assert c.propensity_halves is None
    assert c.n_times == 3


def test_real_file(shared_data: Path) -> None:
    (c,) = data.read(shared_data / "deepmind" / "test_large.pickle")
    assert (c.n_particles, c.n_times, c.temperature) == (4096, 10, 0.44)
    assert bool((c.times.diff() > 0).all())
    mean = c.propensity[:, c.types == 0].mean(1)
    assert bool((mean.diff() > 0).all())  # displacements grow with time only if the times were sorted rightly
    assert c.metadata["is_values"][6] == pytest.approx(np.exp(-1))
    assert c.cell.diagonal().tolist() == [15.043331556] * 3


class Call:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class CallByState:
    """Pickles as an object whose state is set by calling ``function``."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> Any:
        return (dict, (), None, None, iter([("a", 1)]), self.function)


def hostile(flag: Path) -> dict[str, tuple[object, str]]:
    touch = f"touch {flag}"
    code = f"open({str(flag)!r}, 'w').close()"
    return {
        "os.system": (Call(os.system, touch), "posix.system"),
        "subprocess": (Call(subprocess.Popen, ["touch", str(flag)]), "subprocess.Popen"),
        "eval": (Call(builtins.eval, code), "builtins.eval"),
        "exec": (Call(builtins.exec, code), "builtins.exec"),
        "getattr": (Call(getattr, 1, "real"), "builtins.getattr"),
        "import": (Call(__import__, "antigravity"), "builtins.__import__"),
        "open": (Call(open, str(flag), "w"), "io.open"),
        "nested in a list": ({"metadata": [1, {"deep": (Call(os.system, touch),)}]}, "posix.system"),
        "in place of an array": ({**content(), "positions": Call(os.system, touch)}, "posix.system"),
        "after good arrays": ({**content(), "zz": Call(os.system, touch)}, "posix.system"),
        "state setter": (CallByState(os.remove), "builtins.dict|posix.remove"),
        "a NumPy function": (Call(np.load, str(flag)), "numpy.load"),
        "numpy.memmap": (Call(np.memmap, str(flag), "u1", "w+"), "numpy.memmap"),
        "a class": (Path("x"), "pathlib.*Path"),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", sorted(hostile(Path("x"))))
def test_hostile_pickle_runs_nothing(tmp_path: Path, name: str, protocol: int) -> None:
    flag = tmp_path / "it_ran"
    attack, named = hostile(flag)[name]
    path = save(tmp_path / "test_large.pickle", attack, protocol, old_numpy=False)
    modules = set(sys.modules)
    with pytest.raises(ValueError, match=r"test_large\.pickle: ") as caught:
        data.read(path)
    assert not flag.exists()
    assert "antigravity" not in set(sys.modules) - modules
    if protocol in (3, 4):  # in the others NumPy's own arrays already name a forbidden global
        assert caught.match(f"refused, because it names ({named})")


@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "nested in a list", "after good arrays"])
def test_the_same_pickle_does_run_elsewhere(tmp_path: Path, name: str) -> None:
    """Without this the test above could pass on attacks that never work."""
    flag = tmp_path / "it_ran"
    pickle.loads(pickle.dumps(hostile(flag)[name][0], protocol=3))
    assert flag.exists()


def opcodes(*parts: bytes | str) -> bytes:
    return b"\x80\x03" + b"".join(p if isinstance(p, bytes) else p.encode() for p in parts) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


HAND_MADE = {
    # INST, OBJ, NEWOBJ, the extension registry and persistent ids: the other ways of calling and importing
    "inst": (opcodes("(", text("touch x"), "ios\nsystem\n"), "os.system"),
    "obj": (opcodes("(cos\nsystem\n", text("touch x"), "o"), "os.system"),
    "newobj": (opcodes("cbuiltins\nobject\n)", b"\x81"), "builtins.object"),
    "dotted name": (b"\x80\x04" + b"\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "numpy.ndarray"),
    "stack global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
    "extension": (opcodes(b"\x82\x01"), "unregistered extension"),
    "persistent": (opcodes(text("x"), "Q"), "refers to an outside str"),
    "newobj of an allowed name": (opcodes("cnumpy\nndarray\n)", b"\x81"), "not a readable pickle"),
    "calling ndarray": (opcodes("cnumpy\nndarray\n)R"), "not a readable pickle"),
    "state of an allowed name": (opcodes("cnumpy\ndtype\n}b"), "sets the state of a global"),
    "attributes of an allowed name": (
        opcodes("cnumpy\ndtype\n}", text("__call__"), "K\x01s", "b"),
        "sets the state of a global",
    ),
    "subclass of ndarray": (
        opcodes("cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\nK\x00", b"\x85C\x01b", "tR"),
        "not a plain array",
    ),
    "records": (
        opcodes("cnumpy\ndtype\n", text("V8"), "K\x00K\x01", b"\x87R"),
        "dtype 'V8'; only numbers are read",
    ),
    "unfilled array": (
        opcodes(
            "}",
            text("positions"),
            "cnumpy.core.multiarray\n_reconstruct\n",
            "(cnumpy\nndarray\nK\x00",
            b"\x85C\x01b",
            "tRs",
        ),
        "positions|time_indices|array without contents|time: missing",
    ),
    "memory": (opcodes("Nr", struct.pack("<I", 2**31 - 1)), "asks for memory for 2147483647 objects"),
    "huge string": (opcodes("B", struct.pack("<I", 2**31)), "not a readable pickle"),
    "no end": (b"\x80\x03}", "not a readable pickle"),
    "nothing": (b"\x80\x03.", "not a readable pickle"),
    "unknown operation": (b"\x80\x03\xff.", "not a readable pickle"),
}


@pytest.mark.parametrize("name", sorted(HAND_MADE))
def test_hand_made_pickle_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    stored, message = HAND_MADE[name]
    path = tmp_path / "x.pickle"
    path.write_bytes(stored)
    with pytest.raises(ValueError, match=message):
        data.read(path)
    assert ran == []


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    given = {**content(), "positions": np.array([None, {}], dtype=object)}
    with pytest.raises(ValueError, match="array of objects; only arrays of numbers are read"):
        data.read(save(tmp_path / "x.pickle", given))


@pytest.mark.parametrize("dtype", ["S3", "U3", "M8[s]", "c16", [("a", "f8")]])
def test_other_arrays_are_refused(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"only .*numbers are read"):
        data.read(save(tmp_path / "x.pickle", {"positions": np.zeros(3, dtype=dtype)}))


def test_array_shorter_than_its_shape(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pickle", {"positions": np.zeros(3)})
    stored = path.read_bytes()
    assert stored.count(b"K\x03\x85") == 1  # the shape (3,)
    path.write_bytes(stored.replace(b"K\x03\x85", b"K\x04\x85"))
    with pytest.raises(ValueError, match=r"array of shape \(4,\) and dtype float64 in 24 bytes"):
        data.read(path)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, fraction: float) -> None:
    path = save(tmp_path / "x.pickle", content())
    stored = path.read_bytes()
    path.write_bytes(stored[: int(fraction * len(stored))])
    with pytest.raises(ValueError, match=r"x\.pickle: not a readable pickle of plain data and arrays"):
        data.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": [1, 2]}, "positions: expected an array, got list"),
        ({"positions": np.zeros((N, 2))}, r"positions: expected shape \(N, 3\), got \(20, 2\)"),
        ({"types": np.zeros(3, dtype=int)}, r"types: expected shape \(20,\)"),
        ({"time_indices": [0, 1, 99]}, r"time_indices: expected indices of 12 times, got \[0, 1, 99\]"),
        ({"time_indices": [0, 1]}, "targets: expected 2 times as in time_indices, got 3"),
        ({"time": ["a"] * 12}, "time: expected a list of numbers"),
        ({"targets": [np.zeros(3)] * 3}, r"targets: expected arrays of shape \(20,\), got \(3,\)"),
        ({"targets": 3}, "targets: expected a list, got int"),
        ({"is_values": np.zeros(2)}, r"is_values: expected shape \(3,\), got \(2,\)"),
        ({"metadata": 3}, "metadata: expected a dict, got int"),
        ({"metadata": {"temperature": "cold"}}, "metadata: expected a number as temperature, got 'cold'"),
        ({"trajectory_target_positions": [1]}, "trajectory_target_positions: expected a list of lists"),
    ],
)
def test_wrong_structure(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"x.pickle: not a file of the DeepMind glass data: {message}"):
        data.read(save(tmp_path / "x.pickle", {**content(), **change}))


@pytest.mark.parametrize("key", ["positions", "types", "box", "time", "time_indices"])
def test_missing_entry(tmp_path: Path, key: str) -> None:
    given = content()
    del given[key]
    with pytest.raises(ValueError, match=f"{key}: missing; the dict has "):
        data.read(save(tmp_path / "x.pickle", given))


def test_neither_targets_nor_trajectories(tmp_path: Path) -> None:
    given = content(targets=False)
    del given["trajectory_target_positions"]
    with pytest.raises(ValueError, match="targets: expected propensities or trajectories at 3 times"):
        data.read(save(tmp_path / "x.pickle", given))


def test_not_a_dict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a pickled dict, got list"):
        data.read(save(tmp_path / "x.pickle", [1, 2]))


def test_self_referring_metadata(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"temperature": 0.5}
    loop["self"] = loop
    (c,) = data.read(save(tmp_path / "x.pickle", {**content(), "metadata": loop}))
    assert "self" not in c.metadata


def test_integers_beyond_floating_point(tmp_path: Path) -> None:
    path = tmp_path / "x.pickle"
    for change in ({"time": [10**400] * 12}, {"metadata": {"temperature": 10**400}}):
        with pytest.raises(
            ValueError, match=r"x\.pickle: not a file of the DeepMind glass data: int too large"
        ):
            data.read(save(path, {**content(), **change}))
