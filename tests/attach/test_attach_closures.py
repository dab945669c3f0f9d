"""Gradient scalers, closures and 16-bit weights: the prior is added once, and to what counts."""

import copy

import pytest
import torch
from attaching import NUM_DATA, TAU, close, loss_of, problem

from swsmix import MixturePrior, Schedule


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_a_gradient_scaler_changes_nothing(fused, update):
    results = []
    for scaled in (False, True):
        net, x, y = problem()
        net, x, y = net.float(), x.float(), y.float()
        prior = MixturePrior(net, 3)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01, fused=fused)
        prior.attach(
            optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU, em_every=3), update=update
        )
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
        for _ in range(10):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, x, y)).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(net)
    close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_a_step_that_the_scaler_skips_is_no_step(fused, update):
    net, x, y = problem()
    net, x, y = net.float(), x.float(), y.float()
    prior = MixturePrior(net, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, fused=fused)
    attachment = prior.attach(
        optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU, em_every=1), update=update
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copy.deepcopy(net.state_dict())
    mean = prior.mixtures["all"].mean.clone()
    for poison, ticks in ((float("inf"), 0), (1.0, 1)):
        optimizer.zero_grad()
        scaler.scale(poison * loss_of(net, x, y)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert attachment.tick == ticks
        same = all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert same == (ticks == 0) == torch.equal(prior.mixtures["all"].mean, mean)


def test_lbfgs_closures_see_the_prior_in_each_evaluation():
    def train(attach):
        net, x, y = problem()
        prior = MixturePrior(net, 3)
        optimizer = torch.optim.LBFGS(net.parameters(), max_iter=10, line_search_fn="strong_wolfe")
        if attach:
            prior.attach(optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU, em_every=1))

        def closure():
            optimizer.zero_grad()
            loss = loss_of(net, x, y)
            if not attach:
                loss = loss + TAU / NUM_DATA * prior.penalty()
            loss.backward()
            return loss

        for _ in range(3):
            value = optimizer.step(closure)
            if not attach:
                prior.em_step_()
        return net, value.item()

    (net, value), (other, other_value) = train(False), train(True)
    assert value == pytest.approx(other_value, rel=1e-9)
    close(net, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_closures_of_other_optimisers_equal_plain_steps(update):
    nets = []
    for with_closure in (False, True):
        net, x, y = problem()
        prior = MixturePrior(net, 3)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        prior.attach(
            optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU, em_every=2), update=update
        )

        def closure(net=net, optimizer=optimizer, x=x, y=y):
            optimizer.zero_grad()
            loss = loss_of(net, x, y)
            loss.backward()
            return loss

        for _ in range(6):
            if with_closure:
                optimizer.step(closure=closure)
            else:
                closure()
                optimizer.step()
        nets.append(net)
    close(*nets)


def test_that_the_weights_move_by_other_ways_is_said_after_a_step_with_a_closure_too():
    net, x, y = problem()
    attached, other = (torch.optim.SGD(net.parameters(), lr=0.01) for _ in range(2))
    prior = MixturePrior(net, 3)
    prior.attach(attached, num_data=NUM_DATA, schedule=Schedule())

    def closure():
        net.zero_grad()
        loss_of(net, x, y).backward()

    attached.step(closure)
    with pytest.warns(UserWarning, match="was not called"):
        for _ in range(40):
            closure()
            other.step()


def test_bfloat16_weights_train_through_float32_masters():
    net, x, y = problem()
    masters = copy.deepcopy(net).float()
    working = copy.deepcopy(masters).bfloat16()
    prior = MixturePrior(masters, 3)  # the prior belongs to what the optimiser moves
    optimizer = torch.optim.AdamW(masters.parameters(), lr=0.01)
    prior.attach(optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU, em_every=5))
    first = last = None
    for _ in range(100):
        loss = loss_of(working, x.bfloat16(), y.bfloat16())
        loss.backward()
        for p, q in zip(masters.parameters(), working.parameters(), strict=True):
            p.grad, q.grad = q.grad.float(), None
        optimizer.step()
        working.load_state_dict(masters.state_dict())
        last = loss.item()
        first = last if first is None else first
    assert last < 0.8 * first
    assert prior.penalty() < MixturePrior(problem()[0].float(), 3).penalty()


def test_pure_bfloat16_weights_are_taken_too():
    net, x, y = problem()
    net = net.bfloat16()
    prior = MixturePrior(net, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    prior.attach(optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU, em_every=2))
    for _ in range(10):
        optimizer.zero_grad()
        loss_of(net, x.bfloat16(), y.bfloat16()).backward()
        optimizer.step()
    assert net[0].weight.dtype == torch.bfloat16 and torch.isfinite(net[0].weight).all()
    assert prior.mixtures["all"].mean.dtype == torch.float32
