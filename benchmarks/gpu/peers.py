"""Stage peers: other libraries on the same inputs, where installed; results are compared before times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import convolution_peers
import torch
from convolution_peers import Conv, harmonics_of, weights
from torch import Tensor

import glassconv
from glassconv import Graph, Paths
from gpu.convolution import N_NODES, inputs, workload
from gpu.floors import ConvCase
from gpu.run import Context, Failure, Skip, at_most
from gpu.systems import CUTOFF, liquid
from gpu.timing import measure, wall_clock

# (l_max, C), the form of the weights: e3nn's messages take 0.8 GB for the first and 3.3 GB for the last.
CASES = [ConvCase(3, 8, "so3", w) for w in ("explicit", "lowrank")] + [
    ConvCase(l_max, c, "so3", "explicit") for l_max, c in ((2, 8), (3, 32))
]
TOLERANCE = 1e-5


def on_paths(make: Callable[[Paths, Graph], Conv]) -> Callable[[ConvCase, Graph], Conv]:
    """A maker of the CPU's benchmark, for cases."""
    return lambda case, graph: make(case.paths, graph)


ours = on_paths(convolution_peers.glassconv_conv)


def openequivariance(case: ConvCase, graph: Graph) -> Conv:
    """Its fused convolution, deterministic off."""
    import openequivariance as oeq

    paths = case.paths
    problem = oeq.TPProblem(
        paths.irreps_in,
        paths.irreps_sh,
        paths.irreps_out,
        list(paths.instructions),
        shared_weights=False,
        internal_weights=False,
    )
    product = oeq.TensorProductConv(problem, deterministic=False)
    (source, receiver), harmonics = graph.edge_index, harmonics_of(paths)

    def conv(tensors: dict[str, Tensor]) -> Tensor:
        sh = harmonics(tensors["vectors"])
        return product.forward(tensors["x"], sh, weights(tensors), receiver, source)

    return conv


def flashtp(case: ConvCase, graph: Graph) -> Conv:
    """Its fused convolution."""
    import flashTP_e3nn

    paths = case.paths
    product = flashTP_e3nn.uvu_TP(
        paths.irreps_in,
        paths.irreps_sh,
        paths.irreps_out,
        list(paths.instructions),
        device=str(graph.device),
        dtype=torch.float32,
    )
    (source, receiver), harmonics = graph.edge_index.int(), harmonics_of(paths)

    def conv(tensors: dict[str, Tensor]) -> Tensor:
        return product(tensors["x"], harmonics(tensors["vectors"]), weights(tensors), source, receiver)

    return conv


CONVOLUTIONS: dict[str, Callable[[ConvCase, Graph], Conv]] = {
    "glassconv": ours,
    "e3nn": on_paths(convolution_peers.e3nn),
    "cuequivariance": on_paths(convolution_peers.cuequivariance),
    "openequivariance": openequivariance,
    "flashTP": flashtp,
    "e3nn compiled": on_paths(convolution_peers.e3nn_compiled),
}


def named(case: ConvCase, graph: Graph, vectors: Tensor) -> dict[str, Tensor]:
    """Inputs of `glassconv.conv`, which require gradients."""
    x, given_vectors, weight, mix = inputs(case, graph, vectors, seed=0)["given"]
    assert x is not None
    assert given_vectors is not None
    assert weight is not None
    tensors = {"x": x, "vectors": given_vectors}
    tensors |= {"edge_weight": weight} if mix is None else {"radial": weight, "mix": mix}
    return {name: value.requires_grad_() for name, value in tensors.items()}


