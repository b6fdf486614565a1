"""Training on tiny configurations: log, resume, seeds, early stopping, averaged weights, interruption."""

from __future__ import annotations

import csv
import json
import signal
import warnings

import pytest
import torch

from glassconv.data import Configuration
from glassconv.nn import SE3GNN
from glassconv.training import TrainingOptions, evaluate, fit, write_report
from glassconv.training.data_module import ConfigurationDataModule, epoch_order
from glassconv.training.progress import ProgressBar, duration

TIMED = ("seconds",)  # columns of the log that differ from run to run


@pytest.fixture(autouse=True)
def one_thread():
    """Sixty particles are no work for several threads, which would also share the sums differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(count, *, n=60, n_times=2, seed=0, **fields):
    """Random configurations whose propensity is the local density: something a network can learn at once."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for k in range(count):
        positions = 4.2 * torch.rand(n, 3, generator=generator, dtype=torch.float64)
        distances = torch.cdist(positions, positions)
        density = torch.exp(-(distances**2)).sum(1)
        noise = torch.rand(2, n_times, n, generator=generator, dtype=torch.float64)
        propensity = density.repeat(n_times, 1) * torch.arange(1, n_times + 1)[:, None]
        given = {
            "positions": positions,
            "types": (torch.arange(n) >= 0.8 * n).long(),
            "cell": torch.full((3,), 4.2),
            "pbc": False,
            "inherent": positions,
            "energy": torch.rand(n, generator=generator, dtype=torch.float64),
            "propensity": propensity,
            "propensity_halves": propensity + 0.1 * noise,
            "times": [10.0**t for t in range(n_times)],
            "temperature": 0.5,
            "name": f"tiny{k}",
        }
        result.append(Configuration(**(given | fields)))
    return result


def network(seed=1, n_outputs=2, **options):
    torch.manual_seed(seed)
    return SE3GNN(2, n_outputs, **({"channels": 2, "l_max": 1, "n_layers": 2} | options))


def options(**changes):
    return TrainingOptions(**({"epochs": 4, "batch_size": 2, "learning_rate": 3e-3} | changes))


