"""Components merged: mass, mean and variance stay, and the loss is stated."""

import cases
import pytest
import torch

from swsmix import GaussianMixture
from swsmix.compression.merging import merge_components


def test_merging_keeps_mass_mean_and_variance_of_the_whole_mixture():
    mixture = GaussianMixture([0.3, 0.2, 0.5], [0.0, 0.1, 2.0], [0.5, 0.7, 0.3])
    merged = merge_components(mixture, cases.weights(), threshold=1.0)
    assert merged.parts == ((0, 1), (2,))
    for one, two in ((mixture.distribution(), merged.mixture.distribution()),):
        assert torch.allclose(one.mean, two.mean) and torch.allclose(one.variance, two.variance)
    spread = (0.3 * 0.5**2 + 0.2 * 0.7**2) / 0.5  # without the spread between the means
    assert merged.mixture.std[0] ** 2 > spread


def test_the_loss_of_merging_is_the_rise_of_the_penalty():
    w = cases.weights()
    mixture = cases.mixtures()["coinciding"]
    merged = merge_components(mixture, w)
    old, new = mixture.log_prob(w).sum(), merged.mixture.log_prob(w).sum()
    assert merged.loss == pytest.approx((old - new).item(), abs=1e-9)
    assert merged.parts == ((0, 1), (2,), (3,))


def test_equal_components_merge_for_free_and_far_ones_stay():
    mixture = GaussianMixture([0.5, 0.25, 0.25], [0.0, 1.0, 1.0], [0.1, 0.1, 0.1])
    for by in ("kl", "overlap"):
        merged = merge_components(mixture, cases.weights(), by=by)
        assert merged.parts == ((0,), (1, 2)) and merged.loss == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("by", ["kl", "overlap"])
def test_the_distance_is_the_one_of_the_densities(by):
    a, b = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.4, 1.3)
    x = torch.linspace(-15.0, 15.0, 200_001).double()
    if by == "kl":
        kl = torch.distributions.kl_divergence
        distance = (0.5 * (kl(a, b) + kl(b, a))).item()
        below, above = distance * 1.001, distance * 0.999
    else:
        coefficient = torch.trapezoid((0.5 * (a.log_prob(x) + b.log_prob(x))).exp(), x).item()
        below, above = coefficient * 0.999, coefficient * 1.001
    mixture = GaussianMixture([0.5, 0.5], [0.0, 0.4], [1.0, 1.3])
    w = cases.weights()
    assert len(merge_components(mixture, w, by=by, threshold=below).parts) == 1
    assert len(merge_components(mixture, w, by=by, threshold=above).parts) == 2


def test_pins_survive_merging():
    mixture = GaussianMixture(
        [0.9, 0.05, 0.05], [0.0, 0.001, 1.0], [0.1] * 3, pinned_mean=[True, False, False]
    )
    merged = merge_components(mixture, cases.weights()).mixture
    assert merged.mean.tolist() == [0.0, 1.0] and merged.pinned_mean.tolist() == [True, False]
    both = GaussianMixture([0.5, 0.5], [0.0, 1e-9], [1.0, 1.0], pinned_mean=[True, True])
    assert len(merge_components(both, cases.weights()).parts) == 2


@pytest.mark.parametrize("pinned", [[True, False], [False, True]])
def test_of_two_merged_components_the_pinned_std_stays(pinned):
    mixture = GaussianMixture([0.5, 0.5], [0.0, 1e-4], [1.0, 1.001], pinned_std=pinned)
    merged = merge_components(mixture, cases.weights()).mixture
    assert merged.std.tolist() == [1.0 if pinned[0] else 1.001]
    assert merged.pinned_std.tolist() == [True]


def test_impossible_thresholds_are_refused():
    mixture = cases.mixtures()["one"]
    with pytest.raises(ValueError, match="impossible"):
        merge_components(mixture, cases.weights(), by="overlap", threshold=1.5)
