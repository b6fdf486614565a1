"""Choosing a device, and the implementation that serves it, on made-up machines with and without a GPU."""

from __future__ import annotations

import pytest
import torch
from nn_systems import OPTIONS, network, system

import glassconv
from glassconv import _environment, _native
from glassconv._environment import find_device
from glassconv.cli import main
from glassconv.nn import SE3GNN
from glassconv.training import TrainingOptions, fit
from glassconv.training.data_module import ConfigurationDataModule
from glassconv.training.module import PropensityModule


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says on a machine with two GPUs; no work can be done there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize(
    ("name", "expected"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("auto", "cuda:0")]
)
def test_devices_by_name(
    monkeypatch: pytest.MonkeyPatch, two_gpus: None, native_extension: None, name: str, expected: str
) -> None:
    monkeypatch.setattr(_environment, "_kernels", lambda: "13.0")
    with glassconv.use_backend("native"):
        assert find_device(name) == torch.device(expected)


def test_auto_is_the_cpu_without_kernels_or_gpu(monkeypatch: pytest.MonkeyPatch, two_gpus: None) -> None:
    monkeypatch.setattr(_environment, "_kernels", lambda: None)
    assert find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(_environment, "_kernels", lambda: "13.0")
    with glassconv.use_backend("reference"):
        assert find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")


def test_a_number_beyond_the_last_device(two_gpus: None) -> None:
    message = "device: expected a device of this machine, cpu, cuda:0, cuda:1, got cuda:2"
    with pytest.raises(ValueError, match=message):
        find_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_no_gpu(no_gpu: None, name: str) -> None:
    message = rf"device: expected a device of this machine, cpu, got {name} \(torch"
    with pytest.raises(ValueError, match=message):
        find_device(name)


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps", "", "CUDA", "cuda:1:2"]
)
def test_other_names(two_gpus: None, name: str) -> None:
    with pytest.raises(ValueError, match=rf"device: expected cpu, cuda, cuda:1 .* or auto, got '{name}'"):
        find_device(name)


@pytest.mark.parametrize("command", ["train", "evaluate", "quench"])
@pytest.mark.parametrize(("device", "message"), [("cuda", "got cuda (torch"), ("tpu", "got 'tpu'")])
def test_commands_refuse_devices_in_one_line(
    no_gpu: None, capsys: pytest.CaptureFixture[str], tmp_path, command: str, device: str, message: str
) -> None:
    arguments = {
        "train": ["sample", "--out", "run"],
        "evaluate": ["model.safetensors", "sample"],
        "quench": ["sample", "--out", "quenched.h5"],
    }[command]
    given = [str(tmp_path / a) if "." in a or a == "run" else a for a in arguments]
    assert main([command, *given, "--device", device]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("glassconv")]
    assert captured.out == ""
    assert len(lines) == 1
    assert lines[0].startswith(f"glassconv {command}: device: expected")
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


class _Extension:
    """A native extension that was built with, or without, CUDA."""

    def __init__(self, cuda: str) -> None:
        self._cuda = cuda

    def build_info(self) -> dict[str, str]:
        return {"cuda": self._cuda}


@pytest.fixture
def fresh_answers():
    _native.has_cuda.cache_clear()
    _native._say_no_kernels.cache_clear()
    yield
    _native.has_cuda.cache_clear()
    _native._say_no_kernels.cache_clear()


@pytest.mark.parametrize(("cuda", "expected"), [("13.0", True), ("", False)])
def test_what_the_native_operators_serve(
    monkeypatch: pytest.MonkeyPatch, fresh_answers: None, cuda: str, expected: bool
) -> None:
    monkeypatch.setattr(_native, "native", lambda: _Extension(cuda))
    assert _native.has_cuda() is expected
    with glassconv.use_backend("native"):
        assert _native.runs_on("cpu")
        assert not _native.runs_on("xpu")
        if expected:
            assert _native.runs_on("cuda")
        else:  # said once, not for every call
            with pytest.warns(RuntimeWarning, match="built without CUDA kernels") as caught:
                assert not any(_native.runs_on("cuda") for _ in range(3))
            assert len(caught) == 1
    with glassconv.use_backend("reference"):
        assert not _native.runs_on("cpu")
        assert not _native.runs_on("cuda")


def test_no_extension_has_no_kernels(monkeypatch: pytest.MonkeyPatch, fresh_answers: None) -> None:
    monkeypatch.setattr(_native, "native", lambda: None)
    assert not _native.has_cuda()


def test_environment_survives_a_driver_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, two_gpus: None
) -> None:
    def refuse(index: int) -> str:
        raise RuntimeError("The NVIDIA driver on your\nsystem is too old")

    monkeypatch.setattr(torch.cuda, "get_device_name", refuse)
    found = _environment.environment()
    assert found["devices"] == ["cpu", "cuda (The NVIDIA driver on your system is too old)"]
    assert set(found["cuda"]) == {"kernels", "torch"}


def test_training_refuses_other_devices(tmp_path) -> None:
    model = SE3GNN(2, 2, channels=1, l_max=0, n_layers=1).to("meta")
    with pytest.raises(
        ValueError, match=r"model: expected a network on the CPU or on a GPU .*, got one on meta"
    ):
        fit(model, [system()], out=tmp_path)


@pytest.mark.parametrize("loss_types", [None, (0,)])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_training_step_looks_at_no_number(
    monkeypatch: pytest.MonkeyPatch, name: str, loss_types: tuple[int, ...] | None
) -> None:
    """Tensors of the meta device have no numbers to wait for, and do not mix with those of the CPU.

    So a step that runs there neither synchronizes with a GPU nor copies to it, and can be captured.
    """
    model = network(name, torch.float32)
    batch = model.prepare([system(0), system(1)]).to("meta")
    glassconv.backend()  # loaded before it is replaced
    monkeypatch.setattr(_native, "runs_on", lambda _device_type: _native.native() is not None)
    module = PropensityModule(model, TrainingOptions(loss_types=loss_types)).to("meta")
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss.is_meta
    assert all(parameter.grad.is_meta for parameter in module.parameters())


def test_losses_of_some_types_are_the_mean_over_their_particles() -> None:
    model = network("natural", torch.float64)
    batch = model.prepare([system(0), system(1)])
    prediction = torch.randn_like(batch.targets)
    squared = (prediction - model.standardize(batch.targets, batch.types)).square()
    for types in ((0,), (1,), (0, 1), (1, 7)):
        loss = PropensityModule(model, TrainingOptions(loss_types=types))._loss(prediction, batch)
        chosen = torch.isin(batch.types, torch.tensor(types))
        torch.testing.assert_close(loss, squared[chosen].mean())


def test_batches_without_room_on_the_device_come_back_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []

    def to(self, *targets, **options):
        moved.extend(map(str, targets))
        return self

    monkeypatch.setattr("glassconv.nn.Batch.to", to)
    monkeypatch.setattr("glassconv.training.data_module._has_room", lambda _device: False)
    model = SE3GNN(2, 2, channels=1, l_max=0, n_layers=1)
    module = ConfigurationDataModule(model, [system(0), system(1)], batch_size=2)
    assert moved == ["cpu", "cpu"]
    module._device = torch.device("meta")
    assert [len(batch) for batch in module.train_dataloader()] == [2]
    assert moved == ["cpu", "cpu", "meta", "meta"]


def test_room_is_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from glassconv.training import data_module

    assert data_module._has_room(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (40, 100))
    assert data_module._has_room(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (39, 100))
    assert not data_module._has_room(torch.device("cuda", 0))
