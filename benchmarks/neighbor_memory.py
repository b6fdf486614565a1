"""Peak memory and time of one neighbor list, in a process of its own: prints a JSON object on its last line.

    python benchmarks/neighbor_memory.py --n-nodes 1000000 [--peer matscipy]

The peak is that of the resident memory during the call over that before it, after freed memory has been given
back to the system; /proc/self/clear_refs sets the high-water mark of the process back (Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from neighbor_peers import PEERS, make_system, set_threads


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise RuntimeError(f"no {name} in /proc/self/status")


def output_bytes(graph: Any) -> int:
    """Of the four public tensors of a graph."""
    tensors = (graph.edge_index, graph.shifts, graph.row_ptr, graph.reverse)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(peer: str, n_nodes: int) -> dict[str, Any]:
    """One list of a shuffled liquid on one thread."""
    set_threads(1)
    PEERS[peer].make(
        make_system("liquid", "random", 1000), 1
    )()  # what is loaded and compiled at the first call
    call = PEERS[peer].make(make_system("liquid", "random", n_nodes), 1)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = memory("VmRSS")
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    return {
        "n_edges": PEERS[peer].count(result),
        "seconds": seconds,
        "peak_bytes": memory("VmHWM") - before,
        "output_bytes": output_bytes(result) if peer == "glassconv" else None,
    }


def main() -> int:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n-nodes", type=int, required=True)
    parser.add_argument("--peer", choices=tuple(PEERS), default="glassconv")
    options = parser.parse_args()
    print(json.dumps(measure(options.peer, options.n_nodes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
