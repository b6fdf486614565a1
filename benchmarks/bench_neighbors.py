"""Time and memory of the neighbor search, with other libraries beside it.

    python benchmarks/bench_neighbors.py [--quick] [--max-n 262144] [--out FOLDER] [-k "liquid and N32k"]

takes pytest's and pytest-benchmark's options besides. Cutoff 2.0, density 1.2 (40 neighbors), periodic. Each
round of a library is preceded by one of ours, so that both meet the same machine; a ratio is the median over
the rounds of time over baseline time, where the baseline of a library is glassconv on as many threads. Before
it is timed, each is called once more, but for calls that take 1.5 s or longer: what one library frees is not
at once memory that another can have, and the first call after it would pay for that. Freeing a result is not
timed. `--quick`: N <= 4096, few rounds.

A whole run writes `neighbors.json`, `.md` and `.png` into `results/<device>`; a partial one (`--quick`,
`--max-n`, `-k`) prints its tables, and writes them only where `--out` says. One that was interrupted or in
which something failed prints them, and writes nothing.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os

# One thread where one is said: NumPy's library of linear algebra takes its number when it is loaded.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import neighbor_report
import pytest
import torch
from gpu.systems import CUTOFF
from neighbor_peers import (
    EDGES_PER_PARTICLE,
    PEERS,
    Call,
    System,
    make_batch,
    make_system,
    mixed_sizes,
    set_threads,
)
from provenance import provenance, results_folder

import glassconv

QUICK = os.environ.get("GLASSCONV_BENCH_QUICK") == "1"
LARGEST = int(os.environ.get("GLASSCONV_BENCH_MAX_N") or (4096 if QUICK else 10_000_000))
OUT = os.environ.get("GLASSCONV_BENCH_OUT")
SECONDS = 0.1 if QUICK else 0.4  # of measurement, if the rounds are not too few then
MANY_ROUNDS, ENOUGH_ROUNDS, FEW_ROUNDS = 40, 5, 3
LARGE = 300_000  # particles; beyond them few rounds are enough of what takes more than a second
BYTES_PER_EDGE = 36  # of a graph
SKIN = 0.3
TOO_LONG = 1.5  # seconds of a call that is not made once more before it is timed
Row = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """One measurement of a fresh list."""

    kind: str
    order: str
    n_nodes: int
    peer: str
    threads: int = 1

    def __str__(self) -> str:
        """What pytest's -k chooses by: N1k, N262k, N10M."""
        n = self.n_nodes
        size = f"N{n // 10**6}M" if n >= 10**6 else f"N{n // 1000}k"
        return f"{self.kind}-{self.order}-{size}-{self.threads}thread-{self.peer}"


def searches() -> list[Search]:
    """Those of a run, the systems in turn."""
    every, fastest = tuple(PEERS), ("glassconv", "vesin")
    some = ("glassconv", "vesin", "nvalchemi-toolkit-ops", "matscipy", "scipy cKDTree")
    grid = [
        ("liquid", "random", (1000, 4096, 10_000, 32_768, 100_000, 262_144, 1_000_000), every, 1),
        ("liquid", "random", (10_000_000,), ("glassconv",), 1),
        ("liquid", "simulated", (10_000, 100_000, 1_000_000), ("glassconv",), 1),
        ("liquid", "simulated", (32_768, 262_144), fastest, 1),
        ("gas", "random", (4096, 32_768, 262_144), (*some, "vesin sorted"), 1),
        ("gas", "random", (1_000_000,), fastest, 1),
        ("dilute gas", "random", (4096, 32_768, 262_144), some, 1),
        ("dilute gas", "random", (1_000_000,), fastest, 1),
        ("dilute gas", "random", (10_000_000,), ("glassconv",), 1),  # vesin takes two minutes there
        ("liquid", "random", (4096, 32_768, 262_144), tuple(n for n in every if PEERS[n].is_threaded), 2),
    ]
    return [
        Search(kind, order, n_nodes, peer, threads)
        for kind, order, sizes, peers, threads in grid
        for n_nodes in sizes
        for peer in peers
        if n_nodes <= min(LARGEST, PEERS[peer].largest)
    ]


