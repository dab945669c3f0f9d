import copy

import pytest
import torch
from attaching import EVERY, NUM_DATA, OPTIMIZERS, TAU, close, loss_of, problem
from torch import nn

from swsmix import MixturePrior, Schedule, tables


def by_hand(make, steps, em_every, mode="em"):
    """The penalty in the loss, the EM step after the optimiser's: what attach must equal."""
    net, x, y = problem()
    prior = MixturePrior(net, 3, mode=mode)
    optimizer = make([*net.parameters(), *prior.parameters()])
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (loss_of(net, x, y) + TAU / NUM_DATA * prior.penalty()).backward()
        optimizer.step()
        if mode == "em" and step % em_every == 0:
            prior.em_step_()
    return net, prior


def attached(make, steps, em_every, mode="em", update="gradient"):
    net, x, y = problem()
    prior = MixturePrior(net, 3, mode=mode)
    optimizer = make([*net.parameters(), *prior.parameters()])
    attachment = prior.attach(
        optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU, em_every=em_every), update=update
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
    return net, prior, attachment


@EVERY
@pytest.mark.parametrize("mode", ["em", "gradient"])
def test_attaching_equals_adding_the_penalty_to_the_loss(make, mode):
    net, prior = by_hand(make, 25, 5, mode)
    other, other_prior, _ = attached(make, 25, 5, mode)
    close(net, other, rtol=1e-7, atol=1e-9)
    for name, mixture in prior.mixtures.items():
        torch.testing.assert_close(
            mixture.mean, other_prior.mixtures[name].mean, rtol=1e-6, atol=1e-9
        )


def test_the_comparison_can_fail_a_tenth_more_tau_is_seen():
    net, _ = by_hand(OPTIMIZERS["sgd"], 25, 5)
    global TAU
    TAU *= 1.1
    try:
        other, _, _ = attached(OPTIMIZERS["sgd"], 25, 5)
    finally:
        TAU /= 1.1
    with pytest.raises(AssertionError):
        close(net, other, rtol=1e-7, atol=1e-9)


def test_accumulated_gradients_meet_the_prior_once():
    net, x, y = problem()
    other = copy.deepcopy(net)
    prior, other_prior = MixturePrior(net, 3), MixturePrior(other, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    prior.attach(optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU))
    other_prior.attach(other_optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU))
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
        other_optimizer.zero_grad()
        for part in range(5):
            rows = slice(10 * part, 10 * part + 10)
            (loss_of(other, x[rows], y[rows]) / 5).backward()
        other_optimizer.step()
    close(net, other)


def test_several_optimisers_share_one_clock_and_equal_one():
    net, x, y = problem()
    prior = MixturePrior(net, 3)
    first = torch.optim.SGD(net[0].parameters(), lr=0.05)
    second = torch.optim.SGD(net[2].parameters(), lr=0.05)
    attachment = prior.attach(
        [first, second],
        num_data=NUM_DATA,
        schedule=Schedule(tau=TAU, em_every=5),
        update="gradient",
    )
    for _ in range(25):
        for optimizer in (first, second):
            optimizer.zero_grad()
        loss_of(net, x, y).backward()
        for optimizer in (first, second):
            optimizer.step()
    assert attachment.tick == 25
    other, _, _ = attached(OPTIMIZERS["sgd"], 25, 5)
    close(net, other, rtol=1e-9, atol=1e-12)


def test_parameter_groups_may_have_their_own_learning_rates():
    def make(params):
        params = list(params)
        return torch.optim.SGD([{"params": params[:1], "lr": 0.1}, {"params": params[1:]}], lr=0.01)

    net, _ = by_hand(make, 10, 5)
    other, _, _ = attached(make, 10, 5)
    close(net, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_groups_have_their_own_tau(update):
    net, x, y = problem()
    start = net[2].weight.detach().clone()
    prior = MixturePrior(net, 3, groups="tensor", tau={"0.weight": 1.0, "2.weight": 0.0})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    prior.attach(optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU), update=update)
    first = net[0].weight.detach().clone()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(net[2].weight.detach(), start, rtol=0, atol=1e-15)
    assert (net[0].weight - first).abs().max() > 1e-4


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_remove_takes_the_prior_out(update):
    net, x, y = problem()
    prior = MixturePrior(net, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = prior.attach(
        optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU, em_every=1), update=update
    )
    attachment.remove()
    mean = prior.mixtures["all"].mean.clone()
    before = copy.deepcopy(net.state_dict())
    optimizer.zero_grad()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(prior.mixtures["all"].mean, mean)


