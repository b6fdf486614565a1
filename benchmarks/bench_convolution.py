"""Time and memory of the convolution, beside other libraries and the least that this machine allows.

    python benchmarks/bench_convolution.py [--quick] [--out FOLDER] [-k "default and l3 and C8 and e3nn"]

takes pytest's and pytest-benchmark's options besides. Without -k a chosen part of the grid runs, some 20
minutes; -k chooses from all of it: list of irreps (`convolution_cases.py`), system (liquid, random,
molecules), weights (explicit, lowrank), float32 or float64, forward, backward, both or double, 1thread or
2threads, and the library; what runs without -k has "default" in its name. `--quick`: small systems, few
rounds.

Each round of a library is preceded by one of ours on the same inputs, after the results of both have been
compared; a ratio is the median over the rounds of time over baseline time. Each is called before it is timed,
so that nothing is compiled in a round. The roofline (`roofline.py`) is measured first, the work that an
operator needs at least is counted in `convolution_counts.py`.

A whole run writes `convolution.json`, `.md` and `.png` into `results/<device>`; a partial one (`--quick`, -k)
prints its tables, and writes them only where `--out` says. One that was interrupted or in which something
failed prints them, and writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import convolution_report
import pytest
import roofline
import torch
from bench_neighbors import available_bytes
from convolution_cases import LISTS, N_RADIAL, SYSTEMS, make_inputs, make_system, paths_of
from convolution_counts import DIRECTIONS, Floor, minimal_bytes, multiply_adds
from convolution_peers import OURS, PEERS, difference, make_call
from provenance import provenance, results_folder

QUICK = os.environ.get("GLASSCONV_BENCH_QUICK") == "1"
OUT = os.environ.get("GLASSCONV_BENCH_OUT")
CHOOSES = os.environ.get("GLASSCONV_BENCH_CHOOSES") == "1"  # by -k, from the whole grid
QUICK_NODES = 64
SECONDS = 0.05 if QUICK else 0.4  # of measurement, if the rounds are not too few then
MANY_ROUNDS, ENOUGH_ROUNDS, FEW_ROUNDS, FEWEST_ROUNDS = 40, 5, 3, 2
LONG, TOO_LONG = 1.5, 4.0  # seconds of a call of which few, or very few, rounds are made
WARM_UPS = {
    "e3nn TorchScript": 3,
    "e3nn torch.compile": 2,
}  # calls before it is timed, where one is not enough
# Of e3nn, in units of all messages, on any list of irreps: peak memory with what precedes the direction.
MESSAGES = {"forward": 3.5, "backward": 7.5, "both": 7.5, "double": 16.0}
# Largest relative difference to ours: roundings, in gradients of a sum over some 10^5 edges.
TOLERANCE = {"float32": 1e-4, "float64": 1e-12}
Row = dict[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One measurement."""

    irreps: str
    system: str
    weights: str
    dtype: str
    direction: str
    peer: str = OURS
    threads: int = 1

    @property
    def n_nodes(self) -> int:
        """Particles, or about so many atoms."""
        n_nodes = LISTS[self.irreps].n_nodes
        if self.system == "molecules":
            n_nodes = 1280
        return min(n_nodes, QUICK_NODES) if QUICK else n_nodes

    @property
    def n_radial(self) -> int | None:
        """H of low-rank weights."""
        return N_RADIAL if self.weights == "lowrank" else None

    def __str__(self) -> str:
        """What pytest's -k chooses by."""
        threads = f"{self.threads}thread{'s' if self.threads > 1 else ''}"
        name = (
            f"{self.irreps}-{self.system}-{self.weights}-{self.dtype}-{self.direction}-{threads}-{self.peer}"
        )
        return f"default-{name}" if self in DEFAULT else name


def combinations(irreps: str, directions: str, peers: str, **more: Any) -> list[Case]:
    """Cases of several lists, directions and libraries; each string lists some, with spaces or commas."""
    weights = more.pop("weights", "lowrank").split()
    fixed = {"system": "liquid", "dtype": "float32", **more}
    return [
        Case(irreps=name, weights=form, direction=direction, peer=peer, **fixed)
        for name, form, direction, peer in product(
            irreps.split(), weights, directions.split(), peers.split(", ")
        )
    ]


