"""What the benchmark of the neighbor search compares: systems, and the libraries that search them.

Every library gets the same float64 positions inside the cell, and is asked for a full list with shifts;
`Peer.output` says where it returns something else. Objects that serve many lists (vesin's calculators,
freud's box) are built outside the timed call, what belongs to one list (trees, cells) inside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu.systems import CUTOFF, DENSITY, liquid
from torch import Tensor

import glassconv
from glassconv.data import Configuration, sample

DILUTE = 0.1 * DENSITY
EDGES_PER_PARTICLE = {"liquid": 40.4, "gas": 40.2, "dilute gas": 4.0}  # at the cutoff
Call = Callable[[], Any]


@dataclass(frozen=True)
class System:
    """Periodic particles: positions (N, 3) float64 inside the cell (3, 3) float64."""

    positions: Tensor
    cell: Tensor

    @property
    def n_nodes(self) -> int:
        """Their number."""
        return len(self.positions)


@cache
def tile(n_particles: int) -> Configuration:
    """What liquids of this size are made of: the published configuration of 4096 where it fits, else the
    packaged one of 1000.

    The file is looked for in the folder that GLASSCONV_SHARED_DATA names, else in `../shared/data` beside the
    repository.
    """
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("GLASSCONV_SHARED_DATA") or default) / "ka3d_T0.44_tau_alpha_train10.npz"
    if n_particles % 4096 or not path.exists():
        return packaged_tile()
    with np.load(path, allow_pickle=False) as file:
        return Configuration(
            positions=file["thermal"][0],
            inherent=file["inherent"][0],
            types=file["types"][0],
            cell=file["box"],
            energy=file["e_inherent"][0],
            propensity=file["propensity"][:1],
            times=[4120.0],
            name="Kob-Andersen, T = 0.44, N = 4096",
        )


@cache
def packaged_tile() -> Configuration:
    """N = 1000 at T = 0.56."""
    return sample(0.56)[0]


def inside(positions: Tensor, length: float) -> Tensor:
    """Positions wrapped into [0, length), as some libraries ask for."""
    wrapped = positions.remainder(length)
    return wrapped.where(wrapped < length, 0.0)


def make_system(kind: str, order: str, n_particles: int, seed: int = 0) -> System:
    """A system to search.

    Args:
        kind: "liquid", "gas" (uniformly random at the same density), "dilute gas" (a tenth of it), or
            "triclinic": the liquid, with another basis of the same lattice.
        order: "random", as in files whose particles have moved for long; "simulated": tile by tile.
        n_particles: their exact number.
        seed: of displacements, positions and order.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind in ("liquid", "triclinic"):
        configuration = liquid(n_particles, seed, tile(n_particles))
        positions, length = configuration.positions, float(configuration.cell[0, 0])
    else:
        length = (n_particles / (DILUTE if kind == "dilute gas" else DENSITY)) ** (1 / 3)
        positions = length * torch.rand(n_particles, 3, generator=generator, dtype=torch.float64)
    positions = inside(positions, length)
    if order == "random":
        positions = positions[torch.randperm(n_particles, generator=generator)]
    basis = torch.eye(3, dtype=torch.float64)
    if kind == "triclinic":
        basis = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.float64)
    return System(positions.contiguous(), length * basis)


