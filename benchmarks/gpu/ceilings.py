"""Stage ceilings: what this machine does at best, measured, beside the numbers that the floors assume."""

from __future__ import annotations

import torch

from gpu.floors import BANDWIDTH
from gpu.run import Context
from gpu.timing import capture, measure, per_call

COPY_BYTES = 2 << 30
SIDE = 8192
N_LAUNCHES = 1000


def copy_bandwidth(n_bytes: int) -> float:
    """Bytes read and written per second by a copy on the device."""
    source = torch.randint(256, (n_bytes,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * n_bytes / measure([lambda: target.copy_(source)], rounds=20).cold


def bench(context: Context) -> str:
    """Copy bandwidth, rate of multiply-adds, cost of a launch."""
    properties = torch.cuda.get_device_properties(0)
    bandwidth = copy_bandwidth(min(COPY_BYTES, properties.total_memory // 8))
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = torch.randn(SIDE, SIDE, device="cuda"), torch.randn(SIDE, SIDE, device="cuda")
    product = measure([lambda: a @ b], rounds=10)
    flops = 2 * SIDE**3 / product.cold
    counter = torch.zeros(1, device="cuda")

    def launches() -> None:
        for _ in range(N_LAUNCHES):
            counter.add_(1)

    eager = per_call([launches], 5) / N_LAUNCHES
    graph, _ = capture(launches, warm_up=1)
    captured = per_call([graph.replay], 5) / N_LAUNCHES
    one = measure([lambda: counter.add_(1)]).cold
    context.record(
        benchmark="gpu ceilings",
        copy_bytes_s=bandwidth,
        float32_flop_s=flops,
        launch_eager_s=eager,
        launch_in_graph_s=captured,
        replay_of_one_s=one,
        n_multiprocessors=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        l2_bytes=getattr(properties, "L2_cache_size", None),
    )
    return (
        f"copy {bandwidth / 1e12:.2f} TB/s ({bandwidth / BANDWIDTH:.0%} of what the floors assume), float32 "
        f"matrix product {flops / 1e12:.1f} TFLOP/s, launch {eager * 1e6:.1f} us eager, "
        f"{captured * 1e6:.1f} us in a CUDA graph, replay of one kernel {one * 1e6:.1f} us"
    )
