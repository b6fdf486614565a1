"""The network on a GPU: its numbers, a step that never waits and is a CUDA graph, training, commands."""

from __future__ import annotations

import copy
import csv
import json

import pytest
import torch
from cuda_cases import needs_cuda
from gpu.systems import liquid
from gpu.timing import TrainingStep
from gpu.training import workload
from nn_systems import DTYPES, OPTIONS, assert_close, network, system
from torch import Tensor

import glassconv
from glassconv.cli import main
from glassconv.data import Configuration, write_hdf5
from glassconv.nn import SE3GNN
from glassconv.training import TrainingOptions, evaluate, fit
from glassconv.training.data_module import ConfigurationDataModule
from glassconv.training.module import PropensityModule

pytestmark = needs_cuda


@pytest.fixture(autouse=True)
def native():
    with glassconv.use_backend("native"):
        yield
    torch.cuda.synchronize()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_numbers_as_on_the_cpu(dtype: torch.dtype, name: str) -> None:
    model = network(name, dtype)
    there = copy.deepcopy(model).cuda()
    systems = [system(0), system(1)]
    outputs, gradients = [], []
    for one in (model, there):
        out = one(systems)
        out.square().sum().backward()
        outputs.append(out.detach().cpu())
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in one.parameters()]))
    assert_close(outputs[1], outputs[0], dtype)
    assert_close(gradients[1], gradients[0], dtype)


def test_batch_is_prepared_there_or_moved() -> None:
    model = network().cuda()
    batch = model.prepare([system(0), system(1)])
    assert batch.vectors.device == batch.graph.device == model.device
    moved = network().prepare([system(0), system(1)]).to("cuda")
    assert torch.equal(moved.graph.edge_index, batch.graph.edge_index)
    model.eval()
    assert_close(model(moved), model(batch), torch.float64)


@pytest.mark.parametrize("loss_types", [None, (0,)])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_training_step_never_waits(name: str, loss_types: tuple[int, ...] | None) -> None:
    """torch raises for every operation that makes the CPU wait for the GPU."""
    model = network(name, torch.float32).cuda()
    module = PropensityModule(model, TrainingOptions(loss_types=loss_types)).cuda()
    batch = model.prepare([system(0), system(1)])
    optimizer = torch.optim.Adam(module.parameters())

    def step() -> None:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("n_nodes", [1000, 4096])
