"""Moves free twins, and never make the fit worse."""

import pytest
import torch

from swsmix import GaussianMixture, HyperPrior, initial_mixture
from swsmix._cells import cells_of
from swsmix.em import fit_cells_
from swsmix.moves import moved


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
