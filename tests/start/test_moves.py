"""Moves free twins, and never make the fit worse."""

import copy

import pytest
import torch
from torch import nn

from swsmix import GaussianMixture, HyperPrior, MixturePrior, initial_mixture
from swsmix.start.cell_em import fit_cells_
from swsmix.start.cells import cells_of
from swsmix.start.moves import moved


def three_values(seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = 0.01 * torch.randn(1200, dtype=torch.float64, generator=generator)
    noise[900:1100] += 1.0
    noise[1100:] -= 1.0
    return noise


def objective(mixture, w, hyper):
    copy = mixture.plain_copy()
    return fit_cells_(copy, cells_of(w, 256), hyper, 1)


def twins():
    return GaussianMixture([0.5, 0.4, 0.1], [0.0, 0.0, 0.2], [0.01, 0.02, 0.5])


def test_a_twin_goes_where_the_fit_is_worst():
    w, hyper = three_values(), HyperPrior(std=0.01)
    better = moved(twins(), cells_of(w, 256), hyper)
    torch.testing.assert_close(
        better.mean.sort().values, torch.tensor([-1.0, 0.0, 1.0]).double(), atol=5e-3, rtol=0
    )
    assert objective(better, w, hyper) > objective(twins(), w, hyper)


def test_moves_from_a_poor_start_end_at_every_value_and_then_stop():
    w, hyper = three_values(), HyperPrior(std=0.01)
    w[:20] += 3.0
    mixture = GaussianMixture([0.25] * 4, [0.0, 0.0, 0.0, 0.2], [0.01, 0.02, 0.03, 0.5])
    cells = cells_of(w, 256)
    values = []
    while (better := moved(mixture, cells, hyper)) is not None:
        mixture = better
        values.append(objective(mixture, w, hyper))
        assert len(values) < 20
    assert values == sorted(values) and values
    assert mixture.mean.sort().values.round(decimals=1).tolist() == [-1.0, 0.0, 1.0, 3.0]


@pytest.mark.parametrize("seed", range(5))
def test_a_good_mixture_stays(seed):
    w = three_values(seed)
    assert moved(initial_mixture(w, 3), cells_of(w, 256), HyperPrior(std=0.01)) is None


def test_a_move_changes_nothing_that_it_is_given():
    mixture = twins()
    before = [v.clone() for v in mixture.buffers()]
    moved(mixture, cells_of(three_values(), 256), HyperPrior(std=0.01))
    assert all(torch.equal(a, b) for a, b in zip(before, mixture.buffers(), strict=True))


@pytest.mark.parametrize("pins", ["pinned_mixing", "pinned_mean", "pinned_std"])
def test_pinned_entries_stay_to_the_last_bit(pins):
    mixture = GaussianMixture(
        [0.5, 0.4, 0.1], [0.0, 0.0, 0.2], [0.01, 0.02, 0.5], **{pins: [True, False, False]}
    )
    better = moved(mixture, cells_of(three_values(), 256), HyperPrior(std=0.01))
    name = pins.removeprefix("pinned_")
    if better is not None:
        assert getattr(better, name)[0] == getattr(mixture, name)[0]
        assert torch.equal(getattr(better, pins), getattr(mixture, pins))
    if pins == "pinned_mean":
        assert better is not None


@pytest.mark.parametrize("k", [1, 2])
def test_fewer_than_three_components_have_no_move(k):
    w = three_values()
    mixture = initial_mixture(w, k, method="quantiles")
    assert moved(mixture, cells_of(w, 256), HyperPrior(std=0.01)) is None


def test_weights_without_clusters_keep_their_components():
    """A move that need not pay for a component puts components on weights that lie far out."""
    w = torch.randn(5000, generator=torch.Generator().manual_seed(1)).double()
    mixture = initial_mixture(w, 8)
    hyper = HyperPrior(std=mixture.std.min())
    for _ in range(10):
        mixture = moved(mixture, cells_of(w, 256), hyper) or mixture
    assert (mixture.responsibilities(w).sum(0) > 20).all()


def test_the_order_of_the_components_does_not_hang_on_the_rounding():
    w, hyper = three_values(), HyperPrior(std=0.01)
    start = GaussianMixture([0.3, 0.3, 0.3, 0.1], [0.0, 0.0, 0.0, 0.2], [0.02, 0.02, 0.02, 0.5])
    better = [moved(start, cells_of(w * (1 + e), 256), hyper).mean for e in (0.0, 1e-15, -1e-15)]
    for mean in better[1:]:
        torch.testing.assert_close(mean, better[0])


def prior_of(w, k=3, **options):
    """A prior that moves, all of its components on the spike."""
    net = nn.Linear(len(w), 1, bias=False).double()
    net.weight.data[0] = w
    prior = MixturePrior(net, k, **options)
    prior.mixtures["all"].mean.zero_()
    prior.mixtures["all"].std.fill_(0.02)
    return prior


@pytest.mark.parametrize("zero", [False, True])
def test_the_objective_never_rises_for_fixed_weights_with_moves(zero):
    w = three_values()
    prior = prior_of(w, 4, zero=zero)
    values = [prior.penalty().item()]
    for _ in range(40):
        prior.em_step_()
        values.append(prior.penalty().item())
    assert all(b <= a + 1e-9 * abs(a) for a, b in zip(values, values[1:], strict=False))
    assert values[-1] < values[0] - 100.0
    if zero:
        assert prior.mixtures["all"].mean[0] == 0.0


def test_moves_resume_bit_for_bit_from_the_state_dict():
    w = three_values()
    whole, half = prior_of(w, 4), prior_of(w, 4)
    for _ in range(20):
        whole.em_step_(rate=0.5)
    for _ in range(7):
        half.em_step_(rate=0.5)
    rest = MixturePrior(half._model[0], 4)
    rest.load_state_dict(copy.deepcopy(half.state_dict()))
    for _ in range(13):
        rest.em_step_(rate=0.5)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[key]), key


def test_a_pinned_share_and_zero_stay_to_the_last_bit_through_moves():
    prior = prior_of(three_values(), 4, zero=True, zero_mixing=0.7)
    mixture = prior.mixtures["all"]
    before = mixture.mixing[0].clone()
    for _ in range(20):
        prior.em_step_()
        assert mixture.mixing[0] == before and mixture.mean[0] == 0.0
        assert mixture.mixing.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{"mode": "gradient"}, {"method": "quantiles"}])
def test_nothing_moves_in_gradient_mode_or_from_a_named_start(options):
    net = nn.Linear(1200, 1, bias=False)
    assert not MixturePrior(net, 3, **options).moves
    assert MixturePrior(net, 3).moves
    assert not MixturePrior(net, initial=twins()).moves
