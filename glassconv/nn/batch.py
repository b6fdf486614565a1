"""What the network reads: graphs, edge vectors and node inputs of configurations, computed once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glassconv import Graph
from glassconv._compile import register_container
from glassconv.nn.radial import EdgeFeatures


@dataclass(frozen=True, eq=False)
class Batch:
    """One or more configurations, prepared by `SE3GNN.prepare` for networks of the same inputs and geometry.

    Everything that does not change during training is in it, so that a training set is prepared once, one
    `Batch` per configuration, and minibatches are put together by `concatenate` without any neighbor search.

    | field | shape | dtype | what |
    |---|---|---|---|
    | `graph` | | | neighbors within the cutoff; N nodes, E edges, over all configurations |
    | `vectors` | (E, 3) | the network's | receiver minus source, computed in float64 and rounded once |
    | `edge_features` | | | radial basis of the edge lengths, and its moments |
    | `types` | (N,) | int64 | particle types |
    | `inputs` | (N, n) | float64 | energy, cage: scalar inputs beside the type, in physical units |
    | `targets` | (N, T) or None | float64 | propensities in physical units, where all have them |
    | `sizes` | | | number of particles of each configuration |
    | `layout` | | | the options that it was prepared with; a network with others refuses it |
    """

    graph: Graph
    vectors: Tensor
    edge_features: EdgeFeatures
    types: Tensor
    inputs: Tensor
    targets: Tensor | None
    sizes: tuple[int, ...]
    layout: str

    @property
    def n_nodes(self) -> int:
        """Number of particles N, over all configurations."""
        return self.types.shape[0]

    @property
    def n_edges(self) -> int:
        """Number of edges E, over all configurations."""
        return self.vectors.shape[0]

    def __len__(self) -> int:
        """Number of configurations."""
        return len(self.sizes)

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut per-particle values (N, ...) into one tensor per configuration."""
        if values.shape[0] != self.n_nodes:
            raise ValueError(f"values: expected {self.n_nodes} rows, one per particle, got {values.shape[0]}")
        return list(values.split(list(self.sizes)))

    def to(self, *targets: torch.device | str | torch.dtype, non_blocking: bool = False) -> Batch:
        """The batch on another device, or for a network of another dtype.

        Args:
            targets: a device, a dtype (float32 or float64, of `vectors` and the edge features), or both.
                Widening float32 does not bring back what rounding took: prepare anew where that matters.
            non_blocking: accepted for PyTorch's protocol of objects that can be moved; copies always wait.
        """
        del non_blocking
        device: torch.device | None = None
        dtype: torch.dtype | None = None
        for target in targets:
            if isinstance(target, torch.dtype):
                dtype = target
            else:
                device = torch.device(target)
        return replace(
            self,
            graph=self.graph if device is None else self.graph.to(device),
            vectors=self.vectors.to(device=device, dtype=dtype),
            edge_features=self.edge_features.to(device=device, dtype=dtype),
            types=self.types.to(device=device),
            inputs=self.inputs.to(device=device),
            targets=None if self.targets is None else self.targets.to(device=device),
        )

    @staticmethod
    def concatenate(batches: Sequence[Batch]) -> Batch:
        """One batch of all configurations of the given ones, in order; costs a copy of their tensors.

        `targets` is None as soon as one of them has none, or another number of times.

        Raises:
            ValueError: no batch, or batches of different layout, dtype or device.
        """
        if not batches:
            raise ValueError("batches: expected at least one batch, got none")
        first = batches[0]
        if len(batches) == 1:
            return first
        for batch in batches:
            for name, expected, got in (
                ("layout", first.layout, batch.layout),
                ("dtype", first.vectors.dtype, batch.vectors.dtype),
                ("device", first.vectors.device, batch.vectors.device),
            ):
                if got != expected:
                    raise ValueError(f"batches: expected the same {name} in all, {expected}, got {got}")
        targets = [batch.targets for batch in batches if batch.targets is not None]
        complete = len(targets) == len(batches) and len({target.shape[1] for target in targets}) == 1
        return Batch(
            graph=Graph.concatenate([batch.graph for batch in batches]),
            vectors=torch.cat([batch.vectors for batch in batches]),
            edge_features=EdgeFeatures.concatenate([batch.edge_features for batch in batches]),
            types=torch.cat([batch.types for batch in batches]),
            inputs=torch.cat([batch.inputs for batch in batches]),
            targets=torch.cat(targets) if complete else None,
            sizes=tuple(size for batch in batches for size in batch.sizes),
            layout=first.layout,
        )

    def __repr__(self) -> str:
        return (
            f"Batch(configurations={len(self)}, n_nodes={self.n_nodes}, n_edges={self.n_edges}, "
            f"dtype={self.vectors.dtype}, device={self.vectors.device}, layout={self.layout!r})"
        )


register_container(EdgeFeatures, "glassconv.nn.EdgeFeatures")
register_container(Batch, "glassconv.nn.Batch", fixed=("layout",), free=("sizes",))
