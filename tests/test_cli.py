"""The command line: what it writes, and one line with exit code 2 for unsuitable input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import glassconv
from glassconv.cli import main
from glassconv.data import Configuration, read, write_hdf5

SMALL = ["--channels", "2", "--l-max", "1", "--n-layers", "2", "--epochs", "2", "--threads", "1"]


@pytest.fixture(autouse=True)
def keep_threads():
    """`--threads` sets them for the process, which lives on after a test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def configurations(count, *, n=60, temperature=0.5, n_times=2, quenched=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    result = []
    for k in range(count):
        # a jittered lattice: no two particles on top of each other, which a quench would shoot away
        sites = torch.cartesian_prod(*[torch.arange(4)] * 3)[:n].double() * 1.06
        positions = sites + 0.1 * torch.rand(n, 3, generator=generator, dtype=torch.float64)
        propensity = torch.rand(n_times, n, generator=generator, dtype=torch.float64)
        known = {"inherent": positions, "energy": torch.rand(n, generator=generator, dtype=torch.float64)}
        result.append(
            Configuration(
                positions,
                (torch.arange(n) >= 48).long(),
                torch.full((3,), 4.24),
                propensity=propensity,
                propensity_halves=torch.stack([propensity, propensity + 0.1]),
                times=[10.0**t for t in range(n_times)],
                temperature=temperature,
                name=f"T{temperature}_{k}",
                **(known if quenched else {}),
            )
        )
    return result


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "data.h5"
    write_hdf5(path, configurations(6))
    return str(path)


def run(capsys, *arguments):
    """Exit code, stdout, stderr of a command in this process."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as leave:
        code = leave.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys, *arguments):
    """The one line of an error."""
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line and "native kernels not available" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("glassconv")
    return lines[0]


def test_train_and_evaluate(capsys, tmp_path, data_file):
    out = tmp_path / "run"
    code, text, _ = run(capsys, "train", data_file, "--out", out, "--test", 2, "--validation", 1, *SMALL)
    assert code == 0
    assert "A per configuration" in text
    assert "test set, T = 0.5, 2 configurations" in text
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json",
        "training.json",
        "environment.json",
        "log.csv",
        "checkpoints",
        "model.safetensors",
        "metrics.json",
        "correlation.png",
        "correlation_validation.png",
        "correlation_training.png",
        "learning_curve.png",
    }
    metrics = json.loads((out / "metrics.json").read_text())
    assert [metrics["sets"][name][0]["n_configurations"] for name in ("test", "validation", "training")] == [
        2,
        1,
        3,
    ]
    assert metrics["sets"]["test"][0]["configurations"] == ["T0.5_4", "T0.5_5"]
    assert metrics["environment"]["packages"]["torch"] == torch.__version__
    assert metrics["n_epochs"] == 2
    config = json.loads((out / "config.json").read_text())
    assert config["channels"] == 2
    assert config["data"] == [data_file]

    again = tmp_path / "again"
    code, text, _ = run(capsys, "evaluate", out, data_file, "--last", 2, "--out", again, "--threads", 1)
    assert code == 0
    assert "A per configuration" in text
    assert {path.name for path in again.iterdir()} == {"metrics.json", "correlation.png"}
    scores = json.loads((again / "metrics.json").read_text())["sets"]["evaluation"]
    assert scores == metrics["sets"]["test"]
    code, text, _ = run(capsys, "evaluate", out / "model.safetensors", data_file, "--json", "--threads", 1)
    assert code == 0
    assert json.loads(text)[0]["n_configurations"] == 6


def test_resume_takes_the_options_of_the_run(capsys, tmp_path, data_file):
    out = tmp_path / "run"
    arguments = ["train", data_file, "--out", out, *SMALL, "--schedule", "constant"]
    assert run(capsys, *arguments)[0] == 0
    assert "--resume continues it, --overwrite replaces it" in fails(capsys, *arguments)
    code, text, _ = run(capsys, "train", "--resume", "--out", out, "--epochs", 3, "--json")
    assert code == 0
    assert json.loads(text)["n_epochs"] == 3
    message = fails(capsys, "train", "--resume", "--out", out, "--channels", 3)
    assert "--channels: expected 2 as in the run to resume, got 3" in message
    assert len((out / "log.csv").read_text().splitlines()) == 1 + 3
    code, text, _ = run(capsys, *arguments, "--overwrite", "--json")
    assert code == 0
    assert json.loads(text)["n_epochs"] == 2


def test_ctrl_c_leaves_a_run_to_resume(tmp_path, data_file):
    out = tmp_path / "run"
    options = [*SMALL, "--schedule", "constant", "--epochs", "100000"]
    # a process started in the background of a shell ignores SIGINT until told otherwise
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from glassconv.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "train", data_file, "--out", str(out), *options]
    root = str(Path(glassconv.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert f"glassconv: stopped; continue with: glassconv train --resume --out {out}" in err
    assert "Traceback" not in err
    n_done = len((out / "log.csv").read_text().splitlines()) - 1
    assert main(["train", "--resume", "--out", str(out), "--epochs", str(n_done + 2)]) == 0
    log = (out / "log.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[0]) for line in log] == list(range(n_done + 2))


def test_held_out_blocks_are_per_temperature(capsys, tmp_path):
    path = tmp_path / "two.h5"
    write_hdf5(path, configurations(4, temperature=0.5) + configurations(3, temperature=0.6, seed=1))
    out = tmp_path / "run"
    assert run(capsys, "train", path, "--out", out, "--test", 1, "--validation", 1, *SMALL)[0] == 0
    record = json.loads((out / "training.json").read_text())
    assert record["training"] == ["T0.5_0", "T0.5_1", "T0.6_0"]
    assert record["validation"] == ["T0.5_2", "T0.6_1"]
    groups = json.loads((out / "metrics.json").read_text())["sets"]["test"]
    assert [(g["temperature"], g["configurations"]) for g in groups] == [(0.5, ["T0.5_3"]), (0.6, ["T0.6_2"])]
    code, text, _ = run(capsys, "evaluate", out, path, "--temperature", "0.6", "--threads", 1, "--json")
    assert code == 0
    assert [g["temperature"] for g in json.loads(text)] == [0.6]


def test_one_time_and_validation_files(capsys, tmp_path, data_file):
    other = tmp_path / "other.h5"
    write_hdf5(other, configurations(1, seed=3))
    out = tmp_path / "run"
    arguments = [
        "train",
        data_file,
        "--out",
        out,
        "--times",
        "-1",
        "--validation-files",
        other,
        "--ema",
        "0.9",
    ]
    assert run(capsys, *arguments, *SMALL)[0] == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["sets"]["validation"][0]["times"] == [10.0]
    assert "got 2 in" in fails(capsys, "evaluate", out, data_file)


def test_missing_inherent_structures(capsys, tmp_path):
    path, quenched, out = tmp_path / "raw.h5", tmp_path / "quenched.h5", tmp_path / "run"
    write_hdf5(path, configurations(2, quenched=False))
    message = fails(capsys, "train", path, "--out", out, *SMALL)
    assert "2 of 2 configurations have no inherent and energy: run `glassconv quench DATA" in message
    assert not out.exists()
    code, text, _ = run(capsys, "quench", path, "--out", quenched, "--max-force", "1e-2", "--threads", 1)
    assert code == 0
    assert "2 configurations, mean energy" in text
    assert all(c.inherent is not None and c.energy is not None for c in read(quenched))
    assert "which exists (--overwrite replaces it)" in fails(capsys, "quench", path, "--out", quenched)
    assert run(capsys, "train", quenched, "--out", out, *SMALL)[0] == 0
    thermal = ["--positions", "thermal", "--inputs", "type"]
    assert run(capsys, "train", path, "--out", tmp_path / "thermal", *thermal, *SMALL)[0] == 0


def test_demo_runs_again_but_replaces_no_other_run(capsys, tmp_path, data_file):
    out = tmp_path / "demo"
    arguments = ["train", "--demo", "--out", out, *SMALL, "--epochs", 1, "--test", 1]
    for _ in range(2):
        code, text, _ = run(capsys, *arguments)
        assert code == 0
        assert "other temperature set, T = 0.64" in text
    sets = json.loads((out / "metrics.json").read_text())["sets"]
    assert [group["temperature"] for group in sets["test"]] == [0.56]
    assert [group["temperature"] for group in sets["other_temperature"]] == [0.64]
    mine = tmp_path / "mine"
    (tmp_path / "mine").mkdir()
    (mine / "log.csv").write_text("not from here")
    (mine / "photo.png").write_text("not from here")
    (mine / "config.json").write_text(json.dumps({"data": [data_file]}))
    assert "--overwrite replaces it" in fails(capsys, "train", "--demo", "--out", mine)
    assert run(capsys, "train", data_file, "--out", mine, "--overwrite", *SMALL)[0] == 0
    assert (mine / "photo.png").read_text() == "not from here"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "{data}"], "the following arguments are required: --out"),
        (
            ["train", "--out", "{tmp}/x"],
            "DATA: expected files of configurations or the word sample, got none",
        ),
        (["train", "{tmp}/nowhere.h5", "--out", "{tmp}/x"], "nowhere.h5"),
        (["train", "{tmp}/empty", "--out", "{tmp}/x"], "{tmp}/empty"),
        (["train", "{tmp}/text.npz", "--out", "{tmp}/x"], "text.npz"),
        (["train", "{data}", "--out", "{tmp}/x", "--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (
            ["train", "{data}", "--out", "{tmp}/x", "--epochs", "0"],
            "epochs: expected an integer of at least 1",
        ),
        (["train", "{data}", "--out", "{tmp}/x", "--test", "6"], "--test: expected at most 5 of the 6"),
        (["train", "{data}", "--out", "{tmp}/x", "--validation", "-1"], "--validation: expected 0 or more"),
        (["train", "{data}", "--out", "{tmp}/x", "--temperature", "0.7"], "those in the data (0.5), got 0.7"),
        (
            ["train", "{data}", "--out", "{tmp}/x", "--temperature", "hot"],
            "expected float values separated by",
        ),
        (
            ["train", "{data}", "--out", "{tmp}/x", "--times", "5"],
            "indices: expected indices of 2 times, got 5",
        ),
        (["train", "{data}", "--out", "{tmp}/x", "--l-max", "9"], "l_max: expected 0 to 4, got 9"),
        (["train", "{data}", "--out", "{tmp}/x", "--inputs", "color"], "inputs: expected some of"),
        (["train", "{data}", "--out", "{tmp}/x", "--threads", "0"], "--threads: expected at least 1, got 0"),
        (
            ["train", "{data}", "--out", "{tmp}/x", "--resume"],
            "--resume: expected a folder with a training run",
        ),
        (
            ["train", "--out", "{tmp}/x", "--resume", "--overwrite"],
            "expected one of --resume and --overwrite",
        ),
        (
            ["train", "{data}", "--out", "{tmp}/x", "--early-stopping", "3"],
            "early_stopping: expected validation",
        ),
        (["train", "{data}", "--out", "{data}"], "data.h5"),
        (["evaluate", "{tmp}", "{data}"], "MODEL: expected a trained network, got"),
        (["evaluate", "{data}", "{data}"], "data.h5"),
        (["quench", "{data}", "--out", "{tmp}/no/x.h5"], "--out: expected a file in an existing folder"),
        (
            ["quench", "{data}", "--out", "{tmp}/x.h5", "--max-force", "-1"],
            "max_force: expected a positive force",
        ),
        (["simulate", "--out", "{tmp}/x.h5"], "the following arguments are required: --temperature"),
        (
            ["simulate", "--out", "{tmp}/x.h5", "--temperature", "-1"],
            "temperature: expected a positive number",
        ),
        (["dance"], "invalid choice: 'dance'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_unsuitable_input_is_one_line(capsys, tmp_path, data_file, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("this is no archive")
    names = {"data": data_file, "tmp": str(tmp_path)}
    line = fails(capsys, *[a.format(**names) for a in arguments])
    assert message.format(**names) in line


def test_times_must_agree(capsys, tmp_path):
    path = tmp_path / "mixed.h5"
    write_hdf5(path, configurations(2) + configurations(1, n_times=3, temperature=0.6))
    message = fails(capsys, "train", path, "--out", tmp_path / "x", *SMALL)
    assert "expected the same number of times in all configurations, got 2 and 3" in message


def test_traceback_on_demand(tmp_path):
    with pytest.raises(Exception, match="nowhere"):
        main(["train", str(tmp_path / "nowhere.h5"), "--out", str(tmp_path / "x"), "--traceback"])


def test_info(capsys):
    code, text, _ = run(capsys, "info")
    assert code == 0
    assert text.splitlines()[0].split() == ["glassconv", glassconv.__version__]
    code, text, _ = run(capsys, "info", "--json")
    assert code == 0
    found = json.loads(text)
    assert found["backend"] == glassconv.backend()
    assert found["packages"]["torch"] == torch.__version__
    assert found["devices"][0] == "cpu"


def test_help_needs_nothing_optional():
    """Help appears without Lightning, matplotlib or LAMMPS being imported."""
    code = (
        "import sys\n"
        "from glassconv.cli import main\n"
        "for command in ('train', 'evaluate', 'simulate', 'quench', 'info'):\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit as leave: assert leave.code == 0\n"
        "assert not {'lightning', 'matplotlib', 'lammps'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(glassconv.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage: glassconv") == 5


def test_example_trains_on_the_shared_configurations(shared_data, tmp_path):
    """The example script as a user runs it, with a network and a number of epochs for a test."""
    root = Path(glassconv.__file__).parents[1]
    script = root / "examples" / "train_shared_ka3d.py"
    options = ["--out", str(tmp_path), "--channels", "1", "--l-max", "1", "--n-layers", "1", "--epochs", "1"]
    environment = os.environ | {"PYTHONPATH": str(root), "GLASSCONV_SHARED_DATA": str(shared_data)}
    result = subprocess.run(
        [sys.executable, str(script), *options],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    sets = json.loads((tmp_path / "metrics.json").read_text())["sets"]
    assert [sets[name][0]["n_configurations"] for name in ("test", "validation", "training")] == [2, 1, 7]
    # of the data, not of the network: the ceiling of the two test configurations
    assert sets["test"][0]["types"][0]["ceiling_per_configuration"][0] == pytest.approx(0.930, abs=5e-4)
