"""The proximal step: the right fixed points, and stable for every sigma and step size."""

import importlib.util
import types

import pytest
import torch
from attaching import EVERY, NUM_DATA, OPTIMIZERS, TAU, loss_of, problem
from torch import nn

from swsmix import GaussianMixture, MixturePrior, Schedule
from swsmix.attach import proximal


def stationary(make, update, steps=4000):
    """Train a linear network on the full batch, under a fixed mixture, until nothing moves."""
    _, x, _ = problem()
    net = nn.Linear(6, 1).double()
    with torch.no_grad():
        net.weight.copy_(torch.linspace(-1.0, 1.0, 6))
    y = x @ torch.tensor([[0.9, 0.1, -0.2, -0.8, 0.3, 0.5]], dtype=torch.float64).T
    initial = GaussianMixture([0.5, 0.5], [-0.5, 0.5], [0.2, 0.3])
    prior = MixturePrior(net, initial=initial)
    optimizer = make(net.parameters())
    schedule = Schedule(tau=TAU, em_start=10**9)
    prior.attach(optimizer, num_data=NUM_DATA, schedule=schedule, update=update)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
    (data,) = torch.autograd.grad(loss_of(net, x, y), net.weight)
    (pull,) = torch.autograd.grad(TAU / NUM_DATA * prior.penalty(), net.weight)
    return data, pull


FIXED = {n: OPTIMIZERS[n] for n in ("sgd", "momentum", "nesterov")}


@pytest.mark.parametrize("make", FIXED.values(), ids=FIXED)
@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_both_updates_stop_where_data_and_prior_balance(make, update):
    data, pull = stationary(make, update)
    assert pull.abs().max() > 1e-3  # the prior does pull there
    torch.testing.assert_close(data, -pull, atol=1e-9, rtol=1e-7)


@EVERY
@pytest.mark.parametrize("update", ["proximal"])
def test_a_balanced_weight_is_a_fixed_point_of_the_proximal_step_for_every_optimiser(make, update):
    # Force the balance: a constant data gradient that is exactly minus the prior's pull.
    net, *_ = problem()
    prior = MixturePrior(net, 3, include="0.weight")
    params = [{"params": [net[0].weight]}]
    optimizer = make(params)
    for settings in optimizer.param_groups:
        settings["weight_decay"] = 0.0
    w = net[0].weight
    (pull,) = torch.autograd.grad(TAU / NUM_DATA * prior.penalty(), w)
    before = w.detach().clone()
    momentum = optimizer.param_groups[0].get("momentum", 0.0)
    schedule = Schedule(tau=TAU, start=400 if momentum else 0, em_start=10**9)
    prior.attach(optimizer, num_data=NUM_DATA, schedule=schedule, update=update)
    if momentum:  # let the momentum buffer fill up
        for _ in range(400):
            w.grad = -pull.clone()
            optimizer.step()
            w.data.copy_(before)
    w.grad = -pull.clone()
    optimizer.step()
    moved = (w.detach() - before).abs().max()
    w.data.copy_(before)
    assert moved < 1e-6 * before.abs().max() + 1e-9


