"""The kernels beside torch's: streams, devices, memory, events, CUDA graphs, and what follows an error.

The extension has a CUDA runtime of its own, linked statically; everything here is shared with torch's.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cuda_cases import CASES, needs_cuda, needs_two_devices, on_gpu
from gpu.timing import capture
from oracles import random_arguments, random_graph
from torch import Tensor

import glassconv
from glassconv import Graph

pytestmark = needs_cuda

PATHS = CASES["glass-8-l3"].paths
CYCLES = 200_000_000  # a tenth of a second of doing nothing, at 2 GHz


@pytest.fixture(autouse=True)
def native():
    with glassconv.use_backend("native"):
        yield
    torch.cuda.synchronize()


def problem(device: str = "cuda") -> tuple[Graph, dict[str, Tensor]]:
    graph = random_graph(300, 6000)
    return graph.to(device), on_gpu(random_arguments(PATHS, graph, "vectors-lowrank"), torch.float32, device)


def forward_and_backward(graph: Graph, arguments: dict[str, Tensor]) -> list[Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in arguments.items()}
    tensors = dict(leaves)
    out = glassconv.conv(tensors.pop("x"), graph, PATHS, **tensors)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), list(leaves.values()))]


def all_equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_order_on_a_side_stream() -> None:
    """What torch has put on the stream before is done before, and what it puts there after is done after."""
    graph, arguments = problem()
    expected = forward_and_backward(graph, arguments)
    late = {name: torch.zeros_like(value) for name, value in arguments.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(CYCLES)
        for name, value in arguments.items():
            late[name].copy_(value)
        found = forward_and_backward(graph, late)
        doubled = [2 * value for value in found]
        for value in late.values():
            value.zero_()
    side.synchronize()
    assert all_equal(found, expected)
    assert all_equal(doubled, [2 * value for value in expected])


def test_a_side_stream_does_not_wait_for_the_default_one() -> None:
    graph, arguments = problem()
    expected = forward_and_backward(graph, arguments)
    side, done_there, done_here = torch.cuda.Stream(), torch.cuda.Event(), torch.cuda.Event()
    with torch.cuda.stream(side):  # memory and code for this stream: to get them may be to wait
        forward_and_backward(graph, arguments)
    torch.cuda.synchronize()
    torch.cuda._sleep(10 * CYCLES)
    done_here.record()
    with torch.cuda.stream(side):
        found = forward_and_backward(graph, arguments)
        done_there.record()
    done_there.synchronize()
    assert not done_here.query()
    torch.cuda.synchronize()
    assert all_equal(found, expected)


def test_two_streams_at_once() -> None:
    graph, arguments = problem()
    expected = forward_and_backward(graph, arguments)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    results = []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(forward_and_backward(graph, arguments))
    torch.cuda.synchronize()
    assert all(all_equal(found, expected) for found in results)


def test_search_on_a_side_stream() -> None:
    positions = 6 * torch.rand(200, 3, dtype=torch.float64, device="cuda")
    expected = glassconv.neighbor_list(positions, 1.5, cell=[6.0] * 3)
    late, side = torch.zeros_like(positions), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(CYCLES)
        late.copy_(positions)
        found = glassconv.neighbor_list(late, 1.5, cell=[6.0] * 3)
    assert torch.equal(found.edge_index, expected.edge_index)
    assert torch.equal(found.reverse, expected.reverse)


@needs_two_devices
def test_second_device() -> None:
    """The tensors' device counts, not the current one, which stays as it is."""
    graph, arguments = problem()
    expected = forward_and_backward(graph, arguments)
    there, moved = problem("cuda:1")
    torch.cuda.set_device(0)
    found = forward_and_backward(there, moved)
    assert torch.cuda.current_device() == 0
    assert all(value.device == torch.device("cuda:1") for value in found)
    assert all_equal([value.cpu() for value in found], [value.cpu() for value in expected])
    positions = torch.rand(50, 3, device="cuda:1")
    assert glassconv.neighbor_list(positions, 0.3, cell=[1.0] * 3).device == torch.device("cuda:1")
    with pytest.raises(ValueError, match="graph: expected the device of x, cuda:1, got cuda:0"):
        forward_and_backward(graph, moved)


def test_torch_events_see_the_kernels() -> None:
    graph, arguments = problem()
    tensors = dict(arguments)
    x = tensors.pop("x")
    glassconv.conv(x, graph, PATHS, **tensors)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    start.record()
    for _ in range(20):
        glassconv.conv(x, graph, PATHS, **tensors)
    end.record()
    end.synchronize()
    milliseconds = 1e3 * (time.perf_counter() - begun)
    assert 0 < start.elapsed_time(end) <= milliseconds


def test_memory_that_torch_takes_back_and_gives_out_again() -> None:
    """Temporaries are freed while kernels still run; the allocator must know on which stream."""
    graph, arguments = problem()
    expected = forward_and_backward(graph, arguments)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    results = []
    with torch.cuda.stream(side):
        for _ in range(20):
            copies = {name: value.clone() for name, value in arguments.items()}
            results.append(forward_and_backward(graph, copies))
            del copies
            torch.full((1 << 20,), float("nan"), device="cuda")  # into the memory that is free now
    side.synchronize()
    assert all(all_equal(found, expected) for found in results)


