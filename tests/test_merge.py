import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swsmix import GaussianMixture
from swsmix.merge import merge_components

positive = st.floats(0.05, 2.0)
components = st.lists(st.tuples(positive, st.floats(-3.0, 3.0), positive), min_size=1, max_size=6)


def mixture_of(parts, **pins):
    pi, mu, sigma = (torch.tensor(v, dtype=torch.float64) for v in zip(*parts, strict=True))
    return GaussianMixture(pi / pi.sum(), mu, sigma, **pins)


def moments(mixture):
    pi, mu, sigma = mixture.mixing, mixture.mean, mixture.std
    return [pi.sum(), pi @ mu, pi @ (sigma.square() + mu.square())]


def divergence(old, new):
    """KL(old || new) by the trapezoid rule, nats."""
    w = torch.linspace(-25.0, 25.0, 200_001, dtype=torch.float64)
    log_p, log_q = old.log_prob(w), new.log_prob(w)
    return torch.trapezoid(log_p.exp() * (log_p - log_q), w).item()


@given(components, st.floats(0.0, 3.0))
def test_mergers_keep_the_mass_the_mean_and_the_variance_of_the_whole(parts, max_loss):
    old = mixture_of(parts)
    new, number = merge_components(old, max_loss=max_loss)
    for a, b in zip(moments(old), moments(new), strict=True):
        assert a.item() == pytest.approx(b.item(), abs=1e-9)
    assert sorted(set(number)) == list(range(new.num_components))
    for j in range(new.num_components):
        mass = sum(old.mixing[i].item() for i, n in enumerate(number) if n == j)
        assert new.mixing[j].item() == pytest.approx(mass, abs=1e-12)


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_likelihood_lost_is_at_most_what_was_allowed(seed, pinned):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    old = mixture_of(
        [(p.item() + 0.05, 4 * m.item() - 2, s.item() + 0.2) for p, m, s in draw],
        pinned_mean=[pinned, *[False] * 4],
    )
    for max_loss in (0.01, 0.05, 0.2):
        new, _ = merge_components(old, max_loss=max_loss)
        assert -1e-9 <= divergence(old, new) <= max_loss


def test_weighting_the_variances_alone_would_lose_more_than_allowed():
    # The mutant: sigma^2 without the spread between the means.
    old = mixture_of([(0.5, -0.5, 0.3), (0.5, 0.5, 0.3)])
    new, _ = merge_components(old, max_loss=0.8)
    assert new.num_components == 1
    mutant = GaussianMixture(new.mixing, new.mean, torch.tensor([0.3], dtype=torch.float64))
    assert divergence(old, mutant) > 0.8 > divergence(old, new)


def test_exact_duplicates_merge_at_no_cost_and_pins_stay():
    old = GaussianMixture(
        [0.6, 0.1, 0.1, 0.2], [0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.2, 0.2],
        pinned_mean=[True, False, False, False],
    )  # fmt: skip
    new, number = merge_components(old, max_loss=0.0)
    assert number == [0, 0, 1, 1]
    assert new.mixing.tolist() == pytest.approx([0.7, 0.3])
    assert new.pinned_mean.tolist() == [True, False] and new.mean[0] == 0.0


def test_different_pinned_means_never_merge():
    old = GaussianMixture([0.5, 0.5], [0.0, 1e-9], [0.1, 0.1], pinned_mean=[True, True])
    assert merge_components(old, max_loss=math.inf)[1] == [0, 1]
    with pytest.raises(ValueError, match="max_loss must be at least 0"):
        merge_components(old, max_loss=-1.0)