def default_cases() -> list[Case]:
    """What runs without -k."""
    eight, wide = "glass-l2-C8 glass-l3-C8", "glass-l2-C32 glass-l3-C32"
    two = f"{OURS}, e3nn"
    forms = {"weights": "explicit lowrank"}
    published = " ".join(LISTS)[" ".join(LISTS).index("mace-large") :]
    tiny = " ".join(name for name in LISTS if name.startswith(("tiny", "first")))
    other = "glass-l2-C4 glass-l2-C16 glass-l3-C4 glass-l3-C16"
    cases = [
        *combinations(eight, "forward both double", two, **forms),
        *combinations(wide, "forward both", two, **forms),
        *combinations("glass-l3-C32", "double", two, **forms),
        *combinations(f"{eight} {wide}", "backward double", OURS, **forms),
        *combinations("glass-l3-C8", "backward", "e3nn"),
        *combinations(other, "forward both", two),
        *combinations(other, "backward double", OURS),
        *combinations(
            "glass-l3-C8", "forward both", "e3nn TorchScript, e3nn torch.compile, cuequivariance naive"
        ),
        *combinations(tiny, "forward both", two),
        *combinations(tiny, "double", OURS),
        *combinations(published, "forward both", two, weights="explicit"),
        *combinations(published, "double", OURS, weights="explicit"),
        *combinations("glass-l3-C8", "forward", two, dtype="float64"),
        *combinations("glass-l3-C8", "backward both double", OURS, dtype="float64"),
        *combinations("glass-l3-C8", "forward both", two, system="random"),
        *combinations("glass-l3-C8 nequip-lips", "forward both", two, system="molecules"),
        *combinations("glass-l3-C8 glass-l3-C32", "forward backward both double", OURS, threads=2),
    ]
    return list(dict.fromkeys(cases))


DEFAULT = dict.fromkeys(default_cases())


def cases() -> list[Case]:
    """Those of a run: the default ones, and, where -k chooses, all others after them."""
    found = dict(DEFAULT)
    if CHOOSES:
        runs = [*((peer, 1) for peer in PEERS), (OURS, 2)]
        axes = product(LISTS, SYSTEMS, ("explicit", "lowrank"), TOLERANCE, DIRECTIONS, runs)
        found |= dict.fromkeys(Case(*axis, *run) for *axis, run in axes)
    return list(found)


def memory_cases() -> list[Case]:
    """Those whose memory is measured."""
    two = f"{OURS}, e3nn"
    return [
        *combinations("glass-l3-C8", "forward both double", two),
        *combinations("glass-l3-C8", "forward both double", OURS, weights="explicit"),
        *combinations("glass-l3-C32", "forward", two),
        *combinations("glass-l3-C32", "both double", OURS),
    ]


@pytest.fixture(scope="session")
def machine() -> roofline.Roofline:
    """The roofline."""
    found = roofline.measure(2, quick=QUICK)
    print(f"\n{convolution_report.machine_line(found)}")
    return found


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest, machine: roofline.Roofline) -> Iterator[list[Row]]:
    """Measurements of this run, reported and written when it ends."""
    collected: list[Row] = []
    yield collected
    torch.set_num_threads(1)
    record = {"benchmark": "convolution", "n_radial": N_RADIAL, "failed": request.session.testsfailed,
              "lists": {name: LISTS[name]._asdict() for name in LISTS}, "roofline": machine,
              "rows": collected, "provenance": provenance()}  # fmt: skip
    print("\n\n" + convolution_report.markdown(record))
    is_whole = not (QUICK or CHOOSES or "::" in "".join(request.config.args))
    if len(collected) < request.session.testscollected:  # each test has its row, measured or left out
        print("interrupted, or something failed: nothing written")
    elif OUT or is_whole:
        folder = Path(OUT) if OUT else results_folder(record["provenance"])
        print(f"written: {', '.join(str(path) for path in convolution_report.write(record, folder))}")
    else:
        print("a partial run: nothing written")


def duration(call: Call) -> float:
    """Seconds of a call, its result kept until the time is taken."""
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    return seconds


