"""Modules around the convolution: `TensorProductConv` (no parameters) and `EquivariantConv` (the whole)."""

from __future__ import annotations

from math import sqrt

import torch
from e3nn.o3 import Irrep, Irreps
from torch import Tensor

from glassconv import Graph, Paths, conv
from glassconv.nn.equivariant import Linear
from glassconv.nn.radial import EdgeFeatures, RadialBasis, RadialNetwork, count, integer


class TensorProductConv(torch.nn.Module):
    """The convolution `glassconv.conv` as a module, without parameters.

    ```python
    layer = TensorProductConv("8x0e+8x1o", "0e+1o", "8x0e+8x1o")
    out = layer(x, graph, vectors=vectors, edge_weight=weight)      # (N, layer.irreps_out.dim)
    ```

    It takes the place of gather + `e3nn.o3.TensorProduct` ("uvu", unshared weights) + scatter.

    Args:
        irreps_in: irreps of the node features.
        irreps_sh: irreps of the harmonics, or an int l_max.
        irreps_out: filter of the output irreps (multiplicities ignored).

    Raises:
        ValueError: as `glassconv.Paths`.
    """

    def __init__(
        self, irreps_in: str | Irreps, irreps_sh: str | Irreps | int, irreps_out: str | Irreps
    ) -> None:
        super().__init__()
        self.paths = Paths(irreps_in, irreps_sh, irreps_out)
        self.irreps_in = self.paths.irreps_in
        self.irreps_sh = self.paths.irreps_sh
        self.irreps_out = self.paths.irreps_out
        self.weight_numel = self.paths.weight_numel

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        *,
        vectors: Tensor | None = None,
        edge_sh: Tensor | None = None,
        edge_weight: Tensor | None = None,
        radial: Tensor | None = None,
        mix: Tensor | None = None,
    ) -> Tensor:
        """Convolve; arguments, result and errors as `glassconv.conv`.

        Args:
            x: (N, irreps_in.dim) node features.
            graph: N nodes, E edges.
            vectors: (E, 3), or
            edge_sh: (E, irreps_sh.dim).
            edge_weight: (E, weight_numel), or both
            radial: (E, H) and
            mix: (H, weight_numel).

        Returns:
            (N, irreps_out.dim): one block per path.
        """
        return conv(
            x,
            graph,
            self.paths,
            vectors=vectors,
            edge_sh=edge_sh,
            edge_weight=edge_weight,
            radial=radial,
            mix=mix,
        )

    def extra_repr(self) -> str:
        """Irreps, for `repr`."""
        return f"{self.irreps_in} x {self.irreps_sh} -> {self.irreps_out}, weight_numel={self.weight_numel}"


class EquivariantConv(torch.nn.Module):
    r"""Convolution with a radial network, followed by e3nn's `Linear` over all paths.

        h_e = u(d) ReLU(BatchNorm(Linear(B(d))))               (E, H)       `RadialNetwork`
        w_e = h_e mix / sqrt(n_neighbors)                      never stored
        o_i = Linear(SUM_e w_e CG(x_source(e), Y(r_e)))        (N, irreps_out.dim)

    The output vanishes smoothly with an edge that reaches the cutoff.

    Args:
        irreps_in: irreps of the node features.
        irreps_out: irreps of the output; each must be the result of some path.
        l_max: highest degree of the harmonics.
        n_radial: number of radial basis functions.
        radial_hidden: number of hidden features H of the radial network.
        cutoff: cutoff distance, in the unit of the positions.
        radial_basis: `"bessel"` or `"gaussian"`, see `RadialBasis`.
        cutoff_power: power of the polynomial cutoff, see `RadialBasis`.
        momentum: of the batch normalization over edges.
        n_neighbors: typical number of neighbors, a constant that only sets the scale of the sum at the start
            (the default fits density 1.2 and cutoff 2).

    Raises:
        ValueError: an output irrep that no path reaches; anything that `Paths` or `RadialBasis` refuse.
    """

    def __init__(
        self,
        irreps_in: str | Irreps,
        irreps_out: str | Irreps,
        l_max: int = 3,
        *,
        n_radial: int = 10,
        radial_hidden: int = 16,
        cutoff: float = 2.0,
        radial_basis: str = "bessel",
        cutoff_power: int = 6,
        momentum: float = 0.5,
        n_neighbors: float = 40.0,
    ) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        self.irreps_out = Irreps(irreps_out)
        l_max = integer("l_max", l_max)
        reached = reachable(self.irreps_in, l_max)
        missing = [str(ir) for _, ir in self.irreps_out if ir not in reached]
        if missing:
            raise ValueError(
                f"irreps_out: expected irreps that {self.irreps_in} and l_max = {l_max} reach, got {missing}"
            )
        radial_hidden = count("radial_hidden", radial_hidden)
        if not n_neighbors > 0:
            raise ValueError(f"n_neighbors: expected a positive number, got {n_neighbors}")
        self.basis = RadialBasis(radial_basis, n_radial, cutoff, cutoff_power)
        self.radial = RadialNetwork(n_radial, radial_hidden, momentum)
        self.product = TensorProductConv(self.irreps_in, l_max, self.irreps_out)
        self.mix = torch.nn.Parameter(
            torch.randn(radial_hidden, self.product.weight_numel) / sqrt(radial_hidden)
        )
        # paths are sorted by irrep: merging their blocks changes no layout and makes one product per irrep
        self.linear = Linear(self.product.irreps_out.simplify(), self.irreps_out)
        self.mix_scale = 1 / sqrt(n_neighbors)

    def forward(
        self, x: Tensor, graph: Graph, vectors: Tensor, *, edge_features: EdgeFeatures | None = None
    ) -> Tensor:
        """Convolve.

        Args:
            x: (N, irreps_in.dim) node features.
            graph: N nodes, E edges.
            vectors: (E, 3), receiver minus source, in the order of `graph.edge_index`.
            edge_features: `self.basis.features(vectors)`, where the caller has them already.

        Returns:
            (N, irreps_out.dim).

        Raises:
            ValueError: in training mode, a graph with a capacity, whose padding the statistics over edges
                would count; what `glassconv.conv` refuses.
        """
        if self.training and graph.n_found is not None:
            expected = "one without a capacity in training mode (batch statistics would count its padding)"
            raise ValueError(f"graph: expected {expected}, got a capacity of {graph.n_edges}")
        if edge_features is None:
            edge_features = self.basis.features(vectors)
        hidden = self.radial(edge_features)
        mixed: Tensor = self.linear(
            self.product(x, graph, vectors=vectors, radial=hidden, mix=self.mix * self.mix_scale)
        )
        return mixed


def reachable(irreps_in: Irreps, l_max: int) -> set[Irrep]:
    """Irreps that some path from `irreps_in` and the harmonics 0e+1o+2e+... to degree `l_max` gives."""
    harmonics = Irreps.spherical_harmonics(l_max)
    return {ir for _, ir_in in irreps_in for _, ir_sh in harmonics for ir in ir_in * ir_sh}
