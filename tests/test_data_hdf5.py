"""The package's own HDF5: what comes back is what was written, to the last bit; damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from glassconv import data
from glassconv.data import Configuration
from glassconv.data.hdf5 import FORMAT_VERSION

TENSORS = (
    "positions", "types", "cell", "pbc", "inherent", "energy", "propensity", "propensity_halves", "times",
)  # fmt: skip


def full(n: int = 30, name: str = "Käfig") -> Configuration:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    return Configuration(
        positions=random(n, 3),
        types=torch.randint(0, 2, (n,)),
        cell=random(3, 3),
        pbc=torch.tensor([True, False, True]),
        inherent=random(n, 3),
        energy=random(n),
        propensity=random(4, n),
        propensity_halves=random(2, 4, n),
        times=torch.tensor([0.1, 1.0, 1 / 3, 1e5], dtype=torch.float64),
        temperature=0.44,
        name=name,
        metadata={"seed": 2**60, "nested": {"list": [1, 2.5, None, "text", True]}, "e": 1e-300},
    )


def assert_same(a: Configuration, b: Configuration) -> None:
    for key in TENSORS:
        x, y = getattr(a, key), getattr(b, key)
        assert (x is None) == (y is None), key
        if x is not None:
            assert x.dtype == y.dtype, key
            assert torch.equal(x, y), key
    assert (a.temperature, a.name, a.metadata) == (b.temperature, b.name, b.metadata)


def test_round_trip(tmp_path: Path) -> None:
    bare = Configuration(torch.rand(3, 3), torch.tensor([0, 0, 70000]), torch.ones(3))
    no_times = Configuration(torch.rand(1, 3), torch.tensor([0]), 1.0, times=torch.zeros(0))
    written = [full(), bare, no_times, full(n=7, name="")]
    data.write_hdf5(tmp_path / "x.h5", written)
    found = data.read(tmp_path / "x.h5")
    assert len(found) == len(written)
    for a, b in zip(written, found, strict=True):
        assert_same(a, b)


def test_extreme_values_survive(tmp_path: Path) -> None:
    # 1e300 overflows float32, 1e-300 underflows, -0.0 must keep its sign, 0.1 is not a float32 at all.
    values = torch.tensor([[1e300, 1e-300, -0.0], [0.1, 1.5, 2.0**-149]], dtype=torch.float64)
    c = Configuration(values, torch.tensor([0, 1]), 1.0)
    data.write_hdf5(tmp_path / "x.h5", [c])
    (found,) = data.read(tmp_path / "x.h5")
    assert torch.equal(found.positions, values)
    assert torch.equal(torch.signbit(found.positions), torch.signbit(values))


def test_single_precision_is_smaller_and_then_exact(tmp_path: Path) -> None:
    written = full(n=1000)
    data.write_hdf5(tmp_path / "double.h5", [written])
    data.write_hdf5(tmp_path / "single.h5", [written], single_precision=True)
    (single,) = data.read(tmp_path / "single.h5")
    assert torch.equal(single.positions, written.positions.float().double())
    assert torch.equal(single.cell, written.cell)
    assert torch.equal(single.times, written.times)
    data.write_hdf5(tmp_path / "again.h5", [single])  # float32 values are stored as such without being told
    assert_same(data.read(tmp_path / "again.h5")[0], single)
    sizes = {name: (tmp_path / f"{name}.h5").stat().st_size for name in ("double", "single", "again")}
    assert sizes["again"] == sizes["single"]
    assert sizes["single"] < 0.7 * sizes["double"]


def test_layout_and_units(tmp_path: Path) -> None:
    data.write_hdf5(tmp_path / "x.h5", [full()])
    with h5py.File(tmp_path / "x.h5") as file:
        assert file.attrs["format"] == "glassconv configurations"
        assert file.attrs["format_version"] == FORMAT_VERSION == 1
        assert file.attrs["unit_of_length"] == "sigma_AA"
        group = file["configurations/000000"]
        units = {key: group[key].attrs["unit"] for key in TENSORS}
        assert group.attrs["temperature"] == 0.44
    assert units["positions"] == units["inherent"] == units["propensity"] == units["cell"] == "sigma_AA"
    assert units["energy"] == "eps_AA"
    assert units["times"] == "sigma_AA sqrt(m / eps_AA)"


def test_same_bytes_for_the_same_data(tmp_path: Path) -> None:
    written = full()
    for name in ("a.h5", "b.h5"):
        data.write_hdf5(tmp_path / name, [written])
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.h5"
    data.write_hdf5(path, [full()])
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("glassconv.data.hdf5._write_one", fail)
    with pytest.raises(OSError, match="No space left"):
        data.write_hdf5(path, [full()])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="configurations: expected at least one, got none"):
        data.write_hdf5(tmp_path / "x.h5", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [8, 100, 0.3, 0.9])
def test_truncated(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "x.h5"
    data.write_hdf5(path, [full(), full()])
    stored = path.read_bytes()
    path.write_bytes(stored[: int(kept * len(stored)) if kept < 1 else int(kept)])
    with pytest.raises(ValueError, match=r"x\.h5: not a readable glassconv HDF5 file: "):
        data.read(path)


def test_truncation_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    data.write_hdf5(path, [full()])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"truncated \(incomplete copy\?\)"):
        data.read(path)


def test_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    data.write_hdf5(path, [full(n=2000)])
    with h5py.File(path) as file:
        where = file["configurations/000000/positions"].id.get_chunk_info(0).byte_offset
    stored = bytearray(path.read_bytes())
    stored[where + 1000] ^= 1
    path.write_bytes(bytes(stored))
    with pytest.raises(ValueError, match="not a readable glassconv HDF5 file"):
        data.read(path)


def test_wrong_contents(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"

    def written() -> h5py.File:
        data.write_hdf5(path, [full()])
        return h5py.File(path, "r+")

    with written() as file:
        file.attrs["format_version"] = 99
    with pytest.raises(ValueError, match="format_version: expected at most 1, got 99; update glassconv"):
        data.read(path)
    with written() as file:
        del file["configurations/000000/types"]
    with pytest.raises(ValueError, match="configurations/000000: expected a dataset types, got"):
        data.read(path)
    with written() as file:
        del file["configurations/000000/energy"]
        file["configurations/000000/energy"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"energy: expected shape \(30,\), got \(3,\)"):
        data.read(path)
    with written() as file:
        file.attrs["n_configurations"] = 2
    with pytest.raises(ValueError, match="n_configurations: expected 2 groups, got 1"):
        data.read(path)
    with written() as file:
        del file["configurations/000000/metadata"]
        file["configurations/000000/metadata"] = "{not JSON"
    with pytest.raises(ValueError, match="not a readable glassconv HDF5 file"):
        data.read(path)


def test_read_hdf5_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.h5: no such file"):
        data.hdf5.read_hdf5(tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["a"] = 1
    with pytest.raises(ValueError, match="format: expected 'glassconv configurations', got None"):
        data.hdf5.read_hdf5(tmp_path / "y.h5")
    (tmp_path / "z.h5").write_text("text")
    with pytest.raises(ValueError, match="not a readable glassconv HDF5 file"):
        data.hdf5.read_hdf5(tmp_path / "z.h5")


def test_declared_shapes_and_kinds_are_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    where = "configurations/000000"
    for key in ("metadata", "positions"):
        data.write_hdf5(path, [full()])
        with h5py.File(path, "a") as file:
            del file[f"{where}/{key}"]
            file.create_group(f"{where}/{key}")
        with pytest.raises(ValueError, match=rf"x\.h5: .*{where}/{key}: expected a dataset, got Group"):
            data.read(path)
    for n in (10**6, 10**13):
        data.write_hdf5(path, [full()])
        with h5py.File(path, "a") as file:
            del file[f"{where}/positions"]
            file[where].create_dataset("positions", (n, 3), "f8", chunks=(1000, 3))  # nothing is stored
        with pytest.raises(ValueError, match=r"x\.h5: .*expected the data of shape .*, got 0 bytes"):
            data.read(path)


def test_constant_values_compress_to_what_is_still_read(tmp_path: Path) -> None:
    n = 300_000  # the bound on declared shapes must let the best compression pass
    given = Configuration(torch.zeros(n, 3), torch.zeros(n, dtype=torch.long), torch.eye(3))
    data.write_hdf5(tmp_path / "x.h5", [given])
    (found,) = data.read(tmp_path / "x.h5")
    assert torch.equal(found.positions, given.positions)


def test_format_that_is_not_a_text(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["format"] = np.arange(3)
    with pytest.raises(ValueError, match=r"x\.h5: .* got an HDF5 file that glassconv did not write"):
        data.read(tmp_path / "x.h5")
