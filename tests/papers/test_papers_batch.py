"""The 1992 paper's batched networks and their minimiser, against the library and scipy."""

import dataclasses
import sys
from pathlib import Path

import pytest
import scipy.optimize
import torch

from swsmix import GaussianMixture, GaussianNoise, HyperPrior, MixturePrior
from swsmix.problems import data, nets
from swsmix.training.ensemble import lbfgs

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from papers.nowlan1992 import forecasts, penalties, sampling  # noqa: E402
from papers.nowlan1992 import nets as batch  # noqa: E402

FLOAT = torch.float64


# ------------------------------------------------------------------- the batch and the library


def problem(likelihood, networks=3, num=40):
    generator = torch.Generator().manual_seed(0)
    if likelihood == "binary":
        x, y = data.shift(num, generator=generator, dtype=FLOAT)
        hidden = 10
    else:
        x, y = forecasts.numbers(1712, 1711 + num)
        x, y, hidden = x / 191.0, y / 191.0, 8
    cases = batch.Cases(x, y, torch.ones(networks, num, dtype=FLOAT), likelihood, hidden)
    return cases, cases.start(range(networks), 1.0)


def module(cases, theta):
    """The library's network with a row's weights."""
    h, n = cases.hidden, cases.num_weights
    make = nets.shift_net if cases.likelihood == "binary" else nets.sunspot_net
    net = make(dtype=FLOAT)
    with torch.no_grad():
        net.hidden.weight.copy_(theta[: n - h].view(h, -1))
        net.output.weight.copy_(theta[None, n - h : n])
        net.hidden.bias.copy_(theta[n : n + h])
        net.output.bias.copy_(theta[n + h])
    return net


@pytest.mark.parametrize("likelihood", ["binary", "gaussian"])
def test_each_row_is_the_librarys_network_loss_and_gradient(likelihood):
    cases, theta = problem(likelihood)
    value, gradient = cases.data_term(theta, torch.arange(3))
    for row in range(3):
        net = module(cases, theta[row])
        noise = GaussianNoise(0.3).to(FLOAT)
        loss = torch.nn.BCEWithLogitsLoss() if likelihood == "binary" else noise
        total = len(cases.targets) * loss(net(cases.inputs), cases.targets)
        total.backward()
        grads = [net.hidden.weight, net.output.weight, net.hidden.bias, net.output.bias]
        grads += [noise.log_variance] if likelihood == "gaussian" else []
        expected = torch.cat([p.grad.reshape(-1) for p in grads])
        torch.testing.assert_close(value[row], total.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient[row], expected, rtol=1e-5, atol=1e-5)


def test_a_case_weight_of_0_leaves_the_case_out():
    cases, theta = problem("gaussian")
    share = cases.share.clone()
    share[:, 30:] = 0.0
    fewer = dataclasses.replace(
        cases, inputs=cases.inputs[:30], targets=cases.targets[:30], share=cases.share[:, :30]
    )
    left_out = dataclasses.replace(cases, share=share)
    rows = torch.arange(3)
    for a, b in zip(left_out.data_term(theta, rows), fewer.data_term(theta, rows), strict=True):
        torch.testing.assert_close(a, b)


def mixtures(networks=3, k=4):
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand(3, networks, k, generator=generator, dtype=FLOAT)
    ones = torch.ones(networks, dtype=FLOAT)
    mixing = draw[0] / draw[0].sum(-1, keepdim=True)
    several = GaussianMixture(mixing, 2 * draw[1] - 1, 0.2 + draw[2])
    hyper = HyperPrior(std=0.3, std_count=1.5)
    return penalties.Sharing(several, hyper, 0.7 * ones, pace=0.5)


def library_prior(cases, theta, sharing, row, mode):
    mixture, net = sharing.mixture.member(row), module(cases, theta[row])
    return MixturePrior(net, 4, mode=mode, initial=mixture, hyper=sharing.hyper)


def test_soft_sharing_is_the_librarys_penalty_and_its_gradient():
    cases, theta = problem("gaussian")
    sharing, n = mixtures(), cases.num_weights
    rest, rows = sharing.rest(), torch.arange(3)
    value, by_weights, by_rest = sharing(theta[:, :n], rest, rows)
    held, by_weights_held, _ = sharing(theta[:, :n], rest[:, :0], rows)
    torch.testing.assert_close(value, held)
    torch.testing.assert_close(by_weights, by_weights_held)
    for row in range(3):
        prior = library_prior(cases, theta, sharing, row, "gradient")
        penalty = 0.7 * prior.penalty()
        penalty.backward()
        torch.testing.assert_close(value[row], penalty.detach(), rtol=1e-6, atol=1e-6)
        weights = torch.cat([p.grad.reshape(-1) for p in prior.parameters_of("all").values()])
        torch.testing.assert_close(by_weights[row], weights, rtol=1e-6, atol=1e-6)
    # The mixtures' own gradients, in this paper's parameters, by central differences.
    for j in range(12):
        step = torch.zeros_like(rest)
        step[:, j] = 1e-5
        up, down = (sharing(theta[:, :n], rest + s, rows)[0] for s in (step, -step))
        torch.testing.assert_close(by_rest[:, j], (up - down) / 2e-5, rtol=1e-5, atol=1e-5)