def test_cuda_graph_of_forward_and_backward() -> None:
    """Replays on new numbers in the same memory give the bits of eager calls."""
    graph, arguments = problem()
    captured, results = capture(lambda: forward_and_backward(graph, arguments))
    for seed in range(3):
        generator = torch.Generator(device="cuda").manual_seed(seed)
        for value in arguments.values():
            value.copy_(torch.randn(value.shape, generator=generator, device="cuda"))
        captured.replay()
        torch.cuda.synchronize()
        assert all_equal(results, forward_and_backward(graph, arguments))


def test_cuda_graph_of_the_double_backward() -> None:
    graph, arguments = problem()

    def second() -> list[Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in arguments.items()}
        tensors = dict(leaves)
        energy = glassconv.conv(tensors.pop("x"), graph, PATHS, **tensors).square().sum()
        (forces,) = torch.autograd.grad(energy, leaves["vectors"], create_graph=True)
        return list(torch.autograd.grad(forces.square().sum(), list(leaves.values())))

    captured, results = capture(second)
    arguments["x"].mul_(-0.5)
    captured.replay()
    torch.cuda.synchronize()
    assert all_equal(results, second())


def fixed_search(positions: Tensor, capacity: int, length: float = 6.0) -> list[Tensor]:
    cell = length * torch.eye(3, dtype=torch.float64, device="cuda")[None]
    periodic = torch.ones(1, 3, dtype=torch.bool, device="cuda")
    batch = torch.zeros(len(positions), dtype=torch.int64, device="cuda")
    return list(torch.ops.glassconv.neighbor_list_fixed(positions, cell, periodic, batch, 1.5, capacity))


def test_cuda_graph_of_a_search_with_fixed_capacity() -> None:
    """One graph serves every position: inside, far outside, and with more edges than there is room for."""
    capacity = 5000
    generator = torch.Generator(device="cuda").manual_seed(0)
    positions = torch.zeros(250, 3, dtype=torch.float64, device="cuda")
    positions.copy_(6 * torch.rand(250, 3, generator=generator, dtype=torch.float64, device="cuda"))
    captured, results = capture(lambda: fixed_search(positions, capacity))
    for scale in (6.0, 30.0, 6.0, 2.5):
        positions.copy_(scale * torch.rand(250, 3, generator=generator, dtype=torch.float64, device="cuda"))
        captured.replay()
        torch.cuda.synchronize()
        edge_index, shifts, row_ptr, reverse, n_found = results
        graph = glassconv.neighbor_list(positions, 1.5, cell=[6.0] * 3)
        assert n_found.tolist() == [graph.n_edges]
        assert torch.equal(row_ptr, graph.row_ptr)
        assert all_equal(results, fixed_search(positions, capacity))
        if graph.n_edges <= capacity:
            n = graph.n_edges
            assert torch.equal(edge_index[:, :n], graph.edge_index)
            assert torch.equal(shifts[:n], graph.shifts)
            assert torch.equal(reverse[:n], graph.reverse)
            assert all((part[..., n:] == -1).all() for part in (edge_index, reverse))
            assert (shifts[n:] == -1).all()
    assert graph.n_edges > capacity  # the last one


AFTER_A_FAILED_CAPTURE = """
import torch, glassconv
from test_cuda_streams import all_equal, forward_and_backward, problem
graph, arguments = problem()
expected = forward_and_backward(graph, arguments)
positions = 6 * torch.rand(200, 3, dtype=torch.float64, device="cuda")
cell = 6.0 * torch.eye(3, dtype=torch.float64, device="cuda")[None]
periodic = torch.ones(1, 3, dtype=torch.bool, device="cuda")
batch = torch.zeros(200, dtype=torch.int64, device="cuda")
search = lambda: torch.ops.glassconv.neighbor_list(positions, cell, periodic, batch, 1.5)
before, stream, captured = search(), torch.cuda.current_stream(), torch.cuda.CUDAGraph()
try:
    with torch.cuda.graph(captured):
        search()
    print("captured")
except RuntimeError:
    torch.cuda.set_stream(stream)  # which torch leaves behind
torch.cuda.synchronize()
assert float(torch.ones(3, device="cuda").sum()) == 3.0
assert all_equal(forward_and_backward(graph, arguments), expected)
assert all_equal(search(), before)
print("fine")
"""


def test_search_that_waits_cannot_be_captured_and_breaks_nothing() -> None:
    """A call that fails inside the CUDA runtime leaves no error behind for the next one, ours or torch's."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parent / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    # a process of its own: torch's allocator does not forget the capture
    done = subprocess.run(
        [sys.executable, "-c", AFTER_A_FAILED_CAPTURE],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["fine"], done.stderr


def test_memory_that_does_not_suffice_is_said_and_forgotten() -> None:
    graph, arguments = problem()
    expected = forward_and_backward(graph, arguments)
    big = random_graph(2000, 200_000)
    large = on_gpu(random_arguments(PATHS, big, "vectors-lowrank"), torch.float32)
    big = big.to("cuda")
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    try:  # nothing beyond what is in use, and 1 MB
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 20)) / total)
        with pytest.raises(torch.OutOfMemoryError):
            forward_and_backward(big, large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all_equal(forward_and_backward(graph, arguments), expected)


def test_refused_input_leaves_no_error_behind() -> None:
    graph, arguments = problem()
    expected = forward_and_backward(graph, arguments)
    positions = torch.rand(20, 3, dtype=torch.float64, device="cuda")
    positions[3] = float("nan")
    with pytest.raises(ValueError, match="positions: expected finite numbers"):
        glassconv.neighbor_list(positions, 1.0, cell=[1.0] * 3)
    assert all_equal(forward_and_backward(graph, arguments), expected)