def available_bytes() -> int:
    """Of memory, for a new process."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])
    return 0


@lru_cache(maxsize=2)
def system_of(kind: str, order: str, n_nodes: int) -> System:
    """The system, and the one before it."""
    return make_system(kind, order, n_nodes)


@lru_cache
def edges_of(kind: str, order: str, n_nodes: int) -> int:
    """How many edges we find."""
    ours = PEERS["glassconv"]
    return ours.count(ours.make(system_of(kind, order, n_nodes), 1)())


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """Measurements of this run, reported and written when it ends."""
    collected: list[Row] = []
    yield collected
    set_threads(1)
    record = {"benchmark": "neighbor search", "cutoff": CUTOFF, "failed": request.session.testsfailed,
              "rows": collected, "provenance": provenance()}  # fmt: skip
    print("\n\n" + neighbor_report.markdown(record))
    config = request.config
    is_whole = LARGEST >= 10_000_000 and not config.getoption("keyword") and "::" not in "".join(config.args)
    if len(collected) < request.session.testscollected:  # each test has its row, measured or left out
        print("interrupted, or something failed: nothing written")
    elif OUT or is_whole:
        folder = Path(OUT) if OUT else results_folder(record["provenance"])
        print(f"written: {', '.join(str(path) for path in neighbor_report.write(record, folder))}")
    else:
        print("a partial run: nothing written")


def duration(call: Call) -> float:
    """Seconds of a call, its result kept until the time is taken."""
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    return seconds


def measure(
    benchmark: Any,
    n_nodes: int,
    call: Call,
    baseline: Call | None = None,
    *,
    threads: tuple[int, int] = (1, 1),
    call_s: float = 0.0,
) -> Row:
    """Time a call that has run before, and ahead of each of its rounds the baseline.

    Args:
        benchmark: pytest-benchmark's fixture, which times the call.
        n_nodes: particles.
        call: what is measured.
        baseline: what it is compared with.
        threads: of the call and of the baseline.
        call_s: what a call takes; if it is long, no other is made to choose the number of rounds.
    """

    def compared() -> float:
        if baseline is None:
            return 0.0
        set_threads(threads[1])
        duration(baseline)
        seconds = duration(baseline)
        set_threads(threads[0])
        if call_s < TOO_LONG:
            duration(call)
        return seconds

    set_threads(threads[0])
    rounds = FEW_ROUNDS if QUICK or (n_nodes > LARGE and call_s > 1.0) else ENOUGH_ROUNDS
    if rounds * call_s < 4 * SECONDS:
        rounds = max(rounds, min(MANY_ROUNDS, int(SECONDS / (compared() + duration(call)))))
    before: list[float] = []
    busy: list[float] = []
    kept: list[Any] = []

    def setup() -> None:
        kept.clear()
        before.append(compared())

    def timed() -> None:
        start = time.process_time()
        kept.append(call())
        busy.append(time.process_time() - start)

    benchmark.pedantic(timed, setup=setup, rounds=rounds)
    kept.clear()
    seconds = list(benchmark.stats.stats.data)
    row = {
        "n_nodes": n_nodes,
        "threads": threads[0],
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "rounds": rounds,
        "busy_threads": statistics.median(b / s for b, s in zip(busy, seconds, strict=True)),
    }
    if baseline is not None:
        row["baseline_median_s"] = statistics.median(before)
        row["ratio"] = statistics.median(s / b for s, b in zip(seconds, before, strict=True))
    return row


def say(line: str) -> None:
    """A line of progress, before pytest's sign for the test."""
    print(f"\n{line} ", end="", flush=True)


def keep(benchmark: Any, rows: list[Row], row: Row) -> None:
    """Add a row to the record and to pytest-benchmark's, and say it."""
    benchmark.extra_info.update(row)
    rows.append(row)
    ratio = f"{row['ratio']:8.3f} x {row['baseline']}" if "ratio" in row else ""
    name = row.get("peer") or row.get("feature")
    say(
        f"{row['kind']:10} {row['order']:9} N={row['n_nodes']:<8} {row['threads']} {name:32} "
        f"{1e3 * row['median_s']:10.2f} ms {ratio}"
    )


