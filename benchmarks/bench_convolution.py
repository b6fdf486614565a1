"""Time of the convolution: forward, backward, double backward; each form of the weights; e3nn beside it.

    python benchmarks/bench_convolution.py [-k "C8 and l3"] [--benchmark-json=convolution.json]

takes pytest's and pytest-benchmark's options. Workload: random positions at the density of the Kob-Andersen
liquid, N = 4096, cutoff 2.0, periodic, hence some 164,000 edges; natural parity, float32, vectors with
gradients, on GLASSCONV_BENCH_THREADS (default 1) threads. e3nn runs at C = 8 alone: its messages take
gigabytes beyond. Records go to `results/`, as those of every benchmark.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from e3nn import o3
from provenance import write_records
from torch import Tensor

import glassconv
from glassconv import Graph, Paths

N_NODES, DENSITY, CUTOFF, N_RADIAL = 4096, 1.2, 2.0, 16
IRREPS = {2: "0e+1o+2e", 3: "0e+1o+2e+3o"}
DIRECTIONS = ("forward", "backward", "double_backward")


@cache
def workload() -> tuple[Graph, Tensor]:
    """The graph and its vectors."""
    torch.set_num_threads(int(os.environ.get("GLASSCONV_BENCH_THREADS", "1")))
    torch.manual_seed(0)
    length = (N_NODES / DENSITY) ** (1 / 3)
    positions, cell = length * torch.rand(N_NODES, 3, dtype=torch.float64), torch.full((3,), length)
    graph = glassconv.neighbor_list(positions, CUTOFF, cell=cell.double())
    return graph, graph.vectors(positions, cell.double()).float()


@cache
def paths_of(channels: int, l_max: int) -> Paths:
    """C channels of every natural-parity irrep up to l_max, to the same irreps."""
    irreps = "+".join(f"{channels}x{irrep}" for irrep in IRREPS[l_max].split("+"))
    return Paths(irreps, l_max, IRREPS[l_max])


def e3nn_conv(product: o3.TensorProduct, graph: Graph, tensors: dict[str, Tensor]) -> Tensor:
    """Gather, harmonics, radial product, tensor product, scatter, as e3nn's users write it."""
    source, receiver = graph.edge_index
    edge_sh = o3.spherical_harmonics(
        product.irreps_in2, tensors["vectors"], normalize=True, normalization="component"
    )
    edge_weight = tensors["edge_weight"] if "edge_weight" in tensors else tensors["radial"] @ tensors["mix"]
    messages = product(tensors["x"][source], edge_sh, edge_weight)
    return messages.new_zeros(graph.n_nodes, messages.shape[1]).index_add(0, receiver, messages)


def measured(implementation: str, paths: Paths, form: str, direction: str) -> Callable[[], Any]:
    """The call that is timed; what precedes its direction is done once, outside."""
    graph, vectors = workload()
    leaves = {"x": torch.randn(graph.n_nodes, paths.irreps_in.dim), "vectors": vectors.clone()}
    if form == "explicit":
        leaves["edge_weight"] = torch.randn(graph.n_edges, paths.weight_numel)
    else:
        leaves["radial"] = torch.randn(graph.n_edges, N_RADIAL)
        leaves["mix"] = torch.randn(N_RADIAL, paths.weight_numel)
    for leaf in leaves.values():
        leaf.requires_grad_(direction != "forward")
    if implementation == "glassconv":

        def forward() -> Tensor:
            tensors = dict(leaves)
            return glassconv.conv(tensors.pop("x"), graph, paths, **tensors)
    else:
        product = o3.TensorProduct(
            paths.irreps_in,
            paths.irreps_sh,
            paths.irreps_out,
            list(paths.instructions),
            shared_weights=False,
            internal_weights=False,
        )

        def forward() -> Tensor:
            return e3nn_conv(product, graph, leaves)

        tensors = dict(leaves)
        ours, theirs = glassconv.conv(tensors.pop("x"), graph, paths, **tensors), forward()
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()  # the same function, before its time is compared

    if direction == "forward":
        return forward
    inputs = list(leaves.values())
    out = forward()
    cotangent = torch.randn_like(out)
    if direction == "backward":
        return lambda: torch.autograd.grad(out, inputs, cotangent, retain_graph=True)
    cotangent.requires_grad_()
    first = torch.autograd.grad(out, inputs, cotangent, create_graph=True)
    cotangents = [torch.randn_like(gradient) for gradient in first]
    return lambda: torch.autograd.grad(first, [*inputs, cotangent], cotangents, retain_graph=True)


@pytest.fixture(scope="module")
def records() -> Iterator[list[dict[str, Any]]]:
    """Measurements of this run, written with their provenance when it ends."""
    collected: list[dict[str, Any]] = []
    yield collected
    if collected:
        print(f"\nrecords in {write_records(collected)}")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", ["explicit", "lowrank"])
@pytest.mark.parametrize("channels", [8, 13, 16, 32], ids=lambda channels: f"C{channels}")
@pytest.mark.parametrize("l_max", [2, 3], ids=lambda l_max: f"l{l_max}")
@pytest.mark.parametrize("implementation", ["glassconv", "e3nn"])
def test_convolution(
    benchmark: Any,
    records: list[dict[str, Any]],
    implementation: str,
    l_max: int,
    channels: int,
    form: str,
    direction: str,
) -> None:
    """One combination of the grid."""
    if implementation == "e3nn" and channels != 8:
        pytest.skip("e3nn is timed at C = 8 alone: its messages take gigabytes beyond")
    call = measured(implementation, paths_of(channels, l_max), form, direction)
    seconds: list[float] = []

    def timed() -> None:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)

    benchmark.group = f"l_max {l_max}, C {channels}, {form} weights, {direction}"
    benchmark.pedantic(timed, rounds=3 if implementation == "e3nn" else 7, warmup_rounds=1)
    record = {
        "benchmark": "convolution",
        "implementation": implementation if implementation == "e3nn" else f"glassconv {glassconv.backend()}",
        "l_max": l_max,
        "channels": channels,
        "weights": form,
        "direction": direction,
        "n_nodes": N_NODES,
        "n_edges": workload()[0].n_edges,
        "n_radial": N_RADIAL,
        "dtype": "float32",
        "n_threads": torch.get_num_threads(),
        "median_s": statistics.median(seconds[1:]),  # the first was the warm-up
        "min_s": min(seconds[1:]),
        "max_s": max(seconds[1:]),
        "rounds": len(seconds) - 1,
    }
    benchmark.extra_info.update(record)
    records.append(record)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "-s", *sys.argv[1:]]))