def test_a_whole_training_step_as_a_cuda_graph(n_nodes: int) -> None:
    """Forward, loss, backward, Adam; losses and weights are those of eager steps."""
    model, batch, targets = workload(n_nodes, "cuda", n_layers=3)
    eager = TrainingStep(copy.deepcopy(model), batch, targets)
    step = TrainingStep(copy.deepcopy(model), batch, targets)
    expected = [float(eager()) for _ in range(9)]
    graph, loss = step.captured(warm_up=3)
    found = []
    for _ in range(6):
        graph.replay()
        found.append(float(loss))
    # the same kernels on the same numbers; matrix products may choose another algorithm while capturing
    assert found == pytest.approx(expected[3:], rel=1e-5)
    assert found[-1] < expected[0]
    for a, b in zip(step.network.state_dict().values(), eager.network.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_same_step_twice_gives_the_same_bits() -> None:
    model, batch, targets = workload(1000, "cuda", n_layers=3)
    runs = []
    for _ in range(2):
        step = TrainingStep(copy.deepcopy(model), batch, targets)
        runs.append([float(step()) for _ in range(5)])
    assert runs[0] == runs[1]


def tiny(count: int) -> list[Configuration]:
    return [liquid(300, seed).select_times([0, 1]) for seed in range(count)]


def options(**changes: object) -> TrainingOptions:
    return TrainingOptions(**({"epochs": 3, "batch_size": 2, "learning_rate": 3e-3, "ema": 0.9} | changes))


def small(seed: int = 1) -> SE3GNN:
    torch.manual_seed(seed)
    return SE3GNN(2, 2, channels=2, l_max=1, n_layers=2)


def rows(folder) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def state(model: SE3GNN) -> list[Tensor]:
    return [value.cpu() for value in model.state_dict().values()]


def test_fit_runs_where_the_network_is(tmp_path) -> None:
    data = tiny(4)
    there = fit(small().cuda(), data[:3], data[3:], out=tmp_path / "gpu", options=options(), progress=False)
    here = fit(small(), data[:3], data[3:], out=tmp_path / "cpu", options=options(), progress=False)
    assert there.model.device.type == "cuda"
    for a, b in zip(rows(tmp_path / "gpu"), rows(tmp_path / "cpu"), strict=True):
        # single precision through a few steps of Adam
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-3)
    (ours,), (theirs,) = evaluate(there.model, data[3:]), evaluate(here.model, data[3:])
    for a, b in zip(ours.types, theirs.types, strict=True):
        assert torch.allclose(a.pooled, b.pooled, atol=1e-2)
    loaded = SE3GNN.load(tmp_path / "gpu/model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(state(loaded), state(there.model), strict=True))


def test_same_seed_same_bits(tmp_path) -> None:
    data = tiny(4)
    runs = []
    for name in ("a", "b"):
        fit(small().cuda(), data[:3], data[3:], out=tmp_path / name, options=options(), progress=False)
        runs.append(rows(tmp_path / name))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("first", "then"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_run_is_resumed_on_another_device(tmp_path, first: str, then: str) -> None:
    data, chosen = tiny(3), {"schedule": "constant"}
    for epochs, device in ((1, first), (3, then)):
        result = fit(
            small().to(device),
            data[:2],
            data[2:],
            out=tmp_path,
            options=options(epochs=epochs, **chosen),
            resume=epochs > 1,
            progress=False,
        )
    assert [int(row["epoch"]) for row in rows(tmp_path)] == [0, 1, 2]
    assert result.model.device.type == then


def test_batches_without_room_are_brought_for_each_step(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassconv.training.data_module._has_room", lambda _device: False)
    model, data = small().cuda(), tiny(3)
    model.set_statistics(data)
    module = ConfigurationDataModule(model, data, batch_size=2)
    assert {batch.vectors.device.type for batch in module._training} == {"cpu"}
    assert {batch.vectors.device.type for batch in module.train_dataloader()} == {"cuda"}
    fit(model, data, out=tmp_path, options=options(epochs=1, ema=None), progress=False)


def test_quench_on_the_gpu_finds_the_same_structure() -> None:
    configuration = glassconv.data.sample(0.64)[0]
    there = glassconv.quench(configuration.to("cuda"), max_force=1e-4)
    here = glassconv.quench(configuration, max_force=1e-4)
    assert there.device.type == "cuda"
    # the order of sums differs; the way downhill magnifies that, to the tolerance of the forces
    assert float(there.energy.mean()) == pytest.approx(float(here.energy.mean()), abs=1e-3)


def test_commands(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "data.h5", tmp_path / "run"
    write_hdf5(file, tiny(4))
    network_options = ["--channels", "2", "--l-max", "1", "--n-layers", "2", "--epochs", "2"]
    arguments = ["train", str(file), "--out", str(out), "--test", "1", *network_options]
    assert main([*arguments, "--device", "cuda"]) == 0
    assert json.loads((out / "config.json").read_text())["device"] == "cuda"
    capsys.readouterr()
    scores = []
    for device in ("cuda:0", "auto", "cpu"):
        assert main(["evaluate", str(out), str(file), "--last", "1", "--json", "--device", device]) == 0
        scores.append(json.loads(capsys.readouterr().out)[0]["types"][0]["pooled"])
    assert scores[0] == scores[1]
    assert scores[0] == pytest.approx(scores[2], abs=1e-3)
    n = torch.cuda.device_count()
    assert main(["evaluate", str(out), str(file), "--device", f"cuda:{n}"]) == 2
    assert f"got cuda:{n}" in capsys.readouterr().err
    assert main(["info"]) == 0
    assert torch.cuda.get_device_name(0) in capsys.readouterr().out
