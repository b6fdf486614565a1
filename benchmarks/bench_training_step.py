"""One training step of the default network, with the same step in e3nn beside it.

    python benchmarks/bench_training_step.py [--threads 2] [--rounds 5] [--without-e3nn]

The network: 8 layers, C = 8, l_max 3, natural parity, float32. Workload: N = 4096, a random particle in each
cell of a cubic lattice, periodic, cutoff 2.0; density 1.25 gives the 167,000 edges of a Kob-Andersen liquid.
A step is forward, mean square, backward to all parameters; the neighbor graph is made before. Each
implementation runs in a process of its own, so that the peak of its resident memory is its own. Of a step
after the timed ones, the peak is also taken above what is resident before it: model, graph, libraries. The
convolution's share of glassconv's step comes from the profiler, in steps of their own. Records go to
`results/`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from e3nn_network import E3nnNetwork
from provenance import write_records
from torch.profiler import ProfilerActivity, profile

from glassconv.data import Configuration
from glassconv.nn import SE3GNN

N_SIDE, DENSITY = 16, 1.25


def configuration() -> Configuration:
    """4096 particles, one at random in each cell of a lattice: the neighbor counts of the liquid."""
    torch.manual_seed(0)
    n_particles = N_SIDE**3
    length = (n_particles / DENSITY) ** (1 / 3)
    sites = torch.cartesian_prod(*[torch.arange(N_SIDE, dtype=torch.float64)] * 3)
    positions = (sites + torch.rand(n_particles, 3, dtype=torch.float64)) * length / N_SIDE
    return Configuration(
        positions=positions,
        inherent=positions,
        types=(torch.rand(n_particles) < 0.2).long(),
        cell=torch.full((3,), length, dtype=torch.float64),
        energy=torch.randn(n_particles, dtype=torch.float64),
    )


def resident(field: str) -> int:
    """Bytes of the process in memory: now (VmRSS), or at most since `peak_above` began (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak_above(step: Callable[[], None]) -> int:
    """Bytes that a step takes at its peak beside what was resident, in torch's allocator or any other."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would hide as much
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    step()
    return resident("VmHWM") - before


def breakdown(step: Callable[[], None], rounds: int) -> dict[str, float]:
    """Seconds of convolutions, forward and backward, and of everything else in a step: medians."""
    names = {"convolution_forward_s": "glassconv::conv", "convolution_backward_s": "glassconv::conv_backward"}
    rows = []
    for _ in range(rounds):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            start = time.perf_counter()
            step()
            seconds = time.perf_counter() - start
        spent = {event.key: 1e-6 * event.cpu_time_total for event in profiled.key_averages()}
        row = {field: spent[name] for field, name in names.items()}
        rows.append({**row, "rest_s": seconds - sum(row.values()), "step_s": seconds})
    result = {field: statistics.median(row[field] for row in rows) for field in rows[0]}
    result["convolution_share"] = statistics.median(1 - row["rest_s"] / row["step_s"] for row in rows)
    return result


def run(implementation: str, threads: int, rounds: int) -> dict[str, Any]:
    """Time the steps of one implementation in this process, then measure memory and shares."""
    torch.set_num_threads(threads)
    model = SE3GNN(2, 1).train()
    batch = model.prepare(configuration())
    network = model if implementation == "glassconv" else E3nnNetwork(model).train()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def step() -> None:
        network.zero_grad()
        network(batch).square().mean().backward()

    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    seconds = seconds[1:]  # the first was the warm-up
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = {
        "benchmark": "training step",
        "implementation": implementation,
        "n_nodes": batch.n_nodes,
        "n_edges": batch.graph.n_edges,
        "n_threads": threads,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "rounds": rounds,
        "peak_rss_bytes": 1024 * peak,
        "rss_before_bytes": 1024 * before,
    }
    network.zero_grad()
    record["peak_above_bytes"] = peak_above(step)
    if implementation == "glassconv":
        record["breakdown"] = breakdown(step, rounds)
    return record


def main() -> int:
    """Run each implementation in a child, print the comparison, write the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-e3nn", action="store_true")
    parser.add_argument("--child", choices=("glassconv", "e3nn"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run(options.child, options.threads, options.rounds)))
        return 0
    records = []
    for implementation, rounds in (("glassconv", options.rounds), ("e3nn", 2)):
        if implementation == "e3nn" and options.without_e3nn:
            continue
        arguments = ["--child", implementation, "--threads", str(options.threads), "--rounds", str(rounds)]
        done = subprocess.run(
            [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
        )
        record = json.loads(done.stdout.splitlines()[-1])
        records.append(record)
        print(
            f"{implementation}: {record['median_s']:.2f} s, peak {record['peak_rss_bytes'] / 1e9:.2f} GB, "
            f"of which {record['peak_above_bytes'] / 1e9:.2f} GB above model and graph"
        )
        if "breakdown" in record:
            spent = record["breakdown"]
            print(
                f"  convolutions {spent['convolution_forward_s']:.3f} s forward, "
                f"{spent['convolution_backward_s']:.3f} s backward, rest {spent['rest_s']:.3f} s: "
                f"convolutions are {spent['convolution_share']:.0%} of a step"
            )
    if len(records) == 2:
        ours, theirs = records
        ratios = {key: theirs[key] / ours[key] for key in ("median_s", "peak_above_bytes")}
        print(f"ratio {ratios['median_s']:.1f} in time, {ratios['peak_above_bytes']:.1f} in memory")
    print(f"records in {write_records(records)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
