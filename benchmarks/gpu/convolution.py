"""Stage bench_conv: the operators of the convolution, each direction, at the size of the paper's systems."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import glassconv
from glassconv import Graph
from gpu.floors import DIRECTIONS, ConvCase, conv_cases, conv_floor, conv_flops, conv_target
from gpu.run import Context, Failure, Skip
from gpu.systems import CUTOFF, HOW, box, liquid
from gpu.timing import Times, measure, peak_bytes

N_NODES = 4096
MARGIN = 12.0  # seconds before the limit at which no further case is begun
# Relative to float64 on the CPU: 2e-6 forward, 2e-5 in gradients (sums over some 40 edges and 34 paths).
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def workload(n_nodes: int, device: str) -> tuple[Graph, Tensor]:
    """Graph and vectors (float64) of a liquid."""
    configuration = liquid(n_nodes)
    graph = glassconv.neighbor_list(configuration.positions, CUTOFF, cell=box(configuration))
    vectors = graph.vectors(configuration.positions, configuration.cell)
    return graph.to(device), vectors.to(device)


def inputs(case: ConvCase, graph: Graph, vectors: Tensor, seed: int) -> dict[str, list[Tensor | None]]:
    """Random inputs of all directions: the four differentiable ones, a gradient of the output, cotangents."""
    generator = torch.Generator(device=vectors.device).manual_seed(seed)
    dtype, paths = getattr(torch, case.dtype), case.paths

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype, device=vectors.device)

    lowrank = case.weights == "lowrank"
    weight = normal(graph.n_edges, case.n_radial if lowrank else paths.weight_numel)
    mix = normal(case.n_radial, paths.weight_numel) if lowrank else None
    given = [normal(graph.n_nodes, paths.irreps_in.dim), vectors.to(dtype).clone(), weight, mix]
    grad_out = normal(graph.n_nodes, paths.irreps_out.dim)
    cotangents = [None if value is None else normal(*value.shape) for value in given]
    return {"given": given, "grad_out": [grad_out], "cotangents": cotangents}


def operator(direction: str, case: ConvCase, graph: Graph, tensors: dict[str, Any]) -> Callable[[], Any]:
    """The call of one direction's operator, as autograd makes it with every gradient wanted."""
    index = (graph.row_ptr, graph.row_source, graph.perm, graph.transpose_ptr, graph.transpose_slots)
    rest = (*index, list(case.paths.spec), False)
    given, ops = tensors["given"], torch.ops.glassconv
    wanted = [value is not None for value in given]
    if direction == "forward":
        return lambda: ops.conv(*given, *rest)
    if direction == "backward":
        return lambda: ops.conv_backward(*tensors["grad_out"], *given, *rest, wanted)
    cotangents = tensors["cotangents"]
    return lambda: ops.conv_double_backward(*cotangents, *tensors["grad_out"], *given, *rest, [True, *wanted])


def error_against_cpu(direction: str, case: ConvCase, graph: Graph, tensors: dict[str, Any]) -> float:
    """Largest ||ours - float64 on the CPU|| / ||float64 on the CPU|| of the outputs."""

    def exact(values: list[Tensor | None]) -> list[Tensor | None]:
        return [None if value is None else value.cpu().double() for value in values]

    def outputs(result: Any) -> list[Tensor]:
        listed = [result] if isinstance(result, Tensor) else list(result)
        return [value.detach().cpu().double() for value in listed if value.numel() > 0]

    ours = outputs(operator(direction, case, graph, tensors)())
    on_cpu = {name: exact(values) for name, values in tensors.items()}
    theirs = outputs(operator(direction, case, graph.to("cpu"), on_cpu)())
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)]
    return math.inf if any(math.isnan(error) for error in errors) else max(errors)


def n_sets(case: ConvCase, graph: Graph, device: str) -> int:
    """As many sets of inputs to rotate as half of the free memory holds with their outputs, at most three."""
    if device == "cpu":
        return 1
    each = 2 * conv_floor(case, "double_backward", graph.n_nodes, graph.n_edges).bytes
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(3, int(free / 2 / each)))


def to_record(
    case: ConvCase, direction: str, graph: Graph, times: Times, measured_backward: float | None
) -> dict[str, Any]:
    """One measurement with what it is to be compared with."""
    floor = conv_floor(case, direction, graph.n_nodes, graph.n_edges)
    target = conv_target(case, direction, measured_backward)
    return {
        "benchmark": "gpu convolution",
        "case": case.name,
        "l_max": case.l_max,
        "channels": case.channels,
        "parity": case.parity,
        "weights": case.weights,
        "dtype": case.dtype,
        "n_radial": case.n_radial,
        "direction": direction,
        "n_nodes": graph.n_nodes,
        "n_edges": graph.n_edges,
        "system": HOW,
        **times.to_record(),
        "floor_s": floor.seconds,
        "floor_is": floor.limit,
        "over_floor": times.cold / floor.seconds,
        "gbyte_s": floor.bytes / times.cold * 1e-9,
        "gflop_s": conv_flops(case, direction, graph.n_edges) / times.cold * 1e-9,
        "target_s": target,
        "met": None if target is None else times.cold <= target,
    }


@torch.no_grad()
def bench(context: Context) -> str:
    """Measure every case; those that the time does not suffice for are named."""
    if not glassconv._native.has_cuda():
        raise Skip("the extension has no CUDA kernels (stage build)")
    graph, vectors = workload(N_NODES, context.device)
    done, missing, wrong = 0, [], []
    for case in conv_cases():
        if context.seconds_left < MARGIN:
            missing.append(case.name)
            continue
        try:
            sets = [inputs(case, graph, vectors, seed) for seed in range(n_sets(case, graph, context.device))]
            backward = None
            for direction in DIRECTIONS:
                error = None
                if case.channels <= 8:
                    error = error_against_cpu(direction, case, graph, sets[0])
                    if not error <= TOLERANCE[case.dtype]:
                        wrong.append(f"{case.name} {direction}: relative error {error:.1e}")
                calls = [operator(direction, case, graph, tensors) for tensors in sets]
                times = measure(calls)
                record = to_record(case, direction, graph, times, backward)
                peak = peak_bytes(calls[0])
                context.record(**record, relative_error=error, peak_bytes=peak)
                backward = times.cold if direction == "backward" else backward
                print(
                    f"{case.name:38} {direction:16} {times.cold * 1e6:9.1f} us cold "
                    f"{times.warm * 1e6:9.1f} us warm {record['over_floor']:6.1f} x floor {times.note}"
                )
                done += 1
        except torch.OutOfMemoryError as problem:
            missing.append(f"{case.name} ({str(problem).splitlines()[0]})")
        sets = calls = None
        gc.collect()
        torch.cuda.empty_cache()
    left = f"; not measured: {', '.join(missing)}" if missing else ""
    if wrong:
        raise Failure("; ".join(wrong) + left)
    return f"{done} measurements{left}"
