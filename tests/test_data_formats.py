"""Reading the published npz formats, telling formats apart by content, and folders."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from glassconv import data

N = 96
BOX = (N / 1.2) ** (1 / 3)


def glassbench(folder: Path, name: str = "N4096T0.50_3.npz", **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Write a file in the layout of GlassBench: positions in [-L/2, L/2), ten times."""
    random = np.random.default_rng(2)
    positions = (random.random((N, 3)) - 0.5) * BOX
    inherent = positions + 0.1 * (random.random((N, 3)) - 0.5)
    inherent -= BOX * np.round(inherent / BOX)
    arrays = {
        "types": np.array([0] * 77 + [1] * 19),
        "initial_positions": positions,
        "initial_positions_inherent": inherent,
        "initial_positions_cage": positions,
        "md_prop": random.random((10, N)),
        "bb_prop": random.random((10, N)),
        "SE3": random.random((10, N)),
        **changes,
    }
    arrays = {key: value for key, value in arrays.items() if value is not None}
    np.savez(folder / name, **arrays)
    return folder / name, arrays


def botan(
    folder: Path, name: str = "isoconfig_N4096T0.44_12_tc07.npz", n_runs: int = 5, **changes: Any
) -> tuple[Path, dict[str, Any]]:
    """Write a file in the layout of BOTAN: unwrapped positions of every run at one time."""
    random = np.random.default_rng(3)
    positions = random.random((N, 3)) * BOX
    arrays = {
        "types": np.array([0] * 77 + [1] * 19, dtype=np.int8),
        "initial_positions": positions,
        "positions": positions + random.normal(size=(n_runs, N, 3)),
        **changes,
    }
    np.savez(folder / name, **arrays)
    return folder / name, arrays


def test_glassbench(tmp_path: Path) -> None:
    path, arrays = glassbench(tmp_path)
    (c,) = data.read(path)
    assert torch.equal(c.positions, torch.from_numpy(arrays["initial_positions"]))
    assert c.types.tolist() == arrays["types"].tolist()
    assert c.cell.diagonal().tolist() == pytest.approx([BOX] * 3, rel=1e-15)
    assert torch.equal(c.propensity, torch.from_numpy(arrays["md_prop"]))
    assert c.propensity_halves is None
    assert c.energy is None
    assert (c.temperature, c.name) == (0.5, "N4096T0.50_3")
    assert c.times.tolist() == [0.108, 0.434, 2.17, 6.86, 21.7, 68.6, 217, 686, 2170, 6860]
    assert c.metadata["times"] == "known"


def test_glassbench_inherent_positions_are_the_nearest_images(tmp_path: Path) -> None:
    path, arrays = glassbench(tmp_path)
    (c,) = data.read(path)
    assert float((c.inherent - c.positions).abs().max()) <= 0.05 + 1e-12  # as made above, and rounding
    lattice = (c.inherent.numpy() - arrays["initial_positions_inherent"]) / BOX
    np.testing.assert_allclose(lattice, np.round(lattice), atol=1e-12)  # rounding of coordinates of order L
    assert np.abs(np.round(lattice)).max() == 1  # some had crossed the boundary


def test_times_not_known_are_indices_or_given(tmp_path: Path) -> None:
    path, _ = glassbench(tmp_path, "N4096T0.56_1.npz")
    (c,) = data.read(path)
    assert c.times.tolist() == list(range(10))
    assert c.metadata["times"] == "index"
    (c,) = data.read(path, times=[2.0**k for k in range(10)])
    assert c.times.tolist() == [2.0**k for k in range(10)]
    assert c.metadata["times"] == "given"
    with pytest.raises(ValueError, match="times: expected 10 times, got 2"):
        data.read(path, times=[1.0, 2.0])


def test_temperature_from_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "T0.64" / "train"
    folder.mkdir(parents=True)
    path, _ = glassbench(folder, "structure.npz")
    assert data.read(path)[0].temperature == 0.64
    path, _ = glassbench(tmp_path, "structure.npz")
    assert data.read(path)[0].temperature is None


