"""The parts of benchmarks/gpu_check.py that need no GPU: floors, choice of stages, limits, reports, table."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gpu_check
import pytest
import torch
from gpu import checks, convolution, floors, peers, table
from gpu.floors import DIRECTIONS, ConvCase
from gpu.run import SKIPPED, Context, Failure, Outcome, Skip, Stage, at_most, in_child, in_process, selected
from gpu.systems import box, liquid
from gpu.timing import Times, TrainingStep, percentile
from gpu.training import workload
from oracles import random_graph, random_vectors, relative_error
from provenance import write_records

import glassconv

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("weights", ["explicit", "lowrank"])
@pytest.mark.parametrize(("l_max", "channels"), floors.TABLE)
def test_floors_are_those_of_the_table(l_max: int, channels: int, weights: str) -> None:
    explicit, lowrank, issue = floors.TABLE[l_max, channels]
    case = ConvCase(l_max, channels, "so3", weights)
    for k, direction in enumerate(DIRECTIONS):
        floor = floors.conv_floor(case, direction, floors.TABLE_N, floors.TABLE_E)
        n_bytes = floor.bytes
        if weights == "lowrank":  # which the table has without the radial features
            n_bytes -= (k + 1) * 4 * case.n_radial * floors.TABLE_E
        # the table is rounded to two digits, and counts a few arrays of the nodes otherwise
        tabulated = (explicit if weights == "explicit" else lowrank)[k]
        assert 1e6 * n_bytes / floors.BANDWIDTH == pytest.approx(tabulated, rel=0.1, abs=0.5)
        if weights == "explicit" and direction != "double_backward":
            microseconds = 1e6 * floor.instructions / floors.ISSUE_RATE
            assert microseconds == pytest.approx(issue[k], rel=0.03)


def test_floors_by_hand() -> None:
    case = ConvCase(1, 8, "so3", "explicit")
    assert [str(path) for path in (case.irreps, case.paths.irreps_in)] == ["0e+1e", "8x0e+8x1e"]
    assert case.paths.weight_numel == 5 * 8
    floor = floors.conv_floor(case, "forward", n_nodes=10, n_edges=100)
    assert floor.bytes == 4 * (10 * 32 + 100 * 3 + 100 * 40 + 10 * 88) + 8 * 100
    assert floor.instructions == 100 * 154 * 8 / 32
    double = floors.conv_floor(replace(case, dtype="float64"), "forward", 10, 100)
    assert double.instructions == 2 * floor.instructions
    lowrank = floors.conv_floor(replace(case, weights="lowrank"), "backward", 10, 100)
    assert lowrank.instructions == 100 * (359 * 8 + 3 * 16 * 40) / 32
    assert floors.Floor(4.3e12, 0).seconds == 1
    assert floors.Floor(1, 1.05e12).limit == "issue"
    assert floors.conv_flops(case, "forward", 100) == 100 * 8 * 2 * (16 + 11)


@pytest.mark.parametrize(("l_max", "parity"), [(1, "so3"), (2, "natural"), (3, "so3"), (3, "natural")])
def test_nonzero_coefficients_are_counted(l_max: int, parity: str) -> None:
    from e3nn import o3

    paths = ConvCase(l_max, 1, parity, "explicit").paths
    blocks = [
        o3.wigner_3j(paths.irreps_in[i].ir.l, paths.irreps_sh[j].ir.l, paths.irreps_out[k].ir.l)
        for i, j, k, *_ in paths.instructions
    ]
    assert sum(int((block.abs() > 1e-6).sum()) for block in blocks) == floors.NONZEROS[parity][l_max]


def test_neighbor_floors() -> None:
    assert 1e6 * floors.neighbor_floor(4096, 165_478).seconds == pytest.approx(1.4, abs=0.1)
    # 36 bytes for each of 40.4 million edges are 0.34 ms
    assert 1e3 * floors.neighbor_floor(1_000_000, 40_400_000).seconds == pytest.approx(0.34, abs=0.01)
    assert set(floors.NEIGHBOR_TARGETS) == {4096, 32_768, 262_144, 1_000_000}


def test_targets() -> None:
    cases = floors.conv_cases()
    assert len({case.name for case in cases}) == len(cases) == 20
    asked = {
        (c.l_max, c.channels, d): floors.conv_target(c, d, 100e-6)
        for c in cases
        for d in DIRECTIONS
        if floors.conv_target(c, d, 100e-6) is not None
    }
    assert asked == {
        (3, 8, "forward"): 100e-6,
        (3, 8, "backward"): 250e-6,
        (3, 8, "double_backward"): pytest.approx(300e-6),
        (3, 32, "forward"): 400e-6,
        (3, 32, "backward"): 1.2e-3,
        (2, 8, "forward"): 40e-6,
    }
    assert floors.conv_target(cases[0], "double_backward", None) is None
    # no target is below the floor: it could not be met
    for case in cases:
        for direction in DIRECTIONS:
            target = floors.conv_target(case, direction, None)
            assert target is None or target > floors.conv_floor(case, direction, 4096, 165_170).seconds


def stage(name: str, work=lambda _context: "done", limit: float = 9.0, needs_gpu: bool = False) -> Stage:
    return Stage(name, f"what {name} does", limit, needs_gpu, work)


def test_stages_are_selected_in_their_order() -> None:
    stages = [stage("a"), stage("b"), stage("c")]
    assert selected(stages, None) == stages
    assert [s.name for s in selected(stages, "c, a")] == ["a", "c"]
    for wrong in ("d", "a,d", "", ","):
        with pytest.raises(ValueError, match=r"--stage: expected some of a,b,c, got"):
            selected(stages, wrong)


def test_the_limits_of_all_stages_after_the_build_leave_time_for_it() -> None:
    assert sum(s.limit for s in gpu_check.STAGES if s.name != "build") <= 585 - 130
    assert len({s.name for s in gpu_check.STAGES}) == len(gpu_check.STAGES)
    for s in gpu_check.STAGES:
        assert gpu_check.options_of(["--stage", s.name]).stages == [s]
    assert gpu_check.options_of(["--stage", "report"]).stages == []


@pytest.mark.parametrize("arguments", [["--stage", "nothing"], ["--in-process"], ["--limit", "x"]])
def test_wrong_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        gpu_check.options_of(arguments)
    assert leave.value.code == 2
    assert "error" in capsys.readouterr().err


def context_in(folder: Path, **changes: object) -> Context:
    return Context(**({"folder": folder, "device": "cpu", "limit": 60.0, "records_folder": folder} | changes))


def test_work_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def skipping(context: Context) -> str:
        raise Skip("no tool")

    def failing(context: Context) -> str:
        raise Failure("3 of 4 are wrong")

    works = {"done": (0, stage("a")), "skipped: no tool": (SKIPPED, stage("b", skipping))}
    works["3 of 4 are wrong"] = (1, stage("c", failing))
    for said, (code, one) in works.items():
        assert in_process(one, context_in(tmp_path)) == code
        assert capsys.readouterr().out.strip() == said


@pytest.mark.parametrize(
    ("code", "status", "summary"),
    [
        ("print('first'); print('all good')", "ok", "all good"),
        ("print('skipped: no tool'); raise SystemExit(75)", "skipped", "no tool"),
        ("print('2 wrong'); raise SystemExit(1)", "failed", "2 wrong"),
        ("import os; print('x', flush=True); os.abort()", "failed", "exit code -6; last line: x"),
        ("pass", "ok", "no output"),
    ],
)
def test_a_stage_in_a_child(tmp_path: Path, code: str, status: str, summary: str) -> None:
    log = tmp_path / "log"
    outcome = in_child(stage("a"), [sys.executable, "-c", code], log, limit=60)
    assert (outcome.status, outcome.summary) == (status, summary)
    assert "== a:" in log.read_text()


def test_a_stage_that_takes_too_long_is_stopped_with_what_it_has_started(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("gpu.run.GRACE", 1.0)
    code = (
        "import subprocess, sys, time, signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); print('measured one', flush=True); time.sleep(600)\n"
    )
    started = time.monotonic()
    outcome = in_child(stage("a"), [sys.executable, "-c", code], tmp_path / "log", limit=3)
    assert outcome.status == "timed out"
    assert outcome.summary == "after 3 s; last line: measured one"
    assert time.monotonic() - started < 30
    pid = int((tmp_path / "log").read_text().splitlines()[-2])
    status = Path(f"/proc/{pid}/status")
    deadline = time.monotonic() + 20
    while status.exists() and "zombie" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not status.exists() or "zombie" in status.read_text()


def test_records_are_written_at_once_and_whole(tmp_path: Path) -> None:
    context = context_in(tmp_path, commit="abc")
    context.record(benchmark="gpu x", value=1)
    (file,) = tmp_path.glob("*.jsonl")
    assert [json.loads(line)["value"] for line in file.read_text().splitlines()] == [1]
    context.record(benchmark="gpu x", value=2)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["value"] for record in records] == [1, 2]
    assert {"device", "device_name", "driver", "commit", "date", "command"} <= records[0]["provenance"].keys()
    assert records[0]["provenance"]["commit"]
    assert write_records([{"value": 3}], folder=tmp_path, origin=context.origin) == file
    assert len(file.read_text().splitlines()) == 3
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def record(**values: object) -> dict[str, object]:
    origin = {
        "date": "2026-11-23T10:00:00+00:00",
        "device_name": "GPU",
        "driver": "580",
        "packages": {"torch": "2.11"},
        "commit": "abc",
    }
    return {
        "benchmark": "gpu convolution",
        "case": "c",
        "direction": "forward",
        "provenance": origin,
        **values,
    }


def test_table(tmp_path: Path) -> None:
    case = floors.conv_cases()[0]
    graph = random_graph(10, 100)
    times = Times(cold=80e-6, warm=70e-6, eager=2e-3, low=79e-6, high=90e-6, captured=True)
    first = record(**convolution.to_record(case, "forward", graph, times, None), peak_bytes=5e6)
    slow = replace(times, cold=1.0, captured=False, note="not captured: why")
    second = record(**convolution.to_record(case, "double_backward", graph, slow, 100e-6))
    peer = {"benchmark": "gpu peer", "case": case.name, "forward_cold_s": 1e-3, "both_cold_s": 4e-3}
    peers = [record(**peer, peer="glassconv"), record(**peer | {"forward_cold_s": 0.05}, peer="e3nn")]
    text = table.table([first, second, *peers])
    lines = text.splitlines()
    assert lines[0].split() == " ".join(table.HEAD).split()
    assert "80 us" in lines[1]
    assert "2 ms" in lines[1]
    assert lines[1].endswith("100 us      met")
    assert "double_backward (not captured)" in lines[2]
    assert lines[2].endswith("300 us  NOT met")
    assert f"e3nn, {case.name}: forward 50 ms = 50.0 x ours, forward + backward 4 ms = 1.0 x ours" in lines
    assert "targets: 1 of 2 met" in lines
    assert "GPU, driver 580, torch 2.11, 2026-11-23T10:00:00+00:00, commit abc, 4 records" in lines
    assert table.table([]) == "no measurements"
    newer = first | {"cold_s": 50e-6}
    assert "50 us" in table.table([first, newer]).splitlines()[1]
    (tmp_path / "x.jsonl").write_text(json.dumps(first) + "\n")
    assert len(table.read([tmp_path], "2026-11-23T09:00:00")) == 1
    assert table.read([tmp_path], "2026-11-23T11:00:00") == []


def test_table_of_all_that_is_measured() -> None:
    """Records as the stages make them, of every kind."""
    times = Times(1e-5, 1e-5, 1e-4, 1e-5, 1e-5, captured=True).to_record()
    records = [
        record(benchmark="gpu neighbors", n_nodes=4096, operator_s=1e-4, graph_s=2e-4, **times, met=True),
        record(
            benchmark="gpu training step", implementation="glassconv", form="eager", median_s=9e-3, met=False
        ),
        record(benchmark="gpu training step", implementation="glassconv", form="prediction", **times),
        record(benchmark="gpu peer search", peer="vesin", n_nodes=4096, graph_s=4e-4),
        record(benchmark="gpu ceilings", copy_bytes_s=4.2e12),
    ]
    text = table.table(records)
    for words in (
        "neighbors N=4096",
        "neighbor_list",
        "9 ms",
        "prediction",
        "vesin, neighbors N=4096: 400 us",
    ):
        assert words in text
    assert "targets: 1 of 2 met" in text


def test_junit_and_verbose_reports(tmp_path: Path) -> None:
    suite = tmp_path / "test_some.py"
    suite.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.parametrize('k', range(3))\n"
        "def test_absent(k): pytest.skip('no CUDA device')\n"
    )
    report = tmp_path / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        str(suite),
    ]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
    counts = checks.read_junit(report)
    assert (counts.passed, counts.failed, counts.skipped) == (1, 1, 3)
    assert counts.line() == "1 passed, 1 failed, 3 skipped (3 x no CUDA device)"
    assert "test_bad" in counts.failures[0]
    assert "assert 1 == 2" in counts.failures[0]
    verbose = checks.read_verbose(
        "tests/test_a.py::test_x[cuda] PASSED [ 10%]\n"
        "[gw1] [ 20%] PASSED tests/test_a.py::test_y\n"
        "[gw0] [ 30%] FAILED tests/test_a.py::test_z\n"
        "[gw0] [ 40%] SKIPPED tests/test_a.py::test_w\n"
    )
    assert (verbose.passed, verbose.failed, verbose.skipped) == (2, 1, 1)
    assert verbose.failures == ["tests/test_a.py::test_z"]


@pytest.mark.parametrize(
    ("text", "code", "clean"),
    [
        ("6 passed\n========= ERROR SUMMARY: 0 errors\n", 0, True),
        ("========= Invalid __global__ read\n========= ERROR SUMMARY: 3 errors\n", 86, False),
        ("========= ERROR SUMMARY: 0 errors\n", 1, False),  # the tests themselves failed
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0, True),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n", 0, False),
        ("========= Device not supported\n========= ERROR SUMMARY: 0 errors\n", 0, None),
        ("", 127, None),
    ],
    ids=["clean", "invalid", "tests failed", "no hazards", "hazards", "unsupported", "silent"],
)
def test_verdict_of_the_sanitizer(text: str, code: int, clean: bool | None) -> None:
    assert checks.sanitizer_verdict(text, code)[0] is clean


def test_liquids_of_any_size() -> None:
    for n in (64, 1000, 1728):
        configuration = liquid(n)
        positions, lengths = configuration.positions, box(configuration)
        assert positions.shape == (n, 3)
        assert float(n / lengths.prod()) == pytest.approx(1.2)
        assert not torch.equal(positions, liquid(n, seed=1).positions)
        graph = glassconv.neighbor_list(positions, 1.9, cell=lengths)
        density = graph.n_edges / n / (4 / 3 * torch.pi * 1.9**3)
        # the first shells, not only the mean: 15 percent
        assert density == pytest.approx(1.2, rel=0.15)


@pytest.mark.parametrize("weights", ["explicit", "lowrank"])
def test_operators_are_called_as_autograd_calls_them(native_extension: None, weights: str) -> None:
    case = ConvCase(1, 2, "natural", weights, "float64", n_radial=3)
    graph = random_graph(5, 30)
    with glassconv.use_backend("native"):
        tensors = convolution.inputs(case, graph, random_vectors(30), seed=0)
        calls = {name: convolution.operator(name, case, graph, tensors) for name in DIRECTIONS}
        leaves = [value.clone().requires_grad_() for value in tensors["given"] if value is not None]
        names = (
            ("x", "vectors", "edge_weight") if weights == "explicit" else ("x", "vectors", "radial", "mix")
        )
        named = dict(zip(names, leaves, strict=True))
        out = glassconv.conv(named.pop("x"), graph, case.paths, **named)
        assert torch.equal(calls["forward"](), out)
        (grad_out,) = tensors["grad_out"]
        grad_out.requires_grad_()
        first = torch.autograd.grad(out, leaves, grad_out, create_graph=True)
        found = [value for value in calls["backward"]() if value.numel()]
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))
        cotangents = [value for value in tensors["cotangents"] if value is not None]
        second = torch.autograd.grad(first, [grad_out, *leaves], cotangents)
        found = [value for value in calls["double_backward"]() if value.numel()]
        assert all(torch.equal(a, b) for a, b in zip(found, second, strict=True))
        for direction in DIRECTIONS:
            assert convolution.error_against_cpu(direction, case, graph, tensors) == 0.0


@pytest.mark.parametrize("weights", ["explicit", "lowrank"])
@pytest.mark.parametrize("peer", ["e3nn", "cuequivariance"])
def test_peers_compute_the_same(peer: str, weights: str) -> None:
    pytest.importorskip(peer)
    case = ConvCase(2, 4, "so3", weights)
    graph = random_graph(5, 30)
    tensors = peers.named(case, graph, random_vectors(30))
    expected = peers.ours(case, graph)(tensors)
    found = peers.CONVOLUTIONS[peer](case, graph)(tensors)
    assert relative_error(found, expected) < peers.TOLERANCE


def test_what_takes_too_long_is_left() -> None:
    with pytest.raises(TimeoutError, match="not done in"), at_most(0.2):
        time.sleep(60)
    with at_most(60):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_training_step_lowers_the_loss() -> None:
    model, batch, targets = workload(64, "cpu", n_layers=2, channels=2, l_max=1)
    step = TrainingStep(model, batch, targets, rate=1e-2)
    losses = [float(step()) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_percentile() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.0) == 1.0
    assert percentile([3.0, 1.0, 2.0], 0.9) == 3.0
    assert percentile(list(range(100)), 0.5) == 50


def test_the_program_without_a_gpu(tmp_path: Path) -> None:
    """Stages that need a GPU are skipped by name; the rest is the business of the stage."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    command = [sys.executable, str(REPOSITORY / "benchmarks/gpu_check.py"), "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--stage", "ceilings,bench_conv,sanitizer"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no CUDA device") >= 3
    assert "no measurements" in (tmp_path / "summary.txt").read_text()


def test_outcomes_are_lines() -> None:
    assert gpu_check.line(Outcome("build", "ok", 12.3, "built")).split() == [
        "build",
        "ok",
        "12.3",
        "s",
        "built",
    ]
