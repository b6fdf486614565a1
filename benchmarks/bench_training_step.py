"""One training step of the default network, with the same step in e3nn beside it.

    python benchmarks/bench_training_step.py [--threads 2] [--rounds 5] [--without-e3nn]

The network: 8 layers, C = 8, l_max 3, natural parity, float32. Workload: N = 4096, a random particle in each
cell of a cubic lattice, periodic, cutoff 2.0; density 1.25 gives the 167,000 edges of a Kob-Andersen liquid.
A step is forward, mean square, backward to all parameters; the neighbor graph is made before. Each
implementation runs in a process of its own, so that the peak of its resident memory is its own. Records go to
`results/`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from e3nn_network import E3nnNetwork
from provenance import write_records

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


def run(implementation: str, threads: int, rounds: int) -> dict[str, Any]:
    """Time the steps of one implementation in this process."""
    torch.set_num_threads(threads)
    model = SE3GNN(2, 1).train()
    batch = model.prepare(configuration())
    network = model if implementation == "glassconv" else E3nnNetwork(model).train()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(rounds + 1):
        network.zero_grad()
        start = time.perf_counter()
        network(batch).square().mean().backward()
        seconds.append(time.perf_counter() - start)
    seconds = seconds[1:]  # the first was the warm-up
    return {
        "benchmark": "training step",
        "implementation": implementation,
        "n_nodes": batch.n_nodes,
        "n_edges": batch.graph.n_edges,
        "n_threads": threads,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "rounds": rounds,
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "rss_before_bytes": 1024 * before,
    }


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
        print(f"{implementation}: {record['median_s']:.2f} s, peak {record['peak_rss_bytes'] / 1e9:.2f} GB")
    if len(records) == 2:
        print(f"ratio {records[1]['median_s'] / records[0]['median_s']:.1f}")
    print(f"records in {write_records(records)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
