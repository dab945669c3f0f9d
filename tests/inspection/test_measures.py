"""Heavy tails and clusters as numbers: known distributions, a slow twin, and what they ignore."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from swsmix.cli.inspect import Measure
from swsmix.inspection.clustering import variance_left
from swsmix.inspection.inspect import inspect
from swsmix.inspection.measures import measures, shape_of
from swsmix.inspection.sorting import KEYS, measured, ordered


@pytest.mark.parametrize("beta", [0.3, 0.7, 1.0, 1.5, 2.0, 4.0, 12.0])
def test_the_shape_is_that_of_the_generalised_gaussian_with_the_same_moments(beta):
    law = stats.gennorm(beta)
    ratio = law.expect(abs, -np.inf, np.inf) if beta > 0.5 else None
    if ratio is None:  # quadrature is poor there: moments by the gamma function of scipy
        from scipy.special import gamma

        ratio = gamma(2 / beta) / gamma(1 / beta)
    assert shape_of(ratio / law.std()) == pytest.approx(beta, rel=1e-6)


@pytest.mark.parametrize(("law", "shape"), [("norm", 2.0), ("laplace", 1.0)])
def test_kurtosis_and_shape_of_samples_are_those_of_their_laws(law, shape):
    quantiles = getattr(stats, law).ppf((np.arange(200_000) + 0.5) / 200_000)
    found = measures([torch.from_numpy(quantiles)])
    assert found.kurtosis == pytest.approx(3.0 + getattr(stats, law).stats(moments="k"), rel=2e-3)
    assert found.shape == pytest.approx(shape, rel=2e-3)


def test_the_moments_are_those_of_scipy_whatever_the_parts_scale_and_place():
    w = torch.randn(3001, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 3
    parts, before = [*w.split(1000)], w.clone()
    found = measures(parts)
    assert torch.equal(w, before)
    assert found.kurtosis == pytest.approx(stats.kurtosis(w.numpy(), fisher=False), rel=1e-12)
    assert found.std == pytest.approx(w.std(correction=0).item(), rel=1e-12)
    far = (w - w.mean()).abs() > 6 * w.std(correction=0)
    assert found.outliers == int(far.sum()) > 0
    other = measures([1e-3 * part + 5.0 for part in parts])
    for name in ("kurtosis", "shape", "left", "outliers"):
        assert getattr(other, name) == pytest.approx(getattr(found, name), rel=1e-6)


def test_the_variance_left_is_the_least_of_all_partitions():
    w = torch.tensor([0.3, -1.0, 0.1, 2.0, 2.2, -0.7, 0.0, 0.9], dtype=torch.float64)
    x = np.sort(w.numpy())
    total = ((x - x.mean()) ** 2).sum()
    for k in (1, 2, 3):
        ways = itertools.combinations(range(1, len(x)), k - 1)
        least = min(
            sum(((part - part.mean()) ** 2).sum() for part in np.split(x, ends)) for ends in ways
        )
        assert variance_left([w], k) == pytest.approx(least / total, rel=1e-9)
    assert variance_left([w], 8) == 0.0
    assert variance_left([torch.ones(5)], 2) == 0.0


def test_equal_weights_have_no_tails():
    found = measures([torch.full((50,), 0.1)])
    assert math.isnan(found.kurtosis) and math.isnan(found.shape)
    assert found.std == found.left == found.outliers == 0


def test_tensors_are_sorted_from_the_largest_and_those_without_the_measure_come_last(tmp_path):
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(40, 40, generator=g)
    state = {"flat": torch.rand(40, 40, generator=g), "equal": torch.ones(4, 4), "n": normal}
    state["heavy"] = normal**3
    torch.save(state, tmp_path / "a.pt")
    tensors = [tensor for tensor, _ in inspect(tmp_path / "a.pt", num_components=2).layers]
    assert [t.name for t in ordered(tensors, "kurtosis")] == ["heavy", "n", "flat", "equal"]
    assert [t.name for t in ordered(tensors, "gg-shape")] == ["flat", "n", "heavy", "equal"]
    assert ordered(tensors, None) == tensors
    for key in KEYS:
        values = [v for v in measured(ordered(tensors, key), key) if v == v]
        assert values == sorted(values, reverse=True)
    with pytest.raises(ValueError, match=r"sort must be one of kurtosis, .* got 'size'"):
        ordered(tensors, "size")


def test_the_command_sorts_by_every_measure():
    assert [measure.value for measure in Measure] == [*KEYS]
