"""Each finding: what provokes it, what nearly does, and that it is said once."""

import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from swsmix import GaussianMixture, HyperPrior, MixturePrior, Schedule, diagnosis, fit
from swsmix.attach import watching
from swsmix.diagnosis import Finding, PriorWarning, diagnose, wasted
from swsmix.training.history import History


def kinds(mixture, count, start_std=1.0, held=0.0):
    found = diagnose(mixture, torch.as_tensor(count, dtype=torch.float64), start_std, held)
    return [finding.kind for finding in found]


HEALTHY = GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.1, 0.2])


def test_a_healthy_mixture_has_no_finding():
    assert kinds(HEALTHY, [50, 50]) == kinds(HEALTHY, [50, 50], held=0.94) == []
    assert kinds(HEALTHY, [50, 50], start_std=0.0) == []  # weights that were all equal


def test_frozen_from_its_threshold_on():
    assert kinds(HEALTHY, [50, 50], held=0.97) == ["frozen"]
    assert kinds(HEALTHY, [50, 50], held=0.96) == []


@pytest.mark.parametrize(("factor", "expected"), [(0.95, ["collapsed"]), (1.05, [])])
def test_collapsed_is_the_spread_of_all_weights_not_that_of_one_component(factor, expected):
    std = factor * 0.02 * 0.5
    assert kinds(GaussianMixture([1.0], [3.0], [std]), [100], start_std=0.5) == expected
    # Two centres at +-d have the std d. A component without weights does not count.
    two = GaussianMixture([0.5, 0.4, 0.1], [3 - std, 3 + std, -9.0], [1e-6, 1e-6, 1e-6])
    two.pinned_mean[2] = True
    assert kinds(two, [50, 50, 0], start_std=0.5) == expected
    assert kinds(GaussianMixture([0.5, 0.5], [0.0, 1.0], [1e-6, 1e-6]), [50, 50]) == []


def test_starved_below_one_weight_unless_pinned():
    assert kinds(HEALTHY, [99.01, 0.99]) == ["starved"]
    assert kinds(HEALTHY, [98.99, 1.01]) == []
    pinned = GaussianMixture([0.5, 0.5], [0.0, 1.0], [0.1, 0.2], pinned_mean=[True, False])
    assert kinds(pinned, [0.5, 99.5]) == []


@pytest.mark.parametrize(
    ("gap", "std"), [(0.39, 1.0), (0.41, 1.0), (0.0, 1.3), (0.0, 1.4), (0.2, 1.2), (0.3, 1.3)]
)
def test_duplicate_by_the_overlap_of_two_densities(gap, std):
    mixture = GaussianMixture([0.7, 0.3], [0.0, gap], [1.0, std])
    w = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    one, other = (
        torch.distributions.Normal(mixture.mean[j], mixture.std[j]).log_prob(w) for j in (0, 1)
    )
    overlap = torch.trapezoid((0.5 * (one + other)).exp(), w).item()
    found = diagnose(mixture, torch.tensor([70.0, 30.0]), 1.0)
    assert [f.kind for f in found] == (["duplicate"] if overlap > 0.98 else [])
    assert all(f.value == pytest.approx(overlap) for f in found)
    assert "duplicate" not in kinds(mixture, [99.5, 0.5])  # starved is enough


def test_diverged_by_growth_from_the_start_or_without_numbers():
    for mean, std in ((1001.0, 1.0), (0.0, 1001.0), (-1001.0, 1.0)):
        assert kinds(GaussianMixture([1.0], [mean], [std]), [9]) == ["diverged"]
        assert kinds(GaussianMixture([1.0], [0.99 * mean], [0.99 * std]), [9]) == []
    # Weights that begin tiny may become ordinary.
    assert kinds(GaussianMixture([1.0], [0.0], [9.9]), [9], start_std=1e-4) == []
    assert kinds(GaussianMixture([1.0], [0.0], [10.1]), [9], start_std=1e-4) == ["diverged"]
    broken = GaussianMixture([1.0], [0.0], [1.0])
    broken.mean.fill_(torch.nan)
    assert kinds(broken, [9]) == ["diverged"]


def seven(size=6000, noise=1e-3):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3])
    share = torch.tensor([0.02, 0.02, 0.02, 0.88, 0.02, 0.02, 0.02])
    index = torch.multinomial(share, size, replacement=True, generator=generator)
    return values[index] + noise * torch.randn(size, generator=generator)


def twins(w, wide):
    """Two components for what one describes, and one for the rest."""
    return GaussianMixture([0.5, 0.4, 0.1], [0.0, 0.0, 0.01], [wide, 1.05 * wide, 0.3])


