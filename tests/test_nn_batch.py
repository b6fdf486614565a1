"""Prepared batches, statistics and predictions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nn_systems import DTYPES, assert_close, cluster, network, system

from glassconv.nn import Batch


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_concatenated_batches_are_the_prepared_list(backend: str, dtype: torch.dtype) -> None:
    model = network("both-cage", dtype)
    systems = [system(0), system(1, n_side=2), system(2, n_side=2)]
    together = model.prepare(systems)
    parts = Batch.concatenate([model.prepare(one) for one in systems])
    nested = Batch.concatenate([model.prepare(systems[:2]), model.prepare(systems[2])])
    assert len(together) == 3
    assert together.sizes == parts.sizes == nested.sizes == (54, 16, 16)
    assert together.n_edges == together.graph.n_edges == sum(model.prepare(one).n_edges for one in systems)
    for batch in (parts, nested):
        assert torch.equal(batch.graph.edge_index, together.graph.edge_index)
        assert torch.equal(batch.vectors, together.vectors)
    # in training mode: the merged moments of the edges are those of all edges
    exact = model.basis.features(together.vectors.double())
    torch.testing.assert_close(together.edge_features.mean, exact.mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(together.edge_features.covariance, exact.covariance, rtol=1e-5, atol=1e-9)
    assert_close(model(nested), model(together), dtype)


def test_batch_holds_physical_values() -> None:
    model = network("both-cage")
    batch = model.prepare(system())
    assert torch.equal(batch.inputs[:, 0], system().energy)
    assert torch.equal(batch.targets, system().propensity.T)
    expected = batch.graph.vectors(system().positions, system().cell)
    assert torch.equal(batch.vectors, expected)
    assert [part.shape for part in batch.split(batch.types)] == [(54,)]
    assert "n_nodes=54" in repr(batch)


def test_vectors_are_rounded_once() -> None:
    batch = network("natural", torch.float32).prepare(system())
    expected = batch.graph.vectors(system().inherent, system().cell)
    assert batch.vectors.dtype == torch.float32
    assert torch.equal(batch.vectors, expected.float())


def test_cage_displacement_crosses_the_boundary() -> None:
    model = network("both-cage")
    jumped = replace(system(), inherent=system().inherent + system().cell[1] - 2 * system().cell[2])
    torch.testing.assert_close(model.prepare(jumped).inputs, model.prepare(system()).inputs)
    # without periodic boundaries a displacement is what it is
    moved = cluster(torch.zeros(2, 3), inherent=torch.tensor([[0.0, 8, 0], [0, 0, 7]]))
    assert torch.equal(model.prepare(moved).inputs[:, 1], torch.tensor([8.0, 7.0], dtype=torch.float64))


def test_statistics_are_per_type() -> None:
    model = network("both-cage")
    model.set_statistics([system(0), system(1, n_side=2)])
    types = torch.cat([system(0).types, system(1, n_side=2).types])
    targets = torch.cat([system(0).propensity.T, system(1, n_side=2).propensity.T])
    energies = torch.cat([system(0).energy, system(1, n_side=2).energy])
    for kind in range(2):
        torch.testing.assert_close(model.target_mean[kind], targets[types == kind].mean(dim=0))
        torch.testing.assert_close(model.target_std[kind], targets[types == kind].std(dim=0, unbiased=False))
        torch.testing.assert_close(model.input_mean[kind, 0], energies[types == kind].mean())
    standardized = model.standardize(targets, types)
    # to rounding of the mean over some 60 values
    assert standardized[types == 1].mean(dim=0).abs().max() < 1e-12
    torch.testing.assert_close(model.unstandardize(standardized, types), targets)


def test_statistics_of_values_that_do_not_vary_or_occur() -> None:
    model = network()
    n = system().n_particles
    still = replace(
        system(), energy=torch.full((n,), -7.1, dtype=torch.float64), types=torch.zeros(n, dtype=torch.int64)
    )
    model.set_statistics(still)
    assert model.input_std.tolist() == [[1.0], [1.0]]
    # the mean of equal numbers may be a rounding beside them
    assert model.input_mean[0].item() == pytest.approx(-7.1, rel=1e-14)
    assert model.input_mean[1].item() == 0.0
    assert model.target_std[1].tolist() == [1.0, 1.0]


def test_units_of_the_energy_do_not_matter(backend: str) -> None:
    model = network()
    scaled = replace(system(), energy=3 * system().energy + 5)
    model.set_statistics(system())
    expected = model(system())
    model.set_statistics(scaled)
    assert_close(model(scaled), expected, torch.float64)


def test_predict_is_in_physical_units(backend: str) -> None:
    model = network().train()
    model.layers[0].eval()  # modes of parts are put back as they were
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = model.prepare([system(0), system(1)])
    prediction = model.predict(batch)
    assert not prediction.requires_grad
    assert model.training
    assert not model.layers[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(prediction, model.predict([system(0), system(1)]))
    with torch.no_grad():
        outputs = model.eval()(batch)
    torch.testing.assert_close(model.standardize(prediction, batch.types), outputs)


def test_moving() -> None:
    model = network()
    batch = model.prepare(system())
    narrow = batch.to(torch.float32)
    assert narrow.vectors.dtype == narrow.edge_features.values.dtype == torch.float32
    assert narrow.inputs.dtype == torch.float64
    assert torch.equal(narrow.vectors, batch.vectors.float())
    assert model.float()(narrow).dtype == torch.float32
    elsewhere = batch.to("meta", torch.float32)
    assert elsewhere.vectors.device.type == elsewhere.graph.device.type == "meta"
    assert elsewhere.edge_features.values.dtype == torch.float32


def test_targets_are_kept_only_when_complete() -> None:
    model = network()
    with_targets = model.prepare(system(0))
    without = model.prepare(replace(system(1), propensity=None, times=None))
    assert Batch.concatenate([with_targets, with_targets]).targets is not None
    assert Batch.concatenate([with_targets, without]).targets is None


def test_errors() -> None:
    model = network()
    batch = model.prepare(system())
    with pytest.raises(
        ValueError, match=r"batch: expected the dtype of the network, torch.float64, got torch.float32"
    ):
        model(batch.to(torch.float32))
    with pytest.raises(ValueError, match=r"batch: expected the device of the network, cpu, got meta"):
        model(batch.to("meta"))
    thermal = network(positions="thermal").prepare(system())
    with pytest.raises(
        ValueError, match=r"batch: expected the layout of the network, inherent .*, got thermal"
    ):
        model(thermal)
    with pytest.raises(ValueError, match=r"batches: expected the same layout in all"):
        Batch.concatenate([batch, thermal])
    with pytest.raises(
        ValueError, match=r"batches: expected the same dtype in all, torch.float64, got torch.float32"
    ):
        Batch.concatenate([batch, batch.to(torch.float32)])
    with pytest.raises(ValueError, match=r"batches: expected at least one batch, got none"):
        Batch.concatenate([])
    with pytest.raises(ValueError, match=r"values: expected 54 rows, one per particle, got 3"):
        batch.split(torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"propensity: expected propensities at 2 times, got None in 'system 0'"
    ):
        model.set_statistics(replace(system(), propensity=None))
    with pytest.raises(ValueError, match=r"propensity: expected 2 times, got 1"):
        model.set_statistics(system().select_times([0]))
    with pytest.raises(ValueError, match=r"types: expected types 0 to 1, got 2"):
        model.set_statistics(replace(system(), types=torch.full((54,), 2)))
    with pytest.raises(ValueError, match=r"configurations: expected at least one, got none"):
        model.set_statistics([])