def test_the_batched_em_step_is_the_librarys():
    cases, theta = problem("gaussian")
    sharing, n = mixtures(), cases.num_weights
    priors = [library_prior(cases, theta, sharing, row, "em") for row in range(3)]
    sharing.em_step_(theta[:, :n])
    for row, prior in enumerate(priors):
        prior.em_step_()
        for name in ("mixing", "mean", "std"):
            ours, theirs = getattr(sharing.mixture, name)[row], getattr(prior.mixtures["all"], name)
            torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "penalty",
    [
        penalties.Decay(torch.full((3,), 0.4, dtype=FLOAT)),
        penalties.Elimination(torch.ones(3, dtype=FLOAT), torch.full((3,), 0.7, dtype=FLOAT)),
    ],
)
def test_the_other_penalties_gradients_are_right(penalty):
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=FLOAT)
    _, gradient, _ = penalty(weights, weights[:, :0], torch.arange(3))
    for j in range(5):
        step = torch.zeros_like(weights)
        step[:, j] = 1e-6
        up, down = (penalty(weights + s, weights[:, :0], torch.arange(3))[0] for s in (step, -step))
        torch.testing.assert_close(gradient[:, j], (up - down) / 2e-6, rtol=1e-6, atol=1e-6)


def test_a_squashed_output_has_the_right_gradient():
    cases, theta = problem("gaussian")
    cases = dataclasses.replace(cases, squashed=True)
    rows = torch.arange(3)
    _, gradient = cases.data_term(theta, rows)
    for j in (0, 50, 100, 105, 112, 113):
        step = torch.zeros_like(theta)
        step[:, j] = 1e-6
        up, down = (cases.data_term(theta + s, rows)[0] for s in (step, -step))
        torch.testing.assert_close(gradient[:, j], (up - down) / 2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_without_data_the_draws_are_the_priors(temperature):
    chains, std = 72, 0.4  # side by side they cost little
    x = torch.zeros(4, 2, dtype=FLOAT)
    cases = batch.Cases(x, x[:, 0], torch.zeros(chains, 4, dtype=FLOAT), "binary", 2)
    one = torch.ones(chains, 1, dtype=FLOAT)
    hyper = HyperPrior(std=std, std_count=1e7)
    prior = penalties.Sharing(GaussianMixture(one, 0 * one, std * one), hyper, one[:, 0])
    drawn = sampling.sample(
        cases, cases.start(range(chains), 0.3), prior, burn=60, keep=40, temperature=temperature
    )
    w = drawn[..., : cases.num_weights]  # mu is free to wander: within a net
    assert w.std(2).square().mean().sqrt().item() == pytest.approx(std * temperature**0.5, rel=0.06)


# ------------------------------------------------------------------------------------ L-BFGS


def rosenbrock(theta, rows):
    x = theta.detach().requires_grad_()
    value = (100 * (x[:, 1:] - x[:, :-1].square()).square() + (1 - x[:, :-1]).square()).sum(-1)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def test_lbfgs_finds_the_minima_that_scipy_finds():
    start = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=FLOAT)
    found, value = lbfgs.minimise(rosenbrock, start, 200)
    for row in range(6):
        theirs = scipy.optimize.minimize(scipy.optimize.rosen, start[row].numpy(), method="BFGS")
        assert value[row] <= theirs.fun + 1e-8
        torch.testing.assert_close(rosenbrock(found, None)[0][row], value[row])


def test_the_problems_of_a_batch_do_not_see_each_other():
    cases, theta = problem("gaussian", networks=4)
    penalty = penalties.Decay(torch.tensor([0.1, 0.3, 1.0, 3.0], dtype=FLOAT))
    together, _ = batch.train(cases, theta, penalty, 25)
    one = dataclasses.replace(cases, share=cases.share[2:3])
    alone, _ = batch.train(one, theta[2:3], penalties.Decay(penalty.std[2:3]), 25)
    torch.testing.assert_close(together[2:3], alone, rtol=1e-6, atol=1e-8)