def make_batch(sizes: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Liquids of these sizes as one batch: positions (N, 3), cells (B, 3, 3), batch (N)."""
    systems = []
    for i, size in enumerate(sizes):
        configuration = liquid(size, seed + i, packaged_tile())
        generator = torch.Generator().manual_seed(seed + i)
        order = torch.randperm(size, generator=generator)
        systems.append((configuration.positions[order], configuration.cell))
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return torch.cat([p for p, _ in systems]), torch.stack([c for _, c in systems]), batch


def mixed_sizes(total: int, smallest: int, largest: int, seed: int = 0) -> list[int]:
    """Sizes, uniform in their logarithm, that add up to the total."""
    generator = np.random.default_rng(seed)
    sizes: list[int] = []
    while (left := total - sum(sizes)) > 0:
        size = int(np.exp(generator.uniform(np.log(smallest), np.log(largest + 1))))
        sizes.append(left if left < size + smallest else size)
    return sizes


def set_threads(n_threads: int) -> None:
    """For libraries with a setting of the process; vesin takes a number at construction."""
    torch.set_num_threads(n_threads)
    try:
        import freud
    except ImportError:
        return
    freud.parallel.set_num_threads(n_threads)


def ours(system: System, _threads: int) -> Call:
    """The public call: full list with shifts, sorted rows with their offsets, reverse edges."""
    return lambda: glassconv.neighbor_list(system.positions, CUTOFF, cell=system.cell)


def vesin(system: System, threads: int, *, is_sorted: bool = False) -> Call:
    """Quantities as separate copies, as its users ask for them."""
    from vesin import NeighborList

    search = NeighborList(cutoff=CUTOFF, full_list=True, sorted=is_sorted, n_threads=threads)
    positions, cell = system.positions.numpy(), system.cell.numpy()
    return lambda: search.compute(positions, cell, True, quantities="ijS")


def vesin_views(system: System, threads: int) -> Call:
    """Pairs and shifts as views of its buffers, which its next call overwrites."""
    from vesin import NeighborList

    search = NeighborList(cutoff=CUTOFF, full_list=True, n_threads=threads)
    positions, cell = system.positions.numpy(), system.cell.numpy()
    return lambda: search.compute(positions, cell, True, quantities="PS", copy=False)


def vesin_torch(system: System, threads: int) -> Call:
    """Its tensors, unsorted."""
    from vesin_torch import NeighborList

    search = NeighborList(cutoff=CUTOFF, full_list=True, n_threads=threads)
    return lambda: search.compute(system.positions, system.cell, True, quantities="ijS")


def nvalchemi(system: System, _threads: int) -> Call:
    """Its list with pointers and shifts, int32; the largest number of neighbors is told it in advance."""
    import warp
    from nvalchemiops.torch.neighbors import neighbor_list

    warp.config.quiet = True
    graph = glassconv.neighbor_list(system.positions, CUTOFF, cell=system.cell)
    width = -(-int(graph.row_ptr.diff().max()) // 8) * 8
    pbc = torch.ones(3, dtype=torch.bool)
    return lambda: neighbor_list(
        system.positions,
        CUTOFF,
        cell=system.cell,
        pbc=pbc,
        return_neighbor_list=True,
        max_neighbors=width,
    )


def matscipy(system: System, _threads: int) -> Call:
    """Its arrays, sorted by the first index."""
    from matscipy.neighbours import neighbour_list

    positions, cell, pbc = system.positions.numpy(), system.cell.numpy(), np.ones(3, dtype=bool)
    return lambda: neighbour_list("ijS", cutoff=CUTOFF, positions=positions, cell=cell, pbc=pbc)


def scipy(system: System, _threads: int) -> Call:
    """Its tree and the pairs i < j."""
    from scipy.spatial import cKDTree

    positions, lengths = system.positions.numpy(), system.cell.diagonal().numpy()
    return lambda: cKDTree(positions, boxsize=lengths).query_pairs(CUTOFF, output_type="ndarray")


def freud(system: System, _threads: int) -> Call:
    """Its tree, the faster of its two searches here, and the list; float32 throughout."""
    from freud.box import Box
    from freud.locality import AABBQuery

    box = Box.from_matrix(system.cell.numpy().T)
    positions = (system.positions - 0.5 * system.cell.sum(0)).float().numpy()
    options = {"r_max": CUTOFF, "exclude_ii": True}
    return lambda: AABBQuery(box, positions).query(positions, options).toNeighborList()


def ase(system: System, _threads: int) -> Call:
    """Its arrays."""
    from ase.neighborlist import primitive_neighbor_list

    positions, cell = system.positions.numpy(), system.cell.numpy()
    return lambda: primitive_neighbor_list("ijS", (True, True, True), cell, positions, CUTOFF)


@dataclass(frozen=True)
class Peer:
    """A way to search.

    Attributes:
        make: takes a system and a number of threads; returns the call that is timed.
        output: what the call returns.
        count: takes what the call returned; gives the number of directed edges.
        is_threaded: whether it runs on more than one thread where told so.
        largest: most particles it is given, where more would take minutes.
    """

    make: Callable[[System, int], Call]
    output: str
    count: Callable[[Any], int]
    is_threaded: bool = False
    largest: int = 2**62


def _length_of_first(arrays: Any) -> int:
    return len(arrays[0])


PEERS: dict[str, Peer] = {
    "glassconv": Peer(
        ours, "full, shifts, sorted, CSR, reverse", lambda graph: int(graph.n_edges), is_threaded=True
    ),
    "vesin": Peer(vesin, "full, shifts", _length_of_first, is_threaded=True),
    "vesin views": Peer(vesin_views, "full, shifts, not copied", _length_of_first, is_threaded=True),
    "vesin sorted": Peer(
        lambda system, threads: vesin(system, threads, is_sorted=True),
        "full, shifts, sorted by i",
        _length_of_first,
        is_threaded=True,
    ),
    "vesin-torch": Peer(vesin_torch, "full, shifts", _length_of_first, is_threaded=True),
    "nvalchemi-toolkit-ops": Peer(
        nvalchemi, "full, shifts, CSR, int32, width given", lambda lists: int(lists[0].shape[1])
    ),
    "matscipy": Peer(matscipy, "full, shifts, sorted by i", _length_of_first),
    "scipy cKDTree": Peer(scipy, "half, no shifts", lambda pairs: 2 * len(pairs)),
    "freud AABBQuery": Peer(
        freud, "full, no shifts, distances, float32", len, is_threaded=True, largest=262_144
    ),
    "ASE": Peer(ase, "full, shifts, sorted by i", _length_of_first, largest=4096),
}