def rows(folder):
    with (folder / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


def same_state(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("ema", [None, 0.9])
def test_fit_learns_and_leaves_its_files(tmp_path, capfd, ema):
    data = tiny(5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(
            network(),
            data[:4],
            data[4:],
            out=tmp_path,
            options=options(epochs=20, learning_rate=2e-2, ema=ema),
        )
    log = rows(tmp_path)
    assert [int(row["epoch"]) for row in log] == list(range(20))
    assert float(log[-1]["train_loss"]) < 0.5 * float(log[0]["train_loss"])
    assert result.n_epochs == 20
    best = max(log, key=lambda row: float(row["validation_pearson"]))
    assert result.epoch == int(best["epoch"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "training.json",
        "environment.json",
        "log.csv",
        "checkpoints",
        "model.safetensors",
    }
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["options"]["learning_rate"] == 2e-2
    assert record["network"]["channels"] == 2
    assert record["training"] == ["tiny0", "tiny1", "tiny2", "tiny3"]
    assert record["validation"] == ["tiny4"]
    packages = json.loads((tmp_path / "environment.json").read_text())["packages"]
    assert packages["torch"] == torch.__version__
    loaded = SE3GNN.load(tmp_path / "model.safetensors")
    assert same_state(loaded, result.model)
    assert not result.model.training
    # the weights kept are those that were validated: the logged correlation comes out again
    (group,) = evaluate(loaded, data[4:])
    mean = torch.stack([s.values for s in group.types]).mean()
    # single precision through two layers
    assert float(mean) == pytest.approx(float(best["validation_pearson"]), abs=1e-4)
    assert not [w for w in caught if "lightning" in str(w.filename)]
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "GPU available" not in printed.err
    assert "100 %" in printed.err


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_resumed_run_is_the_uninterrupted_run(tmp_path, monkeypatch, schedule, ema):
    data = tiny(5)
    chosen = options(schedule=schedule, schedule_patience=1, ema=ema, early_stopping=10)
    whole = fit(network(), data[:4], data[4:], out=tmp_path / "whole", options=chosen, progress=False)

    from glassconv.training.module import PropensityModule

    step, calls = PropensityModule.training_step, []

    def stopping(self, batch, index):
        calls.append(index)
        if len(calls) == 6:  # in the middle of the third epoch
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(PropensityModule, "training_step", stopping)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), data[:4], data[4:], out=tmp_path / "parts", options=chosen, progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(rows(tmp_path / "parts")) == 2
    (tmp_path / "parts").rename(tmp_path / "moved")  # a folder may be moved in between
    # other initial weights: all of them come from the checkpoint
    again = fit(
        network(seed=9),
        data[:4],
        data[4:],
        out=tmp_path / "moved",
        options=chosen,
        resume=True,
        progress=False,
    )
    assert rows(tmp_path / "moved") == rows(tmp_path / "whole")
    assert (again.epoch, again.n_epochs) == (whole.epoch, whole.n_epochs)
    assert same_state(again.model, whole.model)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    data = tiny(3)
    first = fit(network(), data, out=tmp_path, options=options(), progress=False)
    log = (tmp_path / "log.csv").read_text()
    second = fit(network(seed=5), data, out=tmp_path, options=options(), resume=True, progress=False)
    assert (tmp_path / "log.csv").read_text() == log
    assert same_state(first.model, second.model)


def test_a_longer_run_continues(tmp_path):
    data = tiny(3)
    whole = fit(
        network(), data, out=tmp_path / "a", options=options(epochs=3, schedule="constant"), progress=False
    )
    fit(network(), data, out=tmp_path / "b", options=options(epochs=2, schedule="constant"), progress=False)
    longer = options(epochs=3, schedule="constant")
    parts = fit(network(), data, out=tmp_path / "b", options=longer, resume=True, progress=False)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert same_state(whole.model, parts.model)


def test_same_seed_same_bits_other_seed_other_order(tmp_path):
    data = tiny(4)
    runs = [
        fit(network(), data, out=tmp_path / name, options=options(seed=seed, epochs=2), progress=False)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert same_state(runs[0].model, runs[1].model)
    assert not same_state(runs[0].model, runs[2].model)


def test_order_changes_with_the_epoch():
    orders = [epoch_order(8, 3, epoch) for epoch in range(5)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert epoch_order(8, 3, 2) == orders[2]
    assert epoch_order(8, 4, 2) != orders[2]


def test_early_stopping_and_its_memory(tmp_path):
    data = tiny(5)
    # a rate so small that nothing improves after the first epochs
    chosen = options(epochs=50, learning_rate=1e-12, early_stopping=2, schedule="constant")
    result = fit(network(momentum=1.0), data[:4], data[4:], out=tmp_path, options=chosen, progress=False)
    assert result.n_epochs < 50
    log = [float(row["validation_pearson"]) for row in rows(tmp_path)]
    assert result.n_epochs == len(log)
    best = max(range(len(log)), key=lambda k: (log[k], -k))
    assert len(log) == best + 1 + 2
    again = fit(
        network(momentum=1.0), data[:4], data[4:], out=tmp_path, options=chosen, resume=True, progress=False
    )
    assert len(rows(tmp_path)) == len(log)
    assert same_state(result.model, again.model)


def test_early_stopping_wants_a_validation_set(tmp_path):
    with pytest.raises(ValueError, match="early_stopping: expected validation configurations to stop on"):
        fit(network(), tiny(2), out=tmp_path, options=options(early_stopping=2))


def test_statistics_come_from_the_training_set_alone(tmp_path):
    data = tiny(3)
    model = network()
    fit(model, data[:2], data[2:], out=tmp_path, options=options(epochs=1), progress=False)
    types = torch.cat([c.types for c in data[:2]])
    targets = torch.cat([c.propensity.T for c in data[:2]])
    for kind in range(2):
        chosen = targets[types == kind]
        # buffers are single precision
        torch.testing.assert_close(model.target_mean[kind].double(), chosen.mean(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(
            model.target_std[kind].double(), chosen.std(0, unbiased=False), rtol=1e-6, atol=0
        )


def test_loss_types_leave_the_others_out(tmp_path):
    data = tiny(2)
    model = network()
    before = model.readout.weight.detach().clone()
    fit(model, data, out=tmp_path, options=options(epochs=1, loss_types=(0,)), progress=False)
    assert not torch.equal(model.readout.weight[0], before[0])
    assert torch.equal(model.readout.weight[1], before[1])


def test_batches_are_prepared_once_and_joined():
    data = tiny(5)
    model = network()
    prepared = []
    prepare = model.prepare
    model.prepare = lambda configuration: prepared.append(configuration) or prepare(configuration)
    module = ConfigurationDataModule(model, data[:3], data[3:], batch_size=2)
    for _ in range(2):
        assert [len(batch) for batch in module.train_dataloader()] == [2, 1]
        assert [len(batch) for batch in module.val_dataloader()[0]] == [1, 1]
    assert len(prepared) == 5
    with pytest.raises(ValueError, match="training: expected at least one configuration, got none"):
        ConfigurationDataModule(model, [])
    with pytest.raises(ValueError, match="configurations: expected propensities to train on, got none"):
        ConfigurationDataModule(model, tiny(1, propensity=None, propensity_halves=None, times=None))


def test_refuses_unsuitable_configurations(tmp_path):
    with pytest.raises(
        ValueError, match=r"configurations: expected propensities at 2 times, .* got 3 in tiny0"
    ):
        fit(network(), tiny(2), tiny(1, n_times=3), out=tmp_path, options=options())
    with pytest.raises(ValueError, match=r"loss_types: expected some of \[0, 1\], .* got \(5,\)"):
        fit(network(), tiny(2), out=tmp_path, options=options(loss_types=(5,)))
    assert not list(tmp_path.iterdir())


def test_refuses_to_mix_runs(tmp_path):
    data = tiny(3)
    fit(network(), data, out=tmp_path, options=options(epochs=1), progress=False)
    with pytest.raises(FileExistsError, match="out: expected a folder without a training run"):
        fit(network(), data, out=tmp_path, options=options(epochs=1))
    cases = [
        (network(channels=3), data, options(epochs=1), "channels: expected 2 as in the run to resume, got 3"),
        (network(), data, options(epochs=1, seed=7), "seed: expected 0 as in the run to resume, got 7"),
        (network(), data, options(epochs=2), "epochs: expected 1 as in the run to resume, got 2"),
        (network(), tiny(3, seed=8), options(epochs=1), "data: expected the same as in the run to resume"),
        (network(), data[:2], options(epochs=1), "training: expected the same as in the run to resume"),
    ]
    for model, given, chosen, message in cases:
        with pytest.raises(ValueError, match=message):
            fit(model, given, out=tmp_path, options=chosen, resume=True)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    model = network()
    with torch.no_grad():
        model.readout.bias.fill_(torch.nan)
    with pytest.raises(
        FloatingPointError, match="training loss: expected a finite number, got nan in epoch 0"
    ):
        fit(model, tiny(2), out=tmp_path, options=options(gradient_clip=None), progress=False)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("where", ["prediction", "weights"])
def test_numbers_that_are_not_finite_reach_no_checkpoint(tmp_path, monkeypatch, where):
    from glassconv.training.module import PropensityModule

    def spoil(self, *_):
        if self.current_epoch == 1:
            with torch.no_grad():
                self.model.readout.weight.fill_(torch.nan)

    # the last step of the second epoch leaves weights that its own loss has not seen
    monkeypatch.setattr(PropensityModule, "on_train_batch_end", spoil)
    data = tiny(3)
    validation = data[2:] if where == "prediction" else []
    what = {"prediction": "validation predictions", "weights": "weights"}[where]
    with pytest.raises(FloatingPointError, match=f"{what}: expected finite numbers, got others .*epoch 1"):
        fit(network(), data[:2], validation, out=tmp_path, options=options(), progress=False)
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values() if v.is_floating_point())
    assert len(rows(tmp_path)) == 1


def test_a_validation_loss_that_is_infinite_stops_the_run(tmp_path, monkeypatch):
    from glassconv.training.module import PropensityModule

    loss = PropensityModule._loss

    def infinite(self, prediction, batch):
        return loss(self, prediction, batch) * (1.0 if self.model.training else torch.inf)

    monkeypatch.setattr(PropensityModule, "_loss", infinite)
    data = tiny(3)
    with pytest.raises(FloatingPointError, match="validation loss: expected a finite number, got inf"):
        fit(network(), data[:2], data[2:], out=tmp_path, options=options(), progress=False)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_configuration_in_two_parts_is_refused(tmp_path):
    data = tiny(3)
    with pytest.raises(
        ValueError,
        match=r"validation: expected configurations that are not .* got tiny1, which is tiny1 of training",
    ):
        fit(network(), data, data[1:2], out=tmp_path, options=options())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: expected an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1"),
        ({"learning_rate": -1.0}, "learning_rate: expected a positive number, got -1.0"),
        ({"learning_rate": 1e300}, r"learning_rate: expected at most 1000, got 1e\+300"),
        ({"epochs": 10**10}, "epochs: expected at most 1000000000, got 10000000000"),
        ({"gradient_clip": float("nan")}, "gradient_clip: expected a positive number, got nan"),
        ({"ema": 1.0}, "ema: expected a number between 0 and 1, got 1.0"),
        ({"schedule": "warm"}, "schedule: expected one of cosine, plateau, constant, got warm"),
        ({"early_stopping": 0}, "early_stopping: expected at least 1, got 0"),
        ({"seed": -1}, r"seed: expected an integer in \[0, 2\^32\), got -1"),
        ({"loss_types": ()}, "loss_types: expected particle types"),
    ],
)
def test_options_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_evaluate_and_report(tmp_path):
    data = tiny(3) + tiny(2, temperature=0.6, times=[2.0, 20.0])
    model = network()
    model.set_statistics(data)
    groups = evaluate(model, data)
    assert [(g.temperature, len(g.names)) for g in groups] == [(0.5, 3), (0.6, 2)]
    write_report(tmp_path / "report", {"test": groups, "training": groups[:1]}, {"note": "x"})
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"metrics.json", "correlation.png", "correlation_training.png"}
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["note"] == "x"
    first = metrics["sets"]["test"][0]["types"][0]
    assert first["label"] == "A"
    for key in ("pooled", "per_configuration", "ceiling_pooled", "ceiling_per_configuration"):
        assert len(first[key]) == 2
        assert all(-1 <= value <= 1 for value in first[key])
    assert first["pooled_of_ceiling"][0] == pytest.approx(first["pooled"][0] / first["ceiling_pooled"][0])
    with pytest.raises(
        ValueError, match="configurations: expected 2 times, as the network has outputs, got 3"
    ):
        evaluate(model, tiny(1, n_times=3))


class _Terminal:
    def __init__(self, tty):
        self.text, self.tty = "", tty

    def isatty(self):
        return self.tty

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_bar_on_a_terminal_and_in_a_file():
    terminal = _Terminal(tty=True)
    bar = ProgressBar("work", 200, stream=terminal)
    for k in range(1, 201):
        bar.update(k, "note")
    bar.close()
    assert terminal.text.startswith("\rwork [")
    assert "100 %" in terminal.text
    assert terminal.text.endswith("\n")
    assert terminal.text.count("\n") == 1
    file = _Terminal(tty=False)
    bar = ProgressBar("work", 200, done=100, stream=file)
    for k in range(101, 201):
        bar.update(k)
    bar.close()
    assert file.text.count("\n") == 5
    assert "\r" not in file.text
    assert [duration(s) for s in (42.4, 187, 7500)] == ["42s", "3m07s", "2h05m"]


def test_files_are_written_whole_or_not_at_all(tmp_path):
    from glassconv._files import write_json

    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert path.stat().st_mode & 0o444 == 0o444