def test_a_component_is_wasted_only_where_another_place_needs_it():
    hyper = HyperPrior(std=1e-3)
    assert wasted(twins(seven(), 1e-3), seven(), hyper)
    w = torch.randn(6000, generator=torch.Generator().manual_seed(0))
    assert not wasted(GaussianMixture([0.5, 0.5], [0.0, 0.0], [1.0, 1.01]), w, hyper)


@pytest.mark.parametrize("exponent", [-200, 200])
def test_what_is_wasted_does_not_hang_on_the_unit_of_the_weights(exponent):
    unit, w = 2.0**exponent, seven(1000).double()
    mixture = twins(w, 1e-3)
    scaled = GaussianMixture(
        mixture.mixing.double(), unit * mixture.mean.double(), unit * mixture.std.double()
    )
    assert wasted(scaled, unit * w, HyperPrior(std=unit * 1e-3))


@given(st.integers(0, 10**6), st.integers(1, 10**4))
def test_a_sample_is_all_of_few_weights_and_about_so_many_of_more(size, most):
    stride = diagnosis.stride(size, most)
    taken = len(range(0, size, stride))
    assert stride % 2 == 1
    assert taken == size if size < most else most / 2 <= taken <= 2 * most + 1


def still(weights, prior_of, steps=12, **options):
    """A loop in which only EM moves something; its warnings."""
    net = nn.Linear(len(weights) // 20, 20, bias=False)
    with torch.no_grad():
        net.weight.copy_(weights.reshape(net.weight.shape))
    prior = prior_of(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    prior.attach(optimizer, num_data=1, em_every=1, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.step()
    return prior, [str(w.message) for w in said if w.category is PriorWarning]


def test_twins_of_a_given_start_are_said_once_and_described():
    def given(net):
        return MixturePrior(net, initial=twins(seven(), 1e-3))

    prior, said = still(seven(), given)
    (message,) = said
    assert "describe the same weights" in message and "'all'" in message and "0.98" in message
    assert "describe the same weights" in prior.describe()
    prior, said = still(seven(), given, steps=9)
    assert not said and "describe the same weights" not in prior.describe()


def test_a_starved_component_of_a_given_start_is_said():
    far = GaussianMixture([0.5, 0.4, 0.1], [0.0, 0.2, 5.0], [0.1, 0.1, 1e-3])
    hyper = HyperPrior(std=1e-3)
    prior, said = still(seven(), lambda net: MixturePrior(net, initial=far, hyper=hyper))
    assert ["starved" in message for message in said] == [True]
    assert "1 starved" in prior.describe()


def test_the_default_moves_them_and_says_nothing():
    prior, said = still(seven(), lambda net: MixturePrior(net, 5))
    assert not said and "this mixture" not in prior.describe()


def test_components_that_nothing_needs_are_nothing_wrong():
    w = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    same = GaussianMixture([0.5, 0.4, 0.1], [0.0, 0.0, 30.0], [1.0, 1.02, 1e-3])
    assert not still(w, lambda net: MixturePrior(net, initial=same))[1]


def test_weights_that_collapse_are_said_and_those_that_stay_are_not():
    def collapse(tau):
        torch.manual_seed(0)
        net = nn.Linear(20, 20, bias=False)
        prior = MixturePrior(net, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        prior.attach(optimizer, num_data=1, schedule=Schedule(tau=tau, em_every=2))
        for _ in range(40):
            net.weight.grad = torch.zeros_like(net.weight)
            optimizer.step()
        return prior

    with pytest.warns(PriorWarning, match="collapsed: its weights spread .* at the start") as said:
        prior = collapse(1.0)
    assert len(said) == 1 and "collapsed" in prior.describe()
    assert "this mixture" not in collapse(0.0).describe()


def test_it_looks_at_the_first_em_steps_and_then_at_every_eighth(monkeypatch):
    prior = MixturePrior(torch.nn.Linear(20, 10), 2)
    looked = []
    monkeypatch.setattr(watching, "findings", lambda *_, **__: looked.append(1) or [])
    watch = watching.Watch(prior)
    for tick in range(1, 41):
        prior.em_step_()
        watch.look(Schedule(em_every=1), tick)
    assert len(looked) == 16 + 3


def test_a_scalers_gradients_are_seen_as_they_are_without_it():
    net = nn.Linear(20, 20, bias=False)
    prior = MixturePrior(net, 2)
    before = {"weight": net.weight.detach() - 0.01}
    rows = []
    for scale in (1.0, 1024.0):
        net.weight.grad = torch.full_like(net.weight, 0.3 * scale)
        watch = watching.Watch(prior)
        watch.see([("weight", net.weight, "all")], before, scale)
        rows.append(watch.state_dict()["seen"]["all"]["weight"])
    assert torch.equal(*rows) and rows[0][4].unique().tolist() == pytest.approx([0.3])


def test_weights_that_explode_are_said():
    net = nn.Linear(20, 20, bias=False)
    prior = MixturePrior(net, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    prior.attach(optimizer, num_data=1, tau=1e-6, em_every=1)
    with pytest.warns(PriorWarning, match="diverged: a centre or std is") as said:
        for _ in range(30):
            net.weight.grad = -net.weight.detach()  # doubles them
            optimizer.step()
    assert len(said) == 1


def training(tau, start=0, resumed_at=None, **options):
    """A classifier under the plain default prior; the share of the steps taken back, the prior."""
    torch.manual_seed(1)
    x = torch.randn(256, 20)
    y = (x[:, :4].sum(1) > 0).long()
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 2))
    prior = MixturePrior(net, 8)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    schedule = Schedule(tau=tau, start=start, em_every=10, **options)
    attachment = prior.attach(optimizer, num_data=len(x), schedule=schedule)
    for step in range(start + 50):
        if step == resumed_at:
            state = attachment.state_dict()
            attachment.remove()
            attachment = prior.attach(optimizer, num_data=len(x), schedule=schedule)
            attachment.load_state_dict(state)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return prior


def test_a_prior_that_freezes_untrained_weights_is_said_and_a_weak_one_is_not():
    with pytest.warns(PriorWarning, match=r"'all' is frozen: its pull takes back \d+% ") as said:
        prior = training(1.0)
    assert len(said) == 1 and "is frozen" in prior.describe()
    assert prior.held["all"] > 0.95
    assert training(0.03).held == {"all": 0.0}


def test_trained_weights_and_stds_that_a_schedule_narrows_are_not_frozen():
    assert training(0.1, start=60).held.get("all", 0.0) == 0.0
    annealed = training(1.0, std_start=0.1, std_end=0.01, anneal=30)
    assert annealed.held == {"all": 0.0} and "frozen" not in annealed.describe()


def test_a_resumed_attachment_judges_as_if_it_had_not_been_interrupted():
    with pytest.warns(PriorWarning):
        whole = training(1.0)
    for at in (0, 10, 40, 49):
        with pytest.warns(PriorWarning):
            assert training(1.0, resumed_at=at).held == whole.held


def test_one_that_begins_after_the_prior_has_entered_judges_nothing():
    net = nn.Linear(9, 9)
    prior = MixturePrior(net, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attachment = prior.attach(optimizer, num_data=9, schedule=Schedule())
    attachment.load_state_dict({"tick": 7})
    net(torch.randn(9, 9)).sum().backward()
    optimizer.step()
    assert attachment.state_dict() == {"tick": 8}


def test_the_history_of_fit_tells_and_keeps_it(tmp_path):
    torch.manual_seed(0)
    net = nn.Linear(20, 20, bias=False)
    x = torch.randn(40, 20)

    def flat(out, _):
        return 0.0 * out.square().mean()

    with pytest.warns(PriorWarning, match="collapsed"):
        history = fit(
            net, flat, (x, x), optimizer=torch.optim.SGD(net.parameters(), lr=0.1), epochs=6,
            prior=MixturePrior(net, 1), schedule=Schedule(tau=40.0, em_every=2), batch_size=4,
            run=tmp_path / "run", progress=False,
        )  # fmt: skip
    (found,) = history.findings("all")
    assert found.kind == "collapsed" and found.value < 0.02
    assert history.series["all"]["findings"][0].tolist() == [0.0] * 5
    from swsmix import load_run

    assert load_run(tmp_path / "run").history.findings("all") == [found]
    from swsmix.inspection import html_page
    from swsmix.inspection.inspect import inspect

    group = inspect(tmp_path / "run").groups[0]
    assert group.findings == (found,)
    assert "has collapsed" in html_page(inspect(tmp_path / "run"))


def test_a_history_of_before_has_no_findings():
    history = History()
    mixture = GaussianMixture([1.0], [0.0], [1.0])
    state = torch.randn(9), mixture, torch.tensor([9.0])
    history.record({"epoch": 0}, {"all": state}, {"all": [Finding("diverged", float("inf"))]})
    assert history.findings("all") == [Finding("diverged", 1e300)]
    del history.series["all"]["findings"]
    again = History.from_tensors(history.to_tensors())
    assert again.findings("all") == []
    again.record({"epoch": 1}, {"all": state}, {"all": [Finding("frozen", 0.99)]})
    assert again.findings("all") == [] and len(again) == 2


def test_every_message_has_the_number_the_threshold_and_a_remedy():
    for kind in diagnosis.KINDS:
        message = Finding(kind, 3.0).message
        assert "3" in message and "threshold" in message and ": " in message
        assert str(Finding(kind, 3.0)) == f"{kind} (3)"
