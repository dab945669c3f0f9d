"""Where the components begin: every component gets weights."""

from inspect import unwrap

import cases
import pytest
import torch

from swsmix import initial_mixture
from swsmix.start.initial import subsample


@pytest.mark.parametrize("method", ["spread", "quantiles", "kmeans"])
@pytest.mark.parametrize("zero", [False, True])
def test_every_initialisation_gives_each_component_weights(method, zero):
    w = cases.weights()
    mixture = initial_mixture(w, 5, method=method, zero=zero)
    assert (mixture.responsibilities(w).sum(0) > 0.1).all()
    assert mixture.mixing.sum().item() == pytest.approx(1.0)
    if zero:
        assert mixture.mean[0] == 0.0 and mixture.pinned_mean.tolist() == [True] + [False] * 4


def test_spread_covers_the_range_evenly():
    w = cases.weights()
    mean = initial_mixture(w, 5, method="spread").mean
    assert mean[0] == w.min() and mean[-1] == w.max()
    torch.testing.assert_close(mean.diff(), mean.diff()[:1].expand(4))


@pytest.mark.parametrize("zero", [False, True])
def test_components_that_are_spread_begin_with_the_same_share_each(zero):
    mixing = initial_mixture(cases.weights(), 5, method="spread", zero=zero).mixing
    torch.testing.assert_close(mixing, torch.full_like(mixing, 0.2))


@pytest.mark.parametrize("method", ["auto", "spread", "quantiles", "kmeans"])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_one_component_at_zero_is_as_wide_as_the_weights_about_zero(method, unit):
    w = unit * (cases.weights() + 0.3)
    mixture = initial_mixture(w, 1, method=method, zero=True)
    assert mixture.mean.item() == 0.0
    assert mixture.std.item() == pytest.approx(w.square().mean().sqrt().item(), rel=0.01)
    assert initial_mixture(torch.zeros(9), 1, method=method, zero=True).std.item() > 1e-3


def test_components_beyond_the_number_of_different_weights_are_spread_evenly():
    mixture = initial_mixture(torch.tensor([0.0, 1.0]).repeat(50), 5)
    extra = mixture.mean[2:]  # in four equal parts of the range and a std on both sides
    torch.testing.assert_close(extra, torch.tensor([0.0, 0.5, 1.0]), atol=0.01, rtol=0)


def test_a_sample_does_not_hang_on_how_the_weights_are_cut_into_tensors():
    w = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole, parts = (subsample(flat, 0, most=999) for flat in ([w], w.split([300, 0, 600, 100])))
    assert len(whole) == 1001 and torch.equal(whole.sort().values, parts.sort().values)


@pytest.mark.parametrize("method", ["spread", "quantiles", "kmeans"])
@pytest.mark.parametrize(
    "w", [torch.zeros(50), torch.tensor([0.0] * 50 + [1.0]), torch.arange(3.0)]
)
def test_degenerate_weights_still_give_a_finite_mixture(method, w):
    mixture = initial_mixture(w, 3, method=method)
    assert torch.isfinite(mixture.log_prob(w)).all()


@pytest.mark.parametrize(
    ("w", "k", "options", "message"),
    [
        (torch.tensor([0.0, float("nan")]), 1, {}, "1 of 2 are nan or inf"),
        (torch.zeros(3), 4, {}, "use fewer components"),
        (torch.zeros(3), 0, {}, "at least 1"),
        (torch.zeros(3), 2, {"method": "guess"}, "method must be"),
        (torch.zeros(3), "auto", {"method": "spread"}, "needs method='auto', which counts"),
        (torch.zeros(3), 2, {"zero_mixing": 0.9}, "zero=True"),
        (torch.zeros(3), 2, {"zero": True, "zero_mixing": 1.5}, "between 0 and 1"),
    ],
)
def test_impossible_starts_are_refused_with_the_reason(w, k, options, message):
    settings = {"method": "quantiles", "zero": False, "zero_mixing": None, "seed": 0} | options
    with pytest.raises(ValueError, match=message):  # beneath the type checker of these tests
        unwrap(initial_mixture)(w, k, **settings)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("n", [300, 10_000])
def test_weights_without_clusters_are_shared_by_all_components(n, zero):
    """The likelihood alone would put most of them on pairs of weights that are close by chance."""
    w = torch.randn(n, generator=torch.Generator().manual_seed(n))
    mixture = initial_mixture(w, 6, zero=zero)
    assert (mixture.responsibilities(w).sum(0) > 0.02 * n).all()
    assert mixture.std.min() > 0.05


def test_a_component_on_one_weight_is_as_wide_as_its_distance_to_the_next():
    """One weight says nothing of a std: at a thousandth of the scale it could not move."""
    mixture = initial_mixture(torch.tensor([-0.34, -0.107, -0.068]), 2)
    assert mixture.std[mixture.mean.argmin()] > 0.1 * mixture.mean.diff().abs()
