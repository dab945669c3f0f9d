"""Full-batch minimisers find minima, and change nothing when they fail; rounds of them."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
from fits import problem
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from swsmix import GaussianMixture, GaussianNoise, HyperPrior, MixturePrior, Schedule, fit
from swsmix.attach.entry import PRICE
from swsmix.diagnosis import PriorWarning
from swsmix.training.entering import RoundEntry
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
    fit(net, loss, (x, y), prior=prior, schedule=Schedule(em_every=1), **options)
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


# -- where no schedule says when the prior enters ----------------------------------------------


def separable(seed=0):
    """Two classes in 20 inputs, of which three count: 60 cases, and 500 others."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(560, 20, generator=draw).double()
    y = (x[:, :3].sum(1, keepdim=True) > 0).double()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(20, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    return net, (x[:60], y[:60]), (x[60:], y[60:])


def taus(entry, losses):
    found = []
    for loss in losses:
        entry.see(loss)
        found.append(entry.tau)
    return found


def test_the_prior_waits_while_rounds_lower_the_loss_by_more_than_a_tenth_of_its_fall():
    entry = RoundEntry(0.5)
    assert taus(entry, [10.0, 5.0, 4.0, 3.0, 2.2]) == [0.0] * 5
    assert taus(entry, [1.9]) == [0.1]  # the fifth round: a tenth of 8.1 is more than .3
    assert taus(entry, [1.9] * 6) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.5, 0.5])


@example(0.11618870648333604, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0])  # 3 a / 3 can round above a
@given(
    st.floats(0.0, 3.0),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
)
def test_tau_is_never_above_what_is_allowed_and_moves_by_one_step_of_the_ramp(allowed, losses):
    entry = RoundEntry(allowed)
    found = taus(entry, losses)
    assert all(0.0 <= tau <= allowed for tau in found) and found[:2] == [0.0, 0.0][: len(found)]
    entered = entry.state_dict()["entered"]
    if entered is not None:
        step = allowed / entered
        assert all(abs(b - a) <= step * (1 + 1e-9) for a, b in pairwise(found))


def test_a_loss_that_falls_steadily_holds_the_prior_off_for_ten_rounds():
    assert taus(RoundEntry(1.0), [20.0 - t for t in range(11)]) == [0.0] * 10 + [0.1]


def test_where_training_is_over_the_prior_enters_after_two_rounds():
    assert taus(RoundEntry(1.0), [0.3, 0.3, 0.3, 0.3]) == [0.0, 0.0, 0.5, 1.0]


def test_tau_goes_back_while_the_loss_is_above_its_level_at_the_entry_and_returns():
    entry = RoundEntry(1.0)
    assert taus(entry, [2.0, 1.0, 1.0, 1.0])[-1] == 1.0  # enters at 1, after a fall of 1
    assert taus(entry, [1.09]) == [1.0]
    assert taus(entry, [1.11, 1.11, 1.11]) == [0.5, 0.0, 0.0]
    assert taus(entry, [1.05, 1.05, 1.05]) == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(("method", "k"), [("l-bfgs", 1), ("l-bfgs", 4), ("cg", 1)])
def test_what_collapses_at_tau_1_does_not_without_a_schedule(method, k):
    ends = {}
    for name, schedule in {"tau = 1": Schedule(em_every=1), "by itself": None}.items():
        net, train, test = separable()
        prior = MixturePrior(net, k)
        options = {"optimizer": method, "epochs": 8, "iterations": 25, "progress": False}
        loss = nn.BCEWithLogitsLoss()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PriorWarning)
            history = fit(net, loss, train, prior=prior, schedule=schedule, **options)
        wrong = ((net(test[0]) > 0) != (test[1] > 0.5)).double().mean().item()
        ends[name] = wrong, history.scalars["tau"]
    assert ends["tau = 1"][0] > 0.4 and ends["tau = 1"][1] == [1.0] * 9
    assert ends["by itself"][0] < 0.3
    size = sum(p.numel() for p in net.parameters() if p.ndim > 1)
    assert ends["by itself"][1][:3] == [0.0] * 2 + ends["by itself"][1][2:3]
    assert ends["by itself"][1][-1] == max(ends["by itself"][1])
    assert max(ends["by itself"][1]) == pytest.approx(PRICE * 60 / size)


