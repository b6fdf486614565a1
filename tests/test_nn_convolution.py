"""Parts of the network: radial features, convolution modules, readout."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from e3nn import o3
from nn_systems import CUTOFF, DTYPES, assert_close, system

from glassconv import Graph, Paths, conv, neighbor_list, spherical_harmonics
from glassconv.nn import (
    SE3GNN,
    EdgeFeatures,
    EquivariantConv,
    RadialBasis,
    RadialNetwork,
    Readout,
    TensorProductConv,
)
from glassconv.nn.readout import invariants


def edges(dtype: torch.dtype = torch.float64) -> tuple[Graph, torch.Tensor]:
    configuration = system()
    graph = neighbor_list(configuration.positions, CUTOFF, cell=configuration.cell)
    return graph, graph.vectors(configuration.positions, configuration.cell).to(dtype)


@pytest.mark.parametrize("power", [1, 2, 6, 9])
def test_envelope_is_the_polynomial_cutoff(power: int) -> None:
    x = torch.linspace(0, 1.5, 31, dtype=torch.float64)
    p = power
    expected = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    expected = torch.where(x < 1, expected, 0.0)
    envelope = RadialBasis(cutoff=1.7, cutoff_power=power).envelope(1.7 * x)
    # the expanded form cancels terms up to 100
    torch.testing.assert_close(envelope, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["bessel", "gaussian"])
def test_basis_by_its_formula(kind: str) -> None:
    basis = RadialBasis(kind, n_radial=5, cutoff=2.0)
    d = torch.tensor([0.3, 1.1, 1.9], dtype=torch.float64)
    n = torch.arange(1, 6, dtype=torch.float64)
    if kind == "bessel":
        functions = torch.sin(n * torch.pi * d[:, None] / 2) / d[:, None]  # sqrt(2 / cutoff) = 1
    else:
        functions = torch.exp(-((d[:, None] - (n - 1) * 0.5) ** 2) / (2 * 0.25))
    torch.testing.assert_close(basis(d), basis.envelope(d)[:, None] * functions)


@pytest.mark.parametrize("kind", ["bessel", "gaussian"])
def test_basis_at_zero_and_at_the_cutoff(kind: str) -> None:
    basis = RadialBasis(kind, n_radial=4, cutoff=2.0)
    d = torch.tensor([0.0, 1e-9, 2.0, 2.5], dtype=torch.float64, requires_grad=True)
    values = basis(d)
    torch.testing.assert_close(values[0], values[1])  # the limit
    assert (values[2:] == 0).all()
    (gradient,) = torch.autograd.grad(values.sum(), d, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), d)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(second).all()
    assert (gradient[2:] == 0).all()


@pytest.mark.parametrize("kind", ["bessel", "gaussian"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_radial_network_is_linear_norm_relu(dtype: torch.dtype, training: bool, kind: str) -> None:
    _, vectors = edges(dtype)
    basis = RadialBasis(kind, cutoff=CUTOFF)
    ours = RadialNetwork().to(dtype)
    linear, norm = torch.nn.Linear(10, 16, bias=False), torch.nn.BatchNorm1d(16, momentum=0.5)
    theirs = torch.nn.Sequential(linear, norm, torch.nn.ReLU()).double()
    with torch.no_grad():
        ours.scale.normal_()
        ours.shift.normal_()
        linear.weight.copy_(ours.weight)
        norm.weight.copy_(ours.scale)
        norm.bias.copy_(ours.shift)
    distances = vectors.double().norm(dim=1)
    for mode in (True, training):  # the first pass moves the running statistics
        hidden = ours.train(mode)(basis.features(vectors))
        expected = theirs.train(mode)(basis(distances)) * basis.envelope(distances)[:, None]
    # conditioning: the basis functions overlap, so that a combination may be small beside its terms
    assert_close(hidden, expected, dtype)
    assert_close(ours.running_mean, norm.running_mean, dtype)
    assert_close(ours.running_var, norm.running_var, dtype)
    target = torch.randn_like(expected)
    (hidden.double() * target).sum().backward()
    (expected * target).sum().backward()
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(our.grad, their.grad, dtype)


def test_edge_features_differentiate_through_their_moments() -> None:
    vectors = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    basis, network = RadialBasis(n_radial=3, cutoff=3.0), RadialNetwork(3, 4).double()
    assert torch.autograd.gradcheck(lambda v: network(basis.features(v)), vectors)
    assert torch.autograd.gradgradcheck(lambda v: network(basis.features(v)), vectors)


def test_moments_of_parts_merge() -> None:
    _, vectors = edges()
    basis = RadialBasis(cutoff=CUTOFF)
    pieces = vectors.split([7, 0, 100, vectors.shape[0] - 107])
    merged = EdgeFeatures.concatenate([basis.features(piece) for piece in pieces])
    expected = basis.features(vectors)
    torch.testing.assert_close(merged.mean, expected.mean)
    torch.testing.assert_close(merged.covariance, expected.covariance)
    assert torch.equal(merged.values, expected.values)


@pytest.mark.parametrize("form", ["vectors", "edge_sh"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensor_product_conv_is_the_operator(backend: str, dtype: torch.dtype, form: str) -> None:
    graph, vectors = edges(dtype)
    layer = TensorProductConv("3x0e+2x1o", "0e+1o", "4x0e+7x1o")
    paths = Paths("3x0e+2x1o", "0e+1o", "0e+1o")
    assert layer.irreps_out == paths.irreps_out
    assert layer.weight_numel == paths.weight_numel
    assert not list(layer.parameters())
    x = torch.randn(graph.n_nodes, layer.irreps_in.dim, dtype=dtype)
    radial, mix = torch.randn(graph.n_edges, 5, dtype=dtype), torch.randn(5, layer.weight_numel, dtype=dtype)
    angular = {"vectors": vectors} if form == "vectors" else {"edge_sh": spherical_harmonics(vectors, 1)}
    out = layer(x, graph, radial=radial, mix=mix, **angular)
    assert torch.equal(out, conv(x, graph, paths, radial=radial, mix=mix, **angular))
    assert_close(layer(x, graph, edge_weight=radial @ mix, **angular), out, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equivariant_conv_rotates_with_its_input(backend: str, dtype: torch.dtype) -> None:
    graph, vectors = edges(dtype)
    irreps_in, irreps_out = o3.Irreps("3x0o+2x0e+2x1o+1x2e"), o3.Irreps("2x0e+3x1e+1x3o+2x1o")
    layer = EquivariantConv(irreps_in, irreps_out, l_max=2, cutoff=CUTOFF).to(dtype)
    x = torch.randn(graph.n_nodes, irreps_in.dim, dtype=dtype)
    matrix = -o3.rand_matrix(dtype=torch.float64)
    d_in, d_out = (irreps.D_from_matrix(matrix.float()).double() for irreps in (irreps_in, irreps_out))
    with torch.no_grad():
        expected = layer(x, graph, vectors).double() @ d_out.T
        turned = layer((x.double() @ d_in.T).to(dtype), graph, (vectors.double() @ matrix.T).to(dtype))
    # e3nn's Wigner matrices come from float32 angles
    assert ((turned - expected).norm() / expected.norm()) < 1e-5


def test_equivariant_conv_takes_edges_in_any_order(backend: str) -> None:
    graph, vectors = edges()
    order = torch.randperm(graph.n_edges)
    shuffled = Graph.from_edge_index(graph.edge_index[:, order], graph.n_nodes)
    layer = EquivariantConv("2x0e", "2x0e+2x1o", cutoff=CUTOFF).double()
    x = torch.randn(graph.n_nodes, 2, dtype=torch.float64)
    assert_close(layer(x, shuffled, vectors[order]), layer(x, graph, vectors), torch.float64)


def test_statistics_over_edges_leave_no_room_for_padding(backend: str) -> None:
    graph, vectors = edges()
    configuration = system()
    padded = neighbor_list(
        configuration.positions, CUTOFF, cell=configuration.cell, capacity=graph.n_edges + 50
    )
    padded_vectors = padded.vectors(configuration.positions, configuration.cell)
    layer = EquivariantConv("2x0e", "2x0e+2x1o", cutoff=CUTOFF).double()
    x = torch.randn(graph.n_nodes, 2, dtype=torch.float64)
    layer(x, graph, vectors)  # running statistics that are not those of the start
    before = layer.radial.running_var.clone()
    with pytest.raises(ValueError, match=rf"graph: expected one .*, got a capacity of {graph.n_edges + 50}"):
        layer(x, padded, padded_vectors)
    assert torch.equal(layer.radial.running_var, before)
    layer.eval()
    assert_close(layer(x, padded, padded_vectors), layer(x, graph, vectors), torch.float64)


def test_invariants() -> None:
    irreps = o3.Irreps("2x0o+1x0e+2x1o")
    h = torch.tensor([[-2.0, 3, -4, 3, 4, 0, 0, 0, 0]], requires_grad=True)
    z = invariants(h, irreps)
    assert z.tolist() == [[2, 3, -4, 5, 0]]
    z.sum().backward()
    torch.testing.assert_close(h.grad, torch.tensor([[-1.0, 1, 1, 0.6, 0.8, 0, 0, 0, 0]]))


def test_readout_has_a_map_per_type() -> None:
    readout = Readout("2x0e+1x1o", n_types=3, n_outputs=2)
    torch.nn.init.normal_(readout.bias)
    h, types = torch.randn(7, 5), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    z = invariants(h, readout.irreps_in)
    expected = torch.stack([z[i] @ readout.weight[k] + readout.bias[k] for i, k in enumerate(types)])
    torch.testing.assert_close(readout(h, types), expected)


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r"irreps_out: expected irreps that 2x0e and l_max = 1 reach, got \['1e'\]"
    ):
        EquivariantConv("2x0e", "2x0e+3x1e", l_max=1)
    with pytest.raises(ValueError, match=r"radial_hidden: expected at least 1, got 0"):
        EquivariantConv("2x0e", "2x0e", radial_hidden=0)
    with pytest.raises(ValueError, match=r"n_neighbors: expected a positive number, got -1"):
        EquivariantConv("2x0e", "2x0e", n_neighbors=-1)
    with pytest.raises(ValueError, match=r"radial_basis: expected one of .*, got 'fourier'"):
        RadialBasis("fourier")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": float("inf")}, "cutoff: expected a finite distance, got inf"),
        ({"cutoff": float("nan")}, "cutoff: expected a positive distance, got nan"),
        ({"n_radial": 2.0}, "n_radial: expected an integer, got 2.0"),
        ({"cutoff_power": "6"}, "cutoff_power: expected an integer, got '6'"),
    ],
)
def test_radial_basis_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RadialBasis(**options)
    with pytest.raises(ValueError, match=message):
        EquivariantConv("2x0e", "2x0e", l_max=1, **options)


@pytest.mark.parametrize("name", ["n_types", "n_outputs", "channels", "n_layers", "radial_hidden"])
@pytest.mark.parametrize("value", [2.5, 2.0, float("nan"), "2", None, True, np.float64(2)])
def test_counts_are_integers(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name}: expected an integer, got {value!r}")):
        SE3GNN(**{"n_types": 2, "n_outputs": 1, name: value})


@pytest.mark.parametrize("value", [2.0, "2", None, True])
def test_degree_is_an_integer(value: Any) -> None:
    with pytest.raises(ValueError, match=f"l_max: expected an integer, got {value!r}"):
        SE3GNN(2, 1, l_max=value)
    with pytest.raises(ValueError, match=f"l_max: expected an integer, got {value!r}"):
        EquivariantConv("2x0e", "2x0e", l_max=value)


def test_readout_has_a_kink_where_features_vanish() -> None:
    # what the documentation of SE3GNN says of |h|: one-sided slopes 1 and -1, the derivative 0 between them
    h = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    value = invariants(h, o3.Irreps("1x1o"))
    assert torch.equal(torch.autograd.grad(value.sum(), h)[0], torch.zeros_like(h))
    step = torch.tensor([[1e-3, 0.0, 0.0]], dtype=torch.float64)
    assert float(invariants(step, o3.Irreps("1x1o"))) == float(invariants(-step, o3.Irreps("1x1o"))) == 1e-3
