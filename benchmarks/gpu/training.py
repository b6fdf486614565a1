"""Stage bench_training: a whole training step of the default network, eager and as a CUDA graph."""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch
from e3nn_network import E3nnNetwork
from torch import Tensor

import glassconv
from glassconv.nn import SE3GNN, Batch
from gpu.floors import TRAINING_TARGET, training_floor
from gpu.run import Context, Failure, Skip, at_most
from gpu.systems import HOW, liquid
from gpu.timing import TrainingStep, measure, peak_bytes, per_call, wall_clock

N_NODES, N_STEPS = 4096, 5
# Two runs of the same kernels in another order of launches give the same bits; Adam magnifies what does not.
TOLERANCE = 1e-5


def workload(n_nodes: int, device: str, **options: Any) -> tuple[SE3GNN, Batch, Tensor]:
    """The default network in training mode, a prepared batch and its standardized targets."""
    configuration = liquid(n_nodes).select_times([-1])
    torch.manual_seed(0)
    model = SE3GNN(2, 1, **options).to(device).train()
    model.set_statistics([configuration])
    batch = model.prepare(configuration)
    assert batch.targets is not None
    return model, batch, model.standardize(batch.targets, batch.types)


def losses(step: Any, n_steps: int) -> list[float]:
    """Losses of so many steps."""
    return [float(step()) for _ in range(n_steps)]


def bench(context: Context) -> str:
    """Measure the step, the forward pass alone, and the same network in e3nn's parts."""
    if not glassconv._native.has_cuda():
        raise Skip("the extension has no CUDA kernels (stage build)")
    model, batch, targets = workload(N_NODES, context.device)
    eager = TrainingStep(copy.deepcopy(model), batch, targets)
    expected = losses(eager, 3 + N_STEPS)  # the captured one warms up for three
    step = TrainingStep(copy.deepcopy(model), batch, targets)
    eager_s = per_call([eager], 20)
    peak = peak_bytes(eager)
    floor = training_floor(batch.n_nodes, batch.n_edges)
    common = {
        "benchmark": "gpu training step",
        "implementation": "glassconv",
        "n_nodes": batch.n_nodes,
        "n_edges": batch.n_edges,
        "system": HOW,
        "floor_s": floor.seconds,
        "floor_is": floor.limit,
        "target_s": TRAINING_TARGET,
    }
    context.record(**common, form="eager", median_s=eager_s, peak_bytes=peak, met=eager_s <= TRAINING_TARGET)
    print(f"eager {eager_s * 1e3:.2f} ms, peak {peak / 1e9:.2f} GB, losses {expected}")
    captured_s, difference = _captured(step, expected)
    context.record(
        **common,
        form="CUDA graph",
        median_s=captured_s,
        over_floor=captured_s / floor.seconds,
        loss_difference=difference,
        met=captured_s <= TRAINING_TARGET,
    )
    print(f"CUDA graph {captured_s * 1e3:.2f} ms, losses differ from eager ones by {difference:.1e}")
    with torch.no_grad():
        network = model.eval()
        forward = measure([lambda: network(batch)])
    nothing = {"target_s": None, "floor_s": None, "floor_is": None}
    context.record(**common | nothing, form="prediction", **forward.to_record())
    if not difference <= TOLERANCE:
        raise Failure(f"losses of the CUDA graph differ from the eager ones by {difference:.1e} (relative)")
    try:  # its code is compiled at the first calls, which may take longer than all the rest
        with at_most(context.seconds_left - 3):
            e3nn_s = _e3nn(model.train(), batch, targets)
    except TimeoutError as reason:
        return f"eager {eager_s * 1e3:.2f} ms, CUDA graph {captured_s * 1e3:.2f} ms, e3nn {reason}"
    context.record(
        benchmark="gpu training step", implementation="e3nn", form="eager", median_s=e3nn_s,
        n_nodes=batch.n_nodes, n_edges=batch.n_edges,
    )  # fmt: skip
    return f"eager {eager_s * 1e3:.2f} ms, CUDA graph {captured_s * 1e3:.2f} ms, e3nn {e3nn_s * 1e3:.0f} ms"


def _captured(step: TrainingStep, expected: list[float]) -> tuple[float, float]:
    """Seconds of a replay, and the largest relative difference of its losses from the eager ones."""
    graph, loss = step.captured(warm_up=3)
    found = []
    for _ in range(N_STEPS):
        graph.replay()
        found.append(float(loss))
    pairs = zip(found, expected[3:], strict=True)
    difference = max(abs(a - b) / abs(b) if b == b and a == a else float("inf") for a, b in pairs)
    return statistics.median(per_call([graph.replay], 20) for _ in range(5)), difference


def _e3nn(model: SE3GNN, batch: Batch, targets: Tensor) -> float:
    """Seconds of an eager step in e3nn's parts, which have the same weights."""
    network = E3nnNetwork(copy.deepcopy(model).cpu()).to(batch.vectors.device).train()
    return wall_clock(TrainingStep(network, batch, targets), n=3)