def test_while_it_waits_the_weights_are_those_without_a_prior():
    nets = []
    for prior in (False, True):
        net, train, _ = separable()
        mixture = MixturePrior(net, 3) if prior else None
        fit(net, nn.BCEWithLogitsLoss(), train, optimizer="l-bfgs", epochs=2, iterations=3,
            prior=mixture, progress=False)  # fmt: skip
        nets.append(net)
    for a, b in zip(*(n.parameters() for n in nets), strict=True):
        assert torch.equal(a, b)


def test_the_posterior_has_tau_1_from_the_first_round():
    net, train, _ = separable()
    prior = MixturePrior(net, initial=GaussianMixture([1.0], [0.0], [1.0]).double())
    history = fit(net, nn.BCEWithLogitsLoss(), train, optimizer="l-bfgs", epochs=2, iterations=5,
                  prior=prior, moments="posterior", progress=False)  # fmt: skip
    assert history.scalars["tau"] == [1.0] * 3


@METHOD
@pytest.mark.parametrize("mode", ["em", "gradient"])
def test_an_entry_is_resumed_bit_for_bit_before_in_and_after_it(method, mode, tmp_path):
    def go(epochs, path, resume=False):
        net, train, _ = separable()
        prior = MixturePrior(net, 3, mode=mode)
        history = fit(
            net, nn.BCEWithLogitsLoss(), train, optimizer=method, epochs=epochs, iterations=4,
            prior=prior, run=path, resume=resume, progress=False,
        )  # fmt: skip
        return [*net.parameters(), *prior.state_dict().values()], history.scalars["tau"]

    whole, taus_of_whole = go(9, tmp_path / "whole")
    for epochs in (1, 3, 6, 9):
        resumed, taus_of_resumed = go(epochs, tmp_path / "paused", resume=epochs > 1)
        assert taus_of_whole[: epochs + 1] == taus_of_resumed
    assert taus_of_whole[-1] > 0.0
    for a, b in zip(whole, resumed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)  # no EM step: nan


def test_rounds_are_not_resumed_under_another_rule(tmp_path):
    def go(path, schedule, resume):
        net, train, _ = separable()
        fit(net, nn.BCEWithLogitsLoss(), train, optimizer="cg", epochs=1 + resume, iterations=2,
            prior=MixturePrior(net, 2), schedule=schedule, run=path, resume=resume,
            progress=False)  # fmt: skip

    one = Schedule(em_every=1)
    go(tmp_path / "a", one, False)
    with pytest.raises(ValueError, match=r"had a schedule.*no schedule.*Schedule\(em_every=1\)"):
        go(tmp_path / "a", None, True)
    go(tmp_path / "b", None, False)
    with pytest.raises(ValueError, match="had no schedule, this one has a schedule"):
        go(tmp_path / "b", one, True)
    go(tmp_path / "a", one, True)
    go(tmp_path / "b", None, True)


@pytest.mark.parametrize(
    "change",
    [
        {"losses": "high"}, {"losses": [1.0, math.nan]}, {"losses": [1.0, [2.0]]}, {"entered": 7},
        {"entered": -1}, {"done": 1.5}, {"reference": None}, {"tolerance": math.inf}, {"more": 1},
    ],
)  # fmt: skip
def test_a_state_that_no_entry_of_rounds_has_saved_is_refused(change):
    entry = RoundEntry(0.5)
    for loss in (2.0, 1.0, 0.99):
        entry.see(loss)
    state = entry.state_dict()
    entry.load_state_dict(state)
    with pytest.raises(ValueError, match="an entry's state"):
        entry.load_state_dict({**state, **change})
    assert entry.state_dict() == state
