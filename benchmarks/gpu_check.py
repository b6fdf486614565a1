"""Build, test and measure on this machine's GPU: one command, under ten minutes, nothing from the network.

    python benchmarks/gpu_check.py                            # make gpu
    python benchmarks/gpu_check.py --list
    python benchmarks/gpu_check.py --stage build,bench_conv --out DIR

Takes the running interpreter and what is installed for it; packages that are missing are named. Each stage
runs in a process of its own with a time limit, and what it has measured is written at once. Records go to
`benchmarks/results/<device>/<date>-<commit>.jsonl` (without a GPU to `build/gpu_check/`), or to DIR, where
then the log, the report of the tests and the final table are too. Without a GPU the stages that need one are
skipped. `--stage report` is the table of all records that are there.

Exit code: 0 when nothing failed, 1 otherwise, 2 for wrong options.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

STARTED = time.monotonic()  # imports below take their share of the time
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402 - the checkout comes before what is installed
from gpu.run import GRACE, Context, Outcome, Stage, child_command, in_child, in_process, selected  # noqa: E402

from glassconv._files import write_text  # noqa: E402


def _later(module: str, name: str = "bench") -> Callable[[Context], str]:
    """A stage's work, imported where it runs: one that cannot be imported is a stage that fails."""

    def work(context: Context) -> str:
        summary: str = getattr(importlib.import_module(f"gpu.{module}"), name)(context)
        return summary

    return work


REPORT = "report"


def _stage(
    name: str, limit: float, what: str, work: Callable[[Context], str], needs_gpu: bool = True
) -> Stage:
    return Stage(name, what, limit, needs_gpu, work)


# What a stage takes at worst. Together they stay below --limit where the build has little to do; the first
# one depends on the processors, and what then finds no time left is run again by its name.
STAGES = (
    _stage("build", 300, "compile the extension in place, for this GPU", _later("checks", "build"), False),
    _stage(
        "tests", 160, "the backend cuda in all tests, tests/test_cuda*.py", _later("checks", "tests"), False
    ),
    _stage("ceilings", 20, "copy bandwidth, multiply-adds, launches", _later("ceilings")),
    _stage("bench_conv", 100, "the convolution, each direction", _later("convolution")),
    _stage("bench_neighbors", 30, "the neighbor search, 4096 to a million particles", _later("neighbors")),
    _stage("bench_training", 40, "a training step, eager and as a CUDA graph", _later("training")),
    _stage("peers", 30, "e3nn and whatever other library is installed", _later("peers")),
    _stage("sanitizer", 70, "memcheck, racecheck, synccheck on small tests", _later("checks", "sanitizer")),
)


def options_of(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ",".join([*(stage.name for stage in STAGES), REPORT])
    parser.add_argument("--stage", metavar="NAMES", help=f"only these, separated by commas: {names}")
    parser.add_argument("--list", action="store_true", help="the stages with their limits")
    parser.add_argument("--out", type=Path, metavar="DIR", help="records, log, report and table go there")
    parser.add_argument(
        "--limit", type=float, default=585, metavar="S", help="seconds for everything (default 585)"
    )
    parser.add_argument("--commit", help="for a copy of the sources without its .git")
    parser.add_argument("--in-process", action="store_true", help="run one stage here, without a limit")
    options = parser.parse_args(arguments)
    options.only_report = options.stage == REPORT
    try:
        options.stages = [] if options.only_report else selected(STAGES, options.stage)
    except ValueError as error:
        parser.error(str(error))
    if options.in_process and len(options.stages) != 1:
        parser.error("--in-process: expected one --stage")
    return options


def folders(out: Path | None, device: str) -> tuple[Path, Path | None]:
    """Where logs go, and records (None: where those of every benchmark go)."""
    if out is not None:
        return out.resolve(), out.resolve()
    work = ROOT / "build/gpu_check"
    return work, (work if device == "cpu" else None)


def line(outcome: Outcome) -> str:
    """One line of the summary."""
    return f"{outcome.stage:16} {outcome.status:10} {outcome.seconds:6.1f} s  {outcome.summary}"


def main() -> int:
    """Run the stages, each in a child; print the table."""
    started, since = STARTED, datetime.now(timezone.utc).isoformat(timespec="seconds")
    options = options_of(sys.argv[1:])
    if options.list:
        for stage in STAGES:
            gpu = "needs a GPU" if stage.needs_gpu else ""
            print(f"{stage.name:16} {stage.limit:4.0f} s  {stage.what}  {gpu}".rstrip())
        print(f"{REPORT:16}         the table of all records; that of a run is printed at its end")
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder, records_folder = folders(options.out, device)
    folder.mkdir(parents=True, exist_ok=True)
    if options.in_process:
        (stage,) = options.stages
        limit = min(stage.limit, options.limit)
        return in_process(
            stage, Context(folder, device, limit, records_folder, options.commit, started=STARTED)
        )
    log = folder / "gpu_check.log"
    log.write_bytes(b"")
    outcomes = []
    for stage in options.stages:
        left = options.limit - GRACE - (time.monotonic() - started)
        if stage.needs_gpu and device == "cpu":
            outcome = Outcome(stage.name, "skipped", 0.0, "no CUDA device")
        elif left < 5:
            outcome = Outcome(stage.name, "timed out", 0.0, "no time was left for it")
        else:
            print(f"\n== {stage.name}: {stage.what}", flush=True)
            limit = min(stage.limit, left)
            passed_on = ["--limit", f"{limit:.0f}"]
            passed_on += ["--out", str(folder)] if options.out else []
            passed_on += ["--commit", options.commit] if options.commit else []
            outcome = in_child(stage, child_command(stage, passed_on), log, limit)
        print(line(outcome), flush=True)
        outcomes.append(outcome)
    summary = report(outcomes, records_folder, "" if options.only_report else since)
    write_text(folder / "summary.txt", summary + "\n")
    print(f"\n{summary}\n{time.monotonic() - started:.0f} s in all; log: {log}")
    return int(any(outcome.status in ("failed", "timed out") for outcome in outcomes))


def report(outcomes: list[Outcome], records_folder: Path | None, since: str) -> str:
    """How the stages ended, and the table of what they have measured."""
    from gpu.table import read, table
    from provenance import RESULTS

    places = [records_folder] if records_folder else [path for path in RESULTS.glob("*") if path.is_dir()]
    return "\n".join([table(read(places, since)), "", *map(line, outcomes)])


if __name__ == "__main__":
    sys.exit(main())