def leave_out(rows: list[Row], row: Row, why: str) -> None:
    """Skip, visibly in the record too."""
    rows.append({**row, "left_out": why})
    pytest.skip(f"{row.get('peer') or row.get('feature') or row['benchmark']}: {why}")


@pytest.mark.parametrize("case", searches(), ids=str)
def test_search(benchmark: Any, rows: list[Row], case: Search) -> None:
    """A fresh list; of the same number of edges as ours, or the record says how many more or fewer."""
    peer = PEERS[case.peer]
    row = {"benchmark": "search", "kind": case.kind, "order": case.order, "n_nodes": case.n_nodes,
           "threads": case.threads, "peer": case.peer, "output": peer.output}  # fmt: skip
    if case.threads > len(os.sched_getaffinity(0)):
        leave_out(rows, row, f"{case.threads} threads, but fewer cores")
    # A list of ours of three times its size, or another's with ours beside it.
    expected = 3 * BYTES_PER_EDGE * EDGES_PER_PARTICLE[case.kind] * case.n_nodes
    if expected > available_bytes():
        leave_out(rows, row, f"may take {expected / 1e9:.0f} GB, {available_bytes() / 1e9:.0f} GB are free")
    system = system_of(case.kind, case.order, case.n_nodes)
    baseline = PEERS["glassconv"].make(system, case.threads)
    set_threads(case.threads)
    try:
        call = peer.make(system, case.threads)
        start = time.perf_counter()
        n_edges = peer.count(call())
        call_s = time.perf_counter() - start
        if call_s < 5 * TOO_LONG:  # the first call of a library may have loaded and compiled it
            call_s = duration(call)
    except ImportError:
        leave_out(rows, row, "not installed")
    except Exception as problem:
        if case.peer == "glassconv":
            raise
        leave_out(rows, row, " ".join(f"{type(problem).__name__}: {problem}".split())[:200])
    benchmark.group = str(case).removesuffix(f"-{case.peer}")
    row["n_edges"] = n_edges
    if case.peer != "glassconv":
        row["more_edges"] = n_edges - edges_of(case.kind, case.order, case.n_nodes)
        row["baseline"] = "glassconv"
        row |= measure(
            benchmark, case.n_nodes, call, baseline, threads=(case.threads, case.threads), call_s=call_s
        )
    elif case.threads > 1:
        row["baseline"] = "1 thread"
        row |= measure(benchmark, case.n_nodes, call, baseline, threads=(case.threads, 1), call_s=call_s)
    else:
        row |= measure(benchmark, case.n_nodes, call, call_s=call_s)
    keep(benchmark, rows, row)


@dataclass(frozen=True)
class Feature:
    """A form of ours, compared with a fresh full list of the same particles or with `baseline`.

    Attributes:
        make: takes the number of particles; returns the call and its baseline.
        sizes: numbers of particles.
        needs: an argument of `neighbor_list`, or a name in `glassconv`, without which there is no such form.
    """

    make: Callable[[int], tuple[Call, Call]]
    sizes: tuple[int, ...] = (4096, 32_768, 262_144)
    baseline: str = "full list"
    needs: str = "neighbor_list"


def search(positions: Any, cell: Any, **options: Any) -> Call:
    """A call of the public function."""
    return lambda: glassconv.neighbor_list(positions, CUTOFF, cell=cell, **options)


def with_options(**options: Any) -> Callable[[int], tuple[Call, Call]]:
    """The full list with and without options."""

    def make(n_nodes: int) -> tuple[Call, Call]:
        system = system_of("liquid", "random", n_nodes)
        plain = search(system.positions, system.cell)
        return search(system.positions, system.cell, **options), plain

    return make


def single_precision(n_nodes: int) -> tuple[Call, Call]:
    """float32 positions and cell."""
    system = system_of("liquid", "random", n_nodes)
    plain = search(system.positions, system.cell)
    return search(system.positions.float(), system.cell.float()), plain


