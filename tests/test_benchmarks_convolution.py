"""The benchmark of the convolution: counts, roofline, systems, peers, its record and what is made of it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import convolution_counts
import convolution_report
import pytest
import roofline
import torch
from convolution_cases import LISTS, N_RADIAL, SMALLEST_DISTANCE, make_inputs, make_system, molecule, paths_of
from convolution_counts import DIRECTIONS, coupling, minimal_bytes, multiply_adds, path_multiply_adds
from convolution_peers import OURS, PEERS, difference, make_call
from e3nn import o3
from gpu import floors
from torch import Tensor

from glassconv import Paths

REPOSITORY = Path(__file__).resolve().parent.parent


class Work:
    """One path on one edge, a multiply-add at a time, through the edge matrix or channel by channel."""

    def __init__(self, degrees: tuple[int, int, int]) -> None:
        self.cg = math.sqrt(2 * degrees[2] + 1) * o3.wigner_3j(*degrees, dtype=torch.float64)
        self.entries = [tuple(i) for i in (self.cg.abs() > 1e-9).nonzero().tolist()]
        self.in_out = sorted({(a, c) for a, _, c in self.entries})
        self.in_sh = sorted({(a, b) for a, b, _ in self.entries})
        self.is_free = 0 in degrees  # the matrix is the harmonics, times a constant
        self.d = tuple(2 * degree + 1 for degree in degrees)
        self.n = 0

    def matrix(self, y: Tensor) -> Tensor:
        out = torch.zeros(self.d[0], self.d[2], dtype=y.dtype)
        for a, b, c in self.entries:
            out[a, c] += self.cg[a, b, c] * y[b]
            self.n += not self.is_free
        return out

    def from_matrix(self, grad: Tensor) -> Tensor:
        out = torch.zeros(self.d[1], dtype=grad.dtype)
        for a, b, c in self.entries:
            out[b] += self.cg[a, b, c] * grad[a, c]
            self.n += not self.is_free
        return out

    def to_out(self, matrix: Tensor, u: Tensor) -> Tensor:
        out = u.new_zeros(self.d[2])
        for a, c in self.in_out:
            out[c] += matrix[a, c] * u[a]
            self.n += 1
        return out

    def to_in(self, matrix: Tensor, g: Tensor) -> Tensor:
        out = g.new_zeros(self.d[0])
        for a, c in self.in_out:
            out[a] += matrix[a, c] * g[c]
            self.n += 1
        return out

    def outer(self, into: Tensor, u: Tensor, g: Tensor) -> None:
        for a, c in self.in_out:
            into[a, c] += u[a] * g[c]
            self.n += 1

    def pairs(self, u: Tensor, y: Tensor) -> Tensor:
        out = u.new_zeros(self.d[0], self.d[1])
        for a, b in self.in_sh:
            out[a, b] += u[a] * y[b]
            self.n += 1
        return out

    def contract(self, p: Tensor) -> Tensor:
        out = p.new_zeros(self.d[2])
        for a, b, c in self.entries:
            out[c] += self.cg[a, b, c] * p[a, b]
            self.n += 1
        return out

    def spread(self, g: Tensor) -> Tensor:
        out = g.new_zeros(self.d[0], self.d[1])
        for a, b, c in self.entries:
            out[a, b] += self.cg[a, b, c] * g[c]
            self.n += 1
        return out

    def along(self, q: Tensor, y: Tensor) -> Tensor:
        out = y.new_zeros(self.d[0])
        for a, b in self.in_sh:
            out[a] += q[a, b] * y[b]
            self.n += 1
        return out

    def across(self, q: Tensor, u: Tensor) -> Tensor:
        out = u.new_zeros(self.d[1])
        for a, b in self.in_sh:
            out[b] += q[a, b] * u[a]
            self.n += 1
        return out

    def scale(self, factor: Tensor, values: Tensor) -> Tensor:
        self.n += len(values)
        return factor * values

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        self.n += len(a)
        return a @ b

    # Each order gives the results of a direction: out; gradients in x, y, w; those of these in x, y, w, g.

    def forward_identity(self, x, y, w):
        return (torch.stack([self.scale(w[k], x[k]) for k in range(len(w))]),)

    def forward_matrix(self, x, y, w):
        matrix, out = self.matrix(y), []
        for k in range(len(w)):
            if self.d[0] <= self.d[2]:
                out.append(self.to_out(matrix, self.scale(w[k], x[k])))
            else:
                out.append(self.scale(w[k], self.to_out(matrix, x[k])))
        return (torch.stack(out),)

    def forward_channels(self, x, y, w):
        out = []
        for k in range(len(w)):
            if self.d[0] <= self.d[2]:
                out.append(self.contract(self.pairs(self.scale(w[k], x[k]), y)))
            else:
                out.append(self.scale(w[k], self.contract(self.pairs(x[k], y))))
        return (torch.stack(out),)

    def backward_identity(self, x, y, w, g):
        gx = torch.stack([self.scale(w[k], g[k]) for k in range(len(w))])
        return gx, None, torch.stack([self.dot(x[k], g[k]) for k in range(len(w))])

    def backward_matrix(self, x, y, w, g):
        matrix, grad, gx, gw = self.matrix(y), x.new_zeros(self.d[0], self.d[2]), [], []
        for k in range(len(w)):
            t = self.to_in(matrix, g[k])
            gw.append(self.dot(t, x[k]))
            gx.append(self.scale(w[k], t))
            if self.d[0] <= self.d[2]:
                self.outer(grad, self.scale(w[k], x[k]), g[k])
            else:
                self.outer(grad, x[k], self.scale(w[k], g[k]))
        return torch.stack(gx), self.from_matrix(grad), torch.stack(gw)

    def backward_matrix_out(self, x, y, w, g):
        matrix, grad, gx, gw = self.matrix(y), x.new_zeros(self.d[0], self.d[2]), [], []
        for k in range(len(w)):
            gw.append(self.dot(self.to_out(matrix, x[k]), g[k]))
            v = self.scale(w[k], g[k])
            gx.append(self.to_in(matrix, v))
            self.outer(grad, x[k], v)
        return torch.stack(gx), self.from_matrix(grad), torch.stack(gw)

    def backward_channels(self, x, y, w, g):
        gx, gy, gw = [], torch.zeros_like(y), []
        for k in range(len(w)):
            q = self.spread(g[k])
            t = self.along(q, y)
            gw.append(self.dot(t, x[k]))
            gx.append(self.scale(w[k], t))
            gy += self.across(q, self.scale(w[k], x[k]))
        return torch.stack(gx), gy, torch.stack(gw)

    def double_identity(self, x, y, w, g, vx, vy, vw):
        gg = torch.stack([self.scale(w[k], vx[k]) + self.scale(vw[k], x[k]) for k in range(len(w))])
        gx = torch.stack([self.scale(vw[k], g[k]) for k in range(len(w))])
        return gx, None, torch.stack([self.dot(vx[k], g[k]) for k in range(len(w))]), gg, None

    def double_matrix(self, x, y, w, g, vx, vy, vw):
        m, v, gx, gw, gg = self.matrix(y), self.matrix(vy), [], [], []
        grads = x.new_zeros(2, self.d[0], self.d[2])
        for k in range(len(w)):
            u, a = self.scale(w[k], vx[k]) + self.scale(vw[k], x[k]), self.scale(w[k], x[k])
            t, s = self.to_in(m, g[k]), self.to_in(v, g[k])
            gg.append(self.to_out(m, u) + self.to_out(v, a))
            gx.append(self.scale(w[k], s) + self.scale(vw[k], t))
            gw.append(self.dot(vx[k], t) + self.dot(x[k], s))
            self.outer(grads[0], u, g[k])
            self.outer(grads[1], a, g[k])
        gy, gvy = self.from_matrix(grads[0]), self.from_matrix(grads[1])
        return torch.stack(gx), gy, torch.stack(gw), torch.stack(gg), gvy

    def double_channels(self, x, y, w, g, vx, vy, vw):
        gx, gy, gvy, gw, gg = [], torch.zeros_like(y), torch.zeros_like(y), [], []
        for k in range(len(w)):
            u, a = self.scale(w[k], vx[k]) + self.scale(vw[k], x[k]), self.scale(w[k], x[k])
            q = self.spread(g[k])
            t, s = self.along(q, y), self.along(q, vy)
            gg.append(self.contract(self.pairs(u, y) + self.pairs(a, vy)))
            gx.append(self.scale(w[k], s) + self.scale(vw[k], t))
            gw.append(self.dot(vx[k], t) + self.dot(x[k], s))
            gy += self.across(q, u)
            gvy += self.across(q, a)
        return torch.stack(gx), gy, torch.stack(gw), torch.stack(gg), gvy


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "degrees", [(0, 0, 0), (1, 0, 1), (0, 2, 2), (2, 2, 0), (1, 1, 1), (2, 1, 1), (1, 2, 3), (2, 3, 2)]
)
def test_multiply_adds_are_those_of_the_orders_of_contraction(
    degrees: tuple[int, int, int], channels: int
) -> None:
    work = Work(degrees)
    generator = torch.Generator().manual_seed(0)
    d1, d2, d3 = work.d

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, w, g = normal(channels, d1), normal(channels), normal(channels, d3)
    y = torch.ones(1, dtype=torch.float64) if degrees[1] == 0 else normal(d2)
    cotangents = (normal(channels, d1), 0.0 * y if degrees[1] == 0 else normal(d2), normal(channels))
    leaves = [value.requires_grad_() for value in (x, y, w, g)]
    out = torch.einsum("ka,b,k,abc->kc", x, y, w, work.cg)
    first = torch.autograd.grad(out, (x, y, w), g, create_graph=True)
    second = torch.autograd.grad(first, leaves, cotangents, materialize_grads=True)
    second = (*second, first[1])  # which the second-order gradient of the vectors takes as well
    expected = {"forward": (out,), "backward": first, "double": second}
    given = {"forward": (x, y, w), "backward": (x, y, w, g), "double": (x, y, w, g, *cotangents)}
    with torch.no_grad():
        for direction, results in expected.items():
            orders = ["identity"] if degrees[1] == 0 else ["matrix", "matrix_out", "channels"]
            counts = []
            for order in orders:
                method = getattr(work, f"{direction}_{order}", None)
                if method is None:
                    continue
                work.n = 0
                found = method(*given[direction])
                counts.append(work.n)
                for a, b in zip(found, results, strict=True):
                    assert a is None or torch.allclose(a, b)
            assert path_multiply_adds(degrees, channels, direction, lowrank=False) == min(counts)


@pytest.mark.parametrize(("l_max", "parity"), [(1, "so3"), (2, "natural"), (3, "so3"), (3, "natural")])
def test_coefficients_are_counted_as_in_the_floors_of_the_gpu(l_max: int, parity: str) -> None:
    paths = floors.ConvCase(l_max, 1, parity, "explicit").paths
    nonzeros = sum(coupling(p.l_in, p.l_sh, p.l_out).nonzeros for p in paths.entries)
    assert nonzeros == floors.NONZEROS[parity][l_max]


def test_multiply_adds_of_many_channels_are_those_of_the_pairs() -> None:
    """Per edge and channel at l_max 3: 311 pairs (m1, m3) and the weights."""
    paths = paths_of("glass-l3-C32")
    assert len(paths.entries) == 23
    pairs = sum(coupling(p.l_in, p.l_sh, p.l_out).in_out for p in paths.entries)
    assert pairs == 311
    each = multiply_adds(paths, "forward", 1) / 32
    assert pairs < each < pairs + sum(2 * min(p.l_in, p.l_out) + 1 for p in paths.entries) + 353 / 32


def test_low_rank_weights_add_their_products() -> None:
    paths = Paths("3x0e+2x1o", 2, "0e+1o")
    product, inputs = 7 * paths.weight_numel, sum((2 * p.l_in + 1) * p.mul for p in paths.entries)
    for direction, n_products, more in (
        ("forward", 1, 0),
        ("backward", 3, 0),
        ("both", 4, 0),
        ("double", 7, inputs),
    ):
        added = multiply_adds(paths, direction, 10, 7) - multiply_adds(paths, direction, 10)
        assert added == 10 * (n_products * product + more)


@pytest.mark.parametrize("weights", ["explicit", "lowrank"])
def test_bytes_are_those_of_the_tensors(weights: str) -> None:
    system, paths = make_system("random", 64), paths_of("tiny-5x0e+13x1o")
    graph = system.graph
    inputs = make_inputs(paths, system, weights, torch.float64)
    conv = PEERS[OURS](paths, graph, torch.float64)
    results = {direction: make_call(conv, inputs, direction)() for direction in DIRECTIONS}

    def size(tensors) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    index = 8 * (graph.row_source.numel() + graph.row_ptr.numel())
    given, out = size(inputs.values()), size(results["forward"])
    expected = {
        "forward": given + out,
        "backward": given + out + size(results["backward"]),
        "both": given + out + size([*results["forward"], *results["both"]]),
        "double": 2 * given + out + size(results["double"]),
    }
    n_radial = N_RADIAL if weights == "lowrank" else None
    for direction, value in expected.items():
        found = minimal_bytes(paths, direction, graph.n_nodes, graph.n_edges, n_radial, word=8)
        assert found == value + index


def test_floor_is_the_larger_time() -> None:
    assert convolution_counts.Floor(100, 10, 50.0, 10.0).seconds == 2.0
    assert convolution_counts.Floor(100, 10, 50.0, 10.0).limit == "arithmetic"
    assert convolution_counts.Floor(100, 10, 100.0, 5.0).limit == "memory"
    assert convolution_counts.Floor(100, 10, None, 5.0).seconds is None


def listing(*lines: str) -> list[tuple[int, str, str]]:
    """A function that ends with a jump back to its second instruction."""
    found = [
        (16 * i, *line.partition(" ")[::2]) for i, line in enumerate(("mov $1,%eax", *lines, "dec %rdi"))
    ]
    return [*found, (16 * len(found), "jne", "10 <f+0x10>"), (999, "ret", "")]


GOOD = [f"vfmadd231ps %zmm30,%zmm31,%zmm{i}" for i in range(24)]


def test_timed_loop_is_recognized() -> None:
    body = roofline.loop_body(listing(*GOOD))
    assert len(body) == 26
    assert roofline.problem_of(body, "fma", "avx512", "float32") is None


@pytest.mark.parametrize(
    "lines",
    [
        GOOD[:-1],
        [*GOOD, "vmovaps %zmm3,0x40(%rsp)"],
        [*GOOD[:-1], "vfmadd231ps 0x40(%rsi),%zmm31,%zmm23"],
        [*GOOD[:-1], GOOD[0]],
        [line.replace("zmm", "ymm") for line in GOOD],
        [line.replace("231ps", "231pd") for line in GOOD],
    ],
    ids=["one less", "spill", "from memory", "dependent", "narrow", "other type"],
)
def test_timed_loop_with_anything_else_is_refused(lines: list[str]) -> None:
    body = roofline.loop_body(listing(*lines))
    assert roofline.problem_of(body, "fma", "avx512", "float32") is not None


def test_rates_and_bandwidths() -> None:
    found = made_up_record()["roofline"]
    assert roofline.rate(found, "fma") == (16e9, "avx512")
    assert roofline.rate(found, "fma", "float64") is None
    assert roofline.bandwidth(found) == 50e9
    assert roofline.bandwidth(found, 3) is None


def test_molecules_are_dense_and_open() -> None:
    positions = molecule(20, torch.Generator().manual_seed(0))
    distances = torch.cdist(positions, positions) + 10 * torch.eye(20, dtype=torch.float64)
    assert float(distances.min()) > SMALLEST_DISTANCE
    system = make_system("molecules", 1280)
    assert system.graph.n_systems == 64
    assert 15 < system.graph.n_edges / system.graph.n_nodes < 19
    assert not system.graph.has_shifts


def test_liquid_and_random_points_have_the_same_number_of_neighbors() -> None:
    mean = [make_system(kind, 1000).graph.n_edges / 1000 for kind in ("liquid", "random")]
    assert mean == pytest.approx([40.4, 40.2], rel=0.03)


@pytest.mark.parametrize("peer", ["e3nn", "e3nn TorchScript", "cuequivariance naive"])
@pytest.mark.parametrize("weights", ["explicit", "lowrank"])
def test_peers_compute_the_same(native_extension: None, peer: str, weights: str) -> None:
    pytest.importorskip(peer.split(maxsplit=1)[0])
    system, paths = make_system("random", 27), Paths("2x0e+3x1o", 2, "0e+1o+2e")
    inputs = make_inputs(paths, system, weights, torch.float64)
    ours, theirs = (PEERS[name](paths, system.graph, torch.float64) for name in (OURS, peer))
    for direction in DIRECTIONS:
        found, expected = (make_call(conv, inputs, direction)() for conv in (theirs, ours))
        assert difference(found, expected) < 1e-12


def test_difference_sees_what_is_wrong() -> None:
    one = torch.ones(3)
    assert difference((one, 2 * one), (one, one)) == pytest.approx(1.0)
    assert difference((one,), (one, one)) == math.inf
    assert difference((one * math.nan,), (one,)) == math.inf
    with pytest.raises(ValueError, match="expected one of forward, backward, both, double, got 'sideways'"):
        make_call(lambda tensors: tensors["x"], {"x": one}, "sideways")


def conv_row(peer: str, median_s: float, **more: Any) -> dict[str, Any]:
    row = {"benchmark": "convolution", "irreps": "glass-l3-C8", "system": "liquid", "weights": "lowrank",
           "dtype": "float32", "direction": "forward", "threads": 1, "peer": peer, "n_nodes": 4096,
           "n_edges": 167_632, "what": "a liquid", "median_s": median_s, "busy_threads": 1.0,
           "gbyte_s": 1.5, "gflop_s": 80.0, "floor_s": 0.008, "floor_is": "arithmetic", "over_floor": 2.5,
           "fma_share": 0.3}  # fmt: skip
    return row | ({} if peer == OURS else {"ratio": 40.0, "baseline": OURS}) | more


def made_up_record() -> dict[str, Any]:
    rows = [
        conv_row(OURS, 0.020),
        conv_row("e3nn", 0.8),
        conv_row("e3nn TorchScript", 0.6, ratio=30.0),
        conv_row(OURS, 0.3, direction="double", busy_threads=1.7),
        conv_row("e3nn", 0.0, irreps="glass-l3-C32", direction="double") | {"left_out": "may take 34 GB"},
        conv_row(OURS, 0.05, irreps="mace-large", weights="explicit", n_nodes=512),
        conv_row("e3nn", 1.0, irreps="mace-large", weights="explicit", n_nodes=512, ratio=20.0),
        conv_row(OURS, 0.012, threads=2, ratio=0.6, baseline="1 thread"),
        *(
            {"benchmark": "memory", "irreps": "glass-l3-C8", "system": "liquid", "weights": "lowrank",
             "dtype": "float32", "direction": "both", "threads": 1, "peer": peer, "n_nodes": 4096,
             "n_edges": 167_632, "seconds": 0.1, "peak_bytes": peak, "result_bytes": 5_000_000}
            for peer, peak in ((OURS, 20_000_000), ("e3nn", 3_000_000_000))
        ),
    ]  # fmt: skip
    source = {"device_name": "a processor", "build": None, "n_cpus": 2, "date": "2026-01-02T03:04:05+00:00",
              "packages": {"torch": "2.13", "e3nn": "0.6"}, "peers": {"cuequivariance-torch": None},
              "commit": "0123456789abcdef+changes", "command": "python bench"}  # fmt: skip
    loop = {"what": "fma", "isa": "avx512", "dtype": "float32", "threads": 1, "lanes": 16, "operations": 24,
            "per_s": 1e9}  # fmt: skip
    machine = {"loops": [loop], "array_bytes": 1 << 30, "checked": False,
               "bandwidths": [{"what": "read", "threads": 1, "bytes_per_s": 40e9},
                              {"what": "copy", "threads": 1, "bytes_per_s": 50e9}]}  # fmt: skip
    lists = {name: irreps._asdict() for name, irreps in LISTS.items()}
    return {"benchmark": "convolution", "n_radial": 16, "failed": 0, "rows": rows, "roofline": machine,
            "lists": lists, "provenance": source}  # fmt: skip


def test_tables_have_times_ratios_floors_and_what_was_left_out() -> None:
    text = convolution_report.markdown(made_up_record())
    assert (
        "| glass-l3-C8 | 4,096 | 167,632 | forward | 20 ms | 8 ms | arithmetic | 2.50 | 1.5 | 80 | 30 % "
        "| 800 ms (40 x) | 600 ms (30 x) |" in text
    )
    assert "| 12 ms | 0.6 x |" in text
    assert "| glass-l3-C8 | lowrank | forward + backward | 5 MB | 20 MB | 3000 MB | 150 x |" in text
    assert "left out: e3nn, convolution, glass-l3-C32, liquid, lowrank, float32, double backward" in text
    assert "double backward, threads: 1: kept 1.70 threads busy" in text
    assert "not checked in the disassembly" in text
    assert (
        "a processor (reference), 2 cores; torch 2.13, e3nn 0.6; 2026-01-02, commit 0123456789+changes"
        in text
    )


def test_readme_has_plot_table_and_machine() -> None:
    text = "\n".join(convolution_report.readme(made_up_record(), "figure.png"))
    assert "](figure.png)" in text
    assert "| `8x0e+8x1o+8x2e+8x3o` | lowrank | 4,096 | 20 ms (40 x) |  | 300 ms | 2.50 / 2.50 |" in text
    assert "| mace-large `128x0e+128x1o+128x2e` | explicit | 512 | 50 ms (20 x) |  |  | 2.50 |" in text
    assert "32 GFLOP/s in float32 (avx512), 50 GB/s" in text
    assert "20 MB, of e3nn 3000 MB" in text


def test_files_of_a_record(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = convolution_report.write(made_up_record(), tmp_path / "device")
    assert [path.name for path in paths] == ["convolution.json", "convolution.md", "convolution.png"]
    assert json.loads(paths[0].read_text()) == made_up_record()
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert paths[2].stat().st_size < 150_000
    found = convolution_report.newest(tmp_path)
    assert found is not None
    assert found[0] == paths[0]


def test_plot_has_ours_thick_and_e3nn_beside() -> None:
    pytest.importorskip("matplotlib")
    forward, both, ratios = convolution_report.plot(made_up_record()).axes
    widths = {line.get_label(): line.get_linewidth() for line in forward.get_lines()}
    assert set(widths) == {"glassconv, l_max 3", "e3nn, l_max 3", "floor, l_max 3"}
    assert widths["glassconv, l_max 3"] > 2 * widths["e3nn, l_max 3"]
    assert (forward.get_xscale(), forward.get_yscale()) == ("log", "log")
    assert not both.get_lines()
    assert [label.get_text() for label in ratios.get_yticklabels()] == ["mace-large", "glass-l3-C8"]


def run_benchmark(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One convolution and one measurement of memory."""
    chosen = "default and lowrank and float32 and 1thread and (tiny-1x1o and forward and e3nn"
    chosen += " or memory and glass-l3-C32 and double)"
    command = [sys.executable, "benchmarks/bench_convolution.py", "--quick", "--out", str(folder), "-k",
               chosen, "-p", "no:cacheprovider", *options]  # fmt: skip
    # without the published configuration, with plugins of the folder
    environment = os.environ | {"GLASSCONV_SHARED_DATA": str(folder), "PYTHONPATH": str(folder)}
    environment.pop("PYTEST_XDIST_WORKER", None)  # whose benchmarks are disabled
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_run_that_is_not_complete_writes_nothing(tmp_path: Path) -> None:
    plugin = (
        "def pytest_runtest_call(item):\n    if 'memory' in item.name:\n        raise KeyboardInterrupt\n"
    )
    (tmp_path / "trouble.py").write_text(plugin)
    result = run_benchmark(tmp_path, "-p", "trouble")
    assert result.returncode != 0
    assert "| tiny-1x1o | 64 |" in result.stdout
    assert "interrupted, or something failed: nothing written" in result.stdout
    assert not list(tmp_path.glob("convolution.*"))


def test_a_run_writes_its_record(tmp_path: Path) -> None:
    result = run_benchmark(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / "convolution.json").read_text())
    assert {"device_name", "commit", "date", "command", "peers", "packages"} <= set(record["provenance"])
    convolution, memory = record["rows"]
    assert (convolution["peer"], convolution["irreps"], convolution["n_nodes"]) == ("e3nn", "tiny-1x1o", 64)
    assert convolution["difference"] < 1e-5
    assert convolution["min_s"] <= convolution["median_s"] <= convolution["max_s"]
    assert convolution["ratio"] > 0
    assert convolution["multiply_adds"] > 0
    assert memory["peer"] == OURS
    assert 0 < memory["peak_bytes"] < 1e9
    assert {b["what"] for b in record["roofline"]["bandwidths"]} == {"read", "copy"}
