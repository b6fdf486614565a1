"""Peak memory and time of one call of the convolution, in a process of its own: prints a JSON object.

    python benchmarks/convolution_memory.py --list glass-l3-C8 --direction both [--peer e3nn]

The peak is that of the resident memory during the call over that before it, when inputs and what precedes the
direction are there and freed memory has been given back to the system; /proc/self/clear_refs sets the
high-water mark of the process back (Linux). The call is the first of its size: what is loaded and compiled
has been by a small one.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from convolution_cases import LISTS, SYSTEMS, make_inputs, make_system, paths_of
from convolution_counts import DIRECTIONS
from convolution_peers import OURS, PEERS, make_call
from neighbor_memory import memory


def call_of(options: argparse.Namespace, n_nodes: int) -> tuple[Callable[[], Any], int]:
    """The call that is measured, and the number of its edges."""
    system, dtype = make_system(options.system, n_nodes), getattr(torch, options.dtype)
    paths = paths_of(options.list)
    conv = PEERS[options.peer](paths, system.graph, dtype)
    inputs = make_inputs(paths, system, options.weights, dtype)
    return make_call(conv, inputs, options.direction), system.graph.n_edges


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One call on one thread."""
    torch.set_num_threads(1)
    call_of(options, 40)[0]()
    n_nodes = options.n_nodes or LISTS[options.list].n_nodes
    call, n_edges = call_of(options, n_nodes)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = memory("VmRSS")
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    return {
        "n_edges": n_edges,
        "seconds": seconds,
        "peak_bytes": memory("VmHWM") - before,
        "result_bytes": sum(tensor.numel() * tensor.element_size() for tensor in result),
    }


def main() -> int:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", choices=tuple(LISTS), required=True)
    parser.add_argument("--system", choices=SYSTEMS, default="liquid")
    parser.add_argument("--n-nodes", type=int, help="the list's own number without it")
    parser.add_argument("--weights", choices=("explicit", "lowrank"), default="lowrank")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--direction", choices=DIRECTIONS, required=True)
    parser.add_argument("--peer", choices=tuple(PEERS), default=OURS)
    print(json.dumps(measure(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
