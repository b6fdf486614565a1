"""The command line under hostile input: nothing is lost, and every refusal is one line with exit code 2."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from test_cli import SMALL, configurations, fails, keep_threads, run  # noqa: F401 - a fixture

from glassconv.cli import train as train_command
from glassconv.data import write_hdf5
from glassconv.nn import SE3GNN

ONE = [*SMALL, "--epochs", "1"]


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "data.h5"
    write_hdf5(path, configurations(4))
    return str(path)


@pytest.fixture
def finished(capsys, tmp_path, data_file):
    """Folder of a finished run."""
    out = tmp_path / "run"
    assert run(capsys, "train", data_file, "--out", out, "--schedule", "constant", *ONE)[0] == 0
    return out


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def with_types(path, types, **fields):
    (given,) = configurations(1, seed=7)
    write_hdf5(path, [dataclasses.replace(given, types=types, **fields)])
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--early-stopping", "3"], "early_stopping: expected validation configurations"),
        (["--loss-types", "5"], r"loss_types: expected some of [0, 1]"),
        (
            ["--validation-files", "{data}"],
            "validation: expected configurations that are not in another part",
        ),
        (
            ["--validation-files", "{other}"],
            "types: expected types that occur in training, [0, 1], got [0, 2]",
        ),
        (["--times", "99"], "--times: indices: expected indices of 2 times, got 99"),
        (["--channels", "1000000"], "channels: expected 1 to 1024, got 1000000"),
        (["--n-layers", "1000000"], "n_layers: expected 1 to 128, got 1000000"),
        (["--epochs", "10000000000"], "epochs: expected at most 1000000000"),
        (["--threads", "1000000000"], "--threads: expected at most"),
    ],
)
def test_a_refused_run_loses_nothing(capsys, tmp_path, data_file, finished, options, message):
    other = with_types(tmp_path / "other.h5", 2 * (torch.arange(60) >= 48).long())
    options = [option.format(data=data_file, other=other) for option in options]
    before = contents(finished)
    assert message in fails(capsys, "train", data_file, "--out", finished, "--overwrite", *ONE, *options)
    assert contents(finished) == before
    new = tmp_path / "new"
    assert message in fails(capsys, "train", data_file, "--out", new, *ONE, *options)
    assert not new.exists()


def test_types_of_the_test_set_are_checked_before_training(capsys, tmp_path):
    *first, last = configurations(3)
    path, out = tmp_path / "types.h5", tmp_path / "run"
    write_hdf5(path, [*first, dataclasses.replace(last, types=torch.arange(60) % 3)])
    message = fails(capsys, "train", path, "--out", out, "--test", 1, *ONE)
    assert "types: expected types that occur in training, [0, 1], got [0, 1, 2] in T0.5_2 (test)" in message
    assert not out.exists()


def test_type_numbers_are_no_identifiers(capsys, tmp_path):
    path = with_types(tmp_path / "ids.h5", torch.where(torch.arange(60) < 48, 0, 10**9))
    message = fails(capsys, "train", path, "--out", tmp_path / "run", *ONE)
    assert "types: expected types counted from 0 without gaps, at most 100, got 1000000000" in message


def test_training_on_the_test_set_is_refused(capsys, tmp_path):
    path = tmp_path / "one.h5"
    write_hdf5(path, configurations(1))
    message = fails(capsys, "train", path, path, "--out", tmp_path / "run", "--test", 1, *ONE)
    assert "expected configurations that are not in another part, got T0.5_0, which is T0.5_0 of" in message
    assert "test" in message
    assert "training" in message


def test_a_run_that_never_finished_an_epoch_is_no_run(capsys, tmp_path, data_file):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text("{")
    assert run(capsys, "train", data_file, "--out", out, *ONE)[0] == 0
    assert "--overwrite replaces it" in fails(capsys, "train", data_file, "--out", out, *ONE)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("checkpoints/last.ckpt", b""),
        ("checkpoints/last.ckpt", b"PK\x03\x04 truncated"),
        ("config.json", b"[]"),
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("config.json", b'{"data": ["sample"], "channels": "many"}'),
        ("config.json", b"\xff\xfe"),
        ("training.json", b"{}"),
        ("training.json", b"[]"),
        ("training.json", None),
        ("log.csv", b"nothing\nof this\n"),
    ],
)
def test_damaged_runs_name_the_file(capsys, finished, name, content):
    file = finished / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert str(file) in fails(capsys, "train", "--resume", "--out", finished)


def test_resume_from_another_folder(capsys, tmp_path, monkeypatch, data_file):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a run"
    arguments = ["train", "data.h5", "--out", "a run", "--schedule", "constant", *ONE]
    assert run(capsys, *arguments)[0] == 0
    assert json.loads((out / "config.json").read_text())["data"] == [data_file]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(capsys, "train", "--resume", "--out", out, "--epochs", 2)[0] == 0
    assert train_command._how_to_continue(out) == f"continue with: glassconv train --resume --out '{out}'"


def test_a_run_on_the_sample_is_no_demonstration(capsys, tmp_path):
    out = tmp_path / "run"
    assert run(capsys, "train", "sample", "--temperature", "0.56", "--out", out, *ONE)[0] == 0
    before = contents(out)
    assert "--overwrite replaces it" in fails(capsys, "train", "--demo", "--out", out, *ONE)
    assert contents(out) == before


def test_demo_takes_temperatures_up_to_rounding(capsys, tmp_path):
    out = tmp_path / "run"
    assert run(capsys, "train", "--demo", "--temperature", "0.5600001", "--out", out, *ONE)[0] == 0
    groups = json.loads((out / "metrics.json").read_text())["sets"]["other_temperature"]
    assert [group["temperature"] for group in groups] == [0.64]


def test_zero_switches_off(capsys, tmp_path, data_file):
    out = tmp_path / "run"
    assert run(capsys, "train", data_file, "--out", out, "--ema", 0, "--gradient-clip", 0, *ONE)[0] == 0
    chosen = json.loads((out / "training.json").read_text())["options"]
    assert (chosen["ema"], chosen["gradient_clip"]) == (None, None)


def test_negative_times(capsys, tmp_path, data_file):
    out = tmp_path / "run"
    assert run(capsys, "train", data_file, "--out", out, "--times", "-1,-2", *ONE)[0] == 0
    assert json.loads((out / "config.json").read_text())["times"] == [-1, -2]


def test_evaluate_refuses(capsys, tmp_path, data_file, finished):
    assert "--last: expected at least 1, got 0" in fails(capsys, "evaluate", finished, data_file, "--last", 0)
    # what is said first: the data need not exist
    message = fails(capsys, "evaluate", finished, tmp_path / "nowhere.h5", "--out", data_file)
    assert "--out: expected a folder, got" in message
    bare = tmp_path / "bare.h5"
    missing = {"propensity": None, "propensity_halves": None, "times": None}
    write_hdf5(bare, [dataclasses.replace(c, **missing) for c in configurations(1)])
    for options in ([], ["--times", "0"]):
        message = fails(capsys, "evaluate", finished, bare, *options)
        assert "DATA: expected propensities in all configurations, got none in" in message
    model = SE3GNN.load(finished / "model.safetensors")
    with torch.no_grad():
        model.readout.bias.fill_(torch.inf)
    model.save(tmp_path / "wrecked.safetensors")
    message = fails(capsys, "evaluate", tmp_path / "wrecked.safetensors", data_file)
    assert "predictions: expected finite numbers, got others for T0.5_0" in message


def test_out_is_checked_before_the_work(capsys, tmp_path, data_file):
    nowhere = tmp_path / "nowhere.h5"
    assert "--out: expected a folder" in fails(capsys, "train", nowhere, "--out", f"{data_file}/below")
    options = ["--out", tmp_path, "--overwrite"]
    assert "--out: expected a file, got the folder" in fails(capsys, "quench", nowhere, *options)
    options = ["--out", tmp_path, "--temperature", "0.5"]
    assert "--out: expected a file, got the folder" in fails(capsys, "simulate", *options)


def test_unwritable_out(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    nowhere = tmp_path / "nowhere.h5"
    message = fails(capsys, "quench", nowhere, "--out", tmp_path / "x.h5")
    assert "--out: expected a file in a folder that can be written" in message
    assert "is read-only" in fails(capsys, "train", nowhere, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")]
)
def test_lack_of_memory_is_one_line(capsys, tmp_path, monkeypatch, data_file, error):
    def full(*_):
        raise error

    monkeypatch.setattr(train_command, "_model", full)
    message = fails(capsys, "train", data_file, "--out", tmp_path / "run", *ONE)
    assert "not enough memory for these options and data" in message


def test_other_runtime_errors_are_not_hidden(tmp_path, monkeypatch, data_file):
    def broken(*_):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(train_command, "_model", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        run(None, "train", data_file, "--out", tmp_path / "run", *ONE)