def number_of_rounds(call_s: float, round_s: float) -> int:
    """How often a call is timed, when a round with all that belongs to it takes round_s."""
    if call_s > TOO_LONG:
        return FEWEST_ROUNDS
    if QUICK or call_s > LONG:
        return FEW_ROUNDS
    return max(ENOUGH_ROUNDS, min(MANY_ROUNDS, int(SECONDS / round_s)))


def measure(
    benchmark: Any, call: Call, baseline: Call | None, threads: tuple[int, int], call_s: float
) -> Row:
    """Time a call that has run before, and ahead of each of its rounds the baseline.

    Args:
        benchmark: pytest-benchmark's fixture, which times the call.
        call: what is measured.
        baseline: what it is compared with.
        threads: of the call and of the baseline.
        call_s: what the call takes, if that is long.
    """

    def compared() -> float:
        if baseline is None:
            return 0.0
        torch.set_num_threads(threads[1])
        duration(baseline)
        seconds = duration(baseline)
        torch.set_num_threads(threads[0])
        return seconds

    torch.set_num_threads(threads[0])
    round_s = call_s
    if call_s < LONG:
        start = time.perf_counter()
        compared()
        call_s = duration(call)
        round_s = time.perf_counter() - start
    rounds = number_of_rounds(call_s, round_s)
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


def beside_floor(case: Case, seconds: float, n_nodes: int, n_edges: int, machine: roofline.Roofline) -> Row:
    """What the operator needs, and how the time compares with it."""
    paths, word = paths_of(case.irreps), 8 if case.dtype == "float64" else 4
    peak = roofline.rate(machine, "fma", case.dtype, case.threads)
    floor = Floor(
        multiply_adds(paths, case.direction, n_edges, case.n_radial),
        minimal_bytes(paths, case.direction, n_nodes, n_edges, case.n_radial, word=word),
        None if peak is None else peak[0],
        roofline.bandwidth(machine, case.threads),
    )
    row: Row = {
        "multiply_adds": floor.multiply_adds,
        "bytes": floor.bytes,
        "gbyte_s": 1e-9 * floor.bytes / seconds,
        "gflop_s": 2e-9 * floor.multiply_adds / seconds,
    }
    if floor.seconds is not None and floor.multiply_adds_per_s is not None:
        row |= {
            "floor_s": floor.seconds,
            "floor_is": floor.limit,
            "over_floor": seconds / floor.seconds,
            "fma_share": floor.multiply_adds / seconds / floor.multiply_adds_per_s,
        }
    return row


def say(line: str) -> None:
    """A line of progress, before pytest's sign for the test."""
    print(f"\n{line} ", end="", flush=True)


def leave_out(rows: list[Row], row: Row, why: str) -> None:
    """Skip, visibly in the record too."""
    rows.append({**row, "left_out": why})
    pytest.skip(f"{row['peer']}: {why}")


def start_of(case: Case, benchmark: str) -> Row:
    """What is known of a row before it is measured."""
    return {"benchmark": benchmark, "irreps": case.irreps, "system": case.system, "n_nodes": case.n_nodes,
            "weights": case.weights, "dtype": case.dtype, "direction": case.direction,
            "threads": case.threads, "peer": case.peer}  # fmt: skip


def expected_bytes(case: Case, n_edges: int) -> float:
    """Of memory that a library takes that stores the messages."""
    word = 8 if case.dtype == "float64" else 4
    return MESSAGES[case.direction] * word * n_edges * paths_of(case.irreps).dim_out


