"""EM over the posterior N(w, s^2): the E step, its cells, and the closed form it must reach."""

import math

import cases
import numpy as np
import pytest
import reference
import torch
from linear_regression import log_evidence, posterior, regression
from scipy.optimize import minimize_scalar
from torch import nn

from swsmix import GaussianMixture, MixturePrior, e_step, m_step_
from swsmix.em import variational


def spreads(w, seed=0):
    """Variances from far below to above those of the mixtures in `cases`."""
    draw = torch.rand(w.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 10.0 ** (6.0 * draw - 5.0)


MIXTURES = sorted(set(cases.mixtures()) - {"dead component"})


@pytest.mark.parametrize("name", MIXTURES)
def test_the_e_step_over_the_posterior_agrees_with_its_twin(name):
    mixture, w = cases.mixtures()[name], cases.weights()
    found = e_step(mixture, w, variance=spreads(w))
    expected = reference.expected_moments(
        w.tolist(),
        spreads(w).tolist(),
        mixture.mixing.tolist(),
        mixture.mean.tolist(),
        mixture.std.tolist(),
    )
    for got, exact in zip((found.count, found.first, found.second), expected, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-9)


def test_at_no_variance_it_is_the_e_step_of_the_weights():
    mixture, w = start(), cases.weights()
    plain, expected = e_step(mixture, w), e_step(mixture, w, variance=torch.zeros_like(w))
    for name in ("count", "first", "second"):
        torch.testing.assert_close(getattr(plain, name), getattr(expected, name))


def start():
    return GaussianMixture([0.5, 0.3, 0.2], [0.0, -0.4, 0.7], [0.02, 0.3, 0.15]).double()


def test_its_value_bounds_the_expected_log_density_and_is_tight_for_one_component():
    mixture, w = start(), cases.weights()[:50]
    s2 = spreads(w)
    draws = w + s2.sqrt() * torch.randn(4000, 50, generator=torch.Generator().manual_seed(1))
    expected = -mixture.log_prob(draws).mean(0).sum()
    assert variational.neg_expected_log_prior(mixture, w, s2) > expected
    one = GaussianMixture([1.0], [0.1], [0.5]).double()
    exact = 0.5 * (((w - 0.1).square() + s2) / 0.25 + math.log(2 * math.pi * 0.25)).sum()
    torch.testing.assert_close(variational.neg_expected_log_prior(one, w, s2), exact)


def test_the_precision_is_the_curvature_of_the_bound_with_gamma_held():
    mixture, w = start(), cases.weights()
    s2 = spreads(w).requires_grad_()
    # dF / d(s^2) = sum_j gamma_ij / (2 sigma_j^2)
    (slope,) = torch.autograd.grad(variational.neg_expected_log_prior(mixture, w, s2), s2)
    torch.testing.assert_close(2.0 * slope, variational.precision(mixture, w, s2))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cells_sum_up_to_the_weights_within_a_thousandth(seed, dtype):
    draw = torch.Generator().manual_seed(seed)
    k, n = int(torch.randint(1, 9, (), generator=draw)), 30_000
    mean = torch.randn(k, generator=draw, dtype=torch.float64)
    std = 10.0 ** (-3.0 * torch.rand(k, generator=draw, dtype=torch.float64))
    mixture = GaussianMixture(torch.full((k,), 1.0 / k).double(), mean, std)
    which = torch.randint(k, (n,), generator=draw)
    w = (mean[which] + 1.5 * std[which] * torch.randn(n, generator=draw).double()).to(dtype)
    s2 = (std[which] * 10.0 ** (2.0 * torch.rand(n, generator=draw) - 1.5)).square().to(dtype)
    value, direct = variational.sums(mixture, w, s2)
    cells = variational.gathered(mixture, w, s2)
    by_cells, sums = variational.sums(mixture, *cells)
    assert cells[2].sum() == n and len(cells[2]) < n
    share = direct[0].clamp_min(1.0)
    assert ((sums[0] - direct[0]).abs() < 1e-3 * share).all()
    assert ((sums[1] - direct[1]).abs() < 1e-3 * share * (direct[2] / share).sqrt() + 1e-9).all()
    assert ((sums[2] - direct[2]).abs() < 2e-3 * direct[2] + 1e-9).all()
    assert by_cells <= value + 1e-9 * abs(value)  # a lower bound (Jensen), and near
    assert value - by_cells < 1e-3 * n


@pytest.mark.parametrize("centre", [0.0, 3.0])
def test_cells_keep_the_moments_of_all_weights_about_one_centre(centre):
    mixture, w = start(), cases.weights().double()
    s2 = spreads(w)
    _, (count, first, second) = variational.sums(mixture, *variational.gathered(mixture, w, s2))
    off = mixture.mean - centre
    torch.testing.assert_close((first + count * off).sum(), (w - centre).sum())
    about = (second + 2.0 * off * first + count * off.square()).sum()
    torch.testing.assert_close(about, ((w - centre).square() + s2).sum(), rtol=1e-9, atol=0)


def test_equal_weights_and_variances_of_zero_have_cells():
    mixture, w = start(), torch.full((100,), 0.3).double()
    count = variational.gathered(mixture, w, torch.zeros_like(w))[2]
    assert count.tolist() == [100.0]


def test_large_tensors_are_summed_by_cells(monkeypatch):
    mixture, w = start(), cases.weights()
    monkeypatch.setattr(variational, "DIRECT", 10)
    called = []
    gathered = variational.gathered
    monkeypatch.setattr(variational, "gathered", lambda *a: called.append(1) or gathered(*a))
    found = e_step(mixture, w, variance=spreads(w))
    assert called and found.count.sum().item() == pytest.approx(len(w))


# -- against the closed form ------------------------------------------------------------------


def em_on(x, y, steps, *, variance=True, std=0.2):
    """Textbook EM on the one std of a Gaussian prior; the log evidence at each step."""
    mixture, values = GaussianMixture([1.0], [0.0], [std]).double(), []
    mixture.pinned_mean[:] = True
    for _ in range(steps):
        values.append(log_evidence(x, y, mixture.std.item()))
        w, s2 = posterior(x, y, mixture.std.item())
        m_step_(mixture, e_step(mixture, w, variance=s2 if variance else None), None)
    return mixture.std.item(), values


@pytest.mark.parametrize("seed", range(3))
def test_ems_fixed_point_is_the_maximum_of_the_evidence(seed):
    x, y = regression(seed=seed)
    best = minimize_scalar(
        lambda t: -log_evidence(x, y, math.exp(t)), bounds=(-4, 2), options={"xatol": 1e-10}
    )
    std, values = em_on(x, y, 400)
    assert std == pytest.approx(math.exp(best.x), rel=1e-5)
    gain = np.diff(values)
    assert (gain > -1e-10).all() and gain[0] > 1e-3  # EM never lowers the evidence
    collapsed, _ = em_on(x, y, 400, variance=False)
    assert collapsed < 0.6 * std  # EM over the maximum: MacKay's collapse


# -- in the prior -----------------------------------------------------------------------------


def prior_of(net, k=3, **options):
    return MixturePrior(net, k, **options)


def net_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 4))