def with_capacity(n_nodes: int) -> tuple[Call, Call]:
    """A tenth more than needed."""
    system = system_of("liquid", "random", n_nodes)
    plain = search(system.positions, system.cell)
    return search(system.positions, system.cell, capacity=int(1.1 * plain().n_edges)), plain


def triclinic(n_nodes: int) -> tuple[Call, Call]:
    """The same liquid in another basis of its lattice."""
    system, skewed = (make_system(kind, "random", n_nodes) for kind in ("liquid", "triclinic"))
    return search(skewed.positions, skewed.cell), search(system.positions, system.cell)


def batch_of(order: str, make_sizes: Callable[[int], list[int]]) -> Callable[[int], tuple[Call, Call]]:
    """Many liquids at once, compared with one of the same total size."""

    def make(n_nodes: int) -> tuple[Call, Call]:
        positions, cells, batch = make_batch(make_sizes(n_nodes))
        system = system_of("liquid", order, n_nodes)
        return search(positions, cells, batch=batch), search(system.positions, system.cell)

    return make


def verlet(*, filtered: bool, has_capacity: bool = False) -> Callable[[int], tuple[Call, Call]]:
    """Updates of a list between two sets of positions, neither far enough from the first to rebuild."""

    def make(n_nodes: int) -> tuple[Call, Call]:
        system = system_of("liquid", "random", n_nodes)
        generator = torch.Generator().manual_seed(1)
        step = torch.rand(n_nodes, 3, generator=generator, dtype=torch.float64) - 0.5
        moved = [system.positions, system.positions + 0.1 * SKIN * step]
        capacity = None
        if has_capacity:  # a tenth more than needed
            capacity = int(1.1 * glassconv.neighbor_list(moved[0], CUTOFF + SKIN, cell=system.cell).n_edges)
        listed = glassconv.VerletList(CUTOFF, SKIN, filtered=filtered, capacity=capacity)
        listed.update(system.positions, system.cell)

        def update() -> Any:
            moved.reverse()
            graph = listed.update(moved[0], system.cell)
            assert listed.n_builds == 1
            return graph

        return update, search(system.positions, system.cell)

    return make


def mixed(total: int) -> list[int]:
    """From 128 to 4096 particles: 200 to 300 systems in the largest batch."""
    return mixed_sizes(total, 128, 4096)


