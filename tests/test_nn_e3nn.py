"""The network against one of e3nn's TensorProduct, scatter, Linear and BatchNorm with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from nn_systems import DTYPES, OPTIONS, network, system
from torch import Tensor

from glassconv.nn import SE3GNN, Batch

# float64: roundings of 1.1e-16 through some layers, a factor of 1e4 in all. float32: roundings of 6e-8,
# amplified a hundred times by sums that cancel (normalizations, radial functions of rounded vectors).
EQUIVALENCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    # e3nn stores Clebsch-Gordan coefficients in the default dtype of the moment when a module is made
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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

    def forward(self, x: Tensor, graph: object, vectors: Tensor, basis: Tensor, envelope: Tensor) -> Tensor:
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


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_e3nn_network_with_the_same_weights(
    backend: str, float64_by_default: None, dtype: torch.dtype, name: str, training: bool
) -> None:
    model = network(name, dtype).train(training)
    # a copy of the running statistics: both networks move their own
    theirs = E3nnNetwork(model).train(training)
    model.train(training)
    batch = model.prepare([system(0), system(1)])
    ours, expected = model(batch), theirs(batch)
    error = (ours - expected).norm() / expected.norm()
    assert error < EQUIVALENCE[dtype], f"relative error {float(error):.2e}"
    for our, their in zip(model.layers, theirs.layers, strict=True):
        for name_, value in their.norm.named_buffers():
            difference = (getattr(our.norm, name_) - value).norm() / value.norm()
            assert difference < EQUIVALENCE[dtype], f"{name_}: {float(difference):.2e}"


def test_gradients_are_those_of_e3nn(backend: str, float64_by_default: None) -> None:
    model = network("both-cage")
    theirs = E3nnNetwork(model)
    batch = model.prepare(system())
    model(batch).square().sum().backward()
    ours = [(layer.conv.mix.grad.clone(), layer.conv.linear.weight.grad.clone()) for layer in model.layers]
    model.zero_grad()
    theirs(batch).square().sum().backward()
    for (mix, linear), layer in zip(ours, theirs.layers, strict=True):
        expected = layer.mix.weight.grad.T / sqrt(model.options["n_neighbors"])
        # derivatives pass all layers twice: a factor of 10 on the tolerance of the output
        assert (mix - expected).norm() / expected.norm() < 1e-11
        assert (linear - layer.linear.weight.grad).norm() / linear.norm() < 1e-11