def some_variance(net, value=0.01):
    return {n: torch.full_like(p, value) for n, p in net.named_parameters() if p.ndim > 1}


def test_the_em_step_takes_variances_by_name_and_groups_add_up():
    net = net_of()
    prior, twin = prior_of(net), prior_of(net)
    s2 = {name: spreads(p, seed=i) for i, (name, p) in enumerate(some_variance(net).items())}
    prior.em_step_(variance=s2)
    mixture, flat = twin.mixtures["all"], twin.flat_weights("all")
    together = torch.cat([s2[name].reshape(-1) for name in twin.selection.names])
    m_step_(mixture, e_step(mixture, flat, variance=together), twin.hyper_priors["all"])
    torch.testing.assert_close(prior.mixtures["all"].std, mixture.std)
    torch.testing.assert_close(prior.mixtures["all"].mixing, mixture.mixing)


def test_no_step_over_the_posterior_raises_the_expected_penalty():
    net = net_of()
    prior, s2 = prior_of(net, groups="tensor"), some_variance(net)
    values = []
    for _ in range(30):
        values.append(prior.expected_penalty(s2).item())
        prior.em_step_(variance=s2)
    assert (np.diff(values) < 1e-5 * abs(values[0])).all() and values[-1] < values[0] - 1.0


def test_the_expected_penalty_without_variance_is_the_penalty_with_its_gradient():
    net = net_of()
    prior, params = prior_of(net), [p for p in net.parameters() if p.ndim > 1]
    one, other = prior.penalty(), prior.expected_penalty(some_variance(net, 0.0))
    torch.testing.assert_close(one, other)
    for a, b in zip(
        torch.autograd.grad(one, params), torch.autograd.grad(other, params), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s2: s2.pop("0.weight"), "missing: .*0.weight"),
        (lambda s2: s2.update(bias=torch.ones(3)), "not in the prior: .*bias"),
        (lambda s2: s2.update({"0.weight": torch.ones(3)}), r"shape \(10, 20\).*got \(3,\)"),
        (lambda s2: s2["0.weight"].__setitem__((0, 0), -1.0), "at least 0; 1 of the 200 of 0.w"),
        (lambda s2: s2["0.weight"].__setitem__((0, 0), math.nan), "finite"),
    ],
)
def test_variances_that_do_not_fit_are_refused_and_the_mixture_stays(change, message):
    net = net_of()
    prior, s2 = prior_of(net), some_variance(net)
    before = prior.mixtures["all"].std.clone()
    change(s2)
    with pytest.raises(ValueError, match=message):
        prior.em_step_(variance=s2)
    assert torch.equal(prior.mixtures["all"].std, before)


def test_a_sample_of_the_weights_contains_the_variance_by_itself():
    # What an optimiser that samples (IVON) or a sampler gives: no variance then.
    mixture = GaussianMixture([1.0], [0.0], [0.3]).double()
    w, draw = cases.weights(), torch.Generator().manual_seed(0)
    s2 = torch.full_like(w, 0.04)
    samples = w + 0.2 * torch.randn(2000, *w.shape, generator=draw, dtype=torch.float64)
    by_sample = e_step(mixture, samples).second / 2000
    torch.testing.assert_close(by_sample, e_step(mixture, w, variance=s2).second, rtol=0.01, atol=0)
