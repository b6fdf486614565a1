"""SE3GNN in e3nn's TensorProduct, scatter, Linear and BatchNorm: a peer to time, an oracle for tests."""

from __future__ import annotations

from math import sqrt

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor

from glassconv import Graph
from glassconv.nn import SE3GNN, Batch


class E3nnLayer(torch.nn.Module):
    """One layer as e3nn's documentation would write it."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, l_max: int) -> None:
        super().__init__()
        blocks, instructions = [], []
        for i, (mul, ir_in) in enumerate(irreps_in):
            for j, (_, ir_sh) in enumerate(o3.Irreps.spherical_harmonics(l_max)):
                for ir_out in ir_in * ir_sh:
                    if ir_out in irreps_out:
                        instructions.append((i, j, len(blocks), "uvu", True))
                        blocks.append((mul, ir_out))
        irreps_mid, place, _ = o3.Irreps(blocks).sort()
        instructions = [(i, j, place[k], mode, train) for i, j, k, mode, train in instructions]
        # weights in the order of the output blocks
        instructions.sort(key=lambda instruction: instruction[2])
        self.harmonics = o3.SphericalHarmonics(o3.Irreps.spherical_harmonics(l_max), True, "component")
        self.product = o3.TensorProduct(
            irreps_in,
            o3.Irreps.spherical_harmonics(l_max),
            irreps_mid,
            instructions,
            internal_weights=False,
            shared_weights=False,
        )
        self.linear = o3.Linear(irreps_mid.simplify(), irreps_out)
        self.norm = e3nn_nn.BatchNorm(irreps_out, momentum=0.5)
        self.radial = torch.nn.Sequential(
            torch.nn.Linear(10, 16, bias=False), torch.nn.BatchNorm1d(16, momentum=0.5), torch.nn.ReLU()
        )
        self.mix = torch.nn.Linear(16, self.product.weight_numel, bias=False)

    def forward(self, x: Tensor, graph: Graph, vectors: Tensor, basis: Tensor, envelope: Tensor) -> Tensor:
        """Node features (N, irreps_in.dim) -> (N, irreps_out.dim)."""
        source, receiver = graph.edge_index
        weight = self.mix(self.radial(basis) * envelope[:, None])
        messages = self.product(x[source], self.harmonics(vectors), weight)
        summed = messages.new_zeros(len(x), messages.shape[1]).index_add(0, receiver, messages)
        return self.norm(self.linear(summed))


class E3nnNetwork(torch.nn.Module):
    """The network in e3nn's parts, with the weights of `model`."""

    def __init__(self, model: SE3GNN) -> None:
        super().__init__()
        self.model = model
        self.layers = torch.nn.ModuleList()
        for ours in model.layers:
            layer = E3nnLayer(ours.conv.irreps_in, ours.irreps_out, model.options["l_max"])
            with torch.no_grad():
                layer.mix.weight.copy_(ours.conv.mix.T / sqrt(model.options["n_neighbors"]))
                layer.radial[0].weight.copy_(ours.conv.radial.weight)
            layer.linear.load_state_dict(ours.conv.linear.state_dict())
            layer.norm.load_state_dict(ours.norm.state_dict())
            state = {"weight": ours.conv.radial.scale, "bias": ours.conv.radial.shift}
            state |= {key: getattr(ours.conv.radial, key) for key in ("running_mean", "running_var")}
            layer.radial[1].load_state_dict(state | {"num_batches_tracked": torch.tensor(1)})
            self.layers.append(layer)
        self.to(model.dtype)

    def forward(self, batch: Batch) -> Tensor:
        """What `SE3GNN.forward` gives for the batch."""
        model = self.model
        distances = batch.vectors.norm(dim=1)
        basis, envelope = model.basis(distances), model.basis.envelope(distances)
        x = torch.nn.functional.one_hot(batch.types, 2).to(model.dtype)
        for k in range(len(model.scalars)):
            scaled = (batch.inputs[:, k] - model.input_mean[batch.types, k]) / model.input_std[batch.types, k]
            x = torch.cat([x, scaled.to(model.dtype)[:, None]], dim=1)
        h, irreps = None, None
        for layer, ours in zip(self.layers, model.layers, strict=True):
            inputs = x if h is None else self.merge(x, h, irreps, ours.conv.irreps_in)
            out = layer(inputs, batch.graph, batch.vectors, basis, envelope)
            h = h + out if irreps == ours.irreps_out else out
            irreps = ours.irreps_out
        z = torch.cat(
            [
                h[:, block] if ir == o3.Irrep("0e") else h[:, block].reshape(len(h), mul, -1).norm(dim=2)
                for (mul, ir), block in zip(irreps, irreps.slices(), strict=True)
            ],
            dim=1,
        )
        weight, bias = model.readout.weight[batch.types], model.readout.bias[batch.types]
        return torch.einsum("nz,nzt->nt", z, weight) + bias

    @staticmethod
    def merge(x: Tensor, h: Tensor, irreps: o3.Irreps, merged: o3.Irreps) -> Tensor:
        """The raw input in front of the scalars of h."""
        blocks = [h[:, block] for block in irreps.slices()]
        place = [ir for _, ir in irreps].index(o3.Irrep("0e"))
        result = torch.cat([*blocks[:place], x, *blocks[place:]], dim=1)
        assert result.shape[1] == merged.dim
        return result