def test_the_schedule_sets_the_start_the_warm_up_and_the_em_steps():
    net, x, y = problem()
    prior = MixturePrior(net, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = prior.attach(
        optimizer, num_data=NUM_DATA, schedule=Schedule(tau=1.0, start=3, warmup=2, em_every=2)
    )
    moved, em = [], []
    for _ in range(8):
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        w, mean = net[0].weight.detach().clone(), prior.mixtures["all"].mean.clone()
        optimizer.step()
        moved.append(not torch.equal(w, net[0].weight))
        em.append(not torch.equal(mean, prior.mixtures["all"].mean))
    assert moved == [False] * 4 + [True] * 4  # tau is 0 at tick 3, the first of the warm-up
    assert em == [False] * 4 + [True, False, True, False]
    assert attachment.tick == 8


def test_annealing_caps_the_stds_that_are_not_pinned():
    net, *_ = problem()
    prior = MixturePrior(net, 3)
    prior.mixtures["all"].pinned_std[0] = True
    std = prior.mixtures["all"].std[0].clone()
    schedule = Schedule(tau=0.0, em_start=100, em_every=1, std_start=0.1, std_end=1e-3, anneal=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    prior.attach(optimizer, num_data=1, schedule=schedule)
    caps = []
    for _ in range(5):
        optimizer.step()
        caps.append(prior.mixtures["all"].std[1:].max().item())
    assert caps[-1] == pytest.approx(1e-3) and caps == sorted(caps, reverse=True)
    assert prior.mixtures["all"].std[0] == std


def test_training_resumes_from_state_dicts_alone():
    def make():
        net, x, y = problem()
        prior = MixturePrior(net, 3)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        attachment = prior.attach(
            optimizer,
            num_data=NUM_DATA,
            schedule=Schedule(em_every=3, em_rate=0.5),
            update="proximal",
        )
        return net, prior, optimizer, attachment, x, y

    def train(net, optimizer, x, y, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(net, x, y).backward()
            optimizer.step()

    net, prior, optimizer, attachment, x, y = make()
    train(net, optimizer, x, y, 10)
    saved = [copy.deepcopy(part.state_dict()) for part in (net, prior, optimizer, attachment)]
    train(net, optimizer, x, y, 10)
    again = make()
    for part, state in zip(again[:4], saved, strict=True):
        part.load_state_dict(state)
    train(again[0], again[2], x, y, 10)
    close(net, again[0], rtol=0, atol=0)
    close(prior, again[1], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["em", "gradient"])
def test_weights_frozen_later_stay_where_they_are(mode):
    net, x, y = problem()
    prior = MixturePrior(net, 3, mode=mode)
    optimizer = torch.optim.SGD([*net.parameters(), *prior.parameters()], lr=0.01)
    prior.attach(optimizer, num_data=NUM_DATA, schedule=Schedule())
    net[0].weight.requires_grad_(False)
    before = net[0].weight.clone()
    loss_of(net, x, y).backward()
    optimizer.step()
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    ("make", "mode", "expected"),
    [
        (OPTIMIZERS["adam"], "em", "proximal"),
        (OPTIMIZERS["momentum"], "em", "proximal"),
        (OPTIMIZERS["adam"], "gradient", "gradient"),
        (lambda params: torch.optim.RMSprop(params), "em", "gradient"),
        (lambda params: torch.optim.LBFGS(params), "em", "gradient"),
    ],
)
def test_by_default_the_proximal_step_is_made_where_it_can_be(make, mode, expected):
    net, *_ = problem()
    prior = MixturePrior(net, 3, mode=mode)
    optimizer = make([*net.parameters(), *prior.parameters()])
    assert prior.attach(optimizer, num_data=1, schedule=Schedule()).update == expected


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_training_with_tables_ends_where_direct_evaluation_does(update, monkeypatch):
    """Far closer together than two seeds are."""

    def trained(seed, build):
        monkeypatch.setattr(tables, "build", lambda *mixture, **_: build(*mixture))
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(400, 64, generator=generator)
        net = nn.Sequential(nn.Linear(64, 160), nn.ReLU(), nn.Linear(160, 4))
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        y = (x[:, :16].unflatten(1, (4, 4)).sum(2)).argmax(1)
        # N K = 130,560: enough for tables. No moves: whether one is made can hang on the rounding.
        prior = MixturePrior(net, 12, zero=True, method="quantiles")
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        schedule = Schedule(tau=0.05, em_every=10, std_start=0.05, std_end=0.01, anneal=60)
        prior.attach(optimizer, num_data=400, schedule=schedule, update=update)
        for _ in range(60):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
        w = prior.flat_weights("all")
        return torch.cat([torch.stack([loss.detach(), prior.penalty().detach() / 10_000]), w])

    build = tables.build
    fast = torch.stack([trained(seed, build) for seed in range(3)])
    direct = torch.stack([trained(seed, tables.direct) for seed in range(3)])
    assert not torch.equal(fast, direct)  # two ways of computing, indeed
    assert bool(((fast - direct)[:, :2].abs().amax(0) < 0.1 * fast[:, :2].std(0)).all())


def test_one_unknown_optimizer_of_two_makes_the_default_the_gradient():
    net, _, _ = problem()
    first = torch.optim.Adam(net[0].parameters())
    prior = MixturePrior(net, 3)
    last = [torch.optim.Adam(net[2].parameters()), torch.optim.RMSprop(net[2].parameters())]
    updates = []
    for second in last:
        attachment = prior.attach([first, second], num_data=NUM_DATA, schedule=Schedule())
        updates.append(attachment.update)
        attachment.remove()
    assert updates == ["proximal", "gradient"]


def test_the_clock_is_all_of_an_attachments_state():
    net, _, _ = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = MixturePrior(net, 3).attach(optimizer, num_data=NUM_DATA, schedule=Schedule())
    attachment.load_state_dict({"tick": 7})
    assert attachment.tick == 7 and attachment.state_dict() == {"tick": 7}


@pytest.mark.parametrize("update", ["gradient", "proximal"])
def test_a_step_with_a_closure_returns_the_loss_of_the_data(update):
    net, x, y = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    MixturePrior(net, 3).attach(optimizer, num_data=NUM_DATA, schedule=Schedule(), update=update)
    expected = loss_of(net, x, y).item()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(net, x, y)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == expected
