"""Stage bench_neighbors: the search for the public graph, and the one of fixed capacity in a CUDA graph."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

import glassconv
from gpu.floors import NEIGHBOR_TARGETS, neighbor_floor
from gpu.run import Context, Failure, Skip
from gpu.systems import CUTOFF, HOW, box, liquid
from gpu.timing import measure, peak_bytes, wall_clock

N_SYSTEMS = 2  # that rotate
MARGIN = 5.0


def arguments(n_particles: int, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, cell, periodicity and batch as the operators take them, float64."""
    configuration = liquid(n_particles, seed)
    periodic = torch.ones(1, 3, dtype=torch.bool, device=device)
    batch = torch.zeros(n_particles, dtype=torch.int64, device=device)
    return configuration.positions.to(device), configuration.cell[None].to(device), periodic, batch


def same_as_cpu(n_particles: int, device: str) -> bool:
    """Whether the graph is the CPU's, bit for bit."""
    configuration = liquid(n_particles)
    positions, cell = configuration.positions, box(configuration)
    ours = glassconv.neighbor_list(positions.to(device), CUTOFF, cell=cell.to(device))
    theirs = glassconv.neighbor_list(positions, CUTOFF, cell=cell)
    names = ("edge_index", "shifts", "row_ptr", "reverse")
    return all(torch.equal(getattr(ours, name).cpu(), getattr(theirs, name)) for name in names)


def bench(context: Context) -> str:
    """Measure each size."""
    if not glassconv._native.has_cuda():
        raise Skip("the extension has no CUDA kernels (stage build)")
    ops, done, wrong = torch.ops.glassconv, 0, []
    for n_particles, target in NEIGHBOR_TARGETS.items():
        if context.seconds_left < MARGIN:
            raise Failure(f"{done} sizes measured; no time for N = {n_particles} and more")
        if n_particles <= 40_000 and not same_as_cpu(n_particles, context.device):
            wrong.append(f"N = {n_particles}: not the edges of the CPU")
        systems = [arguments(n_particles, seed, context.device) for seed in range(N_SYSTEMS)]
        n_edges = [int(ops.neighbor_list(*system, CUTOFF)[0].shape[1]) for system in systems]
        capacity = int(1.1 * max(n_edges))
        found = [int(ops.neighbor_list_fixed(*system, CUTOFF, capacity)[-1]) for system in systems]
        if found != n_edges:
            wrong.append(f"N = {n_particles}: expected {n_edges} edges with a capacity, got {found}")
        calls = [
            lambda system=system, capacity=capacity: ops.neighbor_list_fixed(*system, CUTOFF, capacity)
            for system in systems
        ]
        times = measure(calls)
        positions, cell = systems[0][0], systems[0][1][0]
        floor = neighbor_floor(n_particles, n_edges[0])
        context.record(
            benchmark="gpu neighbors",
            n_nodes=n_particles,
            n_edges=n_edges[0],
            capacity=capacity,
            dtype="float64",
            system=HOW,
            **times.to_record(),
            operator_s=wall_clock(lambda system=systems[0]: ops.neighbor_list(*system, CUTOFF)),
            graph_s=wall_clock(lambda p=positions, c=cell: glassconv.neighbor_list(p, CUTOFF, cell=c)),
            floor_s=floor.seconds,
            floor_is=floor.limit,
            over_floor=times.cold / floor.seconds,
            gbyte_s=floor.bytes / times.cold * 1e-9,
            peak_bytes=peak_bytes(calls[0]),
            target_s=target,
            met=times.captured and times.cold <= target,
        )
        print(f"N = {n_particles:9} {times.cold * 1e6:9.1f} us cold {times.warm * 1e6:9.1f} us {times.note}")
        done += 1
        del systems, calls, positions, cell
        gc.collect()
        torch.cuda.empty_cache()
    if wrong:
        raise Failure("; ".join(wrong))
    return f"{done} sizes"
