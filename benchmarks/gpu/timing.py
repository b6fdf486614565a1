"""Times on a GPU: by events around the replay of a CUDA graph, L2 cleared or not, medians of many."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

FLUSH_BYTES = 256 << 20  # several times the largest L2 there is
Call = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Seconds; medians, with the spread of the cold ones.

    Attributes:
        cold: one replay, L2 cleared before it.
        warm: replays back to back over rotating inputs.
        eager: calls from Python back to back, the launches included.
        low, high: 10th and 90th percentile of the cold times.
        captured: whether `cold` and `warm` are replays of a CUDA graph; otherwise calls from Python.
    """

    cold: float
    warm: float
    eager: float
    low: float
    high: float
    captured: bool
    note: str = ""

    def to_record(self) -> dict[str, Any]:
        """Keys of a record, with their unit."""
        numbers = {f"{k}_s": v for k, v in asdict(self).items() if k not in ("captured", "note")}
        return numbers | {"captured": self.captured, "note": self.note}


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which this fraction of the values lies, nearest rank."""
    ordered = sorted(values)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]


def capture(call: Call, warm_up: int = 3) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of one call, and what the call returned: each replay writes there.

    The call runs `warm_up` times before, on a side stream, as capturing asks for.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            result = call()
    finally:
        torch.cuda.set_stream(stream)  # where capturing fails, torch stays on its own
    return graph, result


def measure(calls: Sequence[Call], rounds: int = 30, seconds: float = 0.5) -> Times:
    """Time one piece of work, given as calls on different inputs of the same size.

    Args:
        calls: each does the whole work on inputs of its own.
        rounds: at most so many timed calls of each kind.
        seconds: at most about so long for each kind; at least five calls.
    """
    for call in calls:
        call()
    eager = per_call(calls, 2 * len(calls))
    n = max(5, min(rounds, int(seconds / max(eager, 1e-6))))
    eager = per_call(calls, n)
    try:
        captured = [capture(call) for call in calls]
        replays: list[Call] = [graph.replay for graph, _ in captured]
        note = ""
    except RuntimeError as error:  # not capturable: a finding, and no reason to have no number
        torch.cuda.synchronize()
        replays, note = list(calls), f"not captured: {' '.join(str(error).split())[:200]}"
    cold = _each(replays, n, _flush())
    warm = statistics.median(per_call(replays, n) for _ in range(5))
    return Times(
        statistics.median(cold), warm, eager, percentile(cold, 0.1), percentile(cold, 0.9), not note, note
    )


def _flush() -> Call:
    buffer = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    return lambda: buffer.fill_(1)


def _each(calls: Sequence[Call], n: int, before: Call) -> list[float]:
    """Seconds of each of n calls. `before` also keeps the GPU busy until the next call has been launched."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
    for i, (start, end) in enumerate(events):
        before()
        start.record()
        calls[i % len(calls)]()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e-3 for start, end in events]


def per_call(calls: Sequence[Call], n: int) -> float:
    """Seconds per call of n calls in turn, back to back."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for i in range(n):
        calls[i % len(calls)]()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e-3 / n


def wall_clock(call: Call, n: int = 20) -> float:
    """Median seconds of a call that waits for the GPU by itself, by the host's clock."""
    times = []
    for _ in range(n + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def peak_bytes(call: Call) -> int:
    """Growth of torch's peak memory during a call, its results included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


class TrainingStep:
    """Forward, mean square error, backward and Adam of a network on one batch, eager or as a CUDA graph."""

    def __init__(self, network: torch.nn.Module, batch: Any, targets: Tensor, rate: float = 1e-3) -> None:
        self.network, self.batch, self.targets = network, batch, targets
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=rate, capturable=targets.device.type == "cuda", foreach=True
        )

    def __call__(self) -> Tensor:
        """One step; returns the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = (self.network(self.batch) - self.targets).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def captured(self, warm_up: int = 3) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A CUDA graph whose replay is one step, and its loss; `warm_up` steps are made before it."""
        return capture(self, warm_up)