def test_glassbench_without_propensities(tmp_path: Path) -> None:
    path, _ = glassbench(tmp_path, md_prop=None, initial_positions_inherent=None)
    (c,) = data.read(path)
    assert (c.n_times, c.propensity, c.inherent) == (0, None, None)


def test_botan(tmp_path: Path) -> None:
    path, arrays = botan(tmp_path)
    (c,) = data.read(path)
    moved = np.linalg.norm(arrays["positions"] - arrays["initial_positions"], axis=2)
    # Means of a handful of numbers in another order: a few units in the last place.
    np.testing.assert_allclose(c.propensity.numpy(), moved.mean(0)[None], rtol=1e-14)
    halves = np.stack([moved[::2].mean(0), moved[1::2].mean(0)])[:, None]
    np.testing.assert_allclose(c.propensity_halves.numpy(), halves, rtol=1e-14)
    assert (c.temperature, c.name, c.times.tolist()) == (0.44, "isoconfig_N4096T0.44_12_tc07", [4120.0])
    assert c.metadata["n_trajectories"] == 5


def test_botan_with_one_run_has_no_halves(tmp_path: Path) -> None:
    path, _ = botan(tmp_path, "T0.44_tc02.npz", n_runs=1)
    (c,) = data.read(path)
    assert c.propensity_halves is None
    assert (c.times.tolist(), c.metadata["times"]) == ([2.0], "index")


def test_real_botan_file(shared_data: Path) -> None:
    from adapters import TAU_ALPHA_FILE, read_tau_alpha

    (c,) = data.read(shared_data / "botan")
    (expected,) = read_tau_alpha(shared_data / TAU_ALPHA_FILE, [0])
    assert torch.equal(c.positions, expected.positions)
    assert torch.equal(c.types, expected.types)
    # The shared set keeps propensities in single precision and the box to all digits of (N / 1.2)^(1/3).
    assert torch.allclose(c.propensity, expected.propensity, rtol=1e-6)
    assert torch.allclose(c.propensity_halves, expected.propensity_halves, rtol=1e-6)
    assert torch.allclose(c.cell, expected.cell, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"initial_positions": np.zeros((N, 2))},
            r"initial_positions: expected .*\(N, 3\), got .*\(96, 2\)",
        ),
        ({"initial_positions": np.full((N, 3), np.inf)}, "positions: expected finite values, got 288"),
        ({"types": np.full(N, 0.5)}, "types: expected integers, got float64"),
        ({"types": np.zeros(3, int)}, r"types: expected shape \(96,\)"),
        ({"md_prop": np.zeros((10, 5))}, r"propensity: expected shape \(10, 96\), got \(10, 5\)"),
        ({"initial_positions_inherent": np.zeros((5, 3))}, r"initial_positions_inherent: expected \(96, 3\)"),
    ],
)
def test_glassbench_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path, _ = glassbench(tmp_path, **change)
    with pytest.raises(ValueError, match=r"N4096T0\.50_3\.npz: not a GlassBench file: " + message):
        data.read(path)


def test_botan_refused(tmp_path: Path) -> None:
    path, _ = botan(tmp_path, positions=np.zeros((5, 7, 3)))
    with pytest.raises(ValueError, match=r"not a BOTAN file: positions: expected shape .* got \(5, 7, 3\)"):
        data.read(path)


def test_pickled_objects_in_npz_are_refused(tmp_path: Path) -> None:
    path, _ = botan(tmp_path, types=np.array([object()] * N))
    with pytest.raises(ValueError, match="not a readable npz file: it holds pickled objects"):
        data.read(path)