def equal(total: int) -> list[int]:
    """Of 1024 particles."""
    return [1024] * (total // 1024)


FEATURES = {
    "float32": Feature(single_precision, baseline="float64"),
    "half": Feature(with_options(half=True)),
    "order='spatial'": Feature(
        with_options(order="spatial"), sizes=(4096, 32_768, 262_144, 1_000_000), needs="order"
    ),
    "capacity": Feature(with_capacity, needs="capacity"),
    "triclinic basis": Feature(triclinic, sizes=(4096, 32_768), baseline="cubic basis"),
    "batch of mixed sizes": Feature(
        batch_of("random", mixed), sizes=(32_768, 262_144), baseline="one system, shuffled"
    ),
    "batch of mixed sizes, ordered": Feature(
        batch_of("simulated", mixed), sizes=(262_144,), baseline="one system, as simulated"
    ),
    "batch of 1024 each": Feature(
        batch_of("random", equal), sizes=(4096, 262_144), baseline="one system, shuffled"
    ),
    "VerletList, filtered": Feature(verlet(filtered=True), baseline="full list, no skin", needs="VerletList"),
    "VerletList, not filtered": Feature(
        verlet(filtered=False), baseline="full list, no skin", needs="VerletList"
    ),
    "VerletList, capacity": Feature(
        verlet(filtered=True, has_capacity=True), baseline="full list, no skin", needs="VerletList"
    ),
}


def features() -> list[tuple[int, str]]:
    """Sizes and names of those that are measured."""
    found = [(n, name) for name, feature in FEATURES.items() for n in feature.sizes if n <= LARGEST]
    return sorted(found, key=lambda item: item[0])  # systems are made once


@pytest.mark.parametrize(("n_nodes", "name"), features())
def test_feature(benchmark: Any, rows: list[Row], name: str, n_nodes: int) -> None:
    """A form of ours."""
    feature = FEATURES[name]
    row = {"benchmark": "feature", "kind": "liquid", "order": "random", "n_nodes": n_nodes, "threads": 1,
           "feature": name, "baseline": feature.baseline}  # fmt: skip
    if not (
        hasattr(glassconv, feature.needs)
        or feature.needs in inspect.signature(glassconv.neighbor_list).parameters
    ):
        leave_out(rows, row, f"glassconv has no {feature.needs}")
    benchmark.group = f"{name}, N={n_nodes}"
    set_threads(1)
    call, baseline = feature.make(n_nodes)
    for warm_up in (baseline, call):
        warm_up()
    keep(benchmark, rows, row | measure(benchmark, n_nodes, call, baseline))


def memories() -> list[tuple[str, int]]:
    """Library and size of the measurements of memory."""
    grid = [("glassconv", n) for n in (4096, 32_768, 262_144, 1_000_000, 10_000_000)]
    grid += [(peer, 262_144) for peer in ("vesin", "matscipy")]
    return [(peer, n) for peer, n in grid if n <= LARGEST]


@pytest.mark.parametrize(("peer", "n_nodes"), memories())
def test_memory(rows: list[Row], peer: str, n_nodes: int) -> None:
    """Peak memory of a list, in a process of its own; the largest where what smaller ones took would fit."""
    row = {"benchmark": "memory", "kind": "liquid", "order": "random", "n_nodes": n_nodes, "threads": 1,
           "peer": peer}  # fmt: skip
    known = [r["peak_bytes"] / r["n_nodes"] for r in rows if r["benchmark"] == "memory" and r["peer"] == peer
             and "peak_bytes" in r]  # fmt: skip
    per_particle = known[-1] if known else 3 * BYTES_PER_EDGE * EDGES_PER_PARTICLE["liquid"]
    needed = 1.05 * per_particle * n_nodes
    system_of.cache_clear()
    if needed + 200 * n_nodes > available_bytes():  # and the system itself
        leave_out(rows, row, f"takes about {needed / 1e9:.0f} GB, {available_bytes() / 1e9:.0f} GB are free")
    command = [sys.executable, str(Path(__file__).with_name("neighbor_memory.py"))]
    child = subprocess.run(
        [*command, "--peer", peer, "--n-nodes", str(n_nodes)], stdout=subprocess.PIPE, text=True, check=False
    )
    if child.returncode == -signal.SIGKILL:
        leave_out(rows, row, "killed by the system, which had no memory left")
    if child.returncode and peer != "glassconv":
        leave_out(rows, row, "not installed, or it failed")
    assert child.returncode == 0
    row |= json.loads(child.stdout.splitlines()[-1])
    if row["output_bytes"]:
        row["ratio"] = row["peak_bytes"] / row["output_bytes"]
    rows.append(row)
    ratio = f"{row['ratio']:.2f} x the output" if row["output_bytes"] else ""
    say(f"memory     N={n_nodes:<8} {peer:32} {row['peak_bytes'] / 1e6:10.1f} MB {ratio}")


def main() -> int:
    """Run pytest on this file, with its own options in the environment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="N <= 4096, few rounds")
    parser.add_argument("--max-n", type=int, help="no system of more particles")
    parser.add_argument("--out", type=Path, help="folder for the record, table and plot of this run")
    options, others = parser.parse_known_args()
    os.environ["GLASSCONV_BENCH_QUICK"] = "1" if options.quick else "0"
    os.environ["GLASSCONV_BENCH_MAX_N"] = str(options.max_n or "")
    os.environ["GLASSCONV_BENCH_OUT"] = str(options.out or "")
    return int(pytest.main([__file__, "-q", "-s", "--benchmark-disable-gc",
                            "--benchmark-columns=median,min,max,rounds", *others]))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
