"""The parts of an ensemble: losses, penalties and EM steps are each member's."""

import copy

import pytest
import torch
from ensembles import FLOAT, B, cases, everything, made
from torch import nn

from swsmix import GaussianNoise
from swsmix.training.ensemble.mixtures import Mixtures
from swsmix.training.ensemble.stacking import Stack


@pytest.mark.parametrize("own_data", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_data_term_and_its_gradient_are_each_networks(own_data, frozen):
    nets, _ = made(frozen=frozen)
    losses = [GaussianNoise(0.2 + 0.1 * i).to(FLOAT) for i in range(B)]
    data = [cases(seed=i) for i in range(B)] if own_data else cases()
    stack = Stack(nets, losses, data)
    rows = torch.tensor([2, 0])
    value, gradient = stack.value_and_gradient(stack.theta()[rows], rows)
    for place, i in enumerate(rows.tolist()):
        x, y = data[i] if own_data else data
        total = len(x) * losses[i](nets[i](x), y)
        moving = [p for p in [*nets[i].parameters(), *losses[i].parameters()] if p.requires_grad]
        grads = torch.autograd.grad(total, moving)
        torch.testing.assert_close(value[place], total.detach())
        torch.testing.assert_close(gradient[place], torch.cat([g.reshape(-1) for g in grads]))


def test_a_case_weight_of_0_leaves_the_case_out_and_of_2_counts_it_twice():
    nets, _ = made()
    x, y = cases(6)
    weights = torch.ones(B, 6, dtype=FLOAT)
    weights[1, 4:], weights[2, 0] = 0.0, 2.0
    stack = Stack(nets, nn.functional.mse_loss, (x, y), weights=weights)
    found = stack.value(stack.theta())
    assert stack.num_data().tolist() == [6.0, 4.0, 7.0, 6.0]
    for i, rows in enumerate(([*range(6)], [0, 1, 2, 3], [0, *range(6)], [*range(6)])):
        expected = len(rows) * nn.functional.mse_loss(nets[i](x[rows]), y[rows])
        torch.testing.assert_close(found[i], expected.detach())


@pytest.mark.parametrize("mode", ["em", "gradient"])
@pytest.mark.parametrize("groups", ["tensor", "global"])
def test_the_penalty_and_its_gradients_are_each_priors(mode, groups):
    nets, priors = made(mode, groups)
    stack = Stack(nets, nn.functional.mse_loss, cases())
    mixtures = Mixtures(priors, stack)
    rows = torch.tensor([3, 1])
    theta, phi = stack.theta()[rows], mixtures.phi()[rows]
    value, by_theta, by_phi = mixtures.penalty(theta, phi, rows)
    for place, i in enumerate(rows.tolist()):
        penalty = priors[i].penalty()
        penalty.backward()
        torch.testing.assert_close(value[place], penalty.detach())
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in nets[i].parameters()]
        torch.testing.assert_close(by_theta[place], torch.cat([s.reshape(-1) for s in slopes]))
        own = [
            getattr(m.parametrizations, name)[0] and m.parametrizations[name].original.grad
            for m in priors[i].mixtures.values()
            for name in (("mixing", "mean", "std") if mode == "gradient" else ())
        ]
        torch.testing.assert_close(by_phi[place], torch.cat([*own, theta[0, :0]]))


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_an_em_step_is_each_priors_and_leaves_the_others_as_they_are(rate):
    nets, priors = made()
    stack = Stack(nets, nn.functional.mse_loss, cases())
    mixtures = Mixtures(priors, stack)
    twins = [copy.deepcopy(prior) for prior in priors]
    for step in range(3):
        moves = [True, step != 1, False, True]
        rates = torch.tensor([rate * m for m in moves], dtype=FLOAT)
        mixtures.em_step_(stack.theta(), rates)
        for i, twin in enumerate(twins):
            if moves[i]:
                for p, q in zip(twin._model[0].parameters(), nets[i].parameters(), strict=True):
                    p.data.copy_(q.data)
                twin.em_step_(rate)
    mixtures.write_()
    for prior, twin in zip(priors, twins, strict=True):
        torch.testing.assert_close(everything(prior), everything(twin), rtol=1e-9, atol=1e-12)