def time_convolution(peer: str, case: ConvCase, graph: Graph, vectors: Tensor) -> dict[str, Any]:
    """Forward, and forward with backward, in seconds, after the result has been compared with ours."""
    tensors = named(case, graph, vectors)
    conv = CONVOLUTIONS[peer](case, graph)
    with torch.no_grad():
        expected = ours(case, graph)(tensors)
        found = conv(tensors)
        error = float((found - expected).norm() / expected.norm())
        if not error <= TOLERANCE:
            raise RuntimeError(f"another result: relative difference {error:.1e}")
        forward = measure([lambda: conv(tensors)], rounds=10, seconds=0.3)
    leaves, cotangent = list(tensors.values()), torch.randn_like(expected)

    def both() -> Any:
        return torch.autograd.grad(conv(tensors), leaves, cotangent)

    with_backward = measure([both], rounds=10, seconds=0.3)
    return {
        "relative_difference": error,
        **{f"forward_{name}": value for name, value in forward.to_record().items()},
        **{f"both_{name}": value for name, value in with_backward.to_record().items()},
    }


def vesin(positions: Tensor, cell: Tensor) -> Any:
    """Full list with shifts, of vesin."""
    from vesin.torch import NeighborList

    search = NeighborList(cutoff=CUTOFF, full_list=True)
    return lambda: search.compute(points=positions, box=cell, periodic=True, quantities="ijS")


def nvalchemi(positions: Tensor, cell: Tensor) -> Any:
    """Edge list of NVIDIA's toolkit."""
    try:
        from nvalchemiops.torch.neighbors import neighbor_list
    except ImportError:
        from nvalchemiops.neighborlist import neighbor_list
    pbc = torch.ones(3, dtype=torch.bool, device=positions.device)
    return lambda: neighbor_list(positions, CUTOFF, cell=cell, pbc=pbc, return_neighbor_list=True)


def searches(context: Context) -> list[str]:
    """Time the neighbor searches that are installed, at two sizes, by the host's clock."""
    notes = []
    for n_particles in (4096, 262_144):
        configuration = liquid(n_particles)
        positions, cell = configuration.positions.to(context.device), configuration.cell.to(context.device)
        n_edges = glassconv.neighbor_list(positions, CUTOFF, cell=cell).n_edges
        for peer, make in (("vesin", vesin), ("nvalchemi-toolkit-ops", nvalchemi)):
            try:
                with at_most(context.seconds_left - 2):
                    call = make(positions, cell)
                    counts = {max(part.shape) for part in call() if isinstance(part, Tensor)}
                    if n_edges not in counts:
                        raise RuntimeError(f"another result: expected {n_edges} edges, got sizes {counts}")
                    record = {"peer": peer, "n_nodes": n_particles, "graph_s": wall_clock(call, n=10)}
                context.record(benchmark="gpu peer search", **record)
                notes.append(f"{peer} N={n_particles}: {record['graph_s'] * 1e6:.0f} us")
            except ImportError:
                notes.append(f"{peer}: not installed")
            except Exception as problem:  # noqa: BLE001 - another library's trouble must not hide the others
                notes.append(f"{peer}: {' '.join(str(problem).split())[:100]}")
    return notes


def bench(context: Context) -> str:
    """Every peer on every case; what is not there or does not work is named, and is no failure of ours."""
    if not glassconv._native.has_cuda():
        raise Skip("the extension has no CUDA kernels (stage build)")
    graph, vectors = workload(N_NODES, context.device)
    notes = searches(context)
    absent: set[str] = set()
    for peer in CONVOLUTIONS:
        for case in CASES:
            if peer in absent or (peer == "e3nn compiled" and case != CASES[0]):
                continue
            try:
                with at_most(context.seconds_left - 3):
                    times = time_convolution(peer, case, graph, vectors)
            except ImportError:
                absent.add(peer)
                notes.append(f"{peer}: not installed")
                continue
            except Exception as problem:
                notes.append(f"{peer} {case.name}: {' '.join(str(problem).split())[:100]}")
                if peer == "glassconv":
                    raise Failure(notes[-1]) from problem
                continue
            finally:
                torch._dynamo.reset()
                torch.cuda.empty_cache()
            context.record(benchmark="gpu peer", peer=peer, case=case.name, n_edges=graph.n_edges, **times)
            print(f"{peer:16} {case.name:34} forward {times['forward_cold_s'] * 1e6:10.1f} us, "
                  f"with backward {times['both_cold_s'] * 1e6:10.1f} us")  # fmt: skip
    return "; ".join(dict.fromkeys(notes)) or "all installed peers measured"
