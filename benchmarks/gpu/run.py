"""What a stage is, which stages run, and how one of them runs in a process of its own, for so long."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provenance import provenance, write_records

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 75  # exit code of a stage that found nothing to do
GRACE = 10.0  # seconds between asking a stage to stop and stopping it


class Skip(Exception):  # noqa: N818 - it is no error
    """A stage cannot run here; the reason in words."""


class Failure(Exception):  # noqa: N818 - the word of the summary
    """A stage ran and found something wrong; in words."""


@dataclass
class Context:
    """What a stage is given: where to write, and since when it runs."""

    folder: Path
    device: str
    limit: float
    records_folder: Path | None = None
    commit: str | None = None
    started: float = field(default_factory=time.monotonic)
    origin: dict[str, Any] | None = None

    @property
    def seconds_left(self) -> float:
        """Until the limit of this stage."""
        return self.limit - (time.monotonic() - self.started)

    def record(self, **values: Any) -> None:
        """Write a measurement at once: a stage that is stopped has lost nothing."""
        if self.origin is None:
            self.origin = provenance(self.device)
            self.origin["commit"] = self.origin["commit"] or self.commit
        write_records([values], self.device, folder=self.records_folder, origin=self.origin)


@dataclass(frozen=True)
class Stage:
    """A part of the check.

    Attributes:
        name: on the command line.
        what: in one line.
        limit: seconds after which it is stopped.
        needs_gpu: skipped where there is none.
        work: does it and returns a line of summary; raises `Skip` or `Failure`.
    """

    name: str
    what: str
    limit: float
    needs_gpu: bool
    work: Callable[[Context], str]


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "ok", "skipped", "failed" or "timed out"."""

    stage: str
    status: str
    seconds: float
    summary: str


def selected(stages: Sequence[Stage], names: str | None) -> list[Stage]:
    """The stages that are named, separated by commas, in the order in which they run; all for None.

    Raises:
        ValueError: a name that is none.
    """
    if names is None:
        return list(stages)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [stage.name for stage in stages]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ValueError(f"--stage: expected some of {','.join(known)}, got {names!r}")
    return [stage for stage in stages if stage.name in wanted]


def in_process(stage: Stage, context: Context) -> int:
    """Do the work here; the last line printed is the summary."""
    try:
        print(stage.work(context), flush=True)
    except Skip as reason:
        print(f"skipped: {reason}", flush=True)
        return SKIPPED
    except Failure as finding:
        print(finding, flush=True)
        return 1
    return 0


def in_child(stage: Stage, command: list[str], log: Path, limit: float) -> Outcome:
    """Run a stage's command, its output both shown and appended to the log; stop it when its time is over."""
    started = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n== {stage.name}: {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        # a session of its own, so that whatever it has started ends with it
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        timed_out = not _wait(child, limit)
    text = log.read_bytes()[start:].decode(errors="replace").strip()
    print(text, flush=True)
    seconds = time.monotonic() - started
    last = text.splitlines()[-1].strip() if text else "no output"
    if timed_out:
        return Outcome(stage.name, "timed out", seconds, f"after {limit:.0f} s; last line: {last}"[:300])
    status = {0: "ok", SKIPPED: "skipped"}.get(child.returncode, "failed")
    if child.returncode not in (0, 1, SKIPPED):
        last = f"exit code {child.returncode}; last line: {last}"
    return Outcome(stage.name, status, seconds, last.removeprefix("skipped: ")[:300])


def _wait(child: subprocess.Popen[bytes], limit: float) -> bool:
    """Whether the child ended by itself; otherwise its session is asked to, and made to."""
    try:
        child.wait(timeout=limit)
        return True
    except subprocess.TimeoutExpired:
        _signal_session(child, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=GRACE)
        return False
    finally:
        _signal_session(child, signal.SIGKILL)  # also what it has left behind, also on Ctrl-C
        child.wait()


def _signal_session(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # nobody is left in it
        os.killpg(child.pid, number)


def environment() -> dict[str, str]:
    """The surroundings of a stage: this checkout comes first, whatever else is installed."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def child_command(stage: Stage, options: Sequence[str]) -> list[str]:
    """This program again, for one stage in one process."""
    script = str(ROOT / "benchmarks/gpu_check.py")
    return [sys.executable, script, "--in-process", "--stage", stage.name, *options]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """TimeoutError in what takes longer, in the main thread."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
