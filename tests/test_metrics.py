"""Pearson correlation and noise ceiling against scipy and values computed by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from glassconv.data import Configuration
from glassconv.training import noise_ceiling, pearson, score, table
from glassconv.training.metrics import type_label

# Both sides sum N = 500 products in float64; the relative rounding of such sums is below 1e-13.
ROUNDING = 1e-12


def configuration(propensity, types, *, halves=None, times=None, temperature=0.5, name=""):
    propensity = torch.as_tensor(propensity, dtype=torch.float64)
    n_times, n = propensity.shape
    return Configuration(
        torch.rand(n, 3, dtype=torch.float64),
        torch.as_tensor(types),
        torch.full((3,), 5.0),
        propensity=propensity,
        propensity_halves=halves,
        times=[10.0**k for k in range(n_times)] if times is None else times,
        temperature=temperature,
        name=name,
    )


def test_pearson_equals_scipy():
    generator = np.random.default_rng(1)
    x = generator.normal(size=(3, 4, 500))
    y = 0.5 * x + generator.normal(size=x.shape)
    ours = pearson(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    theirs = stats.pearsonr(x, y, axis=-1).statistic
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDING)


def test_pearson_by_hand():
    # deviations (-1, 0, 1) and (-1, 1, 0): covariance 1, both variances 2
    assert float(pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 1.0]))) == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 1.0, 1e12, 1e200])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_pearson_does_not_depend_on_units(scale, offset):
    x = torch.randn(200, dtype=torch.float64)
    y = x + torch.randn(200, dtype=torch.float64)
    # an offset of 100 standard deviations costs two digits
    assert float(pearson(scale * (x + offset), y)) == pytest.approx(float(pearson(x, y)), abs=100 * ROUNDING)


def test_pearson_bounds_and_sign():
    x = torch.rand(1000)
    assert float(pearson(x, 3 * x + 1)) == pytest.approx(1.0, abs=1e-6)  # the product is rounded to float32
    assert float(pearson(x, -x)) == pytest.approx(-1.0, abs=ROUNDING)
    assert float(pearson(x, x)) <= 1.0


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0]),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]),
        ([1.0], [1.0]),
        ([], []),
        ([1.0, float("nan"), 3.0], [1.0, 2.0, 3.0]),
        ([1.0, float("inf"), 3.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [1.0, float("nan"), float("nan")]),
    ],
)
def test_undefined_is_nan(prediction, target):
    result = pearson(torch.tensor(prediction, dtype=torch.float64), torch.tensor(target, dtype=torch.float64))
    assert math.isnan(float(result))


def test_missing_targets_are_left_out():
    x = torch.randn(50, dtype=torch.float64)
    y = x + torch.randn(50, dtype=torch.float64)
    holes = y.clone()
    holes[10:20] = torch.nan
    x_broken = x.clone()
    x_broken[12] = torch.nan  # nothing was measured there
    kept = torch.ones(50, dtype=torch.bool)
    kept[10:20] = False
    assert float(pearson(x_broken, holes)) == pytest.approx(float(pearson(x[kept], y[kept])), abs=ROUNDING)


def test_pearson_refuses_unequal_shapes():
    with pytest.raises(ValueError, match=r"prediction: expected .*\(3,\), got \(4,\)"):
        pearson(torch.zeros(4), torch.zeros(3))


def test_noise_ceiling_by_hand():
    # r = 1/2 as above: sqrt(2 r / (1 + r)) = sqrt(2/3)
    ceiling = noise_ceiling(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 1.0]))
    assert float(ceiling) == pytest.approx(math.sqrt(2 / 3))
    assert math.isnan(float(noise_ceiling(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0]))))


def test_noise_ceiling_is_what_the_truth_reaches():
    generator = torch.Generator().manual_seed(0)
    truth, first, second = torch.randn(3, 200_000, generator=generator, dtype=torch.float64)
    halves = truth + 1.5 * first, truth + 1.5 * second
    reached = pearson(truth, (halves[0] + halves[1]) / 2)
    # 200,000 particles: a correlation is known to a few times 1/sqrt(N) = 0.002
    assert float(noise_ceiling(*halves)) == pytest.approx(float(reached), abs=0.006)


def test_score_by_type_time_and_configuration():
    generator = torch.Generator().manual_seed(2)
    types = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    configurations, predictions = [], []
    for k in range(3):
        target = torch.rand(2, 10, generator=generator, dtype=torch.float64) + 10 * k
        noise = torch.rand(2, 2, 10, generator=generator, dtype=torch.float64)
        configurations.append(configuration(target, types, halves=target + 0.1 * noise, name=f"c{k}"))
        predictions.append((target + torch.rand(2, 10, generator=generator, dtype=torch.float64)).T)
    (group,) = score(predictions, configurations)
    assert group.names == ("c0", "c1", "c2")
    assert [s.type for s in group.types] == [0, 1]
    for scores in group.types:
        chosen = types == scores.type
        assert scores.n_particles == 3 * int(chosen.sum())
        for t in range(2):
            x = [p[chosen, t].numpy() for p in predictions]
            y = [c.propensity[t, chosen].numpy() for c in configurations]
            each = [stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)]
            assert float(scores.per_configuration[t]) == pytest.approx(np.mean(each), abs=ROUNDING)
            np.testing.assert_allclose(scores.values[:, t].numpy(), each, atol=ROUNDING)
            pooled = stats.pearsonr(np.concatenate(x), np.concatenate(y)).statistic
            assert float(scores.pooled[t]) == pytest.approx(pooled, abs=ROUNDING)
            h = [c.propensity_halves[:, t, chosen].numpy() for c in configurations]
            r = [stats.pearsonr(a[0], a[1]).statistic for a in h]
            expected = np.mean([math.sqrt(2 * v / (1 + v)) for v in r])
            assert float(scores.ceiling_per_configuration[t]) == pytest.approx(expected, abs=ROUNDING)
            joined = np.concatenate(h, axis=1)
            r = stats.pearsonr(joined[0], joined[1]).statistic
            assert float(scores.ceiling_pooled[t]) == pytest.approx(math.sqrt(2 * r / (1 + r)), abs=ROUNDING)
    # the mean of the configuration is most of the variance here: pooling rewards it
    assert float(group.types[0].pooled[0]) > 0.99 > float(group.types[0].per_configuration[0])


def test_constant_target_is_not_counted_but_constant_prediction_is():
    varied = configuration([[1.0, 2.0, 3.0]], [0, 0, 0])
    constant = configuration([[5.0, 5.0, 5.0]], [0, 0, 0])
    good, flat = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
    (group,) = score([good, good], [varied, constant])
    assert float(group.types[0].per_configuration[0]) == pytest.approx(1.0)
    (group,) = score([good, flat], [varied, varied])
    assert math.isnan(float(group.types[0].per_configuration[0]))
    json.dumps(group.to_json(), allow_nan=False)
    assert group.to_json()["types"][0]["per_configuration"] == [None]


def test_groups_by_temperature_and_times():
    hot = configuration([[1.0, 2.0, 3.0]], [0, 0, 0], temperature=0.64)
    cold = configuration([[1.0, 2.0, 3.0]], [0, 0, 0], temperature=0.56)
    late = configuration([[1.0, 2.0, 3.0]], [0, 0, 0], temperature=0.56, times=[50.0])
    prediction = torch.tensor([[1.0], [2.0], [4.0]])
    groups = score([prediction] * 4, [hot, cold, late, cold])
    assert [(g.temperature, g.times.tolist(), len(g.names)) for g in groups] == [
        (0.64, [1.0], 1),
        (0.56, [1.0], 2),
        (0.56, [50.0], 1),
    ]
    assert groups[0].to_json()["types"][0]["ceiling_pooled"] is None


def test_score_refuses():
    known = configuration([[1.0, 2.0, 3.0]], [0, 0, 0], name="known")
    with pytest.raises(ValueError, match="predictions: expected one per configuration, 1, got 0"):
        score([], [known])
    with pytest.raises(ValueError, match=r"predictions: expected shape \(3, 1\) for known, got \(1, 3\)"):
        score([torch.zeros(1, 3)], [known])
    unknown = Configuration(torch.rand(3, 3), torch.zeros(3, dtype=torch.int64), torch.ones(3))
    with pytest.raises(ValueError, match="configurations: expected propensities in each, got none"):
        score([torch.zeros(3, 1)], [unknown])


def test_table_is_readable():
    target = torch.rand(2, 20, dtype=torch.float64)
    halves = torch.stack([target, target + 0.1 * torch.rand(2, 20, dtype=torch.float64)])
    c = configuration(target, [0] * 16 + [1] * 4, halves=halves, times=[0.5, 20.0])
    text = table(score([target.T], [c]))
    lines = text.splitlines()
    assert lines[0].startswith("T = 0.5, 1 configuration: Pearson")
    assert "A per configuration" in lines[1]
    assert "B pooled" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["0.5", "20"]
    assert "1.000 (" in lines[2]
    assert max(len(line) for line in lines) <= 100


def test_type_label():
    assert [type_label(k) for k in (0, 1, 25, 26)] == ["A", "B", "Z", "26"]


def test_ceiling_of_the_shared_configurations(shared_data):
    """The two figures that come with the data: .917 per configuration, .936 pooled, type A."""
    with np.load(shared_data / "ka3d_T0.44_tau_alpha_train10.npz") as arrays:
        configurations = [
            configuration(
                arrays["propensity"][i][None],
                arrays["types"][i],
                halves=np.stack([arrays["propensity_half_a"][i], arrays["propensity_half_b"][i]])[:, None],
            )
            for i in range(10)
        ]
    (group,) = score([c.propensity.T for c in configurations], configurations)
    a = group.types[0]
    assert float(a.ceiling_per_configuration[0]) == pytest.approx(0.917, abs=5e-4)  # three digits are given
    assert float(a.ceiling_pooled[0]) == pytest.approx(0.936, abs=5e-4)