@pytest.mark.parametrize("fraction", [0.2, 0.7, 0.999])
def test_truncated_npz(tmp_path: Path, fraction: float) -> None:
    path, _ = botan(tmp_path)
    stored = path.read_bytes()
    path.write_bytes(stored[: int(fraction * len(stored))])
    with pytest.raises(ValueError, match=r"tc07\.npz: not a readable npz file: truncated or damaged"):
        data.read(path)


def test_damaged_npz(tmp_path: Path) -> None:
    path, arrays = botan(tmp_path)
    stored = bytearray(path.read_bytes())
    where = stored.index(arrays["initial_positions"].tobytes()[:64])
    stored[where + 10] ^= 0xFF
    path.write_bytes(bytes(stored))
    with pytest.raises(ValueError, match="not a readable npz file: damaged"):
        data.read(path)


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    path, _ = botan(tmp_path)
    for name in ("x.pickle", "x.h5", "x"):
        shutil.copy(path, tmp_path / name)
        assert data.read(tmp_path / name)[0].metadata["format"] == "BOTAN npz"


def test_unknown_files(tmp_path: Path) -> None:
    for name, stored, message in (
        ("text", b"ITEM: TIMESTEP", r"got something else \(it begins with b'ITEM'\)"),
        ("empty", b"", "got an empty file"),
    ):
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(ValueError, match=f"{name}: expected glassconv HDF5, .*pickle, {message}"):
            data.read(tmp_path / name)
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(ValueError, match=r"got an npz file with \['a'\]"):
        data.read(tmp_path / "other.npz")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = 1
    with pytest.raises(ValueError, match="got an HDF5 file that glassconv did not write"):
        data.read(tmp_path / "other.h5")


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        data.read(tmp_path / "nowhere")


def test_folder_in_natural_order(tmp_path: Path) -> None:
    for i in (10, 2, 1):
        glassbench(tmp_path, f"N4096T0.50_{i}.npz")
    (tmp_path / "README").write_text("not data")
    (tmp_path / ".hidden.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "folder").mkdir()
    assert [c.name for c in data.read(tmp_path)] == [f"N4096T0.50_{i}" for i in (1, 2, 10)]


def test_folder_of_several_formats(tmp_path: Path) -> None:
    glassbench(tmp_path, "b.npz")
    path, _ = botan(tmp_path, "c.npz")
    data.write_hdf5(tmp_path / "a.h5", data.read(path) * 2)
    assert [c.metadata["format"] for c in data.read(tmp_path)] == ["BOTAN npz"] * 2 + [
        "GlassBench npz",
        "BOTAN npz",
    ]


def test_folder_with_a_damaged_file_or_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder with glass configurations, got no file"):
        data.read(tmp_path)
    path, _ = botan(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable npz file"):
        data.read(tmp_path)


def test_npz_with_damaged_compressed_bytes(tmp_path: Path) -> None:
    path, arrays = glassbench(tmp_path)
    np.savez_compressed(path, **arrays)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("initial_positions.npy")
    content = bytearray(path.read_bytes())
    start = member.header_offset + 80  # behind the local header, of about 70 bytes
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"N4096T0\.50_3\.npz: not a readable npz file: damaged"):
        data.read(path)


@pytest.mark.parametrize(("offset", "value"), [(10, 97), (8, 1)], ids=["unknown compression", "encrypted"])
def test_npz_that_cannot_be_unpacked(tmp_path: Path, offset: int, value: int) -> None:
    path, _ = glassbench(tmp_path)
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x01\x02", offset), (b"PK\x03\x04", offset - 2)):
        position = content.find(signature)
        while position >= 0:
            content[position + at] = value
            position = content.find(signature, position + 4)
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"N4096T0\.50_3\.npz: not a readable npz file: it cannot be unpacked"
    ):
        data.read(path)


def test_npz_member_that_is_no_array_or_of_absurd_shape(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000, 3), }"
    absurd = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    for member in (b"text", absurd):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("types.npy", member)
            archive.writestr("initial_positions.npy", member)
        with pytest.raises(ValueError, match=r"x\.npz: not a readable npz file"):
            data.read(path)
