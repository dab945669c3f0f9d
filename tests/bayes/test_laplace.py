"""The Laplace approximation and the evidence, against linear regression's closed form."""

import itertools
import math

import pytest
import torch
from linear_regression import NOISE, log_evidence, posterior, regression
from torch import nn

from swsmix import GaussianMixture, GaussianNoise, MixturePrior, Schedule, fit
from swsmix.bayes.laplace import curvature, expected_loss, laplace
from swsmix.diagnosis import PriorWarning

DOUBLE = torch.float64
AT_1 = Schedule(em_every=1)  # tau = 1 from the first round; by itself the prior enters later


def gaussian(prediction, target):
    """GaussianNoise(NOISE), in float64 to the last digit."""
    off = (prediction - target).square().mean() / NOISE**2
    return 0.5 * off + math.log(NOISE * math.sqrt(2.0 * math.pi))


def linear(std, seed=0, **sizes):
    """A linear network at its posterior mean under N(0, std^2)."""
    x, y = regression(seed=seed, **sizes)
    net = nn.Linear(x.shape[1], 1, bias=False).double()
    prior = MixturePrior(net, initial=GaussianMixture([1.0], [0.0], [std]).double())
    with torch.no_grad():
        net.weight.copy_(posterior(x, y, std)[0][None])
    return net, prior, (x, y[:, None])


@pytest.mark.parametrize("std", [0.05, 0.8, 20.0])
def test_on_linear_regression_posterior_and_evidence_are_exact(std):
    net, prior, data = linear(std)
    found = laplace(curvature(net, gaussian, data), prior)
    x, y = data[0], data[1][:, 0]
    torch.testing.assert_close(found.variance["weight"][0], posterior(x, y, std)[1])
    assert found.log_evidence() == pytest.approx(log_evidence(x, y, std), abs=1e-8)
    determined = len(found.curvature.values) - found.covariance.diagonal().sum() / std**2
    assert found.num_determined == pytest.approx(determined.item(), abs=1e-8)


@pytest.mark.parametrize("other_std", [0.3, 10.0])
def test_a_bias_outside_the_prior_is_integrated_out_under_its_own_std(other_std):
    x, y = regression()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=DOUBLE)], 1)
    spread = torch.tensor([0.8] * 12 + [other_std], dtype=DOUBLE).square().diag()
    w = torch.linalg.solve(x.T @ x / NOISE**2 + torch.linalg.inv(spread), x.T @ y / NOISE**2)
    net = nn.Linear(12, 1).double()
    prior = MixturePrior(net, initial=GaussianMixture([1.0], [0.0], [0.8]).double())
    with torch.no_grad():
        net.weight.copy_(w[None, :-1])
        net.bias.copy_(w[-1:])
    found = laplace(curvature(net, gaussian, (x[:, :-1], y[:, None])), prior, other_std=other_std)
    density = torch.distributions.MultivariateNormal(
        torch.zeros_like(y), NOISE**2 * torch.eye(len(y)).double() + x @ spread @ x.T
    )
    assert found.log_evidence() == pytest.approx(density.log_prob(y).item(), abs=1e-7)


def test_with_several_components_it_is_a_lower_bound_of_the_enumerated_evidence():
    mixture = GaussianMixture([0.6, 0.4], [0.0, 1.0], [0.1, 0.2]).double()
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    w = torch.tensor([0.0, 1.0, 0.05, 0.9, 1.2], dtype=DOUBLE)
    y = x @ w + NOISE * torch.randn(30, generator=torch.Generator().manual_seed(4), dtype=DOUBLE)
    terms = []
    for owner in itertools.product(range(2), repeat=5):  # every assignment is a Gaussian
        own = torch.tensor(owner)
        spread = NOISE**2 * torch.eye(30).double() + x @ mixture.std[own].square().diag() @ x.T
        density = torch.distributions.MultivariateNormal(x @ mixture.mean[own], spread)
        terms.append(mixture.mixing[own].log().sum() + density.log_prob(y))
    exact = torch.stack(terms).logsumexp(0).item()

    net = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():  # near zero every weight would stay in the component at zero
        net.weight.copy_(torch.linalg.lstsq(x, y[:, None]).solution.T)
    prior = MixturePrior(net, initial=mixture)
    data, s2 = (x, y[:, None]), None
    for _ in range(30):  # the best Gaussian: mean and variances in turn
        found = laplace(curvature(net, gaussian, data), prior, near=s2)
        s2 = found.variance
        for _ in range(20):
            value = 30 * gaussian(net(x), data[1]) + prior.expected_penalty(s2)
            (slope,) = torch.autograd.grad(value, net.weight)
            with torch.no_grad():
                net.weight -= slope @ found.covariance
    bound = laplace(curvature(net, gaussian, data), prior, near=s2).log_evidence()
    assert bound <= exact + 1e-9
    assert exact - bound < 1.0


def test_the_curvature_is_the_hessian_of_a_linear_network_for_every_loss():
    torch.manual_seed(0)
    x, net = torch.randn(30, 4).double(), nn.Linear(4, 3).double()
    y = torch.randint(3, (30,))
    loss = nn.CrossEntropyLoss()

    def total(flat):
        values = {"weight": flat[:12].view(3, 4), "bias": flat[12:]}
        return 30 * loss(torch.func.functional_call(net, values, (x,)), y)

    found = curvature(net, loss, (x, y))
    torch.testing.assert_close(found.matrix, torch.autograd.functional.hessian(total, found.values))
    summed = curvature(net, nn.CrossEntropyLoss(reduction="sum"), (x, y), num_data=1)
    torch.testing.assert_close(found.matrix, summed.matrix)
    assert found.log_likelihood == pytest.approx(summed.log_likelihood)


