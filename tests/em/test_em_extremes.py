"""EM on starved, duplicate and exactly-zero components, and on the weights that are hardest."""

import cases
import pytest
import torch
from em_starts import objective
from hypothesis import given
from hypothesis import strategies as st

from swsmix import GaussianMixture, HyperPrior, e_step, initial_mixture, m_step_
from swsmix.em import Moments

NASTY = {
    "exact zeros": torch.zeros(1000),
    "mostly zeros": torch.cat([torch.zeros(990), torch.linspace(-1, 1, 10)]),
    "one far weight": torch.cat([torch.randn(99, generator=torch.Generator().manual_seed(0)) * 1e-3,
                                 torch.tensor([50.0])]),
    "duplicates": torch.tensor([0.5] * 500 + [-0.5] * 500),
}  # fmt: skip


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("k", [1, 3, 16])
def test_em_stays_finite_for_200_steps_at_float32(name, k):
    w = NASTY[name]
    mixture = initial_mixture(w, k, method="spread", zero=k > 1)
    for _ in range(200):
        m_step_(mixture, e_step(mixture, w), HyperPrior())
        for tensor in (mixture.mixing, mixture.mean, mixture.std):
            assert torch.isfinite(tensor).all()
        assert (mixture.std > 0).all() and (mixture.mixing > 0).all()


def test_coinciding_components_stay_finite_and_together():
    w = cases.weights().float()
    mixture = GaussianMixture(torch.full((3,), 1 / 3), torch.zeros(3), torch.ones(3))
    for _ in range(200):
        m_step_(mixture, e_step(mixture, w), HyperPrior())
    assert torch.isfinite(mixture.log_prob(w)).all()
    torch.testing.assert_close(mixture.mean, mixture.mean[:1].expand(3))


def test_textbook_em_collapses_where_the_hyper_prior_does_not():
    # The reason for pseudo-counts: without them a component on exact zeros has no variance.
    w = torch.cat([torch.zeros(500), torch.linspace(1, 2, 50)]).double()
    textbook, ours = (GaussianMixture([0.5, 0.5], [0.0, 1.5], [0.1, 0.3]) for _ in range(2))
    for _ in range(50):
        m_step_(textbook, e_step(textbook, w), None)
        m_step_(ours, e_step(ours, w), HyperPrior(std=0.05))
    assert textbook.std[0] < 1e-9 and ours.std[0] > 1e-3


@given(
    w=st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=40),
    k=st.integers(1, 4),
    count=st.floats(0.1, 10.0),
)
def test_em_never_raises_the_objective_for_any_weights(w, k, count):
    w = torch.tensor(w, dtype=torch.float64)
    hyper = HyperPrior(std=0.5, std_count=count)
    mixture = initial_mixture(w, k)
    for _ in range(3):
        before = objective(mixture, w, hyper)
        m_step_(mixture, e_step(mixture, w), hyper)
        assert objective(mixture, w, hyper) <= before + 1e-7 * (1.0 + abs(before))


def test_a_std_that_its_type_cannot_hold_stays_as_it_was():
    # 1e-60 is a variance of float64, and 0 in float32.
    mixture = GaussianMixture(
        torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.2])
    )
    moments = Moments(
        torch.tensor([0.0, 1.0]).double(),
        torch.tensor([2.0, 2.0]).double(),
        torch.zeros(2).double(),
        torch.tensor([2e-100, 0.5]).double(),
    )
    m_step_(mixture, moments, None)
    assert mixture.std.tolist() == [pytest.approx(0.1), pytest.approx(0.5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["spread", "quantiles", "kmeans"])
def test_the_smallest_and_the_largest_weights_have_a_mixture_and_an_em_step(dtype, method):
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    for values in ([least, least, 0.0, 0.0], [info.max, info.max, -info.max, -info.max]):
        w = torch.tensor(values, dtype=dtype)
        mixture = initial_mixture(w, 2, method=method)
        for hyper in (None, HyperPrior()):
            m_step_(mixture, e_step(mixture, w), hyper)
            for tensor in (mixture.mixing, mixture.mean, mixture.std):
                assert tensor.isfinite().all()
            assert (mixture.std > 0).all()
