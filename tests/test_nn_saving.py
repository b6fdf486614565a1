"""Networks in files: bit for bit, without pickle, atomically."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nn_systems import DTYPES, OPTIONS, network, system
from safetensors.torch import save_file

from glassconv.nn import SE3GNN, serialization


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loaded_network_is_the_saved_one(backend: str, dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    model = network(name, dtype)
    model.metadata = {"trained on": ["a", "b"], "epochs": 3}
    path = tmp_path / "network.safetensors"
    model.save(path)
    random_state = torch.get_rng_state()
    loaded = SE3GNN.load(path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not loaded.training
    assert loaded.options == model.options
    assert loaded.metadata == model.metadata
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value), key
    assert torch.equal(loaded.predict(system()), model.predict(system()))
    assert [file.name for file in tmp_path.iterdir()] == ["network.safetensors"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.safetensors"
    network().save(path)
    before = path.read_bytes()

    def fail(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        network().save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["network.safetensors"]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: expected a saved network, got .*none.safetensors"):
        SE3GNN.load(tmp_path / "none.safetensors")
    text = tmp_path / "text"
    text.write_text("not a network")
    with pytest.raises(ValueError, match=r"path: expected a network saved by SE3GNN.save, got .*text"):
        SE3GNN.load(text)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match=r"path: expected format 'glassconv.nn.SE3GNN', got None"):
        SE3GNN.load(other)
    model = network()
    description = {"options": model.options, "metadata": {}}
    serialization.write(other, description, {"readout.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"path: expected tensors that fit the options"):
        SE3GNN.load(other)


def test_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.safetensors"
    monkeypatch.setattr(serialization, "VERSION", serialization.VERSION + 1)
    network().save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"path: expected version 1 or earlier, got 2"):
        SE3GNN.load(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, "path: expected version 1 or earlier, got no version"),
        ({"version": "one"}, "path: expected version 1 or earlier, got one"),
        ({"version": "1"}, "path: expected a description in JSON"),
        ({"version": "1", "description": "{"}, "path: expected a description in JSON"),
        ({"version": "1", "description": "[" * 100_000}, "path: expected a description in JSON"),
        (
            {"version": "1", "description": "[1]"},
            "path: expected a description with the options .*, got list",
        ),
        (
            {"version": "1", "description": "{}"},
            r"path: expected a description with the options .*, got \[\]",
        ),
        ({"version": "1", "description": '{"options": {}}'}, "path: expected options of SE3GNN"),
    ],
)
def test_header_without_what_save_writes(tmp_path: Path, header: dict[str, str], message: str) -> None:
    path = tmp_path / "made.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"format": serialization.FORMAT, **header})
    with pytest.raises(ValueError, match=message) as caught:
        SE3GNN.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"color": "red"}, {"channels": "8"}, {"inputs": 3}, {"cutoff": None}, {"n_layers": None}]
)
def test_unknown_or_unsuitable_options(tmp_path: Path, changes: dict[str, object]) -> None:
    path, model = tmp_path / "made.safetensors", network()
    serialization.write(path, {"options": {**model.options, **changes}}, model.state_dict())
    with pytest.raises(ValueError, match=r"path: expected options of SE3GNN in .*made\.safetensors, got "):
        SE3GNN.load(path)


def test_no_tensor_of_floating_point_numbers(tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    serialization.write(path, {"options": network().options, "metadata": {}}, {"a": torch.zeros(1).long()})
    with pytest.raises(
        ValueError, match=r"made\.safetensors, got expected tensors of floating point numbers"
    ):
        SE3GNN.load(path)