def first_line(problem: Exception) -> str:
    """What an error says, in short."""
    return " ".join(f"{type(problem).__name__}: {problem}".split())[:200]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_convolution(benchmark: Any, rows: list[Row], machine: roofline.Roofline, case: Case) -> None:
    """One direction, after its results have been compared with ours."""
    gc.collect()
    row = start_of(case, "convolution")
    if case.threads > len(os.sched_getaffinity(0)):
        leave_out(rows, row, f"{case.threads} threads, but fewer cores")
    system, paths = make_system(case.system, case.n_nodes), paths_of(case.irreps)
    graph, dtype = system.graph, getattr(torch, case.dtype)
    row |= {"n_nodes": graph.n_nodes, "n_edges": graph.n_edges, "what": system.what}
    expected = expected_bytes(case, graph.n_edges)
    if case.peer != OURS and expected > available_bytes():
        why = f"may take {expected / 1e9:.0f} GB, {available_bytes() / 1e9:.0f} GB are free"
        leave_out(rows, row, why)
    inputs = make_inputs(paths, system, case.weights, dtype)
    torch.set_num_threads(case.threads)
    ours = make_call(PEERS[OURS](paths, graph, dtype), inputs, case.direction)
    call, baseline, results, call_s = ours, None, ours(), 0.0
    if case.peer != OURS:
        baseline = ours
        row["baseline"] = OURS
        try:
            call = make_call(PEERS[case.peer](paths, graph, dtype), inputs, case.direction)
            for place in range(WARM_UPS.get(case.peer, 1)):
                start = time.perf_counter()
                found = call()
                call_s = time.perf_counter() - start
                if place == 0:
                    row["first_call_s"] = call_s
        except ImportError:
            leave_out(rows, row, "not installed")
        except Exception as problem:  # noqa: BLE001 - another library's trouble must not hide the others
            leave_out(rows, row, first_line(problem))
        row["difference"] = difference(found, results)
        assert row["difference"] < TOLERANCE[case.dtype], f"{case}: another result, {row['difference']:.1e}"
        del found
    elif case.threads > 1:
        baseline = ours
        row["baseline"] = "1 thread"
    del results
    benchmark.group = str(case).removesuffix(f"-{case.peer}")
    base_threads = 1 if case.peer == OURS else case.threads
    row |= measure(benchmark, call, baseline, (case.threads, base_threads), call_s)
    row |= beside_floor(case, row["median_s"], graph.n_nodes, graph.n_edges, machine)
    benchmark.extra_info.update(row)
    rows.append(row)
    if case.peer == "e3nn torch.compile":
        torch._dynamo.reset()
    ratio = f"{row['ratio']:8.3f} x {row['baseline']}" if "ratio" in row else ""
    over = f"{row['over_floor']:8.2f} x floor" if "over_floor" in row else ""
    say(f"{case!s:88} {1e3 * row['median_s']:10.2f} ms {over} {ratio}")


@pytest.mark.parametrize("case", memory_cases(), ids=str)
def test_memory(rows: list[Row], case: Case) -> None:
    """Peak memory of a call, in a process of its own."""
    row = start_of(case, "memory")
    system = make_system(case.system, case.n_nodes)
    gc.collect()
    expected = expected_bytes(case, system.graph.n_edges)
    if case.peer != OURS and expected > available_bytes():
        why = f"may take {expected / 1e9:.0f} GB, {available_bytes() / 1e9:.0f} GB are free"
        leave_out(rows, row, why)
    program = str(Path(__file__).with_name("convolution_memory.py"))
    command = [sys.executable, program, "--list", case.irreps, "--system", case.system,
               "--n-nodes", str(case.n_nodes), "--weights", case.weights, "--dtype", case.dtype,
               "--direction", case.direction, "--peer", case.peer]  # fmt: skip
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode == -signal.SIGKILL:
        leave_out(rows, row, "killed by the system, which had no memory left")
    assert child.returncode == 0
    row |= json.loads(child.stdout.splitlines()[-1])
    rows.append(row)
    say(f"memory {case!s:81} {row['peak_bytes'] / 1e6:10.1f} MB")


def main() -> int:
    """Run pytest on this file, with its own options in the environment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_NODES} nodes, few rounds")
    parser.add_argument("--out", type=Path, help="folder for the record, tables and plot of this run")
    parser.add_argument("-k", help="pytest's, over the whole grid")
    options, others = parser.parse_known_args()
    os.environ["GLASSCONV_BENCH_QUICK"] = "1" if options.quick else "0"
    os.environ["GLASSCONV_BENCH_OUT"] = str(options.out or "")
    os.environ["GLASSCONV_BENCH_CHOOSES"] = "1" if options.k else "0"
    chosen = ["-k", options.k] if options.k else []
    return int(pytest.main([__file__, "-q", "-s", "--benchmark-disable-gc",
                            "--benchmark-columns=median,min,max,rounds", *chosen, *others]))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
