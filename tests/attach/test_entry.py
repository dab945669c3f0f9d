"""The prior that enters by itself: after the data have spoken, by a ramp, to a ceiling."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from swsmix import MixturePrior, Schedule
from swsmix.attach.entry import DEADLINE, FIRST, PRICE, SHARE, Entry

NUM_DATA = 400


def falling(t, time=20.0):
    return math.exp(-t / time)


def run(entry, losses, start=0):
    """tau after each tick, under observed losses."""
    taus = []
    for t in range(start, start + len(losses)):
        entry.observe(losses[t - start])
        entry.tick()
        taus.append(entry.tau)
    return taus


def problem(seed=0):
    """A small classification that an MLP learns in some hundred steps."""
    torch.manual_seed(seed)
    x = torch.randn(NUM_DATA, 10)
    y = (x[:, :3].sum(1) > 0).long()
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 2)), x, y


def train(net, optimizer, x, y, steps, first=0, attachment=None):
    taus = []
    for step in range(first, first + steps):
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:50]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        if attachment is not None:
            taus.append(attachment.tau)
    return taus


@pytest.mark.parametrize("asked", [0.0, 1e-3, 1.0, 5.0])
def test_tau_waits_then_rises_steadily_to_the_least_of_what_is_asked_and_allowed(asked):
    entry = Entry(asked, num_weights=1000.0, num_data=50_000)
    taus = run(entry, [falling(t) for t in range(600)])
    ceiling = min(asked, PRICE * 50)
    assert entry.allowed == ceiling and taus[-1] == ceiling
    assert all(b >= a for a, b in zip(taus, taus[1:], strict=False))
    assert max(taus[: 2 * FIRST - 1]) == 0.0 and not entry.waits


def test_the_ramp_takes_as_long_as_the_wait():
    entry = Entry(1.0, num_weights=1.0, num_data=1000)
    taus = run(entry, [falling(t) for t in range(600)])
    wait = sum(tau == 0.0 for tau in taus)
    full = next(t for t, tau in enumerate(taus) if tau == 1.0) + 1
    assert full == 2 * wait
    assert taus[wait + wait // 2 - 1] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("time", [50.0, 200.0, 1000.0])
def test_the_slower_the_loss_falls_the_later_the_prior_enters(time):
    entry = Entry(1.0, num_weights=1.0, num_data=1000)
    taus = run(entry, [falling(t, time) for t in range(int(12 * time))])
    wait = sum(tau == 0.0 for tau in taus)
    # e^(-T / 2) - e^(-T) is a tenth of the fall at T = 4.5 time constants
    assert 3 * time < wait < 8 * time


def test_while_the_loss_keeps_falling_the_prior_waits():
    entry = Entry(1.0, num_weights=1.0, num_data=1000)
    assert not any(run(entry, [10.0 - 0.001 * t for t in range(4 * DEADLINE)]))


def test_where_nothing_is_learned_the_prior_enters_after_the_deadline():
    generator = torch.Generator().manual_seed(0)
    losses = (1.0 + 0.1 * torch.randn(3 * DEADLINE, generator=generator)).tolist()
    taus = run(Entry(1.0, num_weights=1.0, num_data=1000), losses)
    assert not any(taus[: DEADLINE - 1]) and taus[-1] > 0.5


def test_tau_goes_back_while_the_loss_is_above_its_level_at_the_entry_and_returns():
    entry = Entry(1.0, num_weights=1.0, num_data=1000)
    assert run(entry, [falling(t) for t in range(600)])[-1] == 1.0
    numbers = entry.state_dict()
    reference, tolerance = numbers["reference"], numbers["tolerance"]
    assert 0.4 * SHARE < tolerance < SHARE  # of the fall, from the first record on
    assert min(run(entry, [reference + 0.9 * tolerance] * 600)) == 1.0
    high = run(entry, [reference + 1.1 * tolerance] * 600)
    assert high[-1] == 0.0 and all(b <= a for a, b in zip(high[30:], high[31:], strict=False))
    assert run(entry, [0.0] * 600)[-1] == 1.0


def test_the_ceiling_counts_weights_by_the_tau_of_their_group():
    net = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tau = {"0.weight": 0.5, "1.weight": 2.0}
    prior = MixturePrior(net, 2, groups="tensor", tau=tau)
    attachment = prior.attach(optimizer, num_data=60)
    assert attachment.entry.allowed == pytest.approx(PRICE * 60 / (0.5 * 200 + 2.0 * 100))
    attachment.remove()
    # Weights of a weak group may count as less than one.
    assert Entry(9.0, num_weights=0.5, num_data=60).allowed == PRICE * 60 / 0.5
    # A loss that is a sum does not say of how many cases.
    assert prior.attach(optimizer, num_data=1, tau=0.3).entry.allowed == 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.003),
    ],
)
@pytest.mark.parametrize("clip", [False, True])
def test_without_losses_the_gradients_say_when(make, clip):
    net, x, y = problem()
    optimizer = make(net.parameters())
    attachment = MixturePrior(net).attach(optimizer, num_data=NUM_DATA)
    if clip:
        optimizer.register_step_pre_hook(
            lambda *_: nn.utils.clip_grad_norm_(net.parameters(), 0.3) and None
        )
    taus = train(net, optimizer, x, y, 1200, attachment=attachment)
    assert 0.0 == taus[0] == taus[2 * FIRST - 2] and taus[-1] == attachment.entry.allowed > 0.0
    assert all(b >= a for a, b in zip(taus, taus[1:], strict=False))


def test_while_it_waits_the_weights_are_those_without_a_prior():
    nets = []
    for attach in (False, True):
        net, x, y = problem()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        if attach:
            MixturePrior(net).attach(optimizer, num_data=NUM_DATA)
        train(net, optimizer, x, y, 2 * FIRST - 1)
        nets.append(net)
    for a, b in zip(*(n.parameters() for n in nets), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("observed", [False, True])
def test_resume_is_bit_for_bit_wherever_it_is_stopped(observed, tmp_path):
    def some(net, optimizer, attachment, x, y, first, last):
        for step in range(first, last):
            train(net, optimizer, x, y, 1, step)
            if observed and step % 3:
                with torch.no_grad():
                    attachment.observe(nn.functional.cross_entropy(net(x), y))

    def make():
        net, x, y = problem()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        prior = MixturePrior(net, 4)
        attachment = prior.attach(optimizer, num_data=NUM_DATA, em_every=30)
        return net, optimizer, prior, attachment, x, y

    net, optimizer, prior, attachment, x, y = make()
    resumed = make()
    for last, pause in pairwise((0, 40, 64, 150, 700, 800)):
        if last > 0:
            torch.save([part.state_dict() for part in resumed[:4]], tmp_path / "all.pt")
            resumed = make()
            states = torch.load(tmp_path / "all.pt", weights_only=True)
            for part, state in zip(resumed[:4], states, strict=True):
                part.load_state_dict(state)
        some(net, optimizer, attachment, x, y, last, pause)
        some(resumed[0], resumed[1], resumed[3], x, y, last, pause)
        assert attachment.tau == resumed[3].tau
        for a, b in zip(net.parameters(), resumed[0].parameters(), strict=True):
            assert torch.equal(a, b)
        ends = [repr(end.entry.state_dict()) for end in (attachment, resumed[3])]  # nan is not nan
        assert ends[0] == ends[1]
    assert attachment.tau > 0.0


def test_a_clock_is_not_resumed_under_another_rule():
    net, *_ = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    prior = MixturePrior(net, 2)
    by_itself = prior.attach(optimizer, num_data=9)
    saved = by_itself.state_dict()
    by_itself.remove()
    scheduled = prior.attach(optimizer, num_data=9, schedule=Schedule())
    assert scheduled.state_dict() == {"tick": 0}
    with pytest.raises(ValueError, match="had no schedule, this one has a schedule"):
        scheduled.load_state_dict(saved)
    scheduled.remove()
    with pytest.raises(ValueError, match="had a schedule, this one has no schedule"):
        prior.attach(optimizer, num_data=9).load_state_dict({"tick": 3})


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("0.3", TypeError, "got str"),
        (None, TypeError, "got NoneType"),
        (True, TypeError, "got bool"),
        (float("nan"), ValueError, "finite loss; got nan"),
        (torch.tensor(float("inf")), ValueError, "finite loss; got inf"),
        (torch.ones(3), ValueError, r"shape \(3,\)"),
        (torch.ones((), dtype=torch.complex64), ValueError, "complex64"),
        (torch.ones((), dtype=torch.bool), TypeError, "got bool"),
    ],
)
@pytest.mark.parametrize("schedule", [None, Schedule()])
def test_wrong_losses_are_refused(loss, error, message, schedule):
    net, *_ = problem()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = MixturePrior(net, 2).attach(optimizer, num_data=9, schedule=schedule)
    with pytest.raises(error, match=message):
        attachment.observe(loss)
    attachment.observe(torch.tensor([0.5], requires_grad=True))
    attachment.observe(1)


def test_under_a_schedule_observed_losses_change_nothing():
    ends = []
    for observed in (False, True):
        net, x, y = problem()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        schedule = Schedule(tau=0.3, start=2, warmup=3, em_every=4)
        attachment = MixturePrior(net, 3).attach(optimizer, num_data=NUM_DATA, schedule=schedule)
        taus = []
        for step in range(10):
            assert attachment.tau == schedule.tau_at(step)
            taus += train(net, optimizer, x, y, 1, step, attachment)
            if observed:
                attachment.observe(100.0 * step)
        ends.append((taus, [p.clone() for p in net.parameters()]))
    assert ends[0][0] == ends[1][0]
    for a, b in zip(ends[0][1], ends[1][1], strict=True):
        assert torch.equal(a, b)


def test_several_optimisers_share_one_entry():
    net, x, y = problem()
    both = [torch.optim.Adam(net[0].parameters(), 0.01), torch.optim.SGD(net[2].parameters(), 0.1)]
    attachment = MixturePrior(net, 4).attach(both, num_data=NUM_DATA)
    for step in range(1200):
        for optimizer in both:
            optimizer.zero_grad()
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:50]
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        for optimizer in both:
            optimizer.step()
    assert attachment.entry.state_dict()["time"] == 1200
    assert attachment.tau == attachment.entry.allowed


def test_a_step_of_l_bfgs_counts_its_gradients():
    net, x, y = problem()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=10)
    attachment = MixturePrior(net, 4).attach(optimizer, num_data=NUM_DATA)
    gradients = 0

    def closure():
        nonlocal gradients
        gradients += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    for _ in range(250):
        attachment.observe(optimizer.step(closure).item())
    assert attachment.tick == 250
    assert attachment.entry.state_dict()["time"] == gradients > 270


def test_the_scale_of_a_gradient_scaler_changes_nothing():
    levels = []
    for scale in (1.0, 64.0):
        entry, p = Entry(1.0, num_weights=6.0, num_data=9), nn.Parameter(torch.ones(6))
        for t in range(70):
            p.grad = scale * torch.full((6,), 1.0 + t)
            entry.feel([("w", p)], scale)
            with torch.no_grad():
                p.sub_(0.01)
            entry.tick()
        levels.append(entry.state_dict()["level"])
    assert levels[0] == levels[1] < 0.0


def test_the_level_by_gradients_is_the_fall_of_a_linear_loss():
    entry, p = Entry(1.0, num_weights=6.0, num_data=9), nn.Parameter(torch.zeros(6))
    slope = torch.arange(6.0)
    for _ in range(FIRST):
        p.grad = slope.clone()
        entry.feel([("w", p)])
        with torch.no_grad():
            p.sub_(0.01 * slope)
        entry.tick()
    fall = 0.01 * FIRST * slope.square().sum().item()
    assert entry.state_dict()["level"] == pytest.approx(-fall, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_that_are_noise_alone_say_nothing_before_the_deadline(seed):
    draw = torch.Generator().manual_seed(seed)
    entry, p = Entry(1.0, num_weights=50.0, num_data=9), nn.Parameter(torch.zeros(50))
    for _ in range(DEADLINE - 1):
        assert entry.waits
        p.grad = torch.randn(50, generator=draw)
        entry.feel([("w", p)])
        with torch.no_grad():
            p.add_(0.01)
        entry.tick()


def test_under_noise_alone_the_level_scatters_by_the_variance_it_states():
    found = []
    for seed in range(150):
        draw = torch.Generator().manual_seed(seed)
        entry, p = Entry(1.0, num_weights=20.0, num_data=9), nn.Parameter(torch.zeros(20))
        for _ in range(FIRST):
            p.grad = torch.randn(20, generator=draw)
            entry.feel([("w", p)])
            with torch.no_grad():
                p.sub_(0.01)
            entry.tick()
        numbers = entry.state_dict()
        found.append((numbers["level"], numbers["variance"]))
    level, variance = torch.tensor(found).T
    assert variance.mean().item() == pytest.approx(level.var().item(), rel=0.35)


def test_of_a_large_tensor_a_sample_is_followed():
    entry, p = Entry(1.0, num_weights=1.0, num_data=9), nn.Parameter(torch.zeros(200_001))
    p.grad = torch.ones_like(p)
    entry.feel([("w", p)])
    assert 1 << 15 < entry.state_dict()["start"]["w"].numel() <= 1 << 16


def test_weights_in_bfloat16_move_by_the_right_amount_on_average():
    """The moves of a weak prior are below half of a unit in the last place."""
    from swsmix.attach.proximal import _rounded_by_chance

    exact = torch.full((200_000,), 1.0 + 2.0**-11)  # a sixteenth of the way to the next value
    rounded = _rounded_by_chance(exact, torch.Generator().manual_seed(0))
    assert rounded.dtype == torch.bfloat16 and set(rounded.tolist()) == {1.0, 1.0 + 2.0**-7}
    assert rounded.double().mean().item() == pytest.approx(1.0 + 2.0**-11, abs=2.0**-16)
    values = torch.tensor([0.0, -0.5, 3.0])
    assert torch.equal(_rounded_by_chance(values, torch.Generator().manual_seed(0)).float(), values)
