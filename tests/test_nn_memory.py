"""What a training step holds: no messages, wide arrays once, nothing that was there before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_training_step import breakdown, peak_above
from nn_systems import CUTOFF, network, system
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glassconv import _native
from glassconv.nn import SE3GNN, Batch, RadialBasis

HIDDEN = 16


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operator returns, derivatives included."""

    n_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        numbers = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.n_elements = max([self.n_elements, *numbers])
        return out


def prepared(n_side: int = 4, **options: Any) -> tuple[SE3GNN, Batch]:
    """The default layers, on neighborhoods of forty particles."""
    options = {"channels": 8, "l_max": 3, "n_layers": 3, "cutoff": 2.0, **options}
    model = network("natural", torch.float32, **options)
    return model, model.prepare(system(n_side=n_side))


def largest(model: SE3GNN, batch: Batch) -> int:
    with Largest() as mode:
        model(batch).square().mean().backward()
    return mode.n_elements


def messages(model: SE3GNN, batch: Batch) -> int:
    """Elements of the smaller of the arrays over edges that are never made: E x W, E x dim_out."""
    paths = model.layers[-1].conv.product.paths
    return batch.n_edges * min(paths.weight_numel, paths.dim_out)


def test_no_messages_in_a_training_step(native_extension: None) -> None:
    model, batch = prepared()
    with _native.use_backend("native"):
        found = largest(model, batch)
    # hidden radial features are made, and the derivative in the features of the nodes may be, edge by edge
    assert batch.n_edges * HIDDEN <= found < messages(model, batch)


def test_messages_would_be_seen() -> None:
    model, batch = prepared(n_side=2, cutoff=CUTOFF)
    with _native.use_backend("reference"):
        assert largest(model, batch) >= messages(model, batch)


def test_what_is_kept_for_the_backward_pass(native_extension: None) -> None:
    model, batch = prepared()
    graph = (value for value in vars(batch.graph).values() if isinstance(value, torch.Tensor))
    given = (*model.parameters(), *model.buffers(), *graph, batch.vectors, batch.edge_features.values)
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept: dict[int, tuple[int, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes() // tensor.element_size(), tensor.shape[:1].numel())
        return tensor

    with (
        _native.use_backend("native"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        out = model(batch)  # alive, so that no storage takes the place of another
    edges = [n_elements for n_elements, n_rows in kept.values() if n_rows == batch.n_edges]
    assert edges == len(model.layers) * [batch.n_edges * HIDDEN]
    # per node and layer: the input of the convolution, its output, and the normalized one twice at most
    widths = [
        layer.conv.irreps_in.dim + layer.conv.product.irreps_out.dim + 2 * layer.irreps_out.dim
        for layer in model.layers
    ]
    rest = sum(n_elements for n_elements, _ in kept.values()) - sum(edges)
    assert rest < 1.1 * batch.n_nodes * sum(widths)  # and what inputs, readout and weights need
    assert torch.isfinite(out).all()


def test_a_step_takes_less_than_one_array_of_messages(native_extension: None) -> None:
    # the kernels' scratch included, which no hook on tensors sees
    model, batch = prepared(n_side=8)
    dim_out = model.layers[-1].conv.product.paths.dim_out

    def step() -> None:
        model.zero_grad()
        model(batch).square().mean().backward()

    with _native.use_backend("native"):
        step()
        assert peak_above(step) < batch.n_edges * dim_out * batch.vectors.element_size()


def test_edge_features_are_computed_once_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = prepared(n_side=2, cutoff=CUTOFF)
    assert not batch.edge_features.values.requires_grad
    monkeypatch.setattr(RadialBasis, "_functions", lambda *_: pytest.fail("computed again"))
    model(batch).square().mean().backward()


def test_first_layer_has_the_paths_of_scalars_alone() -> None:
    first = SE3GNN(2, 1).layers[0].conv.product.paths
    assert {entry.l_in for entry in first.entries} == {0}
    # three scalars (two types and an energy) times the harmonics of degrees 0 to 3
    assert (first.dim_in, first.weight_numel, first.dim_out) == (3, 3 * 4, 3 * 16)


def test_the_benchmark_tells_convolutions_from_the_rest(native_extension: None) -> None:
    model, batch = prepared()
    with _native.use_backend("native"):
        spent = breakdown(lambda: model(batch).square().mean().backward(), rounds=1)
    parts = [spent[f"convolution_{direction}_s"] for direction in ("forward", "backward")]
    assert all(seconds > 0 for seconds in (*parts, spent["rest_s"]))
    assert spent["step_s"] == pytest.approx(sum(parts) + spent["rest_s"])
    assert spent["convolution_share"] == pytest.approx(sum(parts) / spent["step_s"])