@EVERY
@pytest.mark.parametrize("std", [1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("lr", [1e-3, 1.0, 1e3])
def test_the_proximal_step_is_stable_for_every_sigma_and_step_size(make, std, lr):
    net, *_ = problem()
    prior = MixturePrior(net, 3, include="0.weight")
    prior.mixtures["all"].std.fill_(std)
    optimizer = make([net[0].weight])
    optimizer.param_groups[0].update(lr=lr, weight_decay=0.0)
    schedule = Schedule(tau=1.0, em_start=10**9)
    prior.attach(optimizer, num_data=1, schedule=schedule, update="proximal")
    values = [prior.terms()["all"]["nll"].item()]
    for _ in range(20):
        net[0].weight.grad = torch.zeros_like(net[0].weight)
        optimizer.step()
        values.append(prior.terms()["all"]["nll"].item())
    # Without a data gradient each step is one of a majoriser: the prior never rises.
    scale = max(abs(v) for v in values)
    assert all(b <= a + 1e-9 * scale for a, b in zip(values, values[1:], strict=False))
    assert torch.isfinite(net[0].weight).all()


def test_the_explicit_gradient_does_diverge_where_the_proximal_step_is_stable():
    net, *_ = problem()
    prior = MixturePrior(net, 3, include="0.weight")
    prior.mixtures["all"].std.fill_(1e-3)
    optimizer = torch.optim.SGD([net[0].weight], lr=1.0)
    prior.attach(optimizer, num_data=1, schedule=Schedule(em_start=10**9), update="gradient")
    start = net[0].weight.detach().abs().max().item()
    for _ in range(5):
        net[0].weight.grad = torch.zeros_like(net[0].weight)
        optimizer.step()
    assert net[0].weight.detach().abs().max().item() > 1e6 * start


def test_channels_last_weights_move_as_contiguous_ones_do():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = nn.Conv2d(3, 4, 3).double().to(memory_format=layout)
        x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
        prior = MixturePrior(net, 3)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        prior.attach(
            optimizer, num_data=10, schedule=Schedule(tau=1.0, em_every=2), update="proximal"
        )
        for _ in range(5):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        results.append(net.weight.detach().contiguous())
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_a_tensor_without_a_gradient_is_left_where_it_is():
    net, x, y = problem()
    prior = MixturePrior(net, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    prior.attach(optimizer, num_data=10, schedule=Schedule(), update="proximal")
    before = net[2].weight.detach().clone()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    optimizer.step()
    assert torch.equal(net[2].weight, before) and torch.isfinite(net[0].weight).all()


class _OwnStep(torch.optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


def test_one_group_without_a_known_step_makes_the_optimizer_unknown():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    def known(first, second):
        groups = [{"params": [a], "momentum": first}, {"params": [b], "momentum": second}]
        return proximal.is_known(torch.optim.SGD(groups, lr=0.1))

    assert known(0.0, 0.9)
    assert not known(0.0, 1.0) and not known(1.0, 0.0) and not known(1.0, 1.0)
    assert not proximal.is_known(_OwnStep([a, b]))
    assert proximal.is_known(torch.optim.AdamW([a, b])) and proximal.is_known(torch.optim.Adam([a]))
    # The compiler wraps the methods of all optimisers.
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.zeros(1, 2))
    assert proximal.is_known(torch.optim.AdamW([a, b])) and known(0.0, 0.9)
    assert not proximal.is_known(_OwnStep([a, b])) and not proximal.is_known(torch.optim.NAdam([a]))


def test_adamw_is_known_whether_or_not_its_methods_are_adams(monkeypatch):
    # Up to torch 2.6 AdamW was no subclass of Adam, and had a `step` and `_init_group` of its own.
    for name in ("step", "_init_group"):
        own = getattr(torch.optim.AdamW, name)
        copied = types.FunctionType(own.__code__, own.__globals__, name, closure=own.__closure__)
        monkeypatch.setattr(torch.optim.AdamW, name, copied)
    place = importlib.util.spec_from_file_location("proximal_then", proximal.__file__)
    then = importlib.util.module_from_spec(place)
    place.loader.exec_module(then)
    weights = [nn.Parameter(torch.ones(2))]
    assert then.is_adam(torch.optim.AdamW(weights)) and then.is_adam(torch.optim.Adam(weights))


@pytest.mark.parametrize("name", ["lr", "eps"])
def test_an_adaptive_step_of_which_one_number_is_not_finite_is_not_known(name):
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=0.1)
    state = {"exp_avg_sq": torch.ones(2), "step": torch.tensor(1.0)}
    (settings,) = optimizer.param_groups
    assert proximal.effective_step(optimizer, state, settings) is not None
    settings = {**settings, name: float("inf")}
    assert proximal.effective_step(optimizer, state, settings) is None
