"""What the benchmark of the convolution measures: lists of irreps, systems, and their inputs.

The lists are those of published models and of this project's network; the systems give graphs of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from gpu.systems import CUTOFF, DENSITY, liquid
from neighbor_peers import tile
from torch import Tensor

import glassconv
from glassconv import Graph, Paths

N_RADIAL = 16
NATURAL = {2: "0e+1o+2e", 3: "0e+1o+2e+3o"}
MOLECULE_CUTOFF = 5.0  # Å
SMALLEST_DISTANCE = 1.4  # Å, between atoms of a molecule


class IrrepsList(NamedTuple):
    """Input, harmonics and allowed outputs; and how many nodes it is measured with unless said otherwise."""

    irreps_in: str
    irreps_sh: str
    irreps_out: str
    n_nodes: int = 4096

    @property
    def paths(self) -> Paths:
        """The paths."""
        return Paths(self.irreps_in, self.irreps_sh, self.irreps_out)


def times(channels: int, irreps: str) -> str:
    """So many of each irrep."""
    return "+".join(f"{channels}x{irrep}" for irrep in irreps.split("+"))


def glass(channels: int, l_max: int) -> IrrepsList:
    """Natural parity up to l_max, to itself."""
    return IrrepsList(times(channels, NATURAL[l_max]), NATURAL[l_max], NATURAL[l_max])


def _both(channels: int, l_max: int, n_nodes: int) -> IrrepsList:
    irreps = "+".join(f"{degree}{parity}" for degree in range(l_max + 1) for parity in "oe")
    return IrrepsList(times(channels, irreps), NATURAL[l_max], irreps, n_nodes)


# Those with many channels have fewer nodes: e3nn stores the messages, several times over.
LISTS: dict[str, IrrepsList] = {
    **{f"glass-l{l_max}-C{c}": glass(c, l_max) for l_max in (2, 3) for c in (4, 8, 16, 32)},
    "first-2x0e": IrrepsList("2x0e", NATURAL[3], NATURAL[3]),
    "first-3x0e": IrrepsList("3x0e", NATURAL[3], NATURAL[3]),
    **{
        f"tiny-{irreps}": IrrepsList(irreps, NATURAL[3], NATURAL[3])
        for irreps in ("1x1o", "5x0e+13x1o", "33x2e", "4x0e+3x1o+2x2e")
    },
    "mace-large": IrrepsList("128x0e+128x1o+128x2e", NATURAL[3], NATURAL[3], 512),
    "nequip-lips": _both(32, 2, 1000),
    "nequip-benzene": _both(64, 3, 216),
    "sevennet-l3i5": IrrepsList("128x0e+64x1e+32x2e+32x3e", "0e+1e+2e+3e", "0e+1e+2e+3e", 512),
    "nequix": IrrepsList("128x0e+64x1o+32x2e+32x3o", NATURAL[3], NATURAL[3], 512),
}
SYSTEMS = ("liquid", "random", "molecules")


@dataclass(frozen=True)
class System:
    """A graph, its vectors (E, 3) float64, and what it is of."""

    graph: Graph
    vectors: Tensor
    what: str


def molecule(n_atoms: int, generator: torch.Generator) -> Tensor:
    """Positions (n_atoms, 3): random points of a ball, none closer than SMALLEST_DISTANCE to another."""
    radius = 1.25 * SMALLEST_DISTANCE * (n_atoms / 4) ** (1 / 3)
    positions = torch.empty(0, 3, dtype=torch.float64)
    while len(positions) < n_atoms:
        point = radius * (2 * torch.rand(1, 3, generator=generator, dtype=torch.float64) - 1)
        if point.norm() < radius and bool((torch.cdist(point, positions) > SMALLEST_DISTANCE).all()):
            positions = torch.cat([positions, point])
        radius *= 1.0005  # a ball that is full grows
    return positions


@lru_cache(maxsize=2)
def make_system(kind: str, n_nodes: int) -> System:
    """A system.

    Args:
        kind: "liquid"; "random", points without correlation at its density; "molecules" of 17 to 23 atoms,
            some 20 on average, as one batch with open boundaries.
        n_nodes: particles; of molecules about so many.
    """
    generator = torch.Generator().manual_seed(0)
    if kind == "molecules":
        n_molecules = max(1, round(n_nodes / 20))
        sizes = torch.randint(17, 24, (n_molecules,), generator=generator)
        positions = torch.cat([molecule(size, generator) for size in sizes.tolist()])
        batch = torch.repeat_interleave(torch.arange(n_molecules), sizes)
        graph = glassconv.neighbor_list(positions, MOLECULE_CUTOFF, batch=batch)
        what = f"{n_molecules} molecules of 17 to 23 atoms, open boundaries, cutoff {MOLECULE_CUTOFF:g} Å"
        return System(graph, graph.vectors(positions), what)
    if kind == "liquid":
        source = tile(n_nodes)
        if source.n_particles == n_nodes:
            what, configuration = source.name or f"packaged sample, N = {n_nodes}", source
        else:
            what = "packaged Kob-Andersen sample, tiled and cut"
            configuration = liquid(n_nodes, 0, source)
        positions, lengths = configuration.positions, configuration.cell.diagonal()
    else:
        side = (n_nodes / DENSITY) ** (1 / 3)
        positions = side * torch.rand(n_nodes, 3, generator=generator, dtype=torch.float64)
        lengths, what = torch.full((3,), side, dtype=torch.float64), f"random points, density {DENSITY:g}"
    graph = glassconv.neighbor_list(positions, CUTOFF, cell=lengths)
    return System(graph, graph.vectors(positions, lengths), f"{what}, periodic, cutoff {CUTOFF:g}")


@cache
def paths_of(name: str) -> Paths:
    """The paths of a list."""
    return LISTS[name].paths


def make_inputs(paths: Paths, system: System, weights: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The differentiable arguments of `glassconv.conv`, random but for the vectors, always the same."""
    generator = torch.Generator().manual_seed(1)
    graph = system.graph

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    inputs = {"x": normal(graph.n_nodes, paths.dim_in), "vectors": system.vectors.to(dtype).clone()}
    if weights == "explicit":
        inputs["edge_weight"] = normal(graph.n_edges, paths.weight_numel)
    else:
        inputs["radial"] = normal(graph.n_edges, N_RADIAL)
        inputs["mix"] = normal(N_RADIAL, paths.weight_numel)
    return inputs
