"""Full-batch minimisers find minima, and change nothing when they fail; rounds of them."""

import math
from itertools import pairwise

import pytest
import torch
from fits import problem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swsmix import GaussianNoise, HyperPrior, MixturePrior, Schedule, fit
from swsmix.training.rounds import METHODS, minimize_

METHOD = pytest.mark.parametrize("method", METHODS)


@METHOD
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_quadratic_ends_where_its_linear_system_says(method, n, seed):
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=random, dtype=torch.float64)
    a, b = a @ a.T + torch.eye(n).double(), torch.randn(n, generator=random, dtype=torch.float64)
    parts = [torch.zeros(1, dtype=torch.float64), torch.ones(n - 1, dtype=torch.float64)]
    for part in parts:
        part.requires_grad_()

    def objective():
        w = torch.cat(parts)
        return w @ a @ w / 2 - b @ w

    end = minimize_(objective, parts, method=method, iterations=500)
    found, exact = torch.cat(parts).detach(), torch.linalg.solve(a, b)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)
    assert end == pytest.approx(objective().item())


def test_another_method_is_refused_and_the_message_lists_those_there_are():
    with pytest.raises(ValueError, match="'l-bfgs', 'cg'; got 'newton'"):
        minimize_(lambda: torch.zeros(()), [torch.zeros(1)], method="newton", iterations=1)


@METHOD
def test_types_shapes_and_parameters_that_do_not_matter_are_kept(method):
    w = torch.full((2, 3), 4.0, requires_grad=True)
    half = torch.tensor(2.0, dtype=torch.float16, requires_grad=True)
    idle = torch.ones(2, requires_grad=True)
    minimize_(
        lambda: (w - 1).square().sum() + half.float().square(), [w, half, idle],
        method=method, iterations=50,
    )  # fmt: skip
    torch.testing.assert_close(w.detach(), torch.ones(2, 3), rtol=0, atol=1e-2)
    assert half.dtype == torch.float16 and abs(half.item()) < 1e-2
    assert torch.equal(idle.detach(), torch.ones(2))


@METHOD
@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_an_interrupted_search_changes_nothing(method, fault):
    w = torch.tensor([3.0, -2.0], requires_grad=True)
    visited = []

    def objective():
        visited.append(w.detach().clone())
        if len(visited) == 3:
            raise fault
        return (w**4).sum()

    with pytest.raises(fault):
        minimize_(objective, [w], method=method, iterations=5)
    assert not torch.equal(visited[-1], visited[0])
    assert torch.equal(w.detach(), torch.tensor([3.0, -2.0]))


@METHOD
def test_an_end_that_is_not_finite_is_told_and_changes_nothing(method):
    w = torch.tensor([3.0, -2.0], requires_grad=True)

    def objective():
        fall = -w.square().sum()
        return fall if fall > -2500 else 0 * fall - math.inf  # flat: the search ends there

    assert minimize_(objective, [w], method=method, iterations=50) == -math.inf
    assert torch.equal(w.detach(), torch.tensor([3.0, -2.0]))


# -- rounds of them in fit ----------------------------------------------------------------


def linear():
    """A linear problem, where full-batch training really converges."""
    _, (x, y), _ = problem()
    net = nn.Linear(4, 1).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, 0.4, -0.3, -0.2]]))
    return net, x.double(), y.double()


def test_full_batch_training_ends_where_data_and_prior_balance():
    net, x, y = linear()
    loss = GaussianNoise(0.3).double()
    prior = MixturePrior(net, 2, hyper=HyperPrior(std=0.1))
    options = {"optimizer": "l-bfgs", "iterations": 50, "epochs": 60, "progress": False}
    fit(net, loss, (x, y), prior=prior, **options)
    objective = len(x) * loss(net(x), y) + prior.penalty()
    gradient = torch.autograd.grad(objective, [*net.parameters(), *loss.parameters()])
    (pull,) = torch.autograd.grad(prior.penalty(), net.weight)
    assert pull.abs().max() > 0.1  # the prior does pull there
    assert max(g.abs().max() for g in gradient) < 1e-3 * pull.abs().max()
    mean = prior.mixtures["all"].mean.clone()
    prior.em_step_()
    torch.testing.assert_close(prior.mixtures["all"].mean, mean, atol=1e-5, rtol=0)


def test_learned_noise_is_the_root_mean_squared_residual_at_the_optimum():
    net, x, y = linear()
    loss = GaussianNoise(1.0).double()
    fit(net, loss, (x, y), optimizer="l-bfgs", iterations=50, epochs=2, progress=False)
    rms = (net(x) - y).square().mean().sqrt().item()
    assert loss.std == pytest.approx(rms, rel=1e-5)


def test_ctrl_c_in_a_full_batch_round_leaves_no_line_search_point():
    net, (x, y), _ = problem()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    calls = []

    def loss(prediction, target):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return (prediction - target).square().mean()

    with pytest.raises(KeyboardInterrupt):
        fit(net, loss, (x, y), optimizer="l-bfgs", epochs=1, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_in_mode_gradient_rounds_move_the_mixture_from_the_end_of_its_burn_in_on():
    net, data, _ = problem()
    prior = MixturePrior(net, 3, mode="gradient")
    (mixture,) = prior.mixtures.values()
    means = [mixture.mean.detach().clone()]
    fit(net, nn.MSELoss(), data, optimizer="cg", iterations=3, epochs=4, prior=prior,
        schedule=Schedule(em_start=2), progress=False,
        callback=lambda *_: means.append(mixture.mean.detach().clone()))  # fmt: skip
    moved = [not torch.equal(a, b) for a, b in pairwise(means)]
    assert moved == [False, False, True, True]