def test_parameters_of_the_loss_learn_the_noise_that_weights_do_not():
    net, prior, data = linear(0.8)
    loss = GaussianNoise(0.5).double()
    found = laplace(curvature(net, loss, data), prior)
    expected = expected_loss(found, loss, data)
    value = expected()
    (slope,) = torch.autograd.grad(value, loss.log_variance)
    # sum r^2 + sum var f, over n: where the slope vanishes
    off = (net(data[0]) - data[1]).square().sum() + found.output_variance().sum()
    best = (off / len(data[0])).item()
    at = 0.5 * len(data[0]) * (1.0 - best / 0.25)
    assert slope.item() == pytest.approx(at, rel=1e-5)
    assert found.output_variance().sum() > 0.0


def test_what_cannot_be_approximated_is_refused():
    net, prior, data = linear(0.8)
    bend = curvature(net, gaussian, data)
    with pytest.raises(ValueError, match="tau = 1 alone"):
        laplace(bend, prior, tau=0.5).log_evidence()
    with pytest.raises(ValueError, match="must be positive"):
        laplace(bend, prior, tau=0.0)
    with pytest.raises(ValueError, match="a mean or a sum over cases"):
        curvature(net, lambda f, y: (f - y).square().sum().sqrt(), data)
    with pytest.raises(ValueError, match="not positive definite"):
        # Concave in the output: no likelihood.
        laplace(curvature(net, lambda f, y: -10.0 * (f - y).square().mean(), data), prior)
    with pytest.raises(ValueError, match="this network has 5050"):
        curvature(nn.Linear(100, 50), nn.MSELoss(), (torch.ones(2, 100), torch.ones(2, 50)))
    with pytest.raises(ValueError, match="no entry for these tensors"):
        other = nn.Sequential(nn.Linear(3, 2))
        laplace(bend, MixturePrior(other, 1))


# -- in fit -----------------------------------------------------------------------------------


def classification(n=60, d=30):
    """Few cases, many inputs of which three matter: joint MAP collapses here."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n + 500, d, generator=draw, dtype=DOUBLE)
    y = (x[:, :3].sum(1) + 0.5 * torch.randn(n + 500, generator=draw, dtype=DOUBLE) > 0).double()
    return (x[:n], y[:n, None]), (x[n:], y[n:, None])


def trained(moments, epochs=8, **options):
    train, test = classification()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    prior = MixturePrior(net, initial=GaussianMixture([1.0], [0.0], [1.0]).double())
    fit(
        net, nn.BCEWithLogitsLoss(), train, optimizer="l-bfgs", epochs=epochs, iterations=25,
        prior=prior, moments=moments, schedule=AT_1, progress=False, **options,
    )  # fmt: skip
    wrong = ((net(test[0]) > 0) != (test[1] > 0.5)).double().mean().item()
    return wrong, prior.mixtures["all"].std.item(), net, prior


def test_a_small_classification_collapses_under_the_maximum_and_not_under_the_posterior():
    with pytest.warns(PriorWarning, match="collapsed"):
        wrong, std, _, _ = trained("maximum", epochs=25)
    assert std < 0.05 and wrong > 0.4
    wrong, std, _, _ = trained("posterior", epochs=25)
    assert std > 0.2 and wrong < 0.3


def test_a_run_over_the_posterior_resumes_bit_for_bit(tmp_path):
    _, _, net, prior = trained("posterior", epochs=4)
    trained("posterior", epochs=2, run=tmp_path / "run")
    _, _, again, resumed = trained("posterior", epochs=4, run=tmp_path / "run", resume=True)
    for one, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(prior.mixtures["all"].std, resumed.mixtures["all"].std)


def test_noise_moves_with_em_alone_and_stays_that_of_the_data():
    net, prior, data = linear(0.8, n=30, d=12)
    x, y = regression(30, 12, seed=1)
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    stds = {}
    for moments in ("maximum", "posterior"):
        torch.manual_seed(0)
        for layer in (net[0], net[2]):
            layer.reset_parameters()
        loss = GaussianNoise(1.0).double()
        prior = MixturePrior(net, initial=GaussianMixture([1.0], [0.0], [1.0]).double())
        prior.mixtures["all"].pinned_std[:] = True
        fit(
            net, loss, (x, y[:, None]), optimizer="l-bfgs", epochs=8, iterations=25, prior=prior,
            moments=moments, schedule=AT_1, progress=False,
        )  # fmt: skip
        stds[moments] = loss.std
    assert stds["posterior"] > 1.2 * stds["maximum"]  # the maximum takes its fit for precision


def test_moments_that_no_trainer_knows_are_refused():
    train, _ = classification()
    net = nn.Sequential(nn.Linear(30, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    loss = nn.BCEWithLogitsLoss()
    with pytest.raises(ValueError, match="is for a prior in mode 'em'"):
        fit(net, loss, train, optimizer="l-bfgs", epochs=1, moments="posterior", progress=False)
    adam = torch.optim.Adam(net.parameters())
    with pytest.raises(ValueError, match="needs a prior"):
        fit(net, loss, train, optimizer=adam, epochs=1, moments="posterior", progress=False)
