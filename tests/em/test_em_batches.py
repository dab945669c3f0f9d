"""Mixtures side by side: every law of one mixture holds for each member, to rounding."""

import pytest
import torch

from swsmix import GaussianMixture, HyperPrior, e_step, m_step_
from swsmix.em import log_hyper_prior
from swsmix.tables import Adaptive, BatchTables, build, direct, neg_log_prior

FLOAT = torch.float64
B, K, N = 5, 4, 60
FIELDS = ("centre", "count", "first", "second")


def draws(seed=0):
    """Members that differ in everything, pins included; one has a dead component."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.rand(B, K, generator=generator, dtype=FLOAT) + 0.1
    mixing[1, 2] = 0.0
    mixing /= mixing.sum(1, keepdim=True)
    mean = 2.0 * torch.rand(B, K, generator=generator, dtype=FLOAT) - 1.0
    std = 0.01 + torch.rand(B, K, generator=generator, dtype=FLOAT).square()
    pins = [torch.rand(B, K, generator=generator) < 0.25 for _ in range(3)]
    pins[0][3] = True  # nothing of its proportions is free
    names = ("pinned_mixing", "pinned_mean", "pinned_std")
    mixture = GaussianMixture(mixing, mean, std, **dict(zip(names, pins, strict=True)))
    return mixture, torch.randn(B, N, generator=generator, dtype=FLOAT)


def members(mixture):
    return [mixture.member(i) for i in range(B)]


def test_stacking_and_taking_out_are_inverse():
    mixture, _ = draws()
    again = GaussianMixture.stacked(members(mixture))
    for name, buffer in mixture.named_buffers():
        assert torch.equal(buffer, getattr(again, name))


@pytest.mark.parametrize("scale", [1.0, 1e5, 1e160])
@pytest.mark.parametrize("function", ["log_joint", "log_prob", "responsibilities"])
def test_densities_and_responsibilities_are_each_members(function, scale):
    mixture, w = draws()
    w = scale * w
    together = getattr(mixture, function)(w)
    for i, one in enumerate(members(mixture)):
        expected = getattr(one, function)(w[i])
        torch.testing.assert_close(together[i], expected, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_the_e_step_is_each_members(scale):
    mixture, w = draws()
    together = e_step(mixture, scale * w)
    for i, one in enumerate(members(mixture)):
        expected = e_step(one, scale * w[i])
        for name in FIELDS:
            found = getattr(together, name)[i]
            torch.testing.assert_close(found, getattr(expected, name), rtol=1e-11, atol=1e-11)


def test_the_e_step_over_posteriors_is_each_members():
    mixture, w = draws()
    variance = 0.01 * w.square()
    together = e_step(mixture, w, variance=variance)
    for i, one in enumerate(members(mixture)):
        expected = e_step(one, w[i], variance=variance[i])
        for name in FIELDS:
            torch.testing.assert_close(getattr(together, name)[i], getattr(expected, name))


@pytest.mark.parametrize(
    "hyper",
    [
        None,
        HyperPrior(),
        HyperPrior(mean=0.1, mean_count=2.0, std=0.05, std_count=3.0, concentration=3.0),
        HyperPrior(std=torch.linspace(0.1, 1.0, B, dtype=FLOAT)[:, None], std_count=2.0),
        HyperPrior(mean=torch.linspace(-1, 1, B * K, dtype=FLOAT).view(B, K), mean_count=1.0),
    ],
)
def test_the_m_step_and_the_hyper_priors_density_are_each_members(hyper):
    mixture, w = draws()
    before = members(mixture)
    moments = e_step(mixture, w)
    if hyper is not None:
        density = log_hyper_prior(mixture, hyper)
    m_step_(mixture, moments, hyper)
    for i, one in enumerate(before):
        own = hyper
        if hyper is not None:
            values = {n: getattr(hyper, n) for n in ("std", "std_count", "mean", "mean_count")}
            own = HyperPrior(
                concentration=hyper.concentration,
                **{n: v[i] if isinstance(v, torch.Tensor) and len(v[i]) == K else
                   (v[i, 0] if isinstance(v, torch.Tensor) else v) for n, v in values.items()},
            )  # fmt: skip
            torch.testing.assert_close(density[i], log_hyper_prior(one, own))
        m_step_(one, e_step(one, w[i]), own)
        for name in ("mixing", "mean", "std"):
            torch.testing.assert_close(getattr(mixture, name)[i], getattr(one, name))


def test_an_em_step_never_raises_any_members_objective():
    mixture, w = draws()
    hyper = HyperPrior(std=0.05)

    def objective():
        return -mixture.log_prob(w).sum(1) - log_hyper_prior(mixture, hyper)

    for _ in range(30):
        before = objective()
        m_step_(mixture, e_step(mixture, w), hyper)
        assert (objective() <= before + 1e-9 * before.abs()).all()


def test_the_penalty_and_all_its_gradients_are_each_members():
    mixture, w = draws()
    upstream = torch.linspace(0.5, 2.0, B, dtype=FLOAT)

    def derivatives(w, mixing, mean, std, weight):
        leaves = [t.clone().requires_grad_() for t in (w, mixing, mean, std)]
        value = neg_log_prior(*leaves)
        return value.detach(), torch.autograd.grad((weight * value).sum(), leaves)

    values = (mixture.mixing, mixture.mean, mixture.std)
    value, slopes = derivatives(w, *values, upstream)
    for i in range(B):
        own_value, own = derivatives(w[i], *(v[i] for v in values), upstream[i])
        torch.testing.assert_close(value[i], own_value)
        for slope, expected in zip(slopes, own, strict=True):
            torch.testing.assert_close(slope[i], expected)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_proximal_step_is_each_members(adaptive):
    mixture, w = draws()
    at, scale = w + 0.01, torch.linspace(0.01, 1.0, B, dtype=FLOAT)
    second = w.square()
    together = BatchTables(mixture.mixing, mixture.mean, mixture.std)
    moved = w.clone()
    together.proximal_(moved, at, Adaptive(second, 0.1, 1e-8) if adaptive else 0.1, scale)
    for i, one in enumerate(members(mixture)):
        own, table = w[i].clone(), direct(one.mixing, one.mean, one.std)
        step = Adaptive(second[i], 0.1, 1e-8) if adaptive else 0.1
        table.proximal_(own, at[i], step, scale[i].item())
        torch.testing.assert_close(moved[i], own)


def test_rows_are_the_tables_of_some_members():
    mixture, w = draws()
    whole = BatchTables(mixture.mixing, mixture.mean, mixture.std)
    rows = torch.tensor([3, 0])
    for some, all_ in zip(whole.rows(rows).full(w[rows])[:2], whole.full(w)[:2], strict=True):
        assert torch.equal(some, all_[rows])


def test_a_trainable_batch_is_each_members_and_keeps_its_pins_to_the_bit():
    mixture, _ = draws()
    mixture.pinned_mixing[3] = False
    before = members(mixture)
    pinned = {n: getattr(mixture, n).clone() for n in ("mixing", "mean", "std")}
    mixture.trainable_()
    for i, one in enumerate(before):
        one.trainable_()
        for name in pinned:
            torch.testing.assert_close(getattr(mixture, name)[i], getattr(one, name))
            mask = getattr(mixture, f"pinned_{name}")
            assert torch.equal(getattr(mixture, name)[mask], pinned[name][mask])


def test_each_member_is_sampled_from_its_own_mixture():
    half = torch.full((2, 2), 0.5, dtype=FLOAT)
    mean = torch.tensor([[-1.0, 1.0], [10.0, 12.0]], dtype=FLOAT)
    mixture = GaussianMixture(half, mean, 0.2 * half)
    drawn = mixture.sample(2000, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 2000)
    torch.testing.assert_close(
        drawn.mean(1), torch.tensor([0.0, 11.0], dtype=FLOAT), atol=0.1, rtol=0
    )


@pytest.mark.parametrize(
    "fault",
    [
        lambda m, w: e_step(m, w[:2]),
        lambda m, w: e_step(m, w[0]),
        lambda m, w: m.log_prob(w[:3]),
        lambda m, w: build(m.mixing, m.mean, m.std).gradient(w),
        lambda m, w: HyperPrior(std=torch.ones(3)).expanded(m),
        lambda m, w: GaussianMixture.stacked([m.member(0), GaussianMixture([1.0], [0.0], [1.0])]),
        lambda m, w: e_step(m, w * torch.nan),
    ],
)
def test_what_does_not_fit_is_refused(fault):
    with pytest.raises(ValueError, match=r"need|finite|K components|one value"):
        fault(*draws())
