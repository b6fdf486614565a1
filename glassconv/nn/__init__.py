"""The network and its parts: equivariant convolutions, the network `SE3GNN`, and the batches it reads."""

from __future__ import annotations

from glassconv.nn.batch import Batch
from glassconv.nn.convolution import EquivariantConv, TensorProductConv
from glassconv.nn.network import SE3GNN
from glassconv.nn.radial import EdgeFeatures, RadialBasis, RadialNetwork
from glassconv.nn.readout import Readout, invariants

__all__ = [
    "SE3GNN",
    "Batch",
    "EdgeFeatures",
    "EquivariantConv",
    "RadialBasis",
    "RadialNetwork",
    "Readout",
    "TensorProductConv",
    "invariants",
]
